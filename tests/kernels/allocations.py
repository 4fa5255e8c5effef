"""What operations allocate, call by call."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestAllocation(TorchDispatchMode):
    """While active, the most bytes that one operation took for a result which is no view of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for result in tree_leaves(out):
            if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in known:
                self.nbytes = max(self.nbytes, result.untyped_storage().nbytes())
        return out

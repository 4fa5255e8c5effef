"""Keeps a model's routed experts in use while it is trained, without a loss for it, as DeepSeek-V3 does.

Without it the experts that happen to be chosen early learn, are chosen more, and after a few hundred steps some are
never chosen again, though a fresh router spreads tokens evenly. Against it a bias is added to every expert's score, in
the choice and not in the weight. After each step it moves by a fixed amount against the load (Wang et al. 2024,
arXiv:2408.15664; DeepSeek-V3, arXiv:2412.19437, section 2.1.2). DeepSeek-V3's second means, a small loss for every
sequence, is left out: on these short records it made all experts score alike.

The bias is a statistic of a batch, so it moves in pretraining on public data alone: adapters are trained with it
frozen.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def balanced(model: nn.Module, is_token_RL: Tensor, step: float) -> Iterator[None]:
    """Runs one batch, of training or not, and then moves the bias of every expert by `step` against its load in it.

    An expert that was sent fewer tokens than the mean expert of its layer is raised, one that was sent more is lowered.
    A model without routers, or without a balance bias in them, is left alone.

    Args:
        is_token_RL: bool, rows by length of a row, false where a row is padded: padding is no load.
        step: 0 moves nothing.
    """
    routers: list[Any] = [module for module in model.modules() if hasattr(module, "e_score_correction_bias")]
    loads = [torch.zeros_like(router.e_score_correction_bias) for router in routers]

    def watch(router: Any, load_E: Tensor) -> Any:
        def count(_: nn.Module, __: object, routed: tuple[Tensor, Tensor, Tensor]) -> None:
            ids_TK = routed[2][is_token_RL.flatten()]
            load_E.add_(torch.bincount(ids_TK.flatten(), minlength=len(load_E)))

        return router.register_forward_hook(count)

    handles = [watch(router, load) for router, load in zip(routers, loads, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        for router, load_E in zip(routers, loads, strict=True):
            router.e_score_correction_bias += step * torch.sign(load_E.mean() - load_E)

"""Shards a model's frozen weights over a site's workers, as ZeRO-3 does (Rajbhandari et al. 2020, arXiv:1910.02054).

Each worker keeps an equal part of every matrix; all of them gather one block at a time, forward and backward. A block
is an entry of one of the model's outermost lists of modules (a decoder layer), or a module beside these.

DeepSpeed partitions and gathers. This module decides when: adapters multiply by the weights of modules that are never
called, which DeepSpeed's own hooks would miss. Workers exchange frozen weights and nothing else, in an order that
depends on the model and the number of passes alone. Every worker keeps trained parameters, buffers and vectors (norms)
whole.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.autograd.variable import Variable

from ...kernels.linear import WHOLE, packed_stacks
from ...models.adapters import AdaptedModel

_SILENCE = timedelta(minutes=30)  # until a worker that is alive must come to a gathering; one that ends fails it


def join(worker_id: int, num_workers: int, meeting: Path) -> torch.device:
    """Joins the other workers through a file that all of them name; returns this worker's device.

    Each worker gets a GPU of its own if there are enough, else the CPU. Links are bound to the loopback interface.
    """
    is_on_gpu = deepspeed.get_accelerator().device_name() == "cuda"
    os.environ |= {"LOCAL_RANK": str(worker_id), "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")  # of a name DeepSpeed calls
    if is_on_gpu:
        torch.cuda.set_device(worker_id)
    # An exchange for CPUs that is compiled at the first use: without a compiler and ninja, DeepSpeed would end here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        "nccl" if is_on_gpu else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=_SILENCE,
        init_method=meeting.as_uri(),
        rank=worker_id,
        world_size=num_workers,
    )
    return torch.device("cuda", worker_id) if is_on_gpu else torch.device("cpu")


class ShardedWeights:
    """The sharded frozen matrices of an adapted model; at most one block is whole at a time.

    Every worker must run the same passes in the same order: at each gathering a worker waits until the others come or
    end.
    """

    def __init__(self, adapted: AdaptedModel, device: torch.device, *, offload: bool) -> None:
        """Moves `adapted` to `device`; of its frozen matrices this worker keeps only its own parts.

        Args:
            adapted: equal at all workers; its matrices become those of worker 0.
            offload: parts wait in the computer's memory, not in the device's.
        """
        matrices = {block: _frozen_matrices(block) for block in _blocks(adapted.model)}
        sharded = dict.fromkeys(matrix for own in matrices.values() for matrix in own)
        self.matrices: tuple[Any, ...] = tuple(sharded)  # DeepSpeed adds attributes of its own
        self._whole: tuple[list[nn.Parameter], Any] | None = None
        self._held: list[nn.Parameter] | None = None  # matrices that stay whole through several calls
        for parameter in adapted.parameters():
            if parameter not in sharded:
                parameter.data = parameter.data.to(device)
        for module in adapted.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
        if sharded:
            deepspeed.zero.Init(
                module=nn.ParameterList(sharded),
                remote_device="cpu" if offload else None,
                pin_memory=offload and device.type == "cuda",
                mem_efficient_linear=False,  # it would replace torch's linear map in all of this process
            )
        for block, own in matrices.items():
            if own:
                self._wrap(block, own)

    @property
    def total_bytes(self) -> int:
        """Bytes of all sharded matrices."""
        return sum(matrix.ds_numel * matrix.element_size() for matrix in self.matrices)

    @property
    def own_bytes(self) -> int:
        """Bytes of this worker's parts, with the padding of a matrix's last part."""
        return sum(matrix.ds_tensor.nbytes for matrix in self.matrices)

    def _wrap(self, block: nn.Module, own: list[nn.Parameter]) -> None:
        inner: Callable[..., Any] = block.forward

        def gather_for_backward(_: Tensor) -> None:
            self._make_whole(own)
            # At the end of this backward pass, where no later block comes to part these.
            Variable._execution_engine.queue_callback(self._part)

        def forward(*args: Any, **kwargs: Any) -> Any:
            self._make_whole(own)
            try:
                with saved_tensors_hooks(lambda saved: _packed(saved, own), _unpacked):
                    output = inner(*args, **kwargs)
            finally:
                if self._held is not own:
                    self._part()
            for tensor in output if isinstance(output, tuple) else (output,):
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(gather_for_backward)  # type: ignore[no-untyped-call]
            return output

        @contextmanager
        def whole() -> Iterator[None]:
            self._make_whole(own)
            self._held = own
            try:
                yield
            finally:
                self._held = None
                self._part()

        block.forward = forward
        setattr(block, WHOLE, whole)

    def _make_whole(self, own: list[nn.Parameter]) -> None:
        if self._whole is None or self._whole[0] is not own:
            self._part()
            gathered = deepspeed.zero.GatheredParameters(own)
            gathered.__enter__()
            self._whole = own, gathered

    def _part(self) -> None:
        if self._whole is not None:
            (_, gathered), self._whole = self._whole, None
            gathered.__exit__(None, None, None)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        elif any(isinstance(inner, nn.ModuleList) for inner in child.modules()):
            yield from _blocks(child)
        else:
            yield child


def _frozen_matrices(block: nn.Module) -> list[nn.Parameter]:
    frozen = [parameter for parameter in block.parameters() if not parameter.requires_grad and parameter.ndim > 1]
    return frozen + list(_quantised(block))


def _quantised(block: nn.Module) -> Iterator[nn.Parameter]:
    """Wraps the tensors of packed weights, which belong to no module, as parameters: DeepSpeed shards only those."""
    for module in block.modules():
        for weights in packed_stacks(module):
            for each in fields(weights):  # type: ignore[arg-type]  # every format is a dataclass
                if isinstance(value := getattr(weights, each.name), Tensor):
                    if value.dtype == torch.float8_e4m3fn:  # gloo carries none; the format reads the bytes alone
                        value = value.view(torch.uint8)
                    parameter = nn.Parameter(value, requires_grad=False)
                    object.__setattr__(weights, each.name, parameter)
                    yield parameter


def _packed(saved: Tensor, own: list[nn.Parameter]) -> Any:
    """Packs a view of a gathered matrix as its place in the matrix: a saved view would keep the whole matrix alive."""
    address = saved.untyped_storage().data_ptr() if saved.numel() else 0
    for matrix in own if address else ():
        start = saved.storage_offset() - matrix.storage_offset()
        is_inside = matrix.untyped_storage().data_ptr() == address and 0 <= start < matrix.numel()
        if is_inside and matrix.dtype == saved.dtype:
            return matrix, saved.shape, saved.stride(), start
    return saved


def _unpacked(packed: Any) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    matrix, shape, stride, start = packed
    assert matrix.numel(), "backward came to a block whose weights were not gathered"
    view: Tensor = matrix.detach().as_strided(shape, stride, matrix.storage_offset() + start)
    return view

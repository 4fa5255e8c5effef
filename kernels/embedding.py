"""A lookup table whose trainable part can hand its gradient over unit by unit.

Legend: `T` tokens (all axes of the ids flattened), `V` words, `D` model, `R` rank of the adapter.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from .collect import Collector
from .experts import apply_gates, gates_by_token


def lora_embedding(
    ids: Tensor,
    weight_VD: Tensor,
    lora_A_RV: nn.Parameter,
    lora_B_DR: nn.Parameter,
    lora_scaling: float,
    collector: Collector | None = None,
    *,
    gates_TR: Tensor | None = None,
) -> Tensor:
    """[*ids, D]: rows `ids` of W + lora_scaling (B A)^T, with W frozen; the product is never built.

    With a collector, the gradients of A and B go to it and the factors' `.grad` is left alone.

    Args:
        ids: int64 in [0, V), row-major over (row, token) if a collector is given.
        gates_TR: [*ids, R] or [T, R], of any dtype: the columns of A that were looked up are multiplied by them, as
            x A^T is in `lora_linear`. For inference.

    Raises:
        CaptureClosed, CapturedTwice, TokensMiscounted: from backward, see `collect`.
        GatesUntrained, UnfitWeights, TokensMiscounted: from forward, see `gates_by_token`.
    """
    gates = gates_TR
    if gates is not None:
        gates = gates_by_token(gates, ids.shape, lora_A_RV.shape[0], collector, lora_A_RV, lora_B_DR)
    if collector is not None:
        collector.announce(lora_A_RV, lora_B_DR)
    out = _LoRAEmbedding.apply(ids, weight_VD, lora_A_RV, lora_B_DR, lora_scaling, collector, gates)  # type: ignore[no-untyped-call]
    return cast(Tensor, out)


class _LoRAEmbedding(Function):
    @staticmethod
    def forward(
        ctx: Any,
        ids: Tensor,
        weight: Tensor,
        lora_A: nn.Parameter,
        lora_B: nn.Parameter,
        scaling: float,
        collector: Collector | None,
        gates: Tensor | None,
    ) -> Tensor:
        flat = ids.reshape(-1)
        y = F.embedding(flat, weight)  # first: unlike index_select, it refuses an id out of range without showing it
        z = lora_A.to(weight.dtype).index_select(1, flat).T
        if gates is not None:
            apply_gates(z, gates)
        y.addmm_(z, lora_B.T.to(weight.dtype), alpha=scaling)
        ctx.save_for_backward(flat, z, lora_A, lora_B)
        # Under checkpointing saved tensors come back as other objects than the Parameters, so these name the capture.
        ctx.parameters = lora_A, lora_B
        ctx.scaling, ctx.collector = scaling, collector
        return y.view(*ids.shape, weight.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        flat, z, lora_A, lora_B = ctx.saved_tensors
        _, _, needs_A, needs_B, *_ = ctx.needs_input_grad
        g = grad.reshape(-1, grad.shape[-1])
        collector: Collector | None = ctx.collector
        grad_A = grad_B = None
        if needs_A:
            h = (g @ lora_B.to(g.dtype)).mul_(ctx.scaling)
            if collector is not None:
                collector.capture_lookups(ctx.parameters[0], h, flat)
            else:
                grad_A = torch.zeros_like(lora_A).index_add_(1, flat, h.T.to(lora_A.dtype))
        if needs_B:
            z = z * ctx.scaling
            if collector is not None:
                collector.capture_tokens(ctx.parameters[1], z, g, transposed=True)
            else:
                grad_B = (z.T @ g).T.to(lora_B.dtype)
        return None, None, grad_A, grad_B, None, None, None

"""Linear maps whose trainable part can hand its gradient over unit by unit.

Legend: `T` tokens (all leading axes flattened), `I` inputs, `O` outputs, `R` rank of the adapter, `B` rows of a batch.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from .collect import Collector
from .experts import apply_gates, gates_by_token
from .linear import PackedMatrix


def lora_linear(
    x: Tensor,
    weight_OI: Tensor | PackedMatrix,
    bias_O: Tensor | None,
    lora_A_RI: nn.Parameter,
    lora_B_OR: nn.Parameter,
    lora_scaling: float,
    collector: Collector | None = None,
    *,
    gates_TR: Tensor | None = None,
    tokens_per_row: int | None = None,
) -> Tensor:
    """x W^T + bias + lora_scaling (x A^T) B^T, with W and bias frozen, W packed or not; W + BA is never built.

    With a collector, the gradients of A and B go to it and the factors' `.grad` is left alone. It is given at forward
    and must still be open at backward.

    Args:
        x: [..., I], converted to the dtype of the weight, also under autocast; row-major over (row, token) if a
            collector is given.
        gates_TR: [..., R] with the leading axes of x, or [T, R], of any dtype: x A^T is multiplied by them, so that
            adapters stacked along the rank can be switched off token by token. For inference.
        tokens_per_row: of x, for a collector, see `Collector.capture_tokens`; None: as many as a row has.

    Raises:
        CaptureClosed, CapturedTwice, TokensMiscounted: from backward, see `collect`.
        GatesUntrained, UnfitWeights, TokensMiscounted: from forward, see `gates_by_token`.
    """
    gates = gates_TR
    if gates is not None:
        gates = gates_by_token(gates, x.shape[:-1], lora_A_RI.shape[0], collector, x, lora_A_RI, lora_B_OR)
    if collector is not None:
        collector.announce(lora_A_RI, lora_B_OR)
    weights = weight_OI, bias_O, lora_A_RI, lora_B_OR
    given = x.to(weight_OI.dtype), *weights, lora_scaling, collector, gates, tokens_per_row
    if not torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type):
        # For one token, entering autograd and leaving autocast takes as long as the adapter.
        return _LoRALinear.forward(_Forgetful(), *given)
    with torch.autocast(x.device.type, enabled=False):
        out = _LoRALinear.apply(*given)  # type: ignore[no-untyped-call]
    return cast(Tensor, out)


def vector_head(x_BI: Tensor, weight_I: nn.Parameter, collector: Collector | None = None) -> Tensor:
    """[B]: <x, weight> for each row, with the weight's gradient handed to the collector if there is one."""
    if collector is not None:
        collector.announce(weight_I)
    return cast(Tensor, _VectorHead.apply(x_BI, weight_I, collector))  # type: ignore[no-untyped-call]


def matrix_head(x_BI: Tensor, weight_KI: nn.Parameter, collector: Collector | None = None) -> Tensor:
    """[B, K]: <x, row of weight> for each row of both, with the weight's gradient handed over as in `vector_head`."""
    if collector is not None:
        collector.announce(weight_KI)
    return cast(Tensor, _MatrixHead.apply(x_BI, weight_KI, collector))  # type: ignore[no-untyped-call]


class _Forgetful:
    """Stands for the context of a forward pass that no backward follows."""

    needs_input_grad = (False,) * 9

    def save_for_backward(self, *_: Tensor | None) -> None:
        """Keeps nothing."""


class _LoRALinear(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | PackedMatrix,
        bias: Tensor | None,
        lora_A: nn.Parameter,
        lora_B: nn.Parameter,
        scaling: float,
        collector: Collector | None,
        gates: Tensor | None,
        tokens_per_row: int | None,
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        z = flat @ lora_A.T.to(flat.dtype)
        if gates is not None:
            apply_gates(z, gates)
        if isinstance(weight, PackedMatrix):
            y, packed, dense = weight.linear(flat, bias), weight, None
        else:
            y, packed, dense = F.linear(flat, weight, bias), None, weight
        y.addmm_(z, lora_B.T.to(flat.dtype), alpha=scaling)
        kept = flat if ctx.needs_input_grad[3] else None
        ctx.save_for_backward(kept, z, dense, lora_A, lora_B)
        ctx.packed = packed
        # Under checkpointing saved tensors come back as other objects than the Parameters, so these name the capture.
        ctx.parameters = lora_A, lora_B
        ctx.scaling, ctx.collector, ctx.shape, ctx.tokens_per_row = scaling, collector, x.shape, tokens_per_row
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        flat, z, weight, lora_A, lora_B = ctx.saved_tensors
        needs_x, _, _, needs_A, needs_B, *_ = ctx.needs_input_grad
        g = grad.reshape(-1, grad.shape[-1])
        h = (g @ lora_B.to(g.dtype)).mul_(ctx.scaling) if needs_x or needs_A else None
        grad_x = grad_A = grad_B = None
        if needs_x:
            assert h is not None
            by_base = g @ weight if ctx.packed is None else ctx.packed.linear_back(g)
            grad_x = by_base.addmm_(h, lora_A.to(g.dtype)).view(ctx.shape)
        collector: Collector | None = ctx.collector
        per_row: int | None = ctx.tokens_per_row
        if needs_A:
            assert h is not None
            if collector is not None:
                collector.capture_tokens(ctx.parameters[0], h, flat, transposed=False, tokens_per_row=per_row)
            else:
                grad_A = (h.T @ flat).to(lora_A.dtype)
        if needs_B:
            z = z * ctx.scaling
            if collector is not None:
                collector.capture_tokens(ctx.parameters[1], z, g, transposed=True, tokens_per_row=per_row)
            else:
                grad_B = (z.T @ g).T.to(lora_B.dtype)  # five times as fast as g.T @ z
        return grad_x, None, None, grad_A, grad_B, None, None, None, None


class _VectorHead(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: nn.Parameter, collector: Collector | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.parameter, ctx.collector = weight, collector
        # Not a product of matrix and vector, which libraries add up in another order for 5 rows than for 20. That is
        # seldom seen through a sigmoid, and so by no probe, and would let units move each other's gradients.
        return (x * weight.to(x.dtype)).sum(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = torch.outer(grad, weight.to(grad.dtype)) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            collector: Collector | None = ctx.collector
            if collector is not None:
                collector.capture_rows(ctx.parameter, grad[:, None], x, transposed=False)
            else:
                grad_weight = torch.mv(x.T, grad).to(weight.dtype)
        return grad_x, grad_weight, None


class _MatrixHead(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: nn.Parameter, collector: Collector | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.parameter, ctx.collector = weight, collector
        # Output by output, as in `_VectorHead` and for its reason; there are few.
        return torch.stack([(x * row).sum(1) for row in weight.to(x.dtype)], dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.zeros_like(x)
            for column, row in zip(grad.unbind(1), weight.to(grad.dtype), strict=True):
                grad_x += torch.outer(column, row)
        if ctx.needs_input_grad[1]:
            collector: Collector | None = ctx.collector
            if collector is not None:
                collector.capture_rows(ctx.parameter, grad, x, transposed=False)
            else:
                grad_weight = (grad.T @ x).to(weight.dtype)
        return grad_x, grad_weight, None

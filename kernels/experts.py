"""A bank of routed SwiGLU experts with LoRA on both projections, forward and backward in one pass over the experts.

One loop, so that an expert's rows stay in cache from gather to down projection. Only the gate/up activations and the
rank-wide products are kept for backward; the gathered inputs, the SwiGLU product and the outputs are recomputed or not
needed.

Legend: `T` tokens, `D` model, `F` expert hidden (gate_up is [E, 2F, D], gate rows first), `E` experts, `K` top-k,
`S` = T*K sorted pairs, `R` rank.
"""

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from .collect import Collector
from .routing import Plan


class ExpertFactors(NamedTuple):
    """The low-rank factors of a bank; each may be frozen or trained."""

    gate_up_A_ERD: nn.Parameter
    gate_up_B_EGR: nn.Parameter  # G = 2F
    down_A_ERF: nn.Parameter
    down_B_EDR: nn.Parameter


def lora_experts(
    hidden_TD: Tensor,
    plan: Plan,
    topk_weights_TK: Tensor,
    gate_up_EGD: Tensor,
    down_EDF: Tensor,
    factors: ExpertFactors,
    lora_scaling: float,
    collector: Collector | None = None,
) -> Tensor:
    """[T, D]: for each token, the sum over its experts of weight * down(silu(gate) * up), both projections adapted.

    Base weights are frozen. The k outputs of a token are added in a fixed order: no atomics, bitwise repeatable. With a
    collector, gradients of the factors go to it and `plan` must know the owners of the tokens.

    Raises:
        CaptureClosed, CapturedTwice: from backward, see `collect`.
    """
    out = _LoRAExperts.apply(  # type: ignore[no-untyped-call]
        hidden_TD, topk_weights_TK, *factors, gate_up_EGD, down_EDF, lora_scaling, plan, collector
    )
    return cast(Tensor, out)


class _LoRAExperts(Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        topk_weights: Tensor,
        gate_up_A: nn.Parameter,
        gate_up_B: nn.Parameter,
        down_A: nn.Parameter,
        down_B: nn.Parameter,
        gate_up: Tensor,
        down: Tensor,
        scaling: float,
        plan: Plan,
        collector: Collector | None,
    ) -> Tensor:
        A1, B1, A2, B2 = (factor.to(hidden.dtype) for factor in (gate_up_A, gate_up_B, down_A, down_B))
        pairs, width = plan.token_S.numel(), down.shape[2]
        gu = hidden.new_empty(pairs, 2 * width)
        z1, z2 = hidden.new_empty(pairs, A1.shape[1]), hidden.new_empty(pairs, A2.shape[1])
        y = hidden.new_empty(pairs, hidden.shape[1])
        for e, s in plan.slices:
            x = hidden.index_select(0, plan.token_S[s])
            torch.mm(x, A1[e].T, out=z1[s])
            torch.mm(x, gate_up[e].T, out=gu[s]).addmm_(z1[s], B1[e].T, alpha=scaling)
            inner = F.silu(gu[s, :width]).mul_(gu[s, width:])
            torch.mm(inner, A2[e].T, out=z2[s])
            torch.mm(inner, down[e].T, out=y[s]).addmm_(z2[s], B2[e].T, alpha=scaling)
        ctx.save_for_backward(hidden, topk_weights, gate_up_A, gate_up_B, down_A, down_B, gate_up, down, gu, z1, z2)
        # Under checkpointing saved tensors come back as other objects than the Parameters, so these name the capture.
        ctx.parameters = gate_up_A, gate_up_B, down_A, down_B
        ctx.scaling, ctx.plan, ctx.collector = scaling, plan, collector
        return _combine(y, plan, topk_weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, topk_weights, gate_up_A, gate_up_B, down_A, down_B, gate_up, down, gu, z1, z2 = ctx.saved_tensors
        A1, B1, A2, B2 = (factor.to(hidden.dtype) for factor in (gate_up_A, gate_up_B, down_A, down_B))
        plan: Plan = ctx.plan
        scaling, width = ctx.scaling, down.shape[2]
        needs_x, needs_w, needs_A1, _, needs_A2, *_ = ctx.needs_input_grad
        weight = topk_weights.reshape(-1)[plan.pair_S].to(hidden.dtype).unsqueeze(1)
        dy = grad.index_select(0, plan.token_S)
        d_gu, dz1, dz2 = torch.empty_like(gu), torch.empty_like(z1), torch.empty_like(z2)
        dx = torch.empty_like(dy) if needs_x else None
        d_weight = weight.new_empty(len(weight)) if needs_w else None
        inner = gu.new_empty(len(gu), width) if needs_A2 else None
        for e, s in plan.slices:
            gate, up = gu[s, :width], gu[s, width:]
            silu = F.silu(gate)
            product = silu * up
            if inner is not None:
                inner[s] = product
            torch.mm(dy[s], B2[e], out=dz2[s]).mul_(scaling)
            d_inner = torch.mm(dy[s], down[e]).addmm_(dz2[s], A2[e])
            if d_weight is not None:  # <dy, y> = <dy (W + sBA), inner>, so y need not be kept
                torch.sum(d_inner * product, 1, out=d_weight[s])
            d_inner.mul_(weight[s])
            torch.mul(d_inner, silu, out=d_gu[s, width:])
            d_gu[s, :width] = torch.ops.aten.silu_backward(d_inner.mul_(up), gate)
            torch.mm(d_gu[s], B1[e], out=dz1[s]).mul_(scaling)
            if dx is not None:
                torch.mm(d_gu[s], gate_up[e], out=dx[s]).addmm_(dz1[s], A1[e])
        # Both sides of an outer product may carry the routing weight; the rank-wide one is the cheaper.
        pairs = (
            (dz1, hidden.index_select(0, plan.token_S) if needs_A1 else None, False),
            (z1 * scaling, d_gu, True),
            (dz2 * weight, inner, False),
            (z2 * (weight * scaling), dy, True),
        )
        grads = [
            _hand_over(ctx, number, left, right, transposed) if ctx.needs_input_grad[2 + number] else None
            for number, (left, right, transposed) in enumerate(pairs)
        ]
        grad_hidden = None if dx is None else _combine(dx, plan, None)
        grad_weights = None
        if d_weight is not None:
            grad_weights = d_weight[plan.slot_TK].to(topk_weights.dtype)
        return grad_hidden, grad_weights, *grads, None, None, None, None, None


def _hand_over(ctx: Any, number: int, left_SP: Tensor, right_SQ: Tensor | None, transposed: bool) -> Tensor | None:
    """Gives one factor's gradient to the collector, or returns it when there is none."""
    parameter: nn.Parameter = ctx.parameters[number]
    plan: Plan = ctx.plan
    collector: Collector | None = ctx.collector
    assert right_SQ is not None
    if collector is not None:
        assert plan.runs is not None
        collector.capture_runs(parameter, left_SP, right_SQ, plan.runs, plan.num_experts, transposed=transposed)
        return None
    total_EPQ = left_SP.new_zeros(len(parameter), left_SP.shape[1], right_SQ.shape[1])
    for e, s in plan.slices:
        torch.mm(left_SP[s].T, right_SQ[s], out=total_EPQ[e])
    return (total_EPQ.mT if transposed else total_EPQ).to(parameter.dtype)


def _combine(rows_SD: Tensor, plan: Plan, weights_TK: Tensor | None) -> Tensor:
    """[T, D]: adds up the K sorted rows of each token, weighted if weights are given."""
    if rows_SD.shape[0] == 0:
        return rows_SD.new_zeros(plan.slot_TK.shape[0], rows_SD.shape[1])
    weights = None if weights_TK is None else weights_TK.to(rows_SD.dtype)
    return F.embedding_bag(plan.slot_TK, rows_SD, mode="sum", per_sample_weights=weights)

"""Routed experts with LoRA as torch's matrix products, one expert after another, with a hand-written backward.

Experts are worked off in chunks, so that what an expert leaves is still in cache when it is needed, and experts with
few pairs share the elementwise calls. Only the gate/up activations and the rank-wide products
are kept for backward; the gathered inputs, the SwiGLU product and the outputs are recomputed or not needed.

With a collector the rows of a batch belong to privacy units, and no unit may move the rounding of another's. Then each
expert's pairs are filled up to whole tiles and multiplied tile by tile (`products`), and functions that torch rounds
otherwise at the end of a thread's part than inside are called on so few numbers that one thread takes them all.

Legend: `T` tokens, `D` model, `F` expert hidden, `G` = 2F, `E` experts, `K` top-k, `S` sorted pairs, `C` pairs of a
chunk, `P`, `Q` the widths of a gradient.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from .collect import Collector, RunCapture
from .experts import Experts, LoRA, apply_gates
from .formats import trained_stack
from .products import TILE, add_product, product
from .routing import Plan

# KiB of gate/up activations, at most: of an expert that shares a chunk with others, and of a chunk. More leaves the
# cache, less costs calls.
_FEW, _CHUNK = 256, 2048
_ONE_THREAD = 2**15 - 1  # numbers that torch never divides among threads


def cpu_moe(
    x_TD: Tensor,
    plan: Plan,
    topk_weights_TK: Tensor,
    experts: Experts,
    lora: LoRA | None,
    collector: Collector | None,
) -> Tensor:
    """[T, D]; see `moe.moe`."""
    if collector is not None:
        plan = plan.tiled(TILE)
    factors = (None,) * 4 if lora is None else lora.factors
    stacks = trained_stack(experts.gate_up), trained_stack(experts.down)
    rest = experts, lora, plan, collector, torch.is_grad_enabled()  # inside a Function it never is
    out = _MoE.apply(x_TD, topk_weights_TK, *stacks, *factors, *rest)  # type: ignore[no-untyped-call]
    return cast(Tensor, out)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Consecutive experts and their sorted pairs."""

    experts: list[int]
    sizes: list[int]  # pairs of each
    pairs: slice
    runs: slice  # (expert, unit) runs of these pairs, if the plan knows any
    is_tiled: bool

    def each(self, *tensors_C: Any) -> Iterator[tuple[Any, ...]]:
        """(expert, its rows of each tensor, or tiles of rows), one expert after another."""
        parts = [torch.split(tensor, self.sizes) for tensor in tensors_C]
        if self.is_tiled:
            parts = [tuple(rows.view(-1, TILE, rows.shape[1]) for rows in part) for part in parts]
        return zip(self.experts, *parts, strict=True)


class _MoE(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, topk_weights: Tensor, gate_up: Tensor | None, down: Tensor | None, *rest: Any
    ) -> Tensor:
        *factors, experts, lora, plan, collector, is_grad_enabled = rest
        A1, B1, A2, B2 = (None if factor is None else factor.to(x.dtype) for factor in factors)
        z1, z2 = (None if A is None else x.new_empty(plan.num_pairs, A.shape[1]) for A in (A1, A2))
        gates = None if lora is None else lora.gates_TR
        chunks = _chunks(plan, 2 * experts.hidden * x.itemsize, is_tiled=collector is not None)
        keeps = is_grad_enabled and any(ctx.needs_input_grad)
        gu = []  # by chunk: 32 MiB and more would come as fresh pages from the system, ten times as slow to fill
        y = _rows(x, plan)
        for chunk in chunks:
            s = chunk.pairs
            x_C, y_C = x.index_select(0, plan.token_S[s]), y[s]
            gates_C = None if gates is None else gates.index_select(0, plan.token_S[s])
            gu_C = x.new_empty(len(x_C), 2 * experts.hidden)
            if keeps:
                gu.append(gu_C)
            for e, x_e, gu_e in chunk.each(x_C, gu_C):
                experts.gate_up.mm(e, x_e, gu_e)
            if z1 is not None:
                _add_low_rank(chunk, x_C, A1, B1, lora.scaling, z1[s], gu_C, gates_C)
            gate, up = gu_C.chunk(2, dim=1)
            inner = _silu(gate, chunk).mul_(up)
            for e, inner_e, y_e in chunk.each(inner, y_C):
                experts.down.mm(e, inner_e, y_e)
            if z2 is not None:
                _add_low_rank(chunk, inner, A2, B2, lora.scaling, z2[s], y_C, gates_C)
        ctx.save_for_backward(x, topk_weights, gate_up, down, A1, B1, A2, B2, z1, z2, *gu)
        ctx.rest = experts, lora, plan, collector, chunks
        return _combine(y, plan, topk_weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad.device.type, enabled=False):  # as forward, which `moe` calls so
            return _gradients(ctx, grad)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, topk_weights, gate_up, down, A1, B1, A2, B2, z1, z2, *gu = ctx.saved_tensors
    experts, lora, plan, _, chunks = ctx.rest
    needs_x, needs_w, needs_gate_up, needs_down, *_ = ctx.needs_input_grad
    scaling = 0.0 if lora is None else lora.scaling
    precise = torch.promote_types(x.dtype, torch.float32)
    weight_S = topk_weights.flatten()[plan.pair_S].to(x.dtype).unsqueeze(1)
    dx = _rows(x, plan) if needs_x else None
    d_weight = x.new_zeros(plan.num_pairs + 1, dtype=precise) if needs_w else None
    d_gate_up, d_down = (
        torch.zeros_like(stack) if needed else None for stack, needed in ((gate_up, needs_gate_up), (down, needs_down))
    )
    to_A1, to_B1, to_A2, to_B2 = (
        _Destination.of(number, ctx, x.dtype, transposed=number % 2 == 1) for number in range(4)
    )
    for chunk, gu_C in zip(chunks, gu, strict=True):
        s = chunk.pairs
        token, weight = plan.token_S[s], weight_S[s]
        gate, up = gu_C.chunk(2, dim=1)
        dy = grad.index_select(0, token)
        d_inner, d_gu = torch.empty_like(gate), torch.empty_like(gu_C)
        for e, dy_e, d_inner_e in chunk.each(dy, d_inner):
            experts.down.mm_t(e, dy_e, d_inner_e)
        if lora is not None:
            dz2 = _add_low_rank_back(chunk, dy, B2, A2, scaling, d_inner)
        silu = _silu(gate, chunk)
        inner = silu * up
        if d_weight is not None:  # <dy, y> = <dy (W + sBA), inner>, so y need not be kept
            torch.sum(d_inner.to(precise) * inner.to(precise), 1, out=d_weight[s])
        d_inner.mul_(weight)
        d_gate, d_up = d_gu.chunk(2, dim=1)
        torch.mul(d_inner, silu, out=d_up)
        _silu_back(d_inner.mul_(up), gate, d_gate, chunk)
        if dx is not None:
            dx_C = dx[s]
            for e, d_gu_e, dx_e in chunk.each(d_gu, dx_C):
                experts.gate_up.mm_t(e, d_gu_e, dx_e)
        if lora is not None and (dx is not None or to_A1 is not None):
            dz1 = _add_low_rank_back(chunk, d_gu, B1, A1, scaling, None if dx is None else dx_C)
        # Both sides of an outer product may carry the routing weight; the rank-wide one is the cheaper.
        x_C = x.index_select(0, token) if to_A1 is not None or d_gate_up is not None else x
        if to_A1 is not None:
            to_A1.add(chunk, dz1, x_C)
        if to_B1 is not None:
            to_B1.add(chunk, z1[s] * scaling, d_gu)
        if to_A2 is not None:
            to_A2.add(chunk, dz2 * weight, inner)
        if to_B2 is not None:
            to_B2.add(chunk, z2[s] * (weight * scaling), dy)
        if d_gate_up is not None:
            for e, d_gu_e, x_e in chunk.each(d_gu, x_C):
                torch.mm(d_gu_e.T, x_e, out=d_gate_up[e])
        if d_down is not None:
            for e, dy_e, inner_e in chunk.each(dy * weight, inner):
                torch.mm(dy_e.T, inner_e, out=d_down[e])
    return (
        None if dx is None else _combine(dx, plan, None),
        None if d_weight is None else d_weight[plan.slot_TK].to(topk_weights.dtype),
        d_gate_up,
        d_down,
        *(None if to is None else to.result() for to in (to_A1, to_B1, to_A2, to_B2)),
        *(None,) * 5,
    )


class _Destination:
    """Takes the gradient left^T right of one factor: into a sum over all units, or to the collector."""

    def __init__(self, parameter: Tensor, transposed: bool, total_EPQ: Tensor | None, capture: RunCapture | None):
        self.parameter, self.transposed, self.total, self.capture = parameter, transposed, total_EPQ, capture

    @classmethod
    def of(cls, number: int, ctx: Any, dtype: torch.dtype, *, transposed: bool) -> "_Destination | None":
        """The destination of one factor; None if it is absent or frozen. `transposed` if it is stored as [E, Q, P]."""
        _, lora, plan, collector, _ = ctx.rest
        if not ctx.needs_input_grad[4 + number]:
            return None
        parameter: Tensor = lora.factors[number]  # the saved tensor may be another object under checkpointing
        experts, *shape = parameter.shape
        P, Q = reversed(shape) if transposed else shape
        if collector is None:
            return cls(parameter, transposed, torch.zeros(experts, P, Q, dtype=dtype, device=parameter.device), None)
        assert isinstance(parameter, nn.Parameter)
        capture = collector.open_runs(parameter, P, Q, dtype, plan.runs, plan.num_experts, transposed=transposed)
        return cls(parameter, transposed, None, capture)

    def add(self, chunk: _Chunk, left_CP: Tensor, right_CQ: Tensor) -> None:
        if self.capture is not None:
            self.capture.add(chunk.pairs, chunk.runs, left_CP, right_CQ)
            return
        assert self.total is not None
        for e, left_e, right_e in chunk.each(left_CP, right_CQ):  # never tiles: those are for a collector
            torch.mm(left_e.T, right_e, out=self.total[e])

    def result(self) -> Tensor | None:
        """The gradient for autograd; None if the collector has it."""
        if self.total is None:
            return None
        return (self.total.mT if self.transposed else self.total).to(self.parameter.dtype)


def _chunks(plan: Plan, bytes_of_pair: int, *, is_tiled: bool) -> list[_Chunk]:
    few, most = (kib * 1024 // bytes_of_pair for kib in (_FEW, _CHUNK))
    runs = [0] * plan.num_experts
    if plan.runs is not None:
        runs = torch.bincount(plan.runs.expert_N, minlength=plan.num_experts).tolist()
    chunks: list[_Chunk] = []
    for expert, pairs in plan.slices:
        size = pairs.stop - pairs.start
        last = chunks[-1] if chunks else None
        if last is not None and max(size, last.sizes[-1]) < few and pairs.stop - last.pairs.start <= most:
            grown = slice(last.pairs.start, pairs.stop), slice(last.runs.start, last.runs.stop + runs[expert])
            chunks[-1] = _Chunk([*last.experts, expert], [*last.sizes, size], *grown, is_tiled)
        else:
            start = 0 if last is None else last.runs.stop
            chunks.append(_Chunk([expert], [size], pairs, slice(start, start + runs[expert]), is_tiled))
    return chunks


def _silu(gate_CF: Tensor, chunk: _Chunk) -> Tensor:
    if not chunk.is_tiled:
        return F.silu(gate_CF)
    out = torch.empty_like(gate_CF)
    for gate, few in _for_one_thread(chunk, gate_CF, out):
        torch.ops.aten.silu.out(gate, out=few)
    return out


def _silu_back(grad_CF: Tensor, gate_CF: Tensor, out_CF: Tensor, chunk: _Chunk) -> None:
    for grad, gate, few in _for_one_thread(chunk, grad_CF, gate_CF, out_CF):
        torch.ops.aten.silu_backward.grad_input(grad, gate, grad_input=few)


def _for_one_thread(chunk: _Chunk, *tensors_CF: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Whole rows of the tensors, in a tiled chunk few at a time: no row is then cut between two threads."""
    if not chunk.is_tiled:
        return iter([tensors_CF])
    rows = max(1, _ONE_THREAD // tensors_CF[0].shape[1])
    return zip(*(torch.split(tensor, rows) for tensor in tensors_CF), strict=True)


def _add_low_rank(
    chunk: _Chunk, x: Tensor, A: Any, B: Any, scaling: float, z: Tensor, out: Tensor, gates: Tensor | None
) -> None:
    """Adds scaling (x A^T) B^T to `out` and leaves x A^T in `z`, multiplied by gates [C, R] if given."""
    gated = () if gates is None else (gates,)
    for e, x_e, z_e, out_e, *gates_e in chunk.each(x, z, out, *gated):
        product(x_e, A[e].T, z_e)
        if gates_e:
            apply_gates(z_e, *gates_e)
        add_product(out_e, z_e, B[e].T, scaling=scaling)


def _add_low_rank_back(chunk: _Chunk, grad: Tensor, B: Tensor, A: Tensor, scaling: float, out: Tensor | None) -> Tensor:
    """Returns scaling grad B, and adds that times A to `out` if given."""
    dz = grad.new_empty(len(grad), B.shape[2])
    for e, grad_e, dz_e in chunk.each(grad, dz):
        product(grad_e, B[e], dz_e)
    dz.mul_(scaling)
    if out is not None:
        for e, dz_e, out_e in chunk.each(dz, out):
            add_product(out_e, dz_e, A[e])
    return dz


def _rows(x_TD: Tensor, plan: Plan) -> Tensor:
    """[S, D] to be written, and a row of zeros behind them for pairs that were dropped."""
    rows = x_TD.new_empty(plan.num_pairs + plan.has_dropped, x_TD.shape[1])
    rows[plan.num_pairs :].zero_()
    return rows


def _combine(rows_SD: Tensor, plan: Plan, weights_TK: Tensor | None) -> Tensor:
    """[T, D]: adds up the K sorted rows of each token, weighted if weights are given."""
    if not len(rows_SD):
        return rows_SD.new_zeros(plan.slot_TK.shape[0], rows_SD.shape[1])
    weights = None if weights_TK is None else weights_TK.to(rows_SD.dtype)
    if weights is not None and plan.has_dropped:  # 0 * nan is nan
        weights = weights.masked_fill(plan.slot_TK == plan.num_pairs, 0)
    return F.embedding_bag(plan.slot_TK, rows_SD, mode="sum", per_sample_weights=weights)

"""Routed experts with LoRA on NVIDIA GPUs: which kernels run, in what order, and what backward keeps.

Forward is three launches: gather + gate_up + SwiGLU, down + routing weight + scatter, combine; backward is three more
(through down and SwiGLU, through gate_up, combine) and one for each trained factor. Low-rank products ride along in the
same loops, so W + BA is never built and the gathered tokens never exist. Kept for backward are gate and up and the
rank-wide products.

With a collector, no gradient of a unit is stored either: a factor's gradient is L^T R over the rows of a unit, and one
kernel squares it tile by tile, another adds it up again under the unit's clipping factor.

Legend: `T` tokens, `D` model, `F` expert hidden, `G` = 2F, `E` experts, `K` top-k, `S` sorted pairs, `P` = T*K pairs in
the order of the router, `R` rank, `M` tiles, `N` (expert, unit) runs, `U` units.
"""

import functools
import importlib.util
import os
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function

from .collect import Collector
from .errors import UnfitWeights
from .experts import Experts, LoRA
from .formats import NF4_VALUES, Dense, ExpertWeights, FP8Block128, Int8Row, NF4Block64, trained_stack
from .routing import Plan, Runs
from .tiles import FORMATS, LEAST_RANK, Card, Case, Tiling, Tilings, chosen, pairs_class


def is_available(device: torch.device) -> bool:
    """True if the kernels run on `device`: GPUs of compute capability 8.0 or later, the CPU in Triton's interpreter."""
    if importlib.util.find_spec("triton") is None:
        return False
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"


def card_of(device: torch.device) -> Card:
    """The GPU, or the interpreter's stand-in for one."""
    if device.type != "cuda":
        return Card("interpreter", 0)
    major, minor = torch.cuda.get_device_capability(device)
    return Card(torch.cuda.get_device_name(device), 10 * major + minor)


def check_fit(experts: Experts) -> None:
    """Raises `UnfitWeights` if the experts are to be trained themselves or have a format or dtype without a kernel."""
    if experts.gate_up.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UnfitWeights(f"the triton backend computes in float32, bfloat16 or float16, not {experts.gate_up.dtype}")
    for weights in (experts.gate_up, experts.down):
        if not isinstance(weights, Dense | Int8Row | NF4Block64 | FP8Block128):
            raise UnfitWeights(f"the triton backend has no kernel for {type(weights).__name__}")
    if any(trained_stack(weights) is not None for weights in (experts.gate_up, experts.down)):
        raise UnfitWeights("the triton backend trains adapters, not the experts themselves")


def triton_moe(
    x_TD: Tensor,
    plan: Plan,
    topk_weights_TK: Tensor,
    experts: Experts,
    lora: LoRA | None,
    collector: Collector | None,
) -> Tensor:
    """[T, D], in float32 or 16 bits; x has the dtype of the experts, which stay as they are.

    Products of 16-bit numbers are added in float32, and a float32 model is computed in full float32 precision.

    Raises:
        UnfitWeights: see `check_fit`; or a stack is not contiguous.
        CaptureClosed, CapturedTwice: from backward, see `collect`.
    """
    check_fit(experts)
    stacks = stored(experts.gate_up), stored(experts.down)
    factors = (None,) * 4 if lora is None else lora.factors
    scaling = 0.0 if lora is None else float(lora.scaling)
    inputs = (x_TD, topk_weights_TK, *factors)
    is_kept = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)
    out = _TritonExperts.apply(  # type: ignore[no-untyped-call]
        x_TD.contiguous(), topk_weights_TK.contiguous(), *factors, stacks, scaling, plan, collector, is_kept
    )
    return cast(Tensor, out)


class Stack(NamedTuple):
    """A stack of expert matrices as a kernel reads it."""

    arrays: tuple[Tensor, Tensor | None, Tensor | None]  # codes, their scales, the levels that codes stand for
    shape: torch.Size  # (E, outputs, inputs)
    format: int  # a constant of `triton_kernels`


def stored(weights: ExpertWeights) -> Stack:
    """The arrays of a stack for the kernels, without a copy.

    Raises:
        UnfitWeights: the stack is not contiguous.
    """
    kernels = _kernels()
    if isinstance(weights, Dense):
        return _stack(weights, kernels.DENSE, weights.weight_EOI)
    if isinstance(weights, Int8Row):
        return _stack(weights, kernels.INT8_ROW, weights.codes_EOI, weights.scale_EO)
    if isinstance(weights, NF4Block64):
        levels = _nf4_levels(weights.dtype, weights.codes_EN.device)
        return _stack(weights, kernels.NF4_BLOCK64, weights.codes_EN, weights.absmax_EB, levels)
    assert isinstance(weights, FP8Block128)  # `check_fit` refused all others
    return _stack(weights, kernels.FP8_BLOCK128, weights.codes_EOI.view(torch.uint8), weights.scale_inv_EPQ)


def _stack(
    weights: ExpertWeights, number: Any, codes: Tensor, scales: Tensor | None = None, levels: Tensor | None = None
) -> Stack:
    if not codes.is_contiguous():
        raise UnfitWeights("the kernels read a stack row by row and make no copy: it must be contiguous")
    scales = None if scales is None else scales.contiguous()
    return Stack((codes, scales, levels), weights.shape, number.value)


@functools.cache
def _nf4_levels(dtype: torch.dtype, device: torch.device) -> Tensor:
    """[16], rounded to the dtype of the products, as the format says of its values."""
    return torch.tensor(NF4_VALUES, device=device).to(dtype)


class Pass:
    """The launches of one forward and its backward, with what they share."""

    def __init__(
        self,
        x_TD: Tensor,
        plan: Plan,
        gate_up: Stack,
        down: Stack,
        rank: int,
        scaling: float,
        tilings: Tilings | None = None,
    ) -> None:
        """Chooses tiles, unless some are given."""
        self.plan, self.stacks, self.scaling = plan, (gate_up, down), scaling
        self.D, self.F = x_TD.shape[1], gate_up.shape[1] // 2
        self.pairs = plan.token_S.numel()
        self.case = Case(
            FORMATS[gate_up.format] if gate_up.format == down.format else "mixed",
            x_TD.itemsize,
            _rank_tile(rank),
            pairs_class(self.pairs // plan.num_experts),
        )
        self.tilings = tilings or chosen(card_of(x_TD.device), self.case)
        self.tiles_M3 = tile_table(plan, self.tilings.grouped.rows).to(x_TD.device)

    def gate_up(
        self, x_TD: Tensor, A_ERD: Tensor | None, B_EGR: Tensor | None, is_kept: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """inner [S, F] = silu(gate) * up; for backward also gate and up [S, G] and scaling * x A^T [S, R]."""
        inner_SF = x_TD.new_empty(self.pairs, self.F)
        gate_up_SG = x_TD.new_empty(self.pairs, 2 * self.F) if is_kept else None
        z_SR = None if A_ERD is None or not is_kept else x_TD.new_empty(self.pairs, A_ERD.shape[1])
        stack, tiling = self.stacks[0], self.tilings.gate_up
        _kernels().gate_up_kernel[self._grid(self.F, tiling)](
            x_TD,
            self.plan.token_S,
            *stack.arrays,
            A_ERD,
            B_EGR,
            self.tiles_M3,
            inner_SF,
            gate_up_SG,
            z_SR,
            self.scaling,
            D=self.D,
            F=self.F,
            **_rank(A_ERD),
            FORMAT=stack.format,
            IS_KEPT=is_kept,
            PARTS=max(1, tiling.cols // 32),
            **_settings(x_TD, tiling),
        )
        return inner_SF, gate_up_SG, z_SR

    def down(
        self, inner_SF: Tensor, A_ERF: Tensor | None, B_EDR: Tensor | None, weights_TK: Tensor, is_kept: bool
    ) -> tuple[Tensor, Tensor | None]:
        """[P, D]: each pair's output times its weight; for backward also scaling * weight * inner A^T [S, R]."""
        return self._grouped(inner_SF, 1, A_ERF, B_EDR, weights_TK, is_kept, is_gradient=False)

    def hidden_gradient(
        self, d_gate_up_SG: Tensor, A_ERD: Tensor | None, B_EGR: Tensor | None, is_kept: bool
    ) -> tuple[Tensor, Tensor | None]:
        """[P, D]: each pair's gradient of its token; if kept also scaling * dgu B [S, R]."""
        return self._grouped(d_gate_up_SG, 0, B_EGR, A_ERD, None, is_kept, is_gradient=True)

    def _grouped(
        self,
        a_SD: Tensor,
        number: int,
        inner_factor: Tensor | None,
        outer_factor: Tensor | None,
        weights_TK: Tensor | None,
        is_kept: bool,
        *,
        is_gradient: bool,
    ) -> tuple[Tensor, Tensor | None]:
        rank = _rank(inner_factor, is_first=not is_gradient)
        out_PD = a_SD.new_empty(self.plan.slot_TK.numel(), self.D)
        z_SR = a_SD.new_empty(self.pairs, rank["R"]) if rank["R"] and is_kept else None
        stack, tiling = self.stacks[number], self.tilings.grouped
        _kernels().grouped_kernel[self._grid(self.D, tiling)](
            a_SD,
            *stack.arrays,
            inner_factor,
            outer_factor,
            self.tiles_M3,
            self.plan.pair_S,
            weights_TK,
            out_PD,
            z_SR,
            self.scaling,
            WIDTH=self.D,
            DEPTH_END=a_SD.shape[1],
            **rank,
            FORMAT=stack.format,
            TRANSPOSED=is_gradient,
            IS_WEIGHTED=weights_TK is not None,
            IS_KEPT=is_kept,
            **_settings(a_SD, tiling),
        )
        return out_PD, z_SR

    def combine(self, pairs_PD: Tensor) -> Tensor:
        """[T, D]: adds up the K rows of each token; a dropped pair has none."""
        tokens, top_k = self.plan.slot_TK.shape
        out_TD = pairs_PD.new_empty(tokens, self.D)
        cols = min(1024, _power_of_two(self.D))
        _kernels().combine_kernel[tokens, _blocks(self.D, cols)](
            pairs_PD, self.plan.slot_TK, out_TD, self.pairs, D=self.D, K=top_k, COLS=cols
        )
        return out_TD

    def inner_gradient(
        self,
        grad_TD: Tensor,
        gate_up_SG: Tensor,
        A_ERF: Tensor | None,
        B_EDR: Tensor | None,
        weights_TK: Tensor,
        *,
        is_kept: bool,
        needs_weight: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """d_gate_up [S, G]; if kept inner [S, F] and scaling * weight * dy B [S, R]; if needed d_weight [T, K]."""
        tiling, stack, top_k = self.tilings.inner_gradient, self.stacks[1], weights_TK.shape[1]
        rank = _rank(A_ERF)
        d_gate_up_SG = torch.empty_like(gate_up_SG)
        inner_SF = grad_TD.new_empty(self.pairs, self.F) if is_kept else None
        z_SR = grad_TD.new_empty(self.pairs, rank["R"]) if is_kept else None
        shares = None
        if needs_weight:  # of a dropped pair the gradient is zero
            shares = grad_TD.new_zeros(weights_TK.numel(), _blocks(self.F, tiling.cols), dtype=torch.float32)
        _kernels().inner_gradient_kernel[self._grid(self.F, tiling)](
            grad_TD,
            self.plan.token_S,
            *stack.arrays,
            A_ERF,
            B_EDR,
            self.tiles_M3,
            self.plan.pair_S,
            weights_TK,
            gate_up_SG,
            d_gate_up_SG,
            inner_SF,
            z_SR,
            shares,
            self.scaling,
            D=self.D,
            F=self.F,
            **rank,
            FORMAT=stack.format,
            IS_KEPT=is_kept,
            NEEDS_WEIGHT=needs_weight,
            PARTS=2 if tiling.cols > 32 else 1,
            **_settings(grad_TD, tiling),
        )
        d_weight_TK = None if shares is None else shares.sum(1).view(-1, top_k)
        return d_gate_up_SG, inner_SF, z_SR, d_weight_TK

    def factor_gradient(
        self, left_SR: Tensor, right: Tensor, row_of_right_S: Tensor | None, *, rank_first: bool
    ) -> "Outer":
        """The gradient of a factor, left^T right, not computed yet; of rows of `right` if the last is given."""
        return Outer(left_SR, right, row_of_right_S, rank_first, self.tilings.runs)

    def _grid(self, width: int, tiling: Tiling) -> tuple[int, int]:
        return _blocks(width, tiling.cols), len(self.tiles_M3)


def tile_table(plan: Plan, rows: int) -> Tensor:
    """[M, 3] int32 on the CPU: expert, first pair and end of its pairs for each tile of `rows` pairs.

    M depends on the number of pairs alone; (-1, 0, 0) where an expert's last tile is fuller than that allows for.
    """
    tiles = [(expert, first, part.stop) for expert, part in plan.slices for first in range(part.start, part.stop, rows)]
    most = plan.token_S.numel() // rows + plan.num_experts
    return torch.tensor(tiles + [(-1, 0, 0)] * (most - len(tiles)), dtype=torch.int32)


@dataclass(frozen=True, slots=True)
class Outer:
    """left^T right, run by run: what the gradient of a factor is made of."""

    left_SR: Tensor
    right: Tensor
    row_of_right_S: Tensor | None
    rank_first: bool  # the factor is stored [E, R, width], not [E, width, R]
    tiling: Tiling

    @property
    def width(self) -> int:
        """Of the factor's other side than the rank."""
        return self.right.shape[1]

    def by_run(self, first_N1: Tensor, dtype: torch.dtype) -> Tensor:
        """[N, R, width] or [N, width, R]: the products over the pairs between the edges."""
        out = self.left_SR.new_empty(len(first_N1) - 1, *self._shape(), dtype=dtype)
        self._launch(_kernels().run_products_kernel, len(out), first_N1, out, RANK_FIRST=self.rank_first)
        return out

    def square_norms(self, first_N1: Tensor) -> Tensor:
        """[N, C] float64: the shares of the C blocks of columns."""
        shares_NC = self.left_SR.new_empty(len(first_N1) - 1, self._blocks(), dtype=torch.float64)
        self._launch(_kernels().run_norms_kernel, len(shares_NC), first_N1, shares_NC)
        return shares_NC

    def weighted_sum(self, first_N1: Tensor, first_run_E1: Tensor, factor_N: Tensor, *, whole: bool = False) -> Tensor:
        """[E, R, width] or [E, width, R] float64: for each expert the sum over its runs of factor * product.

        Args:
            whole: cut each number towards zero to a whole one before it is added.
        """
        out = self.left_SR.new_empty(len(first_run_E1) - 1, *self._shape(), dtype=torch.float64)
        kernel, constants = _kernels().run_sums_kernel, {"RANK_FIRST": self.rank_first, "IS_WHOLE": whole}
        self._launch(kernel, len(out), first_N1, first_run_E1, factor_N, out, **constants)
        return out

    def _shape(self) -> tuple[int, int]:
        rank = self.left_SR.shape[1]
        return (rank, self.width) if self.rank_first else (self.width, rank)

    def _blocks(self) -> int:
        return _blocks(self.width, self.tiling.cols)

    def _launch(self, kernel: Any, count: int, *arguments: Tensor, **constants: bool) -> None:
        settings = _settings(self.left_SR, self.tiling)
        del settings["DEPTH"]  # what these products add over are the rows
        with torch.cuda.device_of(self.left_SR):  # type: ignore[no-untyped-call]
            kernel[count, self._blocks()](
                self.left_SR,
                self.right,
                self.row_of_right_S,
                *arguments,
                R=self.left_SR.shape[1],
                RANK=_rank_tile(self.left_SR.shape[1]),
                WIDTH=self.width,
                IS_GATHERED=self.row_of_right_S is not None,
                **constants,
                **settings,
            )


class RunGradients:
    """One factor's gradient for every unit, kept as the two matrices it is made of."""

    def __init__(self, outer: Outer, runs: Runs, num_experts: int) -> None:
        self._outer, self._runs, self._num_experts = outer, runs, num_experts
        self._first_N1 = _edges(runs.length_N)
        self._first_run_E1 = _edges(torch.bincount(runs.expert_N, minlength=num_experts))
        self._is_forgotten_N = torch.zeros_like(runs.unit_N, dtype=torch.bool)

    def square_norms(self, num_units: int) -> Tensor:
        """[U] float64."""
        shares_NC = self._outer.square_norms(self._first_N1).masked_fill(self._is_forgotten_N[:, None], 0)
        # An expert has one run of a unit, so every place is written once: atomic additions would not repeat. And the
        # sum has one shape, whatever runs there are.
        by_place = shares_NC.new_zeros(num_units * self._num_experts, shares_NC.shape[1])
        by_place[self._runs.unit_N * self._num_experts + self._runs.expert_N] = shares_NC
        return by_place.view(num_units, -1).sum(1)

    def forget(self, is_forgotten_U: Tensor) -> None:
        """Leaves these units out of every later sum."""
        self._is_forgotten_N |= is_forgotten_U[self._runs.unit_N]

    def weighted_sums(self, factors_U: Tensor, group_U: Tensor, num_groups: int, grid: float | None) -> Tensor:
        """Sums over each group's units of factor * gradient, float64; see `Collector.weighted_sums`."""
        factor_N = factors_U.to(torch.float64)[self._runs.unit_N].masked_fill(self._is_forgotten_N, 0)
        group_N = group_U[self._runs.unit_N]
        by_group = [factor_N.masked_fill(group_N != group, 0) for group in range(num_groups)]
        return torch.stack([self._weighted_sum(own_N, grid) for own_N in by_group])

    def _weighted_sum(self, factor_N: Tensor, grid: float | None) -> Tensor:
        if grid is None:
            return self._outer.weighted_sum(self._first_N1, self._first_run_E1, factor_N)
        return self._outer.weighted_sum(self._first_N1, self._first_run_E1, factor_N / grid, whole=True) * grid


class _TritonExperts(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        topk_weights: Tensor,
        gate_up_A: Tensor | None,
        gate_up_B: Tensor | None,
        down_A: Tensor | None,
        down_B: Tensor | None,
        stacks: tuple[Stack, Stack],
        scaling: float,
        plan: Plan,
        collector: Collector | None,
        is_kept: bool,
    ) -> Tensor:
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            A1, B1, A2, B2 = _cast(x.dtype, gate_up_A, gate_up_B, down_A, down_B)
            rank = max(_rank(A1)["R"], _rank(A2)["R"])
            launch = Pass(x, plan, *stacks, rank, scaling)
            inner, gate_up, z1 = launch.gate_up(x, A1, B1, is_kept)
            pairs, z2 = launch.down(inner, A2, B2, topk_weights, is_kept)
            out = launch.combine(pairs)
        if is_kept:
            ctx.save_for_backward(x, topk_weights, gate_up_A, gate_up_B, down_A, down_B, gate_up, z1, z2)
        # Under checkpointing saved tensors come back as other objects than the Parameters, so these name the capture.
        ctx.parameters = gate_up_A, gate_up_B, down_A, down_B
        ctx.launch, ctx.collector = launch, collector
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, topk_weights, gate_up_A, gate_up_B, down_A, down_B, gate_up, z1, z2 = ctx.saved_tensors
        launch: Pass = ctx.launch
        token_S = launch.plan.token_S
        needs_x, needs_weight, needs_A1, needs_B1, needs_A2, needs_B2, *_ = ctx.needs_input_grad
        grad = grad.contiguous()
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            A1, B1, A2, B2 = _cast(x.dtype, gate_up_A, gate_up_B, down_A, down_B)
            d_gate_up, inner, dz2, d_weight = launch.inner_gradient(
                grad, gate_up, A2, B2, topk_weights, is_kept=needs_A2, needs_weight=needs_weight
            )
            grad_x = dz1 = None
            if needs_x or needs_A1:
                pairs, dz1 = launch.hidden_gradient(d_gate_up, A1, B1, needs_A1)
                grad_x = launch.combine(pairs) if needs_x else None
            sides = (
                (needs_A1, dz1, x, token_S, True),
                (needs_B1, z1, d_gate_up, None, False),
                (needs_A2, dz2, inner, None, True),
                (needs_B2, z2, grad, token_S, False),
            )
            grads = [
                _hand_over(ctx, number, launch.factor_gradient(left, right, row, rank_first=rank_first))
                if needed
                else None
                for number, (needed, left, right, row, rank_first) in enumerate(sides)
            ]
        if d_weight is not None:
            d_weight = d_weight.to(topk_weights.dtype)
        return grad_x, d_weight, *grads, None, None, None, None, None


def _hand_over(ctx: Any, number: int, outer: Outer) -> Tensor | None:
    """Gives one factor's gradient to the collector, or returns it when there is none."""
    parameter: nn.Parameter = ctx.parameters[number]
    plan: Plan = ctx.launch.plan
    collector: Collector | None = ctx.collector
    if collector is None:
        pairs_E = torch.zeros(plan.num_experts, dtype=torch.int64)
        for expert, part in plan.slices:
            pairs_E[expert] = part.stop - part.start
        return outer.by_run(_edges(pairs_E).to(outer.left_SR.device), parameter.dtype)
    assert plan.runs is not None
    trained = replace(outer, left_SR=collector.of_trained_rank(parameter, outer.left_SR))
    collector.keep(parameter, RunGradients(trained, plan.runs, plan.num_experts))
    return None


def _cast(dtype: torch.dtype, *factors: Tensor | None) -> list[Tensor | None]:
    return [None if factor is None else factor.to(dtype).contiguous() for factor in factors]


def _edges(length_N: Tensor) -> Tensor:
    """[N + 1]: where each of the runs starts, and the end."""
    return torch.nn.functional.pad(length_N.cumsum(0), (1, 0))


def _kernels() -> Any:
    from . import triton_kernels  # here, as Triton exists for few platforms

    return triton_kernels


def _settings(x: Tensor, tiling: Tiling) -> dict[str, Any]:
    precision = "ieee" if x.dtype == torch.float32 else "tf32"  # of no meaning for 16 bits, which are exact
    return {
        "PRECISION": precision,
        "ROWS": tiling.rows,
        "COLS": tiling.cols,
        "DEPTH": tiling.depth,
        "num_warps": tiling.warps,
        "num_stages": tiling.stages,
    }


def _rank(factor: Tensor | None, *, is_first: bool = True) -> dict[str, int]:
    rank = 0 if factor is None else factor.shape[1 if is_first else 2]
    return {"R": rank, "RANK": _rank_tile(rank)}


def _rank_tile(rank: int) -> int:
    return max(LEAST_RANK, _power_of_two(rank))


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()


def _blocks(width: int, cols: int) -> int:
    return -(-width // cols)

"""Per-unit gradients from one backward pass.

The gradient of a low-rank factor with respect to one privacy unit is a sum of outer products l_t r_t^T over that unit's
tokens. An op's backward has both thin matrices at hand, and instead of returning their product it hands them here. What
is kept is the product per unit or, where units are few tokens, the matrices themselves: about rank / tokens_per_row of
the activations that backward has just released. Norms and sums are accumulated in float64, as the bound on a unit must
hold for what is summed; and sums can be exact (`Collector.weighted_sum`).

In batches of one shape (rows, tokens and units) the product of a unit is a matter of its own rows, down to the last
bit: nothing is chosen by, or padded to, what other units there are.

Legend: `U` units, `R` rows, `T` tokens, `S` routed pairs, `C` some of them, `N` (expert, unit) runs or (unit, word)
pairs, `P`, `Q` the widths of a gradient.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .errors import CaptureClosed, CapturedTwice, CaptureMissed, CaptureNested, TokensMiscounted
from .routing import Runs

_CACHED = 2**17  # numbers that are widened to float64 at a time
_WORTH = 3  # times the memory of the factors that products may take
_RUNS = 8  # that are multiplied at a time, always as many


class Collector:
    """Gradients of every factor for every unit of one microbatch.

    Args:
        unit_of_row: [R], values in [0, num_units).
        tokens_per_row: padded length of each row; an op that sees another number of tokens a row says so itself.
        trained_rank: of factors stored with the rank as their last axis, how many leading components are trained. What
            the others' gradients would be is dropped before it enters anything; sums have zeros there.
    """

    def __init__(
        self,
        unit_of_row: Tensor,
        num_units: int,
        tokens_per_row: int,
        trained_rank: Mapping[nn.Parameter, int] | None = None,
    ) -> None:
        self.unit_of_row = unit_of_row
        self.num_units = num_units
        self.tokens_per_row = tokens_per_row
        self.unit_of_token = unit_of_row.repeat_interleave(tokens_per_row)
        self._trained_rank = trained_rank or {}
        self._kept: dict[nn.Parameter, Kept] = {}
        self._announced: set[nn.Parameter] = set()
        self._is_closed = False

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that backward has reached."""
        return list(self._kept)

    def announce(self, *factors: Tensor) -> None:
        """Announces, from an op's forward, the factors whose gradients the op would hand over; every op calls it.

        Without autograd there will be none, unless this is a checkpoint that runs forward again inside backward: then
        it must do so in this same microbatch, as the owners of another one's tokens are others.
        """
        if not torch.is_grad_enabled():
            trained = (factor for factor in factors if factor.requires_grad)
            self._announced.update(factor for factor in trained if isinstance(factor, nn.Parameter))

    def require_announced(self) -> None:
        """Raises `CaptureMissed` unless backward has reached every factor that was announced."""
        if self._announced - self._kept.keys():
            raise CaptureMissed(
                "forward ran without autograd in a microbatch and backward never came to it: run backward of reentrant "
                "checkpoints inside, and what needs no gradient outside"
            )

    def close(self) -> None:
        """Ends the microbatch: a later backward through its graph raises `CaptureClosed`."""
        self._is_closed = True

    def capture_tokens(
        self,
        parameter: nn.Parameter,
        left_TP: Tensor,
        right_TQ: Tensor,
        *,
        transposed: bool,
        tokens_per_row: int | None = None,
    ) -> None:
        """Takes the gradient left^T right, tokens row-major; `transposed` if the parameter is stored as [Q, P].

        Args:
            tokens_per_row: of this op, such as one stage of a pyramid; it must follow from the architecture and never
                from records, as it says whose each token is. None: as many as a row has.
        """
        self._capture_rows(parameter, left_TP, right_TQ, tokens_per_row or self.tokens_per_row, transposed)

    def capture_rows(self, parameter: nn.Parameter, left_RP: Tensor, right_RQ: Tensor, *, transposed: bool) -> None:
        """The same for an op that sees one vector a row, such as a head on pooled states."""
        self._capture_rows(parameter, left_RP, right_RQ, 1, transposed)

    def open_runs(
        self,
        parameter: nn.Parameter,
        width_P: int,
        width_Q: int,
        dtype: torch.dtype,
        runs: Runs,
        num_experts: int,
        *,
        transposed: bool,
    ) -> "RunCapture":
        """Takes one gradient an expert, in parts: pairs sorted as `runs` says, of which every run is to be added once.

        The parameter has a leading expert axis.
        """
        self._claim(parameter)
        rank = self._trained_rank.get(parameter)
        width_P = width_P if rank is None else rank
        # By what the batch's shape allows for, not by the runs there are: one unit must not choose for the others.
        most_runs = min(self.num_units * num_experts, runs.num_slots)
        is_worth_products = most_runs * width_P * width_Q <= _WORTH * runs.num_slots * (width_P + width_Q)
        kept: _RunGradients | _RunFactors
        if is_worth_products:
            kept = _RunGradients([], (width_P, width_Q), runs, num_experts, transposed)
        else:
            kept = _RunFactors([], (width_P, width_Q), runs, num_experts, transposed)
        self._kept[parameter] = kept
        return kept if rank is None else _OfTrainedRank(self, parameter, kept)

    def capture_units(self, parameter: nn.Parameter, grads_U: Tensor) -> None:
        """Takes the gradients themselves, [U, *parameter.shape]."""
        self._claim(parameter)
        self._kept[parameter] = _UnitGradients(self.of_trained_rank(parameter, grads_U.flatten(1, -2)), False)

    def capture_lookups(self, parameter: nn.Parameter, grads_TP: Tensor, ids_T: Tensor) -> None:
        """Takes the gradient of a factor stored as [P, words], of which token t read column ids_T[t]."""
        self._claim(parameter)
        if not len(grads_TP) == len(ids_T) == len(self.unit_of_token):
            raise TokensMiscounted(f"lookups of {len(ids_T)} tokens, expected {len(self.unit_of_token)}")
        words = parameter.shape[1]
        # Only words that a unit holds have a gradient: [units, words] would be far more than the tokens are.
        key_N, place_T = torch.unique(self.unit_of_token * words + ids_T, return_inverse=True)
        grads_NP = torch.zeros(len(key_N), grads_TP.shape[1], dtype=parameter.dtype, device=grads_TP.device)
        grads_NP.index_add_(0, place_T, grads_TP.to(parameter.dtype))
        self._kept[parameter] = _WordGradients(grads_NP, key_N // words, key_N % words, words)

    def keep(self, parameter: nn.Parameter, kept: "Kept") -> None:
        """Takes the gradients in a form of the op's own, for one that has kernels to sum them.

        It must have cut its left side with `of_trained_rank`.
        """
        self._claim(parameter)
        self._kept[parameter] = kept

    def of_trained_rank(self, parameter: nn.Parameter, left: Tensor) -> Tensor:
        """The columns of the left side [.., R] of a gradient that belong to trained components of `parameter`."""
        rank = self._trained_rank.get(parameter)
        return left if rank is None else left[..., :rank].contiguous()

    def square_norms(self) -> Tensor:
        """[U] float64: squared l2 norm of each unit's gradient over all factors together, rounded as float64 is."""
        total = torch.zeros(self.num_units, dtype=torch.float64, device=self.unit_of_row.device)
        for kept in self._kept.values():
            total += kept.square_norms(self.num_units)
        return total

    def forget(self, is_forgotten_U: Tensor) -> None:
        """Zeroes everything kept of these units, so that not even 0 * nan of them can enter a sum."""
        for kept in self._kept.values():
            kept.forget(is_forgotten_U)

    def weighted_sum(self, factors_U: Tensor, *, grid: float | None = None) -> dict[nn.Parameter, Tensor]:
        """Sum over units of factor * gradient, float64, one tensor a reached parameter in that parameter's shape.

        Args:
            grid: a power of two; each number of each unit is cut towards zero to a multiple of it before it is added.
                No term grows, and while sums stay below 2**53 of it they are exact, in whatever order. None: as it is.
        """
        one_group = torch.zeros_like(factors_U, dtype=torch.int64)
        sums = self.weighted_sums(factors_U, one_group, 1, grid=grid)
        return {parameter: total[0] for parameter, total in sums.items()}

    def weighted_sums(
        self, factors_U: Tensor, group_U: Tensor, num_groups: int, *, grid: float | None = None
    ) -> dict[nn.Parameter, Tensor]:
        """The same for each group of units: [G, *shape of the parameter].

        Args:
            group_U: [U] int64, values in [0, num_groups).
        """
        factors = factors_U.to(torch.float64)
        sums = {
            parameter: kept.weighted_sums(factors, group_U, num_groups, grid) for parameter, kept in self._kept.items()
        }
        return {
            parameter: self._widened(parameter, totals).reshape(num_groups, *parameter.shape)
            for parameter, totals in sums.items()
        }

    def _widened(self, parameter: nn.Parameter, total: Tensor) -> Tensor:
        rank = self._trained_rank.get(parameter)
        return total if rank is None else torch.nn.functional.pad(total, (0, parameter.shape[-1] - rank))

    def _capture_rows(
        self, parameter: nn.Parameter, left: Tensor, right: Tensor, per_row: int, transposed: bool
    ) -> None:
        self._claim(parameter)
        rows = len(self.unit_of_row)
        if len(left) != rows * per_row or len(right) != rows * per_row:
            raise TokensMiscounted(f"gradient over {len(left)} tokens, expected {rows} rows x {per_row}")
        left = self.of_trained_rank(parameter, left).to(parameter.dtype)
        right = right.to(parameter.dtype)
        by_row = torch.bmm(left.reshape(rows, per_row, -1).mT, right.reshape(rows, per_row, -1))
        by_unit = by_row.new_zeros(self.num_units, *by_row.shape[1:]).index_add_(0, self.unit_of_row, by_row)
        self._kept[parameter] = _UnitGradients(by_unit, transposed)

    def _claim(self, parameter: nn.Parameter) -> None:
        if self._is_closed:
            raise CaptureClosed("backward ran after its microbatch had ended")
        if parameter in self._kept:
            raise CapturedTwice("a factor was reached twice by backward inside one microbatch")


@dataclass(slots=True)
class CaptureSlot:
    """Holds the collector of the microbatch in progress for the adapters of one model; None trains without privacy."""

    collector: Collector | None = None

    @contextmanager
    def filled(self, collector: Collector) -> Iterator[Collector]:
        """Forward and backward inside hand their gradients to `collector`, which is closed in the end.

        Raises:
            CaptureNested: another collector is in use.
            CaptureMissed: at the end, see `Collector.announce`.
        """
        if self.collector is not None:
            raise CaptureNested("a microbatch of this model is open already")
        self.collector = collector
        try:
            yield collector
            collector.require_announced()
        finally:
            self.collector = None
            collector.close()


class RunCapture(Protocol):
    """Takes the gradient of a bank's factor part by part."""

    def add(self, pairs: slice, runs: slice, left_CP: Tensor, right_CQ: Tensor) -> None:
        """The outer products of these consecutive sorted pairs, which are those of these whole runs."""
        ...


@dataclass(frozen=True, slots=True)
class _OfTrainedRank:
    collector: Collector
    parameter: nn.Parameter
    kept: RunCapture

    def add(self, pairs: slice, runs: slice, left_CP: Tensor, right_CQ: Tensor) -> None:
        self.kept.add(pairs, runs, self.collector.of_trained_rank(self.parameter, left_CP), right_CQ)


class Kept(Protocol):
    """The gradients of one factor for every unit, in whatever form sums them best."""

    def square_norms(self, num_units: int) -> Tensor:
        """[U] float64, true but for the rounding of so long a sum."""
        ...

    def forget(self, is_forgotten_U: Tensor) -> None:
        """Leaves these units out of every later norm and sum, even where they hold nan."""
        ...

    def weighted_sums(self, factors_U: Tensor, group_U: Tensor, num_groups: int, grid: float | None) -> Tensor:
        """Sums over each group's units of factor * gradient, [G, ..] float64, reshapable to the factor's shape."""
        ...


@dataclass(slots=True)
class _UnitGradients:
    grads_UPQ: Tensor
    transposed: bool

    def square_norms(self, num_units: int) -> Tensor:
        return _square_norms(self.grads_UPQ)

    def forget(self, is_forgotten_U: Tensor) -> None:
        self.grads_UPQ[is_forgotten_U] = 0

    def weighted_sums(self, factors_U: Tensor, group_U: Tensor, num_groups: int, grid: float | None) -> Tensor:
        totals = factors_U.new_zeros(num_groups, *self.grads_UPQ.shape[1:])
        add_weighted(totals, group_U, factors_U, self.grads_UPQ, grid)
        return totals.mT if self.transposed else totals


@dataclass(slots=True)
class _WordGradients:
    grads_NP: Tensor  # one for each (unit, word) that occurs
    unit_N: Tensor
    word_N: Tensor
    words: int

    def square_norms(self, num_units: int) -> Tensor:
        squares_NP = self.grads_NP.double().square()
        return squares_NP.new_zeros(num_units, squares_NP.shape[1]).index_add_(0, self.unit_N, squares_NP).sum(1)

    def forget(self, is_forgotten_U: Tensor) -> None:
        self.grads_NP[is_forgotten_U[self.unit_N]] = 0

    def weighted_sums(self, factors_U: Tensor, group_U: Tensor, num_groups: int, grid: float | None) -> Tensor:
        totals = factors_U.new_zeros(num_groups * self.words, self.grads_NP.shape[1])
        place_N = group_U[self.unit_N] * self.words + self.word_N
        add_weighted(totals, place_N, factors_U[self.unit_N], self.grads_NP, grid)
        return totals.view(num_groups, self.words, -1).mT


@dataclass(slots=True)
class _RunGradients:
    parts: list[tuple[slice, Tensor]]  # runs of whole experts and their gradients [runs, P, Q]
    widths: tuple[int, int]
    runs: Runs
    num_experts: int
    transposed: bool

    def add(self, pairs: slice, runs: slice, left_CP: Tensor, right_CQ: Tensor) -> None:
        grads = left_CP.new_empty(runs.stop - runs.start, *self.widths)
        for some, products in _run_products(left_CP, right_CQ, self.runs, runs):
            grads[some] = products
        self.parts.append((runs, grads))

    def square_norms(self, num_units: int) -> Tensor:
        total = torch.zeros(num_units, dtype=torch.float64, device=self.runs.unit_N.device)
        for runs, grads in self.parts:
            total.index_add_(0, self.runs.unit_N[runs], _square_norms(grads))
        return total

    def forget(self, is_forgotten_U: Tensor) -> None:
        for runs, grads in self.parts:
            grads[is_forgotten_U[self.runs.unit_N[runs]]] = 0

    def weighted_sums(self, factors_U: Tensor, group_U: Tensor, num_groups: int, grid: float | None) -> Tensor:
        totals = factors_U.new_zeros(num_groups * self.num_experts, *self.widths)
        for runs, grads in self.parts:
            unit_N = self.runs.unit_N[runs]
            place_N = group_U[unit_N] * self.num_experts + self.runs.expert_N[runs]
            add_weighted(totals, place_N, factors_U[unit_N], grads, grid)
        totals = totals.view(num_groups, self.num_experts, *self.widths)
        return totals.mT if self.transposed else totals


@dataclass(slots=True)
class _RunFactors:
    """Products are taken anew for the norms and for the sum: the same ones, as a bound must hold for what is summed."""

    parts: list[tuple[slice, Tensor, Tensor]]  # runs of whole experts, and what their gradients are products of
    widths: tuple[int, int]
    runs: Runs
    num_experts: int
    transposed: bool

    def add(self, pairs: slice, runs: slice, left_CP: Tensor, right_CQ: Tensor) -> None:
        self.parts.append((runs, left_CP.clone(), right_CQ.clone()))

    def square_norms(self, num_units: int) -> Tensor:
        total = torch.zeros(num_units, dtype=torch.float64, device=self.runs.unit_N.device)
        for runs, left, right in self.parts:
            by_run = total.new_zeros(runs.stop - runs.start)
            for some, products in _run_products(left, right, self.runs, runs):
                by_run[some] = _square_norms(products)
            total.index_add_(0, self.runs.unit_N[runs], by_run)
        return total

    def forget(self, is_forgotten_U: Tensor) -> None:
        for runs, left, right in self.parts:
            first_N, length_N = self.runs.first_N[runs], self.runs.length_N[runs]
            lost = (is_forgotten_U[self.runs.unit_N[runs]]).nonzero()[:, 0].tolist()
            for run in lost:
                start = int(first_N[run] - first_N[0])
                own = slice(start, start + int(length_N[run]))
                left[own], right[own] = 0, 0

    def weighted_sums(self, factors_U: Tensor, group_U: Tensor, num_groups: int, grid: float | None) -> Tensor:
        totals = factors_U.new_zeros(num_groups * self.num_experts, *self.widths)
        for runs, left, right in self.parts:
            unit_N = self.runs.unit_N[runs]
            place_N, factors_N = group_U[unit_N] * self.num_experts + self.runs.expert_N[runs], factors_U[unit_N]
            for some, products in _run_products(left, right, self.runs, runs):
                add_weighted(totals, place_N[some], factors_N[some], products, grid)
        totals = totals.view(num_groups, self.num_experts, *self.widths)
        return totals.mT if self.transposed else totals


def add_weighted(total_NPQ: Tensor, places_B: Tensor, factors_B: Tensor, grads_BPQ: Tensor, grid: float | None) -> None:
    """Adds factor * gradient, cut towards zero to a multiple of `grid`, at each one's place; float64."""
    few = max(1, _CACHED // max(1, grads_BPQ[:1].numel()))
    parts = (torch.split(tensor, few) for tensor in (places_B, factors_B, grads_BPQ))
    for places, factors, grads in zip(*parts, strict=True):
        terms = grads.double() * factors.view(-1, *(1,) * (grads.ndim - 1))
        total_NPQ.index_add_(0, places, cut(terms, grid))


def cut(terms: Tensor, grid: float | None) -> Tensor:
    """Cuts each number towards zero to a multiple of `grid`, a power of two; in place."""
    return terms if grid is None else terms.div_(grid).trunc_().mul_(grid)


def _square_norms(grads_BPQ: Tensor) -> Tensor:
    """[B] float64; few at a time, as each is widened first and had better stay in cache.

    Always as many, and never one: torch adds up a single result in another order than one of several.
    """
    few = min(64, max(2, _CACHED // max(1, grads_BPQ[:1].numel())))
    norms = []
    for grads in torch.split(grads_BPQ, few):
        filled = torch.nn.functional.pad(grads, (0, 0, 0, 0, 0, few - len(grads)))
        norms.append(torch.linalg.vector_norm(filled, dim=(1, 2), dtype=torch.float64)[: len(grads)])
    return torch.cat(norms).square_()


def _run_products(left_CP: Tensor, right_CQ: Tensor, runs: Runs, part: slice) -> Iterator[tuple[Tensor, Tensor]]:
    """(numbers [B] of runs in `part`, left^T right over each [B, P, Q]), in products of one shape for a padded length.

    What a run's product is, down to the last bit, is thus decided by its own pairs.
    """
    for runs_B, pairs_BL, is_padding_BL in runs.padded(part):
        for some, pairs, is_padding in zip(
            *(torch.split(t, _RUNS) for t in (runs_B, pairs_BL, is_padding_BL)), strict=True
        ):
            filled = torch.arange(_RUNS, device=pairs.device).clamp_max(len(some) - 1)
            left, right = left_CP[pairs[filled]], right_CQ[pairs[filled]]
            left.masked_fill_(is_padding[filled].unsqueeze(2), 0)
            yield some, torch.bmm(left.mT, right)[: len(some)]

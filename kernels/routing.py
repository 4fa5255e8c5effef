"""Token-choice routing as a sort: which rows belong to which expert, and inside an expert to which privacy unit.

Legend: `T` tokens, `K` top-k, `E` experts, `S` routed pairs (T*K less the dropped ones; in a tiled plan also the pairs
that fill tiles up), `N` non-empty (expert, unit) runs, `B` some of them, `L` their padded length.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import RoutingOutOfRange, TokensMiscounted


class PaddedRuns(NamedTuple):
    """Runs of similar length as rows of one length, a power of two: a short one repeats its own last pair."""

    runs_B: Tensor  # their numbers
    pairs_BL: Tensor  # the sorted pairs of each
    is_padding_BL: Tensor


@dataclass(frozen=True, slots=True)
class Runs:
    """Consecutive sorted pairs that share an (expert, unit); ordered by expert, then unit."""

    first_N: Tensor  # the first sorted pair of each run
    length_N: Tensor  # pairs in each run, all positive
    expert_N: Tensor
    unit_N: Tensor
    num_slots: int  # T*K: with how many units there are, all that a batch's shape says of its runs
    _padded: dict[tuple[int, int], list[PaddedRuns]] = field(default_factory=dict, repr=False, compare=False)

    def padded(self, part: slice) -> list[PaddedRuns]:
        """The consecutive runs of `part` in batches of one padded length, which each run's own length decides.

        Runs and pairs are counted from the first of the part. Padding stays inside a run, so that what is not finite in
        one unit cannot reach another even as 0 * nan.
        """
        if (part.start, part.stop) not in self._padded:
            first_N = self.first_N[part]
            self._padded[part.start, part.stop] = list(_batches(first_N - first_N[:1], self.length_N[part]))
        return self._padded[part.start, part.stop]


@dataclass(frozen=True, slots=True)
class Plan:
    """The (token, choice) pairs of one routing decision, sorted by expert; the order inside an expert is stable."""

    num_experts: int
    pair_S: Tensor  # flat position t*K + k of each sorted pair
    token_S: Tensor  # token of each sorted pair
    slot_TK: Tensor  # inverse of pair_S: the sorted position of each pair, S for one that was dropped
    slices: tuple[tuple[int, slice], ...]  # (expert, its sorted pairs) for experts that were hit
    runs: Runs | None  # only when the owners of the tokens were given
    has_dropped: bool  # whether some pair goes to no expert of this bank

    @property
    def num_pairs(self) -> int:
        """S."""
        return self.pair_S.numel()

    def tiled(self, rows: int) -> "Plan":
        """The same routing with each expert's pairs filled up to whole tiles of `rows`.

        Products can then be taken tile by tile, so that the shape in which a pair is computed does not depend on who
        else goes to its expert. What is computed for the pairs that fill up, of the first token, is in no slot.
        """
        shift, filled = torch.zeros_like(self.pair_S), 0
        slices: list[tuple[int, slice]] = []
        for expert, part in self.slices:
            shift[part] = filled - part.start
            end = filled + -(-(part.stop - part.start) // rows) * rows
            slices.append((expert, slice(filled, end)))
            filled = end
        place_S = torch.arange(self.num_pairs, device=shift.device) + shift
        pair, token = (ids.new_zeros(filled).index_copy_(0, place_S, ids) for ids in (self.pair_S, self.token_S))
        place_of = torch.cat([place_S, place_S.new_tensor([filled])])  # the last for what was dropped
        runs = self.runs and replace(self.runs, first_N=place_S[self.runs.first_N], _padded={})
        return replace(
            self, pair_S=pair, token_S=token, slot_TK=place_of[self.slot_TK], slices=tuple(slices), runs=runs
        )


@torch.no_grad()
def route(topk_ids_TK: Tensor, num_experts: int, unit_of_token: Tensor | None = None, num_units: int = 0) -> Plan:
    """Sorts pairs by expert and, if `unit_of_token` [T] in [0, num_units) is given, by owner inside an expert.

    The index num_experts is expert parallelism's "not on this device": the pair adds nothing, and the gradient of its
    weight is zero.

    Raises:
        RoutingOutOfRange: any other expert or unit index does not exist.
        TokensMiscounted: `unit_of_token` has another length than `topk_ids_TK`.
    """
    tokens, top_k = topk_ids_TK.shape
    expert = topk_ids_TK.reshape(-1).to(torch.int64)
    _check_range("expert", expert, num_experts + 1)
    counts = torch.bincount(expert, minlength=num_experts + 1)[:num_experts].tolist()
    kept = sum(counts)
    runs = None
    if unit_of_token is None:
        pair = torch.argsort(expert, stable=True)[:kept]
    else:
        if unit_of_token.shape != (tokens,):
            raise TokensMiscounted(f"{tokens} routed tokens, but owners for {unit_of_token.numel()}")
        _check_range("unit", unit_of_token, num_units)
        key, pair = torch.sort(expert * num_units + unit_of_token.repeat_interleave(top_k), stable=True)
        pair, (run, length) = pair[:kept], torch.unique_consecutive(key[:kept], return_counts=True)
        first = length.cumsum(0) - length
        runs = Runs(first, length, run // max(num_units, 1), run % max(num_units, 1), expert.numel())
    slot = torch.full_like(expert, kept)
    slot[pair] = torch.arange(kept, device=pair.device)
    return Plan(
        num_experts=num_experts,
        pair_S=pair,
        token_S=pair // top_k,
        slot_TK=slot.view(tokens, top_k),
        slices=slices_of(counts),
        runs=runs,
        has_dropped=kept < expert.numel(),
    )


def slices_of(counts: list[int]) -> tuple[tuple[int, slice], ...]:
    """(index, slice) of each non-empty group when groups of these sizes lie one after another."""
    found, start = [], 0
    for index, count in enumerate(counts):
        if count:
            found.append((index, slice(start, start + count)))
        start += count
    return tuple(found)


def _batches(first_N: Tensor, length_N: Tensor) -> Iterator[PaddedRuns]:
    lengths = length_N.tolist()
    for padded in sorted({_power_of_two(length) for length in lengths}):
        chosen = [run for run, length in enumerate(lengths) if _power_of_two(length) == padded]
        runs_B = torch.tensor(chosen, device=length_N.device)
        place_L = torch.arange(padded, device=length_N.device)
        last_B1 = length_N[runs_B, None] - 1
        yield PaddedRuns(runs_B, first_N[runs_B, None] + torch.minimum(place_L, last_B1), place_L > last_B1)


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _check_range(what: str, index: Tensor, bound: int) -> None:
    if index.numel():
        low, high = (int(edge) for edge in torch.aminmax(index))
        if low < 0 or high >= bound:
            raise RoutingOutOfRange(f"{what} index must be in [0, {bound}), got {low}..{high}")

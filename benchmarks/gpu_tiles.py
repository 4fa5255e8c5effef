"""Finds the quickest tiles of the Triton kernels on the card at hand, one case after another.

For each number of rows that a case allows, the tile of each kernel starts where analysis put it, and one side after
another takes the value with which the kernel's launches are quickest; both always alternate. Then the rows with the
quickest pass win. What is chosen is held against float64 before it is kept.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from gpu_experts import BOUNDS, SCALING, UNITS, Bank, Shape
from gpu_timing import Call, medians_on

from confide.kernels import triton_experts
from confide.kernels.routing import route
from confide.kernels.tiles import PAIRS, Case, Tiling, Tilings, by_analysis

SIDES = {"cols": (32, 64, 128, 256), "depth": (32, 64), "warps": (4, 8), "stages": (2, 3, 4, 5)}
INTERPRETED = {"cols": (16, 32)}  # enough to run the code
KERNELS = ("gate_up", "grouped", "inner_gradient", "runs")
_MEAN = {16: 16, 32: 32, 64: 64, 128: 192}  # pairs an expert that stand for a class


@dataclass(frozen=True)
class Tuned:
    """The tiles of a case, and milliseconds of a private training step with them and with those of analysis."""

    case: Case
    tilings: Tilings
    tuned_ms: float
    analysis_ms: float


def shape_for(pairs: int, like: Shape) -> Shape:
    """As many tokens as give the experts of a bank the mean number of pairs that stands for a class."""
    tokens = -(-_MEAN[pairs] * like.experts // like.top_k)
    return replace(like, tokens=-(-tokens // UNITS) * UNITS)


def tuned(bank: Bank, stored: str, *, seconds: float) -> Tuned:
    """The quickest tiles for what this bank is: its format, dtype, rank and number of pairs.

    Raises:
        RuntimeError: with these tiles the kernels compute something else.
    """
    dtype, device = bank.x.dtype, bank.device
    case, capability = _case(bank, stored), triton_experts.card_of(device).capability
    sides = SIDES if device.type == "cuda" else INTERPRETED
    start = by_analysis(capability, case.pairs, case.itemsize, case.rank)
    rows_to_try = [rows for rows in PAIRS if case.pairs <= 2 * rows and rows <= case.pairs]
    found = []
    for rows in rows_to_try if device.type == "cuda" else [start.grouped.rows]:
        tilings = Tilings(*(replace(getattr(start, name), rows=rows) for name in KERNELS[:3]), start.runs)
        for name in KERNELS:
            best = _descent(name, tilings, bank, stored, sides, seconds)
            if best is None:
                break  # no tile of so many rows fits
            tilings = replace(tilings, **{name: best})
        else:
            found.append(tilings)
    candidates = {str(index): tilings for index, tilings in enumerate([start, *found])}
    times = medians_on(device, {key: _step(bank, stored, t) for key, t in candidates.items()}, seconds=4 * seconds)
    quickest = min((ms, key) for key, ms in times.items() if ms is not None)
    best_tilings = candidates[quickest[1]]
    with forced(best_tilings):
        wrong = {name: error for name, error in bank.errors(stored).items() if not error <= BOUNDS[dtype]}
    if wrong:
        raise RuntimeError(f"{case}: with {best_tilings} the kernels are off by {wrong}")
    return Tuned(case, best_tilings, quickest[0], times["0"] or float("nan"))


@contextmanager
def forced(tilings: Tilings) -> Iterator[None]:
    """Inside, every pass takes these tiles."""
    original = triton_experts.chosen
    triton_experts.chosen = lambda *_: tilings
    try:
        yield
    finally:
        triton_experts.chosen = original


def _case(bank: Bank, stored: str) -> Case:
    experts = bank.experts(stored)
    stacks = triton_experts.stored(experts.gate_up), triton_experts.stored(experts.down)
    plan = route(bank.ids, bank.shape.experts)
    return triton_experts.Pass(bank.x, plan, *stacks, bank.shape.rank, SCALING).case


def _descent(
    name: str, tilings: Tilings, bank: Bank, stored: str, sides: dict[str, tuple[int, ...]], seconds: float
) -> Tiling | None:
    """The kernel's quickest tile, from the one in `tilings` on; None if not even that one fits."""
    best: Tiling = getattr(tilings, name)
    launch = _launches(name, bank, stored)
    if not _fits(launch(tilings)):
        return None
    if name == "runs":  # its products add over rows, and no other kernel shares those
        sides = {"rows": (16, 32, 64), **{side: choices for side, choices in sides.items() if side != "depth"}}
    for side, choices in sides.items():
        trials = [replace(best, **{side: choice}) for choice in choices]
        calls = {tiling: launch(replace(tilings, **{name: tiling})) for tiling in dict.fromkeys([best, *trials])}
        fitting = {str(index): call for index, call in enumerate(calls.values()) if _fits(call)}
        times = medians_on(bank.device, fitting, seconds=seconds)
        best = list(calls)[int(min((ms, key) for key, ms in times.items() if ms is not None)[1])]
    return best


def _fits(call: Call) -> bool:
    """False for a tile that asks for more than a block can have."""
    from triton.runtime.errors import OutOfResources

    try:
        call()
    except OutOfResources:
        return False
    return True


def _step(bank: Bank, stored: str, tilings: Tilings) -> Call:
    def step() -> None:
        with forced(tilings):
            bank.clipped(stored)

    return step


def _launches(name: str, bank: Bank, stored: str) -> Callable[[Tilings], Call]:
    """By tiles, all launches of one kernel in a training step."""
    experts, plan = bank.experts(stored), route(bank.ids, bank.shape.experts)
    stacks = triton_experts.stored(experts.gate_up), triton_experts.stored(experts.down)
    x, grad, weights = bank.x.detach(), bank.grad, bank.weights.detach()
    A1, B1, A2, B2 = (factor.detach() for factor in bank.factors)

    def launches(tilings: Tilings) -> Call:
        made = triton_experts.Pass(x, plan, *stacks, bank.shape.rank, SCALING, tilings)
        inner, gate_up, z = made.gate_up(x, A1, B1, True)
        assert gate_up is not None
        assert z is not None
        pairs_E = torch.bincount(bank.ids.flatten(), minlength=bank.shape.experts)
        edges = torch.nn.functional.pad(pairs_E.cumsum(0), (1, 0))
        calls: dict[str, Call] = {
            "gate_up": lambda: made.gate_up(x, A1, B1, True),
            "grouped": lambda: (
                made.down(inner, A2, B2, weights, True),
                made.hidden_gradient(gate_up, A1, B1, True),
            ),
            "inner_gradient": lambda: made.inner_gradient(
                grad, gate_up, A2, B2, weights, is_kept=True, needs_weight=True
            ),
            "runs": lambda: (
                made.factor_gradient(z, x, plan.token_S, rank_first=True).by_run(edges, x.dtype),
                made.factor_gradient(z, gate_up, None, rank_first=False).square_norms(edges),
            ),
        }
        return calls[name]

    return launches

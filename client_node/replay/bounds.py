"""Public bounds that follow from a study alone: on the length of a total, and on how far any run can move the state.

Nobody can make a run of the study leave them, neither a site nor the coordinator, as long as sites replay it
(`following`) and, for the bound on a total, as long as the aggregators hold vectors to their norm.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import StateRefused
from ..study import PlannedRound, Study

_FLOAT32 = 2.0**-22  # relative, what rounding a step's four vectors to float32 may add to a bound


def longest_total(study: Study, planned: PlannedRound, kept: int) -> float:
    """Bounds the L2 norm of the total of a round over `kept` sites, in real units.

    A vector of up to twice its bound may pass the norm check (docs/norm-check.md), and so may a top-up; the noise of
    honest sites is inside their bound. Without a norm check only the ring bounds a total: every entry may be as large
    as the ring holds.
    """
    ring = math.sqrt(planned.dim) * 2.0 ** (planned.ring_bits - 1)
    units = ring
    if planned.bound_units is not None:
        units = min(2.0 * kept * (planned.bound_units + study.topup_bound(planned.number, kept)), ring)
    return math.ldexp(units, -planned.scale_bits)


def require_length(study: Study, planned: PlannedRound, units: npt.NDArray[np.int64], kept: int) -> None:
    """Raises `StateRefused` if a total, in ring units, is longer than any total over `kept` sites can be."""
    norm = math.ldexp(float(np.linalg.norm(units.astype(np.float64))), -planned.scale_bits)
    if norm > (1 + _FLOAT32) * longest_total(study, planned, kept):
        raise StateRefused(f"the total of round {planned.number} is longer than a total of {kept} sites can be")


@dataclass(frozen=True, slots=True)
class Reach:
    """The farthest, in L2, that any run of a study gets from its start: adapters and head by themselves."""

    adapters: float
    head: float


def reach(study: Study) -> Reach:
    """Computes the farthest that any run of `study` can move its state: rate * rounds * the longest direction.

    Let g be the longest mean update: `longest_total` over all sites with all top-ups, over `StudyDraft.update_divisor`.
    With momentum m the velocity is a sum of mean updates weighted 1, m, m^2 and so on, so no longer than g / (1 - m).
    Adam's velocity, corrected, is a weighted mean of updates, no longer than g, and is divided by eps at least. If the
    known noise is not taken off, each entry of its direction is also at most c: for weights w of the velocity and q of
    the second moment |sum w u| <= sqrt(sum w^2 / q) sqrt(sum q u^2) (Cauchy-Schwarz). The average of states, if the
    study keeps one, is inside the same ball, since a ball is convex. The bound allows for float32 rounding.

    A state that is sent as "int8" is off by another 1/127 of the largest entry in its block, at most: half a scale of
    this round, and half a scale of the last one's residual.
    """
    draft = study.draft
    planned, optimizer = study.planned_round(1), draft.optimizer
    rounds, sites = draft.rounds.rounds, len(study.sites)
    longest = longest_total(study, planned, study.quorum) / study.quorum * sites  # fewest sites, longest top-ups
    update = longest / draft.update_divisor
    head_size = study.require_start().head_size
    sizes = study.dim - head_size - draft.state_dim(0), head_size
    lr, head_lr = optimizer.rates
    slack = (1 + _FLOAT32) * (1 + _FLOAT32 * rounds)
    found = []
    for rate, size in zip((lr, head_lr), sizes, strict=True):
        if optimizer.kind == "momentum":
            direction = update / (1 - optimizer.momentum)
        else:
            direction = update / optimizer.eps
            if not optimizer.noise_correction:
                direction = min(direction, _adam_entry(study) * math.sqrt(size))
        found.append(rate * rounds * direction * slack if size else 0.0)
    return Reach(*found)


def require_reach(study: Study, start: npt.NDArray[np.float32], state: npt.NDArray[np.float32]) -> None:
    """Raises `StateRefused` if a state is farther from the start of its run than any run of the study gets."""
    farthest, head_size = reach(study), study.require_start().head_size
    moved = state.astype(np.float64) - start.astype(np.float64)
    end = study.dim - study.draft.state_dim(0)  # an adaptive clip's logarithm has a range of its own
    norms = float(np.linalg.norm(moved[head_size:end])), float(np.linalg.norm(moved[:head_size]))
    # Rounding the state moves it by a last bit of its size a round, also where the start is large and nothing is moved.
    rounding = _FLOAT32 * study.draft.rounds.rounds * float(np.linalg.norm(start.astype(np.float64)))
    if not (norms[0] <= farthest.adapters + rounding and norms[1] <= farthest.head + rounding):  # NaN fails too
        raise StateRefused(f"the state is farther from its start than any run of study {study.name} can get")


def _adam_entry(study: Study) -> float:
    """Bounds an entry of Adam's direction, whatever the updates were: the largest c over the rounds of the study.

    c^2 = sum of w^2 / q, with w = (1 - b1) b1^k / (1 - b1^t) and q = (1 - b2) b2^k / (1 - b2^t) for k = 0 .. t - 1.
    """
    first, second = study.draft.optimizer.momentum, study.draft.optimizer.beta2
    if second == 0:
        return 1.0 if first == 0 or study.draft.rounds.rounds == 1 else math.inf
    largest, terms, power, ratio, first_power, second_power = 0.0, 0.0, 1.0, first * first / second, 1.0, 1.0
    for _ in range(study.draft.rounds.rounds):
        terms, power = terms + power, power * ratio
        first_power, second_power = first_power * first, second_power * second
        scale = (1 - first) ** 2 * (1 - second_power) / ((1 - first_power) ** 2 * (1 - second))
        largest = max(largest, scale * terms)
    return math.sqrt(largest)

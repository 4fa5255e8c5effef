"""Sites that fail in a simulation: away, late, or hostile. All of it follows from a seed."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...client_node.study import PlannedRound, Study
from ...mpc.sharing import Ring, sketch
from ...mpc.sharing.ring import from_integers, to_integers
from .outcome import Faults

_LARGEST = 2.0**62  # an entry of a hostile vector, in ring units

Vector = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Attendance:
    """The sites of one round, by number."""

    summed: tuple[int, ...]
    away: tuple[int, ...] = ()  # left out
    late: tuple[int, ...] = ()  # left out
    waited: bool = False


def attendance(study: Study, faults: Faults, seed: int, number: int) -> Attendance:
    """Draws who is there at the deadline of a round.

    As in a real run, the sum is over all that are there, if they are enough. If not, it waits: for the late ones in
    their order, then for some of those that were away, until there is a quorum.
    """
    count = len(study.sites)
    rng = np.random.default_rng([seed, 2, number])
    is_away = rng.random(count) < faults.dropouts
    is_slow = np.zeros(count, dtype=bool)
    is_slow[_some(count, round(faults.slow * count), seed, 3)] = True
    seconds = np.where(is_slow, rng.exponential(faults.slow_s, count), 0.0)
    seconds = np.where(is_away, np.inf, seconds)
    is_there = seconds <= study.draft.rounds.deadline_s
    missing = study.quorum - int(is_there.sum())
    if missing > 0:
        order = rng.permutation(count)
        by_time = order[np.argsort(seconds[order], kind="stable")]
        is_there[by_time[~is_there[by_time]][:missing]] = True
    return Attendance(
        summed=tuple(np.flatnonzero(is_there).tolist()),
        away=tuple(np.flatnonzero(is_away & ~is_there).tolist()),
        late=tuple(np.flatnonzero(~is_away & ~is_there).tolist()),
        waited=missing > 0,
    )


def malicious(study: Study, faults: Faults, seed: int) -> frozenset[int]:
    """Draws the sites that are hostile in every round."""
    return frozenset(_some(len(study.sites), faults.malicious, seed, 4).tolist())


def hostile(honest: Vector, study: Study, planned: PlannedRound, length: float) -> Vector:
    """Turns a site's vector against the others: its opposite, `length` times as long as an honest one can be."""
    bound = planned.bound_units or _bound_if_checked(study)
    norm = float(np.linalg.norm(honest.astype(np.float64)))
    direction = -honest / norm if norm else np.full(len(honest), len(honest) ** -0.5)
    return np.rint(np.clip(direction * (length * bound), -_LARGEST, _LARGEST)).astype(np.int64)


def is_refused(vector: Vector, planned: PlannedRound, seed: bytes) -> bool:
    """True if the norm check leaves a vector out: more rows of its sketch exceed than may.

    The aggregators find the same of shares, without seeing a row.

    Args:
        seed: of the sketch, 32 bytes.
    """
    if planned.bound_units is None:
        return False
    ring = Ring(planned.ring_bits, planned.scale_bits)
    allowed = sketch.limits(planned.bound_units, ring.bits, planned.rows)
    rows = sketch.Sketch(seed, planned.dim, ring.bits, planned.rows).sketch(from_integers(vector, ring))
    return int((np.abs(to_integers(rows, ring)) > allowed.window).sum()) > allowed.tau


def _bound_if_checked(study: Study) -> int:
    """Length of the longest honest vector, in ring units, were norms checked."""
    draft = study.draft
    checked = draft.model_copy(update={"aggregation": draft.aggregation.model_copy(update={"norm_check": True})})
    bound = study.model_copy(update={"draft": checked}).planned_round(1).bound_units
    assert bound is not None, "a study that checks norms has a bound"
    return bound


def _some(count: int, chosen: int, seed: int, purpose: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, purpose]).permutation(count)[:chosen]

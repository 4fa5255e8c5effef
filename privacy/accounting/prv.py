"""A further accountant, of another make, beside the two that every figure is computed by: PRV as Opacus has it.

PRV (Gopi et al. 2021, arXiv:2106.02848) composes the densities of the privacy loss by Fourier transform and brackets
the true epsilon between a lower and an upper bound. It shares no code with dp-accounting's PLD nor with `renyi`, so a
slip in one of the three shows as a contradiction: an upper bound must not lie below PRV's lower end. One far above
PRV's upper end is worth a remark, no more: PLD rounds every release up to its grid, and very many cheap ones add up.

Out of scope: PRV looks at the removal of a unit alone, PLD at the worse of removal and addition. For Gaussians on
Poisson samples removal has been the worse one in every case that was tried; were it not, PLD would be called too large
here, in a remark, never too small. Opacus imports torch; it is loaded when the first epsilon is asked for.
"""

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.integrate import IntegrationWarning

from ..errors import NotCheckable
from . import composition, renyi
from .composition import Merged, Releases

MAX_PAIRS = 8  # distinct (noise multiplier, sample rate): below a second each on one core
MAX_POINTS = 1 << 20  # of the grid: below three seconds
LEAST_ERROR = 0.01  # half the width of the bracket where the grid is small
MOST_ERROR = 0.02  # the same, relative to epsilon, where it is large: the grid needs points in inverse proportion
DELTA_ERROR = 1000  # so many times less than delta is what the bracket allows for on the side of delta
LEAST_DELTA = 1e-11  # below, the sums' own rounding would decide
SLACK = 1e-3  # how far PLD may be above PRV's upper end: its grid, and as much relative to epsilon


@dataclass(frozen=True, slots=True)
class Bracket:
    """Epsilon as PRV sees it: surely between `lower` and `upper`, most likely at `estimate`."""

    lower: float
    estimate: float
    upper: float


@dataclass(frozen=True, slots=True)
class Opinion:
    """PRV's opinion on a pair of stated bounds."""

    bracket: Bracket | None  # None: not checked
    objections: tuple[str, ...] = ()  # why a stated bound cannot be right
    remarks: tuple[str, ...] = ()  # where one is right and larger than it need be
    why_not: str | None = None  # why PRV could not be asked


def compare(releases: Releases, delta: float, colluding: int, *, pld: float, rdp: float) -> Opinion:
    """PRV's opinion of the bounds `pld` and `rdp` that somebody states for `releases` together."""
    try:
        bracket = epsilon_prv(composition.merge(releases, colluding), delta)
    except NotCheckable as err:
        return Opinion(None, why_not=str(err))
    return Opinion(bracket, tuple(_objections(bracket, pld, rdp)), tuple(_remarks(bracket, pld)))


def epsilon_prv(merged: Merged, delta: float) -> Bracket:
    """Bounds on the epsilon of all (noise multiplier, sample rate, count) together.

    Raises:
        NotCheckable: PRV as it stands in Opacus has no answer, or not within a few seconds; says why.
    """
    if not merged:
        return Bracket(0.0, 0.0, 0.0)
    return _bracket(merged, delta)


def _objections(bracket: Bracket, pld: float, rdp: float) -> list[str]:
    return [
        f"{name} says {bound:.4f}, but PRV shows that epsilon is at least {bracket.lower:.4f}"
        for name, bound in (("PLD", pld), ("RDP", rdp))
        if bound < bracket.lower * (1 - 1e-9)
    ]


def _remarks(bracket: Bracket, pld: float) -> list[str]:
    if pld <= bracket.upper + SLACK * (1 + bracket.upper):
        return []
    return [f"PLD says {pld:.4f}, and PRV shows that epsilon is at most {bracket.upper:.4f}: more than need be"]


@lru_cache(maxsize=1024)
def _bracket(merged: Merged, delta: float) -> Bracket:
    error = _error(merged, delta)
    from opacus.accountants import PRVAccountant  # imports torch: not for who only adds up a ledger

    accountant = PRVAccountant()
    accountant.history = [*merged]
    # log(1 - q) is minus infinity at q = 1, and far tails overflow: both as they should; NaN is refused below
    with warnings.catch_warnings(), np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        warnings.filterwarnings("ignore", "Optimal order is the", UserWarning)  # RDP in there only sizes the grid
        warnings.simplefilter("error", IntegrationWarning)
        try:
            composed = accountant._get_dprv(error, delta / DELTA_ERROR)
            found = composed.compute_epsilon(delta, delta / DELTA_ERROR, error)
        except (ValueError, RuntimeError, IntegrationWarning) as err:
            raise NotCheckable(f"its numerics do not carry: {err}") from err
    lower, estimate, upper = (max(0.0, float(value)) for value in found)
    if not lower <= estimate <= upper:  # NaN fails too
        raise NotCheckable(f"its answer makes no sense: {lower} to {upper}")
    return Bracket(lower, estimate, upper)


def _error(merged: Merged, delta: float) -> float:
    """The bracket's half width, as small as the grid allows."""
    if any(multiplier == 0 for multiplier, _, _ in merged):
        raise NotCheckable("a release without noise, to this observer, has no finite epsilon")
    if not LEAST_DELTA <= delta < 1:  # NaN fails too
        raise NotCheckable(f"delta is not from {LEAST_DELTA:g} to below 1")
    expected = renyi.epsilon(merged, delta)
    if expected > composition.HOPELESS:
        raise NotCheckable(f"epsilon is above {composition.HOPELESS:g}, where it protects nothing")
    if len(merged) > MAX_PAIRS:
        raise NotCheckable(f"{len(merged)} distinct pairs of noise and sample rate, and it takes {MAX_PAIRS} at most")
    steps = sum(count for _, _, count in merged)
    # Opacus' grid: steps of error / sqrt(steps log(12 / delta_error) / 2), from -L to L, L by RDP as below
    widest = renyi.epsilon(merged, delta / DELTA_ERROR / 4) + 3
    needed = 2 * widest * math.sqrt(steps * math.log(12 * DELTA_ERROR / delta) / 2) / MAX_POINTS
    if needed > max(LEAST_ERROR, MOST_ERROR * expected):
        raise NotCheckable(f"{steps:,} steps need a grid of more than {MAX_POINTS:,} points")
    return max(LEAST_ERROR, needed)

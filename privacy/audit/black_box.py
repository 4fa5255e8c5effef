"""A site's step held against its charge, from its releases alone: how much noise, how long a unit, who is drawn.

The step is a black box: whatever a site runs, with its own study, limits and workers. It releases several rounds over a
table of units with one and the same record. Their gradients point all one way, so along that way a release shows how
many units it holds and how long each is, and everywhere else it shows noise and nothing more. What is expected is what
was charged, not what the step says of itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2

from ..accounting.composition import Release
from ..errors import InvalidPrivacyParameter
from ..mechanism.sampling import Integers
from .engine_checks import Finding, Reals

DEVIATIONS = 5.0  # standard errors that are chance: a true step is accused once in a million
_ALPHA = 6e-7  # the same for the spread
_LEAST_SEEN = 0.2  # of the charged length: below it the record was not seen, and nothing is known of the clip


@dataclass(frozen=True, kw_only=True, slots=True)
class ChargeCheck:
    """The figures that a site's releases show, beside what was charged for them."""

    rounds: int
    units: int  # in the made-up table
    noise: float  # std of the noise over the charged one
    noise_error: float  # standard error of `noise`
    length: float | None  # of the sum, over that of as many units as are expected; None with local steps
    length_error: float | None
    spread: float | None  # variance of the sum's length over that of independent coins with the charged noise
    findings: tuple[Finding, ...]


def most_units(charged: Release, max_norm: float | None, *, weight: float = 1.0) -> int:
    """Returns how many units make a good table: enough to be seen beside the noise, too few to be projected.

    Args:
        weight: of the site, that multiplies its sums.
        max_norm: radius of the ball onto which the sum of a step is projected; None for none.
    """
    if charged.steps > 1:
        return 1  # the copy moves between local steps, and gradients with it: only noise can be read
    clip = weight * charged.clip_norm
    expected = max(64.0, 4 * charged.site_noise_int / (clip * 2.0**charged.scale_bits))
    if max_norm is not None:
        expected = min(expected, max_norm / (2 * clip))
    return max(1, round(expected / charged.sample_rate))


def check_releases(
    charged: Release,
    releases: Sequence[Integers],
    units: int,
    gradient: npt.NDArray[np.float64],
    *,
    weight: float = 1.0,
) -> ChargeCheck:
    """Compares releases of one site with the charge of each.

    Args:
        charged: the charge of one release, as in the ledger.
        releases: [rounds] of int64 [dim], each from the same state and the same table.
        units: in the table, each with the same single record.
        gradient: [dim] of one of them, before clipping, by another program; only its direction counts.
        weight: of the site, that multiplies its sums.

    Raises:
        InvalidPrivacyParameter: fewer than two releases, or the gradient is zero or of another length.
    """
    found: Reals = np.stack(releases).astype(np.float64)
    size = float(np.linalg.norm(gradient))
    if len(found) < 2 or found.shape[1:] != gradient.shape or not 0 < size < math.inf:
        raise InvalidPrivacyParameter(f"need two releases or more and a gradient of {found.shape[1]} numbers")
    rounds, dim = found.shape
    direction = gradient / size
    along = found @ direction
    across = found - along[:, None] * direction
    sigma = math.sqrt(charged.steps) * charged.site_noise_int
    noise = float(np.sqrt((across**2).sum() / (rounds * (dim - 1)))) / sigma
    noise_error = 1 / math.sqrt(2 * rounds * (dim - 1))
    findings = []
    if noise < 1 - DEVIATIONS * noise_error:
        findings.append(
            Finding("noise", f"its std is {noise:.4f} of the charged one (standard error {noise_error:.4f})")
        )
    if charged.steps > 1:
        return ChargeCheck(
            rounds=rounds, units=units, noise=noise, noise_error=noise_error, length=None, length_error=None,
            spread=None, findings=tuple(findings),
        )  # fmt: skip
    clip, rate = weight * charged.clip_norm * 2.0**charged.scale_bits, charged.sample_rate
    expected = units * rate * clip
    length = float(along.mean()) / expected
    coins = units * rate * (1 - rate) * clip**2
    length_error = math.sqrt((coins + sigma**2) / rounds) / expected
    if length > 1 + DEVIATIONS * length_error:
        findings.append(
            Finding("length", f"units add up to {length:.3f} of the charged length: too long, or too often")
        )
    if length < min(_LEAST_SEEN, 1 - DEVIATIONS * length_error):  # a small ball may leave less to see than the noise
        findings.append(Finding("length", f"units add up to {length:.3f} of the charged length: clipping was not seen"))
    variance = coins * min(1.0, length) ** 2 + sigma**2
    spread = float(along.var(ddof=1)) / variance
    low, high = chi2.ppf((_ALPHA / 2, 1 - _ALPHA / 2), rounds - 1) / (rounds - 1)
    if not low <= spread <= high:
        findings.append(Finding("draws", f"the sum varies {spread:.3f} times as much as independent coins make it"))
    return ChargeCheck(
        rounds=rounds, units=units, noise=noise, noise_error=noise_error, length=length, length_error=length_error,
        spread=spread, findings=tuple(findings),
    )  # fmt: skip

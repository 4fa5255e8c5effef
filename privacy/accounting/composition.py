"""The joint epsilon of all releases about one data set.

Privacy unit: one person, added or removed with all their records. Holds for Poisson sampling of units and noise that
every site really adds; a malicious site counts as a colluding one. Two accountants answer side by side for releases
that were all planned beforehand:

* RDP at whole orders (`renyi`), the best of them.
* PLD (dp-accounting, connect-the-dots, grid 1e-3, pessimistic): mostly tighter; RDP's bound stands for it where that is
  the smaller one, as for very many cheap releases, of which every one is rounded up to the grid.

A third figure holds also for releases that were chosen, or stopped, by earlier results: `epsilon_guaranteed`, RDP at
one order that was fixed beforehand. Caps are kept by it. It is never below the other two.

All hold for the integer noise that is really drawn, by a proof written out in `docs/noise.md`: a sum of discrete
Gaussians is, but for a factor of 1 + 1e-136 a coordinate, what anybody could make of a continuous Gaussian of variance
less by `SMOOTHING`^2, and that smaller variance is the one accounted for.

Equal releases are merged before composing, and what is left is composed in an order that its contents alone decide:
the answer depends neither on the order of releases nor on how they are split. The cost follows the number of distinct
pairs of noise multiplier and sample rate; after one more release only a few of the partial results are new.
"""

import hashlib
import math
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from ..errors import InvalidPrivacyParameter
from . import renyi

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

Mode = Literal["distributed", "local", "none"]
Merged = tuple[tuple[float, float, int], ...]  # (noise multiplier, sample rate, count), sorted
Releases = Iterable["Release"] | Mapping["Release", int]  # one by one, or how many of each kind

GRID = 1e-3  # 1e-2 nearly doubles a small epsilon, 1e-4 gains 2 % for half the time again
SMOOTHING = 4.0  # ring units; a discrete Gaussian of this std sums to 1 around any real centre within 2 exp(-32 pi^2)
MIN_SITE_NOISE = 10  # ring units; sums of fewer are not covered by docs/noise.md, which needs sqrt(2) * SMOOTHING
MAX_TOPPED_NOISE = 2**50  # ring units of one site's noise before any top-up, which multiplies it by at most 1000
DIGITS = 5  # significant digits of a multiplier or rate when accounted: few distinct pairs, at most 1e-4 too dear
MOST_SOLVED = 512.0  # noise multiplier up to which a target is tried
LEAST_MULTIPLIER, MOST_MULTIPLIER, LEAST_RATE = 1e-2, 1e6, 1e-9  # beyond, the safe end is taken: numerics hold within
HOPELESS = 64.0  # epsilon from which PLD is not worth its memory: RDP's bound stands for it
LEAST_PLD_DELTA = 1e-9  # below, rounding in PLD's Fourier transforms decides: RDP's bound stands for it
FOURIER_ERROR = 1e-11  # of delta, left to that rounding; ten times the most that was seen
MAX_DISTINCT = 256  # pairs that PLD composes, about 60 ms each; for more, RDP's bound stands for it
NEWEST_COUNTS = 4  # distributions kept of the same pairs, up to about 2 MB each: spent and planned, asked in turn
BLOCK = 1024  # so many equal releases are composed first where there are many more: their tails are cut closer


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """One opened sum of clipped, rounded and noised contributions, as an accountant sees it.

    mode "distributed": each of `sites` adds its share of the noise and only their sum is opened.
    mode "local": the noise of one site suffices against everybody. mode "none": no noise, no guarantee.

    With `planned_sites` above 0 the release stands for any of several sums: over `planned_sites` sites as they are, or
    over fewer, down to `sites`, each of which has added its `topup_noise` before the sum was opened. `over` gives the
    one that became of it.
    """

    mode: Mode
    site_noise_int: int  # std of ONE site's integer noise, ring units; 0 for mode "none"
    scale_bits: int  # fixed point: a real x is the ring integer round(x * 2**scale_bits)
    clip_norm: float  # most that one unit moves a site's sum before rounding, L2
    dim: int  # length of the released vector
    sample_rate: float  # probability that a unit takes part, (0, 1]
    sites: int  # how many sites' vectors the opened sum holds, or at least holds
    planned_sites: int = 0  # with top-up: how many it holds at most; without: 0
    noise_collusion: int = 0  # with top-up: how many sites' noise the planned noise multiplier does without
    steps: int = 1  # noised sums that each site adds up, every one over a new sample; 1 in mode "distributed"

    def __post_init__(self) -> None:
        checks = {
            "mode must be distributed, local or none": self.mode in ("distributed", "local", "none"),
            "site_noise_int must be in [0, 2**62]": 0 <= self.site_noise_int <= 2**62,
            "site_noise_int must be 0 in mode none": self.mode != "none" or self.site_noise_int == 0,
            "scale_bits must be in [0, 62]": 0 <= self.scale_bits <= 62,
            "clip_norm must be finite and > 0": 0 < self.clip_norm < math.inf,
            "dim must be in [1, 2**48]": 1 <= self.dim <= 2**48,
            "sample_rate must be in (0, 1]": 0 < self.sample_rate <= 1,
            "sites must be in [1, 10**6]": 1 <= self.sites <= 10**6,
            "top-up needs mode distributed, sites <= planned_sites <= 10**6, 0 <= noise_collusion < sites and "
            f"site_noise_int <= {MAX_TOPPED_NOISE}": self._is_topup_sound(),
            "steps must be in [1, 10**6]": 1 <= self.steps <= 10**6,
            "steps must be 1 in mode distributed": self.mode != "distributed" or self.steps == 1,
        }
        for claim, holds in checks.items():
            if not holds:  # NaN fails the comparisons above too
                raise InvalidPrivacyParameter(f"{claim}, got {self}")

    def _is_topup_sound(self) -> bool:
        if self.planned_sites == 0:
            return self.noise_collusion == 0
        is_sized = self.mode == "distributed" and 0 <= self.noise_collusion < self.sites
        return is_sized and self.sites <= self.planned_sites <= 10**6 and self.site_noise_int <= MAX_TOPPED_NOISE

    def over(self, sites: int) -> "Release":
        """The release once it is known how many sites' vectors the opened sum holds."""
        noise = self.site_noise_int
        if self.planned_sites:
            added = topup_noise(noise, planned=self.planned_sites, sites=sites, collusion=self.noise_collusion)
            noise = math.isqrt(noise**2 + added**2)
        return replace(self, sites=sites, site_noise_int=noise, planned_sites=0, noise_collusion=0)

    def noise_multiplier(self, colluding: int) -> float:
        """Noise std over one unit's sensitivity, for an observer who knows the noise of `colluding` of the sites.

        Rounding to the ring happens before the noise and moves two neighbouring sums apart by up to sqrt(dim), hence
        sensitivity 2**scale_bits * clip_norm + sqrt(dim). `SMOOTHING`^2 of the variance pays for the noise being whole
        numbers. 0 (no guarantee) for mode "none", for noise below `MIN_SITE_NOISE`, and when no site's noise is left
        unknown.

        With top-up the least over all sums that the release stands for. A sum over n sites has a variance in proportion
        to (n - colluding) / (n - noise_collusion), which is monotone in n: the smallest or the largest n has the least.
        """
        if colluding < 0:
            raise InvalidPrivacyParameter(f"colluding must be at least 0, got {colluding}")
        if self.planned_sites:
            return min(self.over(sites).noise_multiplier(colluding) for sites in (self.sites, self.planned_sites))
        unknown = 1 if self.mode == "local" else self.sites - colluding
        if self.mode == "none" or self.site_noise_int < MIN_SITE_NOISE or unknown < 1:
            return 0.0
        noise_std = math.sqrt(unknown * self.site_noise_int**2 - SMOOTHING**2)
        return noise_std / (2.0**self.scale_bits * self.clip_norm + math.sqrt(self.dim))


def epsilon_pld(releases: Releases, delta: float, colluding: int) -> float:
    """Upper bound on epsilon by privacy loss distributions; 0 for no release, infinite where noise is absent."""
    return pld_bound(merge(releases, colluding), _checked(delta))


def epsilon_rdp(releases: Releases, delta: float, colluding: int) -> float:
    """Upper bound on epsilon by Rényi DP at whole orders; 0 for no release, infinite where noise is absent."""
    return _epsilon_rdp(merge(releases, colluding), _checked(delta))


def epsilon_guaranteed(releases: Releases, delta: float, colluding: int, order: int) -> float:
    """Upper bound on epsilon by the Rényi filter at `order`; 0 for no release, infinite where noise is absent.

    Holds even if each release was chosen by the results of those before it, in number too, provided that `order` was
    not: `renyi.filter_order` derives it from a cap. Proof: `docs/noise.md`, section 8.
    """
    return _epsilon_guaranteed(merge(releases, colluding), _checked(delta), order)


def merge(releases: Releases, colluding: int) -> Merged:
    """Counts the releases' steps by (noise multiplier, sample rate), both to `DIGITS` digits on the safe side."""
    counts: Counter[tuple[float, float]] = Counter()
    for release, count in Counter(releases).items():
        if count:
            counts[_pair(release, colluding)] += count * release.steps
    return tuple(sorted((multiplier, rate, count) for (multiplier, rate), count in counts.items()))


def site_noise(
    noise_multiplier: float,
    clip_norm: float,
    cohort: int,
    max_dropouts: int,
    collusion: int,
    scale_bits: int,
    mode: Mode,
) -> int:
    """Std of one site's integer noise, in ring units.

    Sized so that the noise of the sites that neither dropped out nor collude makes up `noise_multiplier` by
    themselves (mode "distributed"); the whole of it at every site (mode "local"); 0 (mode "none").
    """
    if mode == "none":
        return 0
    if not (0 < noise_multiplier < math.inf and 0 < clip_norm < math.inf):
        raise InvalidPrivacyParameter(
            f"need noise_multiplier > 0 and clip_norm > 0, got {noise_multiplier}, {clip_norm}"
        )
    honest = 1 if mode == "local" else cohort - max_dropouts - collusion
    if honest < 1:
        raise InvalidPrivacyParameter(
            f"cohort {cohort} less max_dropouts {max_dropouts} and collusion {collusion} leaves no site to add noise"
        )
    return math.ceil(noise_multiplier * clip_norm / math.sqrt(honest) * 2.0**scale_bits)


def topup_noise(site_noise_int: int, *, planned: int, sites: int, collusion: int) -> int:
    """Std of the noise, in ring units, that each of `sites` adds because the others of `planned` are missing.

    `site_noise_int` is what `site_noise` gives for `planned` sites without dropouts, so that any `planned - collusion`
    of them make up the noise multiplier. Afterwards any `sites - collusion` do: the variance of each site grows by the
    factor (planned - collusion) / (sites - collusion), rounded up. In whole numbers throughout, so that who verifies a
    ledger gets the same. Not below `MIN_SITE_NOISE`, or the sum of both noises would no longer pass for one Gaussian;
    0 if none is missing.

    Raises:
        InvalidPrivacyParameter: `sites` is above `planned`, or not above `collusion`.
    """
    if not 0 <= collusion < sites <= planned or site_noise_int < 0:
        raise InvalidPrivacyParameter(
            f"no top-up for {sites} of {planned} sites with {collusion} colluding and site noise {site_noise_int}"
        )
    if sites == planned:
        return 0
    square = site_noise_int**2
    needed = _root_up(-(-square * (planned - collusion) // (sites - collusion)))
    return max(MIN_SITE_NOISE, _root_up(needed**2 - square))


def solve_noise_multiplier(
    releases: Callable[[float], Releases],
    target_epsilon: float,
    delta: float,
    colluding: int,
    *,
    order: int | None = None,
) -> float:
    """Smallest noise multiplier at which `releases` cost at most `target_epsilon`, at most 0.05 % too large.

    Args:
        releases: all that is released at a given noise multiplier, whatever else it holds: an evaluation with noise of
            its own, what was spent before. More noise must not cost more.
        target_epsilon: for an observer who knows the noise of `colluding` sites.
        order: of the filter that has to admit all of it; None for a plan's cost by PLD.

    Returns:
        A multiplier of at most `DIGITS` significant digits; its own cost was computed, so the target holds for it.

    Raises:
        InvalidPrivacyParameter: no multiplier up to `MOST_SOLVED` reaches the target, or an argument is out of range.
    """
    if not 0 < target_epsilon < math.inf:
        raise InvalidPrivacyParameter(f"target_epsilon must be finite and > 0, got {target_epsilon}")

    def fits(multiplier: float) -> bool:
        planned = releases(multiplier)
        if order is None:
            return epsilon_pld(planned, delta, colluding) <= target_epsilon
        return epsilon_guaranteed(planned, delta, colluding, order) <= target_epsilon

    high = 1.0
    while not fits(high):
        high *= 2
        if high > MOST_SOLVED:
            raise InvalidPrivacyParameter(
                f"no noise multiplier up to {MOST_SOLVED:g} reaches epsilon {target_epsilon:g} at delta {delta:g} "
                f"with {colluding} colluding"
            )
    low = 0.0 if high == 1 else high / 2
    while high - low > 4e-4 * high:
        middle = _shorten((low + high) / 2, ROUND_CEILING, DIGITS)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _root_up(square: int) -> int:
    """The least whole number whose square is at least `square`."""
    return math.isqrt(square - 1) + 1 if square > 0 else 0


def _checked(delta: float) -> float:
    if not 0 < delta < 1:
        raise InvalidPrivacyParameter(f"delta must be in (0, 1), got {delta}")
    return delta


@lru_cache(maxsize=4096)
def _pair(release: Release, colluding: int) -> tuple[float, float]:
    multiplier = min(release.noise_multiplier(colluding), MOST_MULTIPLIER)
    rate = max(release.sample_rate, LEAST_RATE)
    if multiplier < LEAST_MULTIPLIER:
        multiplier = 0.0
    return _shorten(multiplier, ROUND_FLOOR, DIGITS), _shorten(rate, ROUND_CEILING, DIGITS)


def _shorten(value: float, rounding: str, digits: int) -> float:
    """Rounds in decimal. Going through the shortest text keeps 0.2 at 0.2; float() is monotone, so the side holds."""
    return float(Context(prec=digits, rounding=rounding).create_decimal(Decimal(repr(value))))


@lru_cache(maxsize=4096)
def _epsilon_rdp(merged: Merged, delta: float) -> float:
    return renyi.epsilon(merged, delta) if merged else 0.0


@lru_cache(maxsize=4096)
def _epsilon_guaranteed(merged: Merged, delta: float, order: int) -> float:
    return renyi.epsilon_at(merged, delta, order) if merged else 0.0


@lru_cache(maxsize=4096)
def pld_bound(merged: Merged, delta: float) -> float:
    """Upper bound on epsilon of all pairs together by PLD, or by RDP where that is smaller or PLD does not carry."""
    upper = _epsilon_rdp(merged, delta)
    if not merged or upper > HOPELESS or len(merged) > MAX_DISTINCT or delta < LEAST_PLD_DELTA:
        return upper
    return min(upper, float(_joint(merged, 0).get_epsilon_for_delta(delta - FOURIER_ERROR)))


def _joint(merged: Merged, depth: int) -> "PrivacyLossDistribution":
    """The pairs' joint privacy loss, composed along a binary tree in which a hash of each pair is its path.

    So another count of one pair, or one pair more, leaves all but a path of the tree as it was, and in the cache. Of
    equal pairs only the newest counts are kept: a study's rounds add one each, and nobody asks for earlier ones again.
    """
    kept = _kept(tuple((multiplier, rate) for multiplier, rate, _ in merged), depth)
    found = kept.get(merged)
    if found is None:
        found = _join(merged, depth)
        while len(kept) >= NEWEST_COUNTS:
            kept.pop(next(iter(kept)), None)
        kept[merged] = found
    return found


@lru_cache(maxsize=1024)  # twice MAX_DISTINCT and the paths in use
def _kept(pairs: tuple[tuple[float, float], ...], depth: int) -> "dict[Merged, PrivacyLossDistribution]":
    return {}


def _join(merged: Merged, depth: int) -> "PrivacyLossDistribution":
    if len(merged) == 1:
        return _composed(*merged[0])
    sides: tuple[list[tuple[float, float, int]], ...] = ([], [])
    for part in merged:
        sides[_path(part[0], part[1]) >> depth & 1].append(part)
    if not all(sides):
        return _joint(merged, depth + 1)
    return _joint(tuple(sides[0]), depth + 1).compose(_joint(tuple(sides[1]), depth + 1))


@lru_cache(maxsize=4096)
def _path(noise_multiplier: float, sample_rate: float) -> int:
    return int.from_bytes(hashlib.sha256(struct.pack("<dd", noise_multiplier, sample_rate)).digest())


def _composed(noise_multiplier: float, sample_rate: float, count: int) -> "PrivacyLossDistribution":
    one = _one(noise_multiplier, sample_rate)
    if count < 64 * BLOCK:
        return one.self_compose(count)
    blocks, rest = divmod(count, BLOCK)
    total = _block(noise_multiplier, sample_rate).self_compose(blocks)
    return total.compose(one.self_compose(rest)) if rest else total


@lru_cache(maxsize=16)
def _block(noise_multiplier: float, sample_rate: float) -> "PrivacyLossDistribution":
    return _one(noise_multiplier, sample_rate).self_compose(BLOCK)


@lru_cache(maxsize=256)
def _one(noise_multiplier: float, sample_rate: float) -> "PrivacyLossDistribution":
    from dp_accounting.pld import privacy_loss_distribution as pld  # a second, which nodes without a budget never need

    return pld.from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=sample_rate,
        value_discretization_interval=GRID,
        use_connect_dots=True,
        neighboring_relation=pld.NeighborRel.ADD_OR_REMOVE_ONE,
    )

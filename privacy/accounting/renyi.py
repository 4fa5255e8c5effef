"""Rényi differential privacy of the Poisson-sampled Gaussian at whole orders.

The same analysis as Opacus' `RDPAccountant`, without importing torch. Only whole orders: at those the bound also holds
for integer (discrete Gaussian) noise of equal std, so this is the proven certificate for noise drawn in a ring.
Neighbouring relation: one unit added or removed.

`epsilon` takes the best order afterwards, which holds for releases that were planned beforehand. `epsilon_at` stays at
one order that was fixed before the first release: a Rényi filter, which holds for releases that were each chosen by the
results of all earlier ones (Feldman & Zrnic 2021, arXiv:2008.11193; the proof is in `docs/noise.md`, section 8).
"""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

ORDERS = np.array([*range(2, 65), 72, 80, 96, 128, 192, 256, 384, 512, 768, 1024])  # the large ones serve tiny epsilons
NEAR_BEST = 0.9  # of the releases that fit at the best order; a lower order bears sampled releases of little noise


@lru_cache(maxsize=1024)
def curve(noise_multiplier: float, sample_rate: float) -> npt.NDArray[np.float64]:
    """Rényi divergence of one release at each of `ORDERS`; infinite where there is no noise.

    Mironov, Talwar & Zhang 2019 (arXiv:1908.10530), section 3.3: with order a, rate q and noise multiplier s,
    log sum_i binom(a, i) (1 - q)^(a - i) q^i exp((i^2 - i) / 2 s^2), divided by a - 1.
    """
    if noise_multiplier <= 0:
        return np.full(len(ORDERS), np.inf)
    if sample_rate == 1:
        return ORDERS / (2 * noise_multiplier**2)
    return np.array([_log_moment(noise_multiplier, sample_rate, int(order)) / (order - 1) for order in ORDERS])


def epsilon(releases: Iterable[tuple[float, float, int]], delta: float) -> float:
    """Upper bound on epsilon for all (noise_multiplier, sample_rate, count) together.

    Conversion by Balle et al. 2020 (arXiv:1905.09982), theorem 21; the best of `ORDERS`, never below 0.
    """
    total = np.zeros(len(ORDERS))
    for noise_multiplier, sample_rate, count in releases:
        total += count * curve(noise_multiplier, sample_rate)
    return max(0.0, float((total + _surcharge(delta)).min()))


def epsilon_at(releases: Iterable[tuple[float, float, int]], delta: float, order: int) -> float:
    """The same at one of `ORDERS` alone; if that was fixed beforehand, it holds however the releases were chosen."""
    place = int(np.searchsorted(ORDERS, order))
    total = sum(count * float(curve(multiplier, rate)[place]) for multiplier, rate, count in releases)
    return max(0.0, total + float(_surcharge(delta)[place]))


def filter_order(epsilon: float, delta: float) -> int:
    """The order of the filter that keeps a cap: it follows from the cap alone, and so is fixed before any release.

    The smallest order at which at least `NEAR_BEST` times as many equal Gaussian releases fit under the cap as at the
    best order; the largest order if none fits at any. Of n Gaussians with noise multiplier s the divergence at order a
    is n a / (2 s^2), so their number is in proportion to what the cap leaves at an order, divided by that order.
    """
    fitting = (epsilon - _surcharge(delta)) / ORDERS
    if fitting.max() <= 0:
        return int(ORDERS[-1])
    return int(ORDERS[np.argmax(fitting >= NEAR_BEST * fitting.max())])


def filled(epsilon: float, cap: float, delta: float, order: int) -> float:
    """The part of a filter that is filled when it shows `epsilon`; from 0, above 1 once the cap is passed.

    In proportion to the divergences, so equal releases fill equal parts, though the first one alone lifts epsilon from
    0 by what the conversion adds.
    """
    surcharge = float(_surcharge(delta)[int(np.searchsorted(ORDERS, order))])
    if cap <= surcharge:
        return 1.0 if epsilon > 0 else 0.0
    return max(0.0, (epsilon - surcharge) / (cap - surcharge))


def _surcharge(delta: float) -> npt.NDArray[np.float64]:
    """What the conversion to epsilon adds to the divergence at each of `ORDERS`; may be negative."""
    converted: npt.NDArray[np.float64] = np.log1p(-1 / ORDERS) - (np.log(delta) + np.log(ORDERS)) / (ORDERS - 1)
    return converted


def _log_moment(noise_multiplier: float, sample_rate: float, order: int) -> float:
    i = np.arange(order + 1)
    log_binomial = gammaln(order + 1) - gammaln(i + 1) - gammaln(order - i + 1)
    log_weight = log_binomial + i * np.log(sample_rate) + (order - i) * np.log1p(-sample_rate)
    return float(np.logaddexp.reduce(log_weight + (i * i - i) / (2 * noise_multiplier**2)))

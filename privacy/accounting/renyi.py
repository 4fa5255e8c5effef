"""Rényi differential privacy of the Poisson-sampled Gaussian at whole orders.

The same analysis as Opacus' `RDPAccountant`, without importing torch. Only whole orders: at those the bound also holds
for integer (discrete Gaussian) noise of equal std, so this is the proven certificate for noise drawn in a ring.
Neighbouring relation: one unit added or removed.
"""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

ORDERS = np.array([*range(2, 65), 72, 80, 96, 128, 192, 256, 384, 512, 768, 1024])  # the large ones serve tiny epsilons


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
    bounds = total + np.log1p(-1 / ORDERS) - (np.log(delta) + np.log(ORDERS)) / (ORDERS - 1)
    return max(0.0, float(bounds.min()))


def _log_moment(noise_multiplier: float, sample_rate: float, order: int) -> float:
    i = np.arange(order + 1)
    log_binomial = gammaln(order + 1) - gammaln(i + 1) - gammaln(order - i + 1)
    log_weight = log_binomial + i * np.log(sample_rate) + (order - i) * np.log1p(-sample_rate)
    return float(np.logaddexp.reduce(log_weight + (i * i - i) / (2 * noise_multiplier**2)))

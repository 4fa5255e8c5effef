import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import logsumexp

from confide.privacy.accounting import renyi


def divergence_by_integration(multiplier: float, rate: float, order: int) -> float:
    """Rényi divergence of the sampled Gaussian from its definition; one unit moves the mean by 1."""

    def density_power(x):
        log_ratio = math.log1p(rate * math.expm1((2 * x - 1) / (2 * multiplier**2)))
        return math.exp(-(x**2) / (2 * multiplier**2) + order * log_ratio) / (multiplier * math.sqrt(2 * math.pi))

    reach = order + 12 * multiplier
    return math.log(quad(density_power, -reach, reach, limit=500, epsabs=0, epsrel=1e-11)[0]) / (order - 1)


@pytest.mark.parametrize(("multiplier", "rate"), [(1.0, 0.2), (2.0, 0.02), (0.7, 0.9), (5.0, 1.0)])
@pytest.mark.parametrize("order", [2, 3, 8])
def test_curve_is_the_divergence_of_the_sampled_gaussian(multiplier, rate, order):
    at = list(renyi.ORDERS).index(order)
    assert renyi.curve(multiplier, rate)[at] == pytest.approx(
        divergence_by_integration(multiplier, rate, order), rel=1e-8
    )


@pytest.mark.parametrize("rate", [0.02, 0.2, 1.0])
@pytest.mark.parametrize("std", [10, 25])
def test_curve_bounds_the_divergence_of_integer_noise_in_both_directions(std, rate):
    """The noise that is drawn is a discrete Gaussian; the shift is as large as its sensitivity, here 8 ring units."""
    shift = 8
    support = np.arange(-60 * std, 60 * std + 1)
    log_q = -(support**2) / (2 * std**2)
    log_q = log_q - logsumexp(log_q)
    shifted = -((support - shift) ** 2) / (2 * std**2)
    with np.errstate(divide="ignore"):  # a full batch: log(1 - rate) is -inf, as it should be
        log_p = np.logaddexp(np.log1p(-rate) + log_q, np.log(rate) + shifted - logsumexp(shifted))
    for order in (2, 3, 5, 8):
        bound = renyi.curve(std / shift, rate)[order - 2]
        for log_a, log_b in ((log_p, log_q), (log_q, log_p)):
            assert logsumexp(order * log_a + (1 - order) * log_b) / (order - 1) <= bound * (1 + 1e-9)


@pytest.mark.parametrize(("multiplier", "rate"), [(1.2, 0.2), (0.5, 0.01), (30.0, 0.9), (3.0, 1.0)])
def test_curve_and_conversion_agree_with_opacus(multiplier, rate):
    from opacus.accountants.analysis import rdp as opacus_rdp

    orders = [int(order) for order in renyi.ORDERS[:-1]]  # Opacus' binomials overflow at order 1024
    theirs = opacus_rdp.compute_rdp(q=rate, noise_multiplier=multiplier, steps=40, orders=orders)
    np.testing.assert_allclose(40 * renyi.curve(multiplier, rate)[:-1], theirs, rtol=1e-9)
    epsilon, best = opacus_rdp.get_privacy_spent(orders=orders, rdp=theirs, delta=1e-5)
    assert best < orders[-1]
    assert renyi.epsilon([(multiplier, rate, 40)], 1e-5) == pytest.approx(epsilon, rel=1e-9)


def test_no_noise_is_infinite_and_nothing_released_is_free():
    assert np.isinf(renyi.curve(0.0, 0.5)).all()
    assert renyi.epsilon([(0.0, 0.5, 1)], 1e-5) == math.inf
    assert renyi.epsilon([(1e6, 0.001, 1)], 1e-5) < 0.02

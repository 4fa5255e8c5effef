import math

import numpy as np
import pytest

from confide.privacy.errors import InvalidPrivacyParameter
from confide.privacy.noise import MAX_SIGMA, discrete_gaussian
from confide.privacy.sampling import SeededBytes


def source():
    return SeededBytes(b"noise tests")  # repeatable, so that a statistical test cannot fail by chance


@pytest.mark.parametrize("sigma", [1, 2, 3, 10])
def test_frequencies_are_those_of_the_discrete_gaussian(sigma):
    n, limit = 200_000, 12 * sigma
    x = np.arange(-limit, limit + 1)
    p = np.exp(-(x**2) / (2 * sigma**2))
    expected = n * p / p.sum()
    counts = np.bincount(discrete_gaussian(sigma, n, source()) + limit, minlength=2 * limit + 1)
    is_common = expected > 20
    statistic = ((counts - expected)[is_common] ** 2 / expected[is_common]).sum()
    freedom = is_common.sum() - 1
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)  # chi-square: mean f, variance 2f


@pytest.mark.parametrize("sigma", [1 << 20, 20_132_660, MAX_SIGMA])  # 20,132,660: 1.2 at 24 bits
def test_large_sigma_has_gaussian_moments_and_tails(sigma):
    n = 100_000
    x = discrete_gaussian(sigma, n, source()) / sigma
    assert abs(x.mean()) < 4 / math.sqrt(n)
    assert abs(x.std() - 1) < 4 / math.sqrt(2 * n)
    assert abs((x**4).mean() - 3) < 4 * math.sqrt(96 / n)
    for z, tail in ((1, 0.317311), (2, 0.045500), (3, 0.0026998)):  # P(|N(0,1)| > z)
        assert abs((np.abs(x) > z).mean() - tail) < 4 * math.sqrt(tail / n)


def test_low_bits_are_uniform():
    counts = np.bincount(discrete_gaussian(1 << 20, 64_000, source()) & 15, minlength=16)
    assert np.abs(counts - 4000).max() < 4.5 * math.sqrt(4000)


def test_draws_are_independent_of_each_other():
    x = discrete_gaussian(1000, 50_000, source()) / 1000
    assert abs((x[1:] * x[:-1]).mean()) < 4 / math.sqrt(50_000)


def test_operating_system_is_the_default_source():
    assert not np.array_equal(discrete_gaussian(1000, 20), discrete_gaussian(1000, 20))


def test_no_samples():
    assert discrete_gaussian(3, 0).shape == (0,)


@pytest.mark.parametrize("sigma", [0, -1, MAX_SIGMA + 1, 1.5, float("nan")])
def test_sigma_out_of_range_is_refused(sigma):
    with pytest.raises(InvalidPrivacyParameter):
        discrete_gaussian(sigma, 1)

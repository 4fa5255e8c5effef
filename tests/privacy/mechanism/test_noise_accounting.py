"""The steps of docs/noise.md in numbers, at noise so small that its being discrete shows."""

import math

import mpmath
import numpy as np
import pytest
from scipy.special import ndtr

from confide.privacy.accounting.composition import MIN_SITE_NOISE, SMOOTHING, Release, epsilon_pld, epsilon_rdp

EPSILONS = np.linspace(0.01, 4, 400)
ROUNDING = 1e-14  # of sums of some thousand float64 probabilities


def discrete_sum(std, sites):
    """Probabilities of the sum of `sites` discrete Gaussians, from the definition; index 0 is the least number."""
    x = np.arange(-12 * std, 12 * std + 1)
    one = np.exp(-(x**2) / (2 * std**2))
    total = np.ones(1)
    for _ in range(sites):
        total = np.convolve(total, one / one.sum())
    return total


def with_unit(noise, shift, rate):
    """Laws of one coordinate without and with a unit that moves it by `shift` when it is drawn."""
    absent = np.concatenate([noise, np.zeros(shift)])
    moved = np.concatenate([np.zeros(shift), noise])
    return absent, (1 - rate) * absent + rate * moved


def hockey_stick(p, q, epsilons):
    return np.array([np.maximum(p - math.exp(epsilon) * q, 0).sum() for epsilon in epsilons])


def continuous_delta(multiplier, rate, epsilons):
    """Exact delta of the Poisson-sampled Gaussian, the worse of unit added and removed, by its two thresholds."""
    mean, deltas = 1 / multiplier, []
    for epsilon in epsilons.tolist():
        odds = math.exp(epsilon)
        edge = mean / 2 + math.log((odds - 1 + rate) / rate) / mean
        removed = (1 - rate) * ndtr(-edge) + rate * ndtr(mean - edge) - odds * ndtr(-edge)
        added = 0.0
        if 1 / odds > 1 - rate:
            edge = mean / 2 + math.log((1 / odds - 1 + rate) / rate) / mean
            added = ndtr(edge) - odds * ((1 - rate) * ndtr(edge) + rate * ndtr(edge - mean))
        deltas.append(max(removed, added))
    return np.array(deltas)


def discrete_delta(std, sites, shift, rate, epsilons):
    absent, present = with_unit(discrete_sum(std, sites), shift, rate)
    return np.maximum(hockey_stick(present, absent, epsilons), hockey_stick(absent, present, epsilons))


@pytest.mark.parametrize("rate", [0.2, 1.0])
@pytest.mark.parametrize(("std", "sites"), [(6, 1), (10, 1), (20, 1), (6, 2), (10, 3), (20, 5)])
@pytest.mark.parametrize("sensitivity", [3, 8, 17])
def test_integer_noise_is_never_worse_than_the_continuous_noise_accounted_for(rate, std, sites, sensitivity):
    multiplier = math.sqrt(sites * std**2 - SMOOTHING**2) / sensitivity
    claimed = continuous_delta(multiplier, rate, EPSILONS)
    for shift in {1, sensitivity // 2, sensitivity}:
        assert (discrete_delta(std, sites, shift, rate, EPSILONS) <= claimed + ROUNDING).all()


@pytest.mark.parametrize(("std", "rate"), [(6, 0.2), (6, 1.0), (10, 0.2), (10, 1.0)])
def test_without_the_smoothing_term_the_claim_would_be_false(std, rate):
    claimed = continuous_delta(std / 8, rate, EPSILONS)
    assert (discrete_delta(std, 1, 8, rate, EPSILONS) > claimed + 1e-7).any()


def opened(std, sites, rate):
    """Sensitivity 2**2 * 1 + sqrt(1) = 5 ring units."""
    return Release(
        mode="distributed", site_noise_int=std, scale_bits=2, clip_norm=1.0, dim=1, sample_rate=rate, sites=sites
    )


@pytest.mark.parametrize("rate", [0.2, 1.0])
@pytest.mark.parametrize(("std", "sites", "colluding"), [(10, 1, 0), (10, 3, 1), (14, 2, 0)])
@pytest.mark.parametrize("epsilon", [epsilon_pld, epsilon_rdp])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
def test_epsilon_of_one_release_bounds_the_delta_of_its_integer_noise(rate, std, sites, colluding, epsilon, delta):
    spent = np.array([epsilon([opened(std, sites, rate)], delta, colluding)])
    assert discrete_delta(std, sites - colluding, 5, rate, spent)[0] <= delta


@pytest.mark.parametrize("rate", [0.2, 1.0])
@pytest.mark.parametrize("epsilon", [epsilon_pld, epsilon_rdp])
def test_epsilon_of_two_releases_bounds_the_delta_of_both_together(rate, epsilon):
    spent = np.array([epsilon([opened(10, 2, rate)] * 2, 1e-5, 0)])
    absent, present = with_unit(discrete_sum(10, 2), 5, rate)
    both_absent, both_present = np.outer(absent, absent), np.outer(present, present)
    assert hockey_stick(both_present, both_absent, spent)[0] <= 1e-5
    assert hockey_stick(both_absent, both_present, spent)[0] <= 1e-5


def summed_density(std, centre=0):
    """The sum over the integers of exp(-(x - centre)^2 / 2 std^2), to 150 digits for std up to 4."""
    return mpmath.fsum(mpmath.exp(-((x - centre) ** 2) / (2 * std**2)) for x in range(-110, 111))


def ripple(std):
    """The bound of the text: 2 exp(-2 pi^2 std^2) / (1 - exp(-6 pi^2 std^2))."""
    wave = mpmath.exp(-2 * mpmath.pi**2 * mpmath.mpf(std) ** 2)
    return 2 * wave / (1 - wave**3)


@pytest.mark.parametrize("std", [0.4, 0.7, 1.0, 2.0, 4.0])
def test_sums_over_the_integers_ripple_by_no_more_than_the_bound_and_not_much_less(std):
    with mpmath.workdps(150):
        flat = mpmath.mpf(std) * mpmath.sqrt(2 * mpmath.pi)
        ripples = [summed_density(mpmath.mpf(std), mpmath.mpf(k) / 10) / flat - 1 for k in range(6)]
        assert 0.99 * ripple(std) < max(abs(each) for each in ripples) <= ripple(std)
        assert ripples[0] > 0  # around a whole number the ripple only adds


@pytest.mark.parametrize(("smoothing", "std"), [(0.4, 0.45), (0.5, 0.6), (0.5, 0.8), (0.7, 2.0)])
def test_a_smoothed_continuous_gaussian_is_the_discrete_one_within_the_bound(smoothing, std):
    y = np.arange(-20, 20, 1 / 256)  # the trapezoidal rule is exact to float64 for such functions
    inner = math.sqrt(std**2 - smoothing**2)
    weight = np.exp(-(y**2) / (2 * inner**2)) / (inner * math.sqrt(2 * math.pi)) / 256
    numbers = np.arange(-40, 41)
    discrete = np.exp(-((numbers[:, None] - y) ** 2) / (2 * smoothing**2))
    smoothed = (discrete / discrete.sum(0) * weight).sum(1)
    exact = np.exp(-(numbers**2) / (2 * std**2))
    exact /= exact.sum()
    is_common = exact > 1e-12
    gap = np.abs(np.log(smoothed[is_common] / exact[is_common])).max()
    assert gap <= float(mpmath.log((1 + ripple(smoothing)) / (1 - ripple(smoothing))))
    assert gap > 1e-9  # far above the error of the sums


@pytest.mark.parametrize(("first", "second"), [(0.8, 0.8), (1.0, 1.0), (0.9, 2.0)])
def test_a_sum_of_discrete_gaussians_is_one_within_the_bound(first, second):
    with mpmath.workdps(50):
        first, second = mpmath.mpf(first), mpmath.mpf(second)
        joint = mpmath.sqrt(first**2 + second**2)
        narrow = ripple(first * second / joint)
        gaps = []
        for x in range(0, 8):
            both = mpmath.fsum(
                mpmath.exp(-(h**2) / (2 * first**2) - (x - h) ** 2 / (2 * second**2)) for h in range(-65, 66)
            ) / (summed_density(first) * summed_density(second))
            one = mpmath.exp(-(x**2) / (2 * joint**2)) / summed_density(joint)
            gaps.append(abs(mpmath.log(both / one)))
        assert narrow / 10 < max(gaps) <= mpmath.log((1 + narrow) ** 2 / (1 - narrow))


def test_what_the_text_neglects_is_negligible_for_every_release_that_is_accepted():
    """dim, sites and releases at their limits: 2**48, 10**6 and a million."""
    with mpmath.workdps(500):  # far below a double's smallest number
        wide, narrow = ripple(SMOOTHING), ripple(MIN_SITE_NOISE / mpmath.sqrt(2))
        assert narrow <= wide  # so that no width in lemma 3 is below SMOOTHING
        smoothed = mpmath.log((1 + wide) / (1 - wide))
        summed = mpmath.log((1 + narrow) ** 2 / (1 - narrow))
        kappa = mpmath.mpf(2) ** 48 * 10**6 * (smoothed + (10**6 - 1) * summed)
        assert 0 < kappa < mpmath.mpf(10) ** -116


def test_the_smoothing_term_costs_nothing_that_shows_in_a_usual_ring():
    one = Release(mode="local", site_noise_int=2**20, scale_bits=20, clip_norm=1.0, dim=1, sample_rate=1.0, sites=1)
    assert 1 - 1e-10 < one.noise_multiplier(0) * (1 + 2.0**-20) < 1

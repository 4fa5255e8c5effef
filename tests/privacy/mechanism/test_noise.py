import math
from collections import Counter
from dataclasses import replace

import mpmath
import numpy as np
import pytest

from confide.privacy.errors import InvalidPrivacyParameter
from confide.privacy.mechanism import noise
from confide.privacy.mechanism.noise import MAX_SIGMA, discrete_gaussian
from confide.privacy.mechanism.sampling import SeededBytes

from . import reference_noise

LARGE = [1 << 20, 20_132_660, 3 << 38, MAX_SIGMA]  # 20,132,660: 1.2 at 24 bits


def source():
    return SeededBytes(b"noise tests")  # repeatable, so that a statistical test cannot fail by chance


@pytest.fixture(params=[noise, reference_noise], ids=["strips", "reference"])
def sampler(request):
    return request.param.discrete_gaussian


def surprise(x, sigma):
    """How far draws are from the law, in standard deviations: by chi-square (cells of sigma / 16 or 1) and variance."""
    width = max(1, sigma // 16)
    edges = np.arange(-5 * sigma // width, 5 * sigma // width + 2) * width
    if sigma <= 10_000:
        numbers = np.arange(-40 * sigma, 40 * sigma + 1)
        density = np.exp(-((numbers / sigma) ** 2) / 2)
        expected = np.diff(np.concatenate([[0], np.cumsum(density / density.sum())])[edges + 40 * sigma])
    else:  # Euler and Maclaurin: a sum over the integers is the integral to many digits, half a number further left
        below = np.array([(1 + math.erf((edge - 0.5) / sigma / math.sqrt(2))) / 2 for edge in edges.tolist()])
        expected = np.diff(below)
    expected *= x.size
    counts = np.histogram(x, edges - 0.5)[0]
    is_common = expected > 20
    statistic = ((counts - expected)[is_common] ** 2 / expected[is_common]).sum()
    freedom = is_common.sum() - 1
    by_variance = abs((x.astype(np.float64) ** 2).mean() / sigma**2 - 1) / math.sqrt(2 / x.size)
    return max(abs(statistic - freedom) / math.sqrt(2 * freedom), by_variance)


@pytest.mark.parametrize("sigma", [1, 2, 3, 10, 100, 1000])
@pytest.mark.slow
def test_frequencies_are_those_of_the_discrete_gaussian(sampler, sigma):
    assert surprise(sampler(sigma, 200_000, source()), sigma) < 4


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [1, 2, 63, 64, 1000, *LARGE])  # from 64 on a strip is wider than one number
def test_three_million_draws_fit_the_law(sigma):
    assert surprise(discrete_gaussian(sigma, 3_000_000, source()), sigma) < 4


@pytest.mark.parametrize("sigma", LARGE)
def test_large_sigma_has_gaussian_moments_and_tails(sampler, sigma):
    n = 100_000
    x = sampler(sigma, n, source()) / sigma
    assert abs(x.mean()) < 4 / math.sqrt(n)
    assert abs(x.std() - 1) < 4 / math.sqrt(2 * n)
    assert abs((x**4).mean() - 3) < 4 * math.sqrt(96 / n)
    for z, tail in ((1, 0.317311), (2, 0.045500), (3, 0.0026998)):  # P(|N(0,1)| > z)
        assert abs((np.abs(x) > z).mean() - tail) < 4 * math.sqrt(tail / n)


@pytest.mark.slow
@pytest.mark.parametrize("sigma", LARGE)
def test_millions_of_draws_have_the_moments_and_the_far_tails(sigma):
    n = 4_000_000
    x = discrete_gaussian(sigma, n, source()) / sigma
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 4 * math.sqrt(variance / n)
    for z, tail in ((4, 6.3342e-5), (4.5, 6.7953e-6)):
        assert abs((np.abs(x) > z).sum() - n * tail) < 4 * math.sqrt(n * tail)


@pytest.mark.parametrize("bits", [1, 4, 14])  # a strip is 2**15 wide
def test_low_bits_are_uniform(sampler, bits):
    n = 64_000
    counts = np.bincount(sampler(1 << 20, n, source()) & ((1 << bits) - 1), minlength=1 << bits)
    cells = 1 << bits
    assert abs(((counts - n / cells) ** 2).sum() * cells / n - (cells - 1)) < 4 * math.sqrt(2 * (cells - 1))


def test_low_and_high_bits_are_independent():
    n = 1_000_000
    x = discrete_gaussian(1 << 20, n, source())
    place = (np.abs(x) & 0x7FFF) / 0x7FFF - 0.5
    strip = np.abs(x) >> 15
    for parity in (0, 1):  # within strips the density falls by x/sigma^2 a place: the mean place is a hair below a half
        fall = np.mean(strip[strip % 2 == parity]) / 32**2 / 12
        assert abs(place[strip % 2 == parity].mean() + fall) < 4 * math.sqrt(1 / 12 / (n / 2))


def test_draws_are_independent_of_each_other(sampler):
    x = sampler(1000, 50_000, source()) / 1000
    for lag in (1, 2, 7):
        assert abs((x[lag:] * x[:-lag]).mean()) < 4 / math.sqrt(50_000)


@pytest.mark.parametrize("sigma", [1, 7, 200, 1000])
def test_the_law_computed_from_the_tables_is_the_discrete_gaussian(sigma):
    strips, tickets = noise._strips(sigma), Counter()
    for column, (threshold, alias) in enumerate(zip(strips.threshold.tolist(), strips.alias.tolist(), strict=True)):
        tickets[column] += threshold
        tickets[alias] += 2**53 - threshold
    assert tickets == Counter(dict(enumerate(strips.weights)))

    def law(x):  # up to a factor
        strip = x >> strips.width_bits
        inner_end = strip << strips.width_bits
        kept = mpmath.exp(mpmath.mpf(inner_end**2 - x * x) / (2 * sigma**2)) * float(strips.inner[strip])
        return tickets[strip] * kept

    with mpmath.workdps(30):
        for x in range(0, 9 * sigma, 1 + sigma // 100):
            ratio = law(x) / law(0) / mpmath.exp(-mpmath.mpf(x * x) / (2 * sigma**2))
            assert abs(ratio - 1) < 1e-15


@pytest.mark.parametrize("sigma", [1, 1000, 20_132_660, MAX_SIGMA])
def test_no_place_is_due_more_often_than_its_strip_is_drawn(sigma):
    strips = noise._strips(sigma)
    assert sum(strips.weights) == 2**64
    assert 2048 << strips.width_bits >= 32 * sigma  # beyond is cut off
    with mpmath.workdps(50):
        for strip in [*range(0, 2048, 97), 1, 2047]:
            inner_end, last = strip << strips.width_bits, ((strip + 1) << strips.width_bits) - 1
            due = strips.scale * mpmath.exp(-(mpmath.mpf(inner_end) ** 2) / (2 * sigma**2)) / strips.weights[strip]
            least = strips.scale * mpmath.exp(-(mpmath.mpf(last) ** 2) / (2 * sigma**2)) / strips.weights[strip]
            assert due <= 1
            assert abs(float(due) - strips.inner[strip]) < 1e-15
            assert strips.surely_kept[strip] <= least * 2**strips.coin_bits


@pytest.mark.parametrize("sigma", [1000, 1 << 20, MAX_SIGMA])
def test_float64_decides_as_exact_arithmetic_does(sigma, monkeypatch):
    usual = discrete_gaussian(sigma, 20_000, source())
    monkeypatch.setattr(noise, "_DOUBT", 2.0)  # nothing is decided by a float
    assert np.array_equal(discrete_gaussian(sigma, 20_000, source()), usual)


@pytest.mark.parametrize(("later_bits", "keeps"), [(b"\0" * 8, True), (b"\xff" * 8, False)])
def test_a_coin_on_the_edge_is_decided_by_later_bits(later_bits, keeps):
    strips, x = noise._strips(1 << 20), 12_345_678 >> 2
    strip = x >> strips.width_bits
    with mpmath.workdps(60):
        probability = strips.scale * mpmath.exp(-(mpmath.mpf(x) ** 2) / 2**41) / strips.weights[strip]
        undecided = int(mpmath.floor(probability * 2 ** (strips.coin_bits + 64)))
    asked = []

    def bytes_of(size):
        asked.append(size)
        return later_bits

    assert strips._keeps_exactly(x, strip, undecided, bytes_of) is keeps
    assert asked == [8]
    assert strips._keeps_exactly(x, strip, undecided - 1, bytes_of) is True
    assert strips._keeps_exactly(x, strip, undecided + 1, bytes_of) is False


SABOTAGE = {
    "sigma one per cent off": lambda strips: noise._strips(strips.sigma * 101 // 100),
    "nothing rejected": lambda strips: replace(strips, surely_kept=strips.surely_kept + np.uint64(1 << 32)),
    "outer strips too heavy": lambda strips: replace(strips, alias=np.minimum(strips.alias + 1, 2047)),
    "half the strip unused": lambda strips: replace(strips, width_bits=strips.width_bits - 1),
    "rejects too often far out": lambda strips: replace(
        strips, surely_kept=strips.surely_kept * np.uint64(0), inner=strips.inner * 0.9995 ** np.arange(2048)
    ),
}


@pytest.mark.parametrize("broken", SABOTAGE.values(), ids=SABOTAGE.keys())
def test_the_fit_notices_sabotage(broken, monkeypatch):
    strips = broken(noise._strips(1 << 20))
    monkeypatch.setattr(noise, "_strips", lambda sigma: strips)
    assert surprise(discrete_gaussian(1 << 20, 2_000_000, source()), 1 << 20) > 6


def test_the_same_bytes_give_the_same_noise(sampler):
    assert np.array_equal(sampler(1000, 50_000, source()), sampler(1000, 50_000, source()))


def test_operating_system_is_the_default_source(sampler):
    assert not np.array_equal(sampler(1000, 20), sampler(1000, 20))


@pytest.mark.parametrize("n", [0, 1, 16_383, 16_384, 40_001])  # around a batch of places
def test_as_many_draws_as_asked_for(sampler, n):
    drawn = sampler(3, n, source())
    assert drawn.shape == (n,)
    assert drawn.dtype == np.int64


@pytest.mark.parametrize("sigma", [0, -1, MAX_SIGMA + 1, 1.5, float("nan")])
def test_sigma_out_of_range_is_refused(sampler, sigma):
    with pytest.raises(InvalidPrivacyParameter):
        sampler(sigma, 1)


def test_a_negative_number_of_draws_is_refused(sampler):
    with pytest.raises(InvalidPrivacyParameter):
        sampler(3, -1)

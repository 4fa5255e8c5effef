import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from confide.privacy.errors import InvalidPrivacyParameter
from confide.privacy.mechanism.noise import discrete_gaussian
from confide.privacy.mechanism.projection import MISS, norm_bound, onto_ball

entry = st.floats(-1e6, 1e6)
pair = hnp.arrays(np.float64, st.tuples(st.just(2), st.integers(1, 8)), elements=entry)


@given(pair, st.floats(1e-3, 1e6))
def test_projections_of_neighbours_are_no_farther_apart_than_they_were(both, radius):
    x, y = both
    apart = np.linalg.norm(onto_ball(x, radius) - onto_ball(y, radius))
    assert apart <= np.linalg.norm(x - y) + 2.0**-50 * radius


@given(pair, st.floats(1e-3, 1e6))
def test_projection_is_in_the_ball_and_no_point_of_it_is_nearer(both, radius):
    x, other = both
    found = onto_ball(x, radius)
    assert np.linalg.norm(found) <= radius * (1 + 2.0**-50)
    in_ball = other / max(1.0, np.linalg.norm(other) / radius)
    assert np.linalg.norm(x - found) <= np.linalg.norm(x - in_ball) * (1 + 1e-12)


def test_vector_within_the_ball_stays_as_it_is():
    vector = np.array([3.0, 4.0])
    assert onto_ball(vector, 5.0) is vector


@pytest.mark.parametrize("radius", [0.0, -1.0, math.inf, math.nan])
def test_ball_without_a_radius_is_refused(radius):
    with pytest.raises(InvalidPrivacyParameter):
        onto_ball(np.ones(2), radius)


@pytest.mark.parametrize("dim", [30, 10**4, 10**7])
def test_bound_of_noise_alone_holds_the_quantile_of_its_norm_and_hardly_more(dim):
    # The square norm is chi-square; Wilson & Hilferty (1931) put its quantile 1 - MISS at z = 7.034.
    quantile = math.sqrt(dim * (1 - 2 / (9 * dim) + 7.034 * math.sqrt(2 / (9 * dim))) ** 3)
    bound = norm_bound(max_norm=0.0, noise_std=1.0, dim=dim)
    assert quantile < bound < quantile * 1.25


def test_sum_and_noise_are_within_the_bound_and_not_far_from_it():
    dim, std, radius, steps = 2000, 50, 3000.0, 3
    one = norm_bound(max_norm=radius, noise_std=std, dim=dim)
    several = norm_bound(max_norm=radius, noise_std=std, dim=dim, steps=steps)
    along = np.full(dim, radius / math.sqrt(dim))
    lengths = [np.linalg.norm(along + discrete_gaussian(std, dim)) for _ in range(200)]
    assert 0.85 * one < max(lengths) < one
    worst = [np.linalg.norm(steps * along + sum(discrete_gaussian(std, dim) for _ in range(steps))) for _ in range(50)]
    assert max(worst) < several < steps * radius + 1.2 * std * math.sqrt(steps * dim)


def test_bound_without_noise_is_the_radius():
    assert norm_bound(max_norm=7.0, noise_std=0.0, dim=10**6) == 7.0
    assert norm_bound(max_norm=7.0, noise_std=0.0, dim=10**6, steps=3) == 21.0


def test_bound_is_missed_as_rarely_as_it_says_in_one_dimension():
    # P(|radius + g| > bound) of a Gaussian g, exactly: the one case in which the bound is no chi-square's.
    for radius in (0.0, 1.0, 10.0):
        over = norm_bound(max_norm=radius, noise_std=1.0, dim=1) - radius
        assert math.erfc(over / math.sqrt(2)) < MISS


@pytest.mark.parametrize(
    "bad", [{"max_norm": -1.0}, {"noise_std": math.nan}, {"dim": 0}, {"steps": 0}, {"max_norm": math.inf}]
)
def test_bound_of_bad_parameters_is_refused(bad):
    with pytest.raises(InvalidPrivacyParameter):
        norm_bound(**{"max_norm": 1.0, "noise_std": 1.0, "dim": 5, "steps": 1} | bad)

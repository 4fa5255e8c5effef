"""The Rényi filter against somebody who chooses each release by what the earlier ones have shown."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from confide.privacy.accounting import composition, renyi

from .test_composition import gaussian

DELTA, CAP = 1e-5, 3.0
FIRST = 1.8  # noise multiplier of the first study: one release, everybody drawn
RATES = [1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4]  # of the second study, whose noise is what the cap still pays for


def hockey_stick(epsilon, multiplier, rate, *, removed):
    """Exact delta of one sampled Gaussian at each epsilon, which may be negative; one unit moves the mean by 1."""
    ratio = np.exp(epsilon if removed else -epsilon)  # of the two densities, at the edge of the worst event
    inside = np.maximum(ratio - (1 - rate), 1e-300) / rate
    edge = np.where(ratio > 1 - rate, multiplier**2 * np.log(inside) + 0.5, -np.inf)
    if removed:
        with_it = (1 - rate) * norm.sf(edge / multiplier) + rate * norm.sf((edge - 1) / multiplier)
        return with_it - np.exp(epsilon) * norm.sf(edge / multiplier)
    with_it = (1 - rate) * norm.cdf(edge / multiplier) + rate * norm.cdf((edge - 1) / multiplier)
    return norm.cdf(edge / multiplier) - np.exp(epsilon) * with_it


def losses_of_the_first(*, removed):
    """Its privacy losses and their probabilities under the world that the attacker wants to prove."""
    mean = 1.0 if removed else 0.0
    x = np.linspace(mean - 14 * FIRST, mean + 14 * FIRST, 100_001)
    loss = (2 * x - 1) / (2 * FIRST**2)
    return (loss if removed else -loss), norm.pdf(x, mean, FIRST) * (x[1] - x[0])


def delta_of(seconds, *, removed=True):
    """Exact delta of both studies for who takes the second one from a list, by the first one's result.

    `seconds` holds (multiplier, rate, epsilon that is claimed in the end); rate 0 means to stop after the first.
    """
    loss, weight = losses_of_the_first(removed=removed)
    gains = [
        hockey_stick(epsilon - loss, multiplier, rate, removed=removed)
        if rate
        else np.maximum(0, 1 - np.exp(epsilon - loss))
        for multiplier, rate, epsilon in seconds
    ]
    return float(np.max(gains, axis=0) @ weight)


def as_a_plan(rate):
    """The second study with the least noise that a cap on the plan's exact cost admits."""
    return brentq(lambda s: delta_of([(s, rate, CAP)]) - DELTA, 0.2, 40), rate, CAP


def through_the_filter(rate, *, level=CAP):
    """The second study with the least noise with which the filter of the cap still shows at most `level`."""
    order = renyi.filter_order(CAP, DELTA)

    def shown(multiplier):
        return composition.epsilon_guaranteed([gaussian(FIRST), gaussian(multiplier, rate)], DELTA, 0, order)

    multiplier = brentq(lambda s: shown(s) - level, 0.2, 400)
    return multiplier, rate, max(level, shown(multiplier))


def test_a_cap_on_what_is_spent_is_passed_by_who_chooses_the_second_study_by_the_first_result():
    """Each of two plans keeps the cap exactly; choosing between them nearly doubles delta. So caps go by the filter."""
    planned = [as_a_plan(1.0), as_a_plan(1e-4)]
    for multiplier, rate, _ in planned:
        assert delta_of([(multiplier, rate, CAP)]) == pytest.approx(DELTA, rel=1e-6)
        both = [gaussian(FIRST), gaussian(multiplier * 1.002, rate)]
        assert composition.epsilon_pld(both, DELTA, 0) <= CAP  # what a cap by PLD admitted
        assert composition.epsilon_guaranteed(both, DELTA, 0, renyi.filter_order(CAP, DELTA)) > CAP
    assert delta_of(planned) == pytest.approx(1.93e-5, rel=0.01)


@pytest.mark.parametrize("removed", [True, False])
def test_the_filter_keeps_the_cap_whatever_is_chosen_and_when_it_is_stopped(removed):
    first_alone = composition.epsilon_guaranteed([gaussian(FIRST)], DELTA, 0, renyi.filter_order(CAP, DELTA))
    seconds = [through_the_filter(rate) for rate in RATES]
    assert 0 < delta_of(seconds, removed=removed) < DELTA
    # what is shown at the end holds by itself, though when to stop and what to take was chosen by the results
    shown = [(1.0, 0.0, first_alone), *seconds, *(through_the_filter(rate, level=2.9) for rate in RATES)]
    assert 0 < delta_of(shown, removed=removed) < DELTA


@given(
    st.lists(st.tuples(st.floats(0.5, 50), st.floats(1e-4, 1), st.integers(1, 500)), min_size=1, max_size=4),
    st.floats(0.05, 20),
    st.sampled_from([1e-5, 1e-6, 1e-9]),
)
def test_a_guarantee_for_whatever_is_chosen_is_never_below_that_for_a_plan(pairs, cap, delta):
    order = renyi.filter_order(cap, delta)
    assert renyi.epsilon(pairs, delta) <= renyi.epsilon_at(pairs, delta, order)


@pytest.mark.parametrize("cap", [0.1, 0.5, 1.0, 3.0, 4.0, 8.0, 20.0])
def test_the_order_is_the_smallest_that_nearly_as_many_gaussians_fit_at(cap):
    order = renyi.filter_order(cap, DELTA)
    fit = {}  # at each order, how many Gaussians of noise multiplier 1000, by bisection over the filter itself
    for tried in map(int, renyi.ORDERS):
        low, high = 0, 10**9
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (
                (middle, high) if renyi.epsilon_at([(1e3, 1.0, middle)], DELTA, tried) <= cap else (low, middle - 1)
            )
        fit[tried] = low
    near = [tried for tried, count in fit.items() if count >= 0.9 * max(fit.values())]
    assert order == min(near)


def test_a_cap_too_small_for_any_order_admits_nothing():
    order = renyi.filter_order(0.001, DELTA)
    assert order == 1024
    assert composition.epsilon_guaranteed([gaussian(1e5)], DELTA, 0, order) > 0.001


def test_nothing_released_is_free_and_no_noise_has_no_guarantee():
    assert composition.epsilon_guaranteed([], DELTA, 0, 6) == 0
    assert composition.epsilon_guaranteed([gaussian(0.001)], DELTA, 0, 6) == math.inf


def test_noise_is_solved_for_what_the_filter_has_to_admit():
    order = renyi.filter_order(4.0, DELTA)

    def planned(multiplier):
        return {gaussian(multiplier, 0.2): 40}

    solved = composition.solve_noise_multiplier(planned, 4.0, DELTA, 0, order=order)
    assert composition.epsilon_guaranteed(planned(solved), DELTA, 0, order) <= 4.0
    assert composition.epsilon_guaranteed(planned(solved * 0.999), DELTA, 0, order) > 4.0
    assert solved > composition.solve_noise_multiplier(planned, 4.0, DELTA, 0)

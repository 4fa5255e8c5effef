import itertools
import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from confide.privacy.audit.one_run import count_right, epsilon_lower_bound, p_value
from confide.privacy.errors import InvalidPrivacyParameter


def p_by_sums(right, guesses, canaries, epsilon, delta):
    """Theorem 5.2 of arXiv:2305.08846, with binomial coefficients and no library."""
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    mass = [math.comb(guesses, k) * q**k * (1 - q) ** (guesses - k) for k in range(guesses + 1)]
    inner = [sum(mass[right - i : right]) / i for i in range(1, right + 1)]
    return min(1.0, sum(mass[right:]) + 2 * canaries * delta * max(inner, default=0.0))


@pytest.mark.parametrize(("guesses", "canaries"), [(1, 1), (10, 10), (40, 100)])
@pytest.mark.parametrize("epsilon", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-2])
def test_p_value_is_the_theorem_s(guesses, canaries, epsilon, delta):
    for right in range(1, guesses + 1):
        want = p_by_sums(right, guesses, canaries, epsilon, delta)
        got = p_value(right, guesses, canaries, epsilon=epsilon, delta=delta)
        assert got == pytest.approx(want, rel=1e-9)


def test_all_right_without_delta_refutes_up_to_the_logit_of_a_root():
    for guesses in (10, 100, 1000):
        root = 0.05 ** (1 / guesses)  # q^guesses = 0.05
        want = math.log(root / (1 - root))
        got = epsilon_lower_bound(guesses, guesses, guesses, delta=0.0, confidence=0.95)
        assert want - 2e-6 < got <= want


def test_randomized_response_s_own_epsilon_is_hardly_ever_refuted():
    epsilon, canaries, rng = 1.0, 400, np.random.default_rng(0)
    right = rng.binomial(canaries, 1 / (1 + math.exp(-epsilon)), size=2000)
    bounds = {k: epsilon_lower_bound(k, canaries, canaries, delta=0.0, confidence=0.9) for k in set(right.tolist())}
    refuted = np.mean([bounds[k] > epsilon for k in right.tolist()])
    assert 0.05 < refuted < 0.1 + 4 * math.sqrt(0.09 / 2000)  # at most a tenth, and the test is not vacuous
    assert np.median([bounds[k] for k in right.tolist()]) > 0.8


def test_a_revealing_minority_is_paid_for_by_delta():
    """Name and shame: each coin is published with probability delta, and the auditor bets on nothing else."""
    delta, canaries, confidence, rng = 0.01, 500, 0.95, np.random.default_rng(1)
    refuted = 0
    for _ in range(300):
        told = rng.random(canaries) < delta
        guesses = 4
        right = min(guesses, int(told.sum())) + rng.binomial(max(0, guesses - int(told.sum())), 0.5)
        refuted += epsilon_lower_bound(right, guesses, canaries, delta=delta, confidence=confidence) > 0
    assert refuted == 0


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0])
def test_a_gaussian_s_bound_stays_below_its_epsilon_and_grows_with_it(mu):
    delta, canaries, guesses, rng = 1e-5, 1000, 200, np.random.default_rng(2)

    def excess(epsilon):  # Balle & Wang 2018, arXiv:1805.06530
        return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) - delta

    epsilon, bounds = brentq(excess, 0, 60), []
    for _ in range(20):
        is_in = rng.random(canaries) < 0.5
        right = count_right(mu * is_in + rng.normal(size=canaries), is_in, guesses)
        bounds.append(epsilon_lower_bound(right, guesses, canaries, delta=delta, confidence=0.95))
    assert max(bounds) < epsilon
    assert np.mean(bounds) > 0.2 * epsilon


def test_more_right_guesses_never_lower_the_bound_and_more_confidence_never_raises_it():
    bounds = [epsilon_lower_bound(k, 50, 100, delta=1e-5, confidence=0.95) for k in range(51)]
    assert bounds == sorted(bounds)
    assert bounds[25] == 0 < bounds[50]
    by_confidence = [epsilon_lower_bound(45, 50, 100, delta=1e-5, confidence=c) for c in (0.5, 0.9, 0.95, 0.999)]
    assert by_confidence == sorted(by_confidence, reverse=True)


def test_guesses_are_made_from_both_ends_and_the_middle_abstains():
    scores = np.array([0.9, -3.0, 0.1, 5.0, -0.2, -1.0])
    for coins in itertools.product([False, True], repeat=6):
        is_in = np.array(coins)
        want = int(is_in[3]) + int(is_in[0]) + int(not is_in[1]) + int(not is_in[5])
        assert count_right(scores, is_in, 4) == want
    assert count_right(scores, is_in, 0) == 0


@pytest.mark.parametrize("bad", [(5, 4, 10), (1, 11, 10), (-1, 4, 10)])
def test_impossible_counts_are_refused(bad):
    with pytest.raises(InvalidPrivacyParameter):
        p_value(*bad, epsilon=1.0, delta=0.0)


@pytest.mark.parametrize("guesses", [3, -2, 8])
def test_guesses_that_cannot_be_made_are_refused(guesses):
    with pytest.raises(InvalidPrivacyParameter):
        count_right(np.zeros(6), np.zeros(6, dtype=bool), guesses)


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(InvalidPrivacyParameter):
        count_right(np.array([0.0, np.nan]), np.zeros(2, dtype=bool), 2)

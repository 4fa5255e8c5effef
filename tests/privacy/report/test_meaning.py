import math

import dp_accounting as dpa
import pytest
from scipy.stats import norm

from confide.privacy.report.meaning import certainty, most_found, odds_factor


@pytest.mark.parametrize("false_alarms", [0.0, 0.001, 0.01, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0])
def test_no_attack_on_a_gaussian_beats_the_limit(sigma, false_alarms):
    # the best attack on one Gaussian release finds Phi(Phi^-1(f) + 1 / sigma) at false alarms f (Neyman and Pearson)
    best = norm.cdf(norm.ppf(false_alarms) + 1 / sigma)
    for delta in (1e-6, 1e-3, 0.1):
        epsilon = dpa.get_epsilon_gaussian(sigma, delta)
        assert best <= most_found(epsilon, delta, false_alarms) + 1e-9


def test_the_limit_is_reached_by_randomised_response():
    # answers truly with probability e / (1 + e): at false alarms 1 / (1 + e) it finds e / (1 + e)
    assert most_found(1.0, 0.0, 1 / (1 + math.e)) == pytest.approx(math.e / (1 + math.e))
    assert certainty(1.0) == pytest.approx(math.e / (1 + math.e))
    assert odds_factor(1.0) == pytest.approx(math.e)


def test_without_protection_everybody_is_found_and_with_perfect_protection_it_is_guessing():
    assert most_found(math.inf, 1e-5, 0.0) == 1.0
    assert most_found(0.0, 0.0, 0.01) == pytest.approx(0.01)
    assert odds_factor(math.inf) == math.inf

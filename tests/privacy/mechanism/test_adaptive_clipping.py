import math

import numpy as np
import pytest

from confide.privacy.errors import InvalidPrivacyParameter
from confide.privacy.mechanism.adaptive_clipping import COUNT_WEIGHT, SENSITIVITY, clip_at, next_log_clip

RULE = {"batch_units": 1000.0, "target_quantile": 0.5, "learning_rate": 0.2}


def count(below: int, units: int = 1000) -> float:
    """What that many of the units at or below the clip add up to."""
    return COUNT_WEIGHT / 2 * (2 * below - units)


def test_the_sensitivity_is_that_of_a_clipped_gradient_and_a_count_together():
    assert math.isclose(SENSITIVITY**2, 1 + COUNT_WEIGHT**2 / 4, rel_tol=1e-15)


def test_the_clip_finds_the_wanted_quantile_of_norms():
    norms = np.random.default_rng(0).lognormal(1.0, 0.5, 1000)
    for quantile in (0.2, 0.5, 0.9):
        log_clip = 0.0
        for _ in range(400):
            below = int((norms <= clip_at(1.0, log_clip)).sum())
            log_clip = next_log_clip(log_clip, count(below), **{**RULE, "target_quantile": quantile})
        assert math.exp(log_clip) == pytest.approx(np.quantile(norms, quantile), rel=0.02)


@pytest.mark.parametrize(("below", "moves"), [(1000, -0.1), (0, 0.1), (500, 0.0)])
def test_a_round_moves_the_logarithm_by_the_learning_rate_times_what_is_missing(below, moves):
    assert next_log_clip(0.3, count(below), **RULE) == pytest.approx(0.3 + moves)


@pytest.mark.parametrize("noise", [1e9, -1e9, math.inf, -math.inf])
def test_a_count_lost_in_noise_moves_the_clip_no_further_than_a_count_can(noise):
    assert abs(next_log_clip(0.0, noise, **RULE)) == pytest.approx(0.1)


@pytest.mark.parametrize("sent", [1e30, -1e30, math.inf, -math.inf])
def test_a_coordinator_cannot_send_the_clip_anywhere(sent):
    assert clip_at(0.5, sent) == pytest.approx(0.5e4 if sent > 0 else 0.5e-4)


def test_a_clip_that_is_no_number_is_refused():
    with pytest.raises(InvalidPrivacyParameter, match="nan"):
        clip_at(1.0, math.nan)

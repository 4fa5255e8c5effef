"""Meaning of an (epsilon, delta) guarantee in numbers that need no theory: odds, and the most an attacker can find.

All of it follows from the guarantee alone and holds against every attack, known or not.
"""

import math


def odds_factor(epsilon: float) -> float:
    """The most by which odds of any conclusion about a unit are multiplied, but for outcomes as rare as delta says."""
    return math.exp(epsilon) if epsilon < 700 else math.inf


def certainty(epsilon: float) -> float:
    """The most that a suspicion of one half that a unit took part grows to, but for outcomes as rare as delta says."""
    return 1 / (1 + math.exp(-epsilon))


def most_found(epsilon: float, delta: float, false_alarms: float) -> float:
    """The largest true positive rate of any membership attack at the false positive rate `false_alarms`.

    Kairouz, Oh & Viswanath 2015 (arXiv:1311.0776), theorem 2.1: both errors of any test of "in" against "out" satisfy
    false_alarms + e^epsilon missed >= 1 - delta, and the same with the two exchanged.
    """
    if math.isinf(epsilon):
        return 1.0
    by_alarms = odds_factor(epsilon) * false_alarms + delta
    by_misses = 1 - math.exp(-epsilon) * (1 - delta - false_alarms)
    return max(0.0, min(1.0, by_alarms, by_misses))

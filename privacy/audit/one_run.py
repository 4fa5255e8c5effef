"""A lower bound on epsilon from guesses about who took part: the one-run audit of Steinke, Nasr & Jagielski 2023.

Each of many canary units is included by a fair coin. An auditor who sees what was released guesses some of the coins
and abstains on the rest. Whoever guesses right too often for an (epsilon, delta)-private mechanism has shown, at a
stated confidence, that it is not one (arXiv:2305.08846, theorem 5.2). `canaries` runs the guessing; this file is its
arithmetic.

The bound holds whatever the auditor's scores are, as long as the number of guesses was fixed before looking. It says
nothing about how much larger epsilon really is: a weak auditor gets a small bound.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from ..errors import InvalidPrivacyParameter

_LARGEST = 50.0  # epsilon at which the search stops: e^50 to 1 is no bound worth telling apart


def p_value(right: int, guesses: int, canaries: int, *, epsilon: float, delta: float) -> float:
    """The most likely that `right` or more of `guesses` are right, for any (epsilon, delta)-DP mechanism.

    With q = 1 / (1 + e^-epsilon) and W ~ Binomial(guesses, q), the theorem's bound is
    P[W >= right] + 2 delta canaries max over i = 1..right of P[right - i <= W < right] / i.

    Args:
        right: guesses that were right, v in the theorem.
        guesses: r, fixed beforehand; guesses "in" and guesses "out" count alike, abstentions do not count.
        canaries: m, all of them, abstentions included.

    Raises:
        InvalidPrivacyParameter: not 0 <= right <= guesses <= canaries, or epsilon or delta out of range.
    """
    if not 0 <= right <= guesses <= canaries or canaries < 1:
        raise InvalidPrivacyParameter(f"need 0 <= right <= guesses <= canaries, got {right}, {guesses}, {canaries}")
    if not (epsilon >= 0 and 0 <= delta < 1):  # NaN fails too
        raise InvalidPrivacyParameter(f"need epsilon >= 0 and delta in [0, 1), got {epsilon}, {delta}")
    if right == 0:
        return 1.0
    share = 1 / (1 + math.exp(-epsilon))
    exact = float(binom.sf(right - 1, guesses, share))
    i = np.arange(1, right + 1)
    # P[right - i <= W < right], summed term by term: differences of the distribution function would cancel.
    below = np.cumsum(binom.pmf(right - i, guesses, share))
    return min(1.0, exact + 2 * delta * canaries * float((below / i).max()))


def epsilon_lower_bound(right: int, guesses: int, canaries: int, *, delta: float, confidence: float) -> float:
    """The largest epsilon that the guesses refute at `confidence`; 0 if they refute none, at most 50.

    A mechanism that is (epsilon, delta)-DP gets a bound above its epsilon with probability at most 1 - confidence.

    Raises:
        InvalidPrivacyParameter: as `p_value`, or confidence is not in (0, 1).
    """
    if not 0 < confidence < 1:
        raise InvalidPrivacyParameter(f"confidence must be in (0, 1), got {confidence}")

    def is_refuted(epsilon: float) -> bool:
        return p_value(right, guesses, canaries, epsilon=epsilon, delta=delta) <= 1 - confidence

    if not is_refuted(0.0):
        return 0.0
    low, high = 0.0, _LARGEST
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if is_refuted(middle) else (low, middle)
    return low  # the refuted end: rounding never raises the bound


def count_right(scores: npt.NDArray[np.float64], included: npt.NDArray[np.bool_], guesses: int) -> int:
    """Counts right guesses: the highest half of the guesses say "in", the lowest half "out", and all between abstain.

    Args:
        scores: [canaries], larger where inclusion is likelier; ties are broken by position, which knows nothing.
        guesses: even, fixed before the scores were seen.

    Raises:
        InvalidPrivacyParameter: guesses is odd, negative or more than there are canaries, or a score is NaN.
    """
    if guesses < 0 or guesses % 2 or guesses > len(scores) or len(scores) != len(included):
        raise InvalidPrivacyParameter(f"cannot make {guesses} two-sided guesses about {len(scores)} canaries")
    if np.isnan(scores).any():
        raise InvalidPrivacyParameter("a score is not a number")
    order, half = np.argsort(scores, kind="stable"), guesses // 2
    return int(included[order[len(order) - half :]].sum() + (~included[order[:half]]).sum())

"""A clipping threshold that follows a quantile of the units' gradient norms, paid for in the release that uses it.

Andrew et al. 2021 (arXiv:1905.03871) release two noised sums a round: clipped updates, and how many of them stayed
below the threshold. Here both are one vector. With threshold C a unit with gradient g contributes

    g / max(|g|, C)       its gradient in clip units, of norm at most 1,
    +-COUNT_WEIGHT / 2    one more entry: plus if |g| <= C, minus if not,

so one unit moves the vector by at most `SENSITIVITY` in L2, whatever C is. C may therefore be any public number
whatever: one Gaussian release with constants for noise and sensitivity covers the round, and the
accountant sees nothing new. The weight sets what the count costs and how well it is known: the gradient's noise grows
by 0.5 %, and the count of a round has a std of 5 noise multipliers, in units.
"""

import math

from ..errors import InvalidPrivacyParameter

COUNT_WEIGHT = 0.2
SENSITIVITY = math.hypot(1.0, COUNT_WEIGHT / 2)
_FARTHEST = 9.210340371976184  # log(1e4), of the start value, either way: arithmetic stays sound at any state


def clip_at(start: float, log_clip: float) -> float:
    """The threshold start * exp(log_clip), held within a factor of 1e4 of `start`.

    Raises:
        InvalidPrivacyParameter: `log_clip` is NaN.
    """
    if math.isnan(log_clip):
        raise InvalidPrivacyParameter("log_clip must be a number, got nan")
    return start * math.exp(min(max(log_clip, -_FARTHEST), _FARTHEST))


def next_log_clip(
    log_clip: float, count: float, *, batch_units: float, target_quantile: float, learning_rate: float
) -> float:
    """log C' = log C - learning_rate * (b - target_quantile), b the share of units at or below C (their section 2.1).

    Made of operations to which IEEE 754 gives one result, since every site repeats it.

    Post-processing of the released count. b is taken over the public batch size, so a batch that came out larger or
    smaller shifts it a little, and is cut to [0, 1].

    Args:
        log_clip: logarithm of the threshold over its start value.
        count: last entry of the opened sum, in real units.
        batch_units: units expected in the sum.
    """
    share = min(max(0.5 + count / (COUNT_WEIGHT * batch_units), 0.0), 1.0)
    moved = log_clip - learning_rate * (share - target_quantile)
    return min(max(moved, -_FARTHEST), _FARTHEST)

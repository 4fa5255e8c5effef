"""A bound on the norm of a site's vector: its sum is projected onto a ball, and its noise has a tail.

A check of the norm on secret shares can tell a site that sends anything from one that sends what it should only if what
it should send has a bound. The clip gives a poor one, the number of units drawn, which nobody may know. So the sum is
projected onto a ball of public radius before it is rounded and noised. It costs no privacy, and no accuracy while the
radius is never reached.
"""

import math

import numpy as np
import numpy.typing as npt

from ..errors import InvalidPrivacyParameter

MISS = 1e-12  # probability that an honest vector is longer than its bound


def onto_ball(total: npt.NDArray[np.float64], radius: float) -> npt.NDArray[np.float64]:
    """The nearest vector of norm at most `radius`: `total` itself, or `total` shortened to that norm.

    1-Lipschitz in L2, so what one unit can change stays what it was: neighbouring sums that differ by at most clip_norm
    are projected to vectors that do. *Proof.* For a closed convex set K and p = P(x), q = P(y): p is nearest to x, so
    <x - p, q - p> <= 0, or p + t(q - p) for a small t > 0 would be nearer; likewise <y - q, p - q> <= 0. Added up,
    |p - q|^2 <= <x - y, p - q> <= |x - y| |p - q| (Cauchy-Schwarz), hence |p - q| <= |x - y|. In float64 a result is
    off by less than 2**-46 of `radius`, for which `clipping` leaves room.

    Raises:
        InvalidPrivacyParameter: the radius is not positive and finite.
    """
    if not 0 < radius < math.inf:
        raise InvalidPrivacyParameter(f"radius must be positive and finite, got {radius}")
    norm = math.sqrt(float(np.square(total).sum()))  # numpy adds pairwise: off by less than 2**-47 of itself
    return total if norm <= radius else total * (radius / norm)


def norm_bound(*, max_norm: float, noise_std: float, dim: int, steps: int = 1) -> float:
    """A norm that `steps` projected sums with their noise pass with probability at most `MISS`; in any one unit.

    A discrete Gaussian is sub-Gaussian with its own parameter (Canonne, Kamath & Steinke 2020, arXiv:2004.00010), so
    their sum is with s^2 = steps * noise_std^2, and its norm has the tail of a Gaussian vector's (Hsu, Kakade & Zhang
    2012, arXiv:1110.2842): with probability at least 1 - exp(-t)

        |noise|^2 <= s^2 (dim + 2 sqrt(dim t) + 2 t)          (Laurent & Massart 2000, lemma 1)

    and with the same <sum, noise> <= |sum| s sqrt(2 t). In one step the sum does not depend on the noise, and both
    together bound |sum + noise|^2. In several steps it does, since the copy of the model has moved by the noise of the
    steps before: then the two norms are added.

    Args:
        max_norm: radius of the ball that each step's sum is projected onto, with what rounding may add; 0 for none.
        noise_std: of an entry's noise in one step.
        dim: entries.

    Raises:
        InvalidPrivacyParameter: an argument is out of range.
    """
    if not (0 <= max_norm < math.inf and 0 <= noise_std < math.inf and dim >= 1 and steps >= 1):
        raise InvalidPrivacyParameter(
            f"need finite max_norm, noise_std >= 0 and dim, steps >= 1, got {max_norm}, {noise_std}, {dim}, {steps}"
        )
    t = math.log(2 / MISS)  # two events in one step
    std = noise_std * math.sqrt(steps)
    noise_square = std**2 * (dim + 2 * math.sqrt(dim * t) + 2 * t)
    if steps > 1:
        return steps * max_norm + math.sqrt(noise_square)
    return math.sqrt(max_norm**2 + 2 * max_norm * std * math.sqrt(2 * t) + noise_square)

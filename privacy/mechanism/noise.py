"""Discrete Gaussian noise from random bytes, millions of draws a second.

Rejection from strips. The half line is cut into 2048 strips of equal width; one is drawn with a probability
proportional to its weight, a whole number not below the density at its inner end; a place in it is drawn uniformly; and
the place is kept with probability density / weight. What comes out has exactly the density's shape, whatever the
weights are. No probability is rounded: the strip is drawn by an alias table (Walker 1977) over whole numbers, and the
last coin compares a lazily extended uniform real with exp(-x^2 / 2 sigma^2) in as many digits as it takes to be sure
(Karney 2016, arXiv:1303.6257, samples the Gaussian so). `docs/noise.md` has the proof.

The one difference from the discrete Gaussian is that nothing beyond the last strip, 32 sigma or more, is ever drawn: a
total variation distance of at most 2 exp(-512) < 2**-737 a draw. The tests have a slow sampler to compare with.
Not constant-time: how long a draw takes depends on what is drawn.
"""

import os
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..errors import InvalidPrivacyParameter
from .sampling import Integers, RandomBytes, uniform_words

MAX_SIGMA = 2**50  # no draw reaches 2**56: there is room in 64 bits for what the noise is added to

_STRIP_BITS = 11
_STRIPS = 1 << _STRIP_BITS
_SIGMA_BITS = 5  # sigma is 32 to 64 strips wide, below 64 sigma strips of one number; 1 % of places are rejected
_TOTAL = 1 << 64  # of all weights: one random word picks a strip
_BATCH = 1 << 14  # places drawn at once: the temporary arrays stay in the processor's cache
_DOUBT = 2.0**-40  # below this distance float64 does not decide a coin; its own error is below 2**-48
_DIGITS = 40

_Mask = npt.NDArray[np.bool_]
_Words = npt.NDArray[np.uint64]


def discrete_gaussian(sigma: int, n: int, random_bytes: RandomBytes = os.urandom) -> Integers:
    """[n] independent samples with P(x) proportional to exp(-x^2 / (2 sigma^2)) over the integers.

    Exact but for the cut beyond 32 sigma. The standard deviation is at most sigma, and for sigma >= 2 equals it to
    1e-14. Takes 16 bytes a sample: the operating system gives them faster than a second cipher would be worth.

    Raises:
        InvalidPrivacyParameter: sigma is not an integer in [1, 2**50], or n is negative.
    """
    if not isinstance(sigma, int) or not 1 <= sigma <= MAX_SIGMA or n < 0:
        raise InvalidPrivacyParameter(f"need an integer sigma in [1, 2**50] and n >= 0, got {sigma!r} and {n}")
    strips = _strips(sigma)
    out = np.empty(n, dtype=np.int64)
    done = 0
    while done < n:
        drawn = strips.draw(min(_BATCH, int((n - done) * 1.02) + 16), random_bytes)[: n - done]
        out[done : done + drawn.size] = drawn
        done += drawn.size
    return out


@dataclass(frozen=True, kw_only=True, slots=True)
class _Strips:
    """Strip h holds the numbers [h << width_bits, (h + 1) << width_bits). Density means exp(-x^2 / 2 sigma^2)."""

    sigma: int
    width_bits: int
    scale: int  # a weight is at least scale * density at the strip's inner end
    weights: list[int]  # sum to 2**64
    threshold: _Words  # [2048] of the alias table: column c is strip c below it and strip alias[c] from there on
    alias: Integers
    coin_bits: int  # of a place's random word, what sign and place leave, at most 32
    surely_kept: _Words  # [2048] every place of the strip is kept when its coin is below this
    inner: npt.NDArray[np.float64]  # [2048] scale * density / weight at the inner end: at most 1

    def draw(self, places: int, random_bytes: RandomBytes) -> Integers:
        """Draws `places` independent places and returns those that are kept."""
        words = uniform_words(2 * places, random_bytes)
        pick, place = words[:places], words[places:]
        column = (pick & np.uint64(_STRIPS - 1)).view(np.int64)
        is_own = pick >> np.uint64(_STRIP_BITS) < self.threshold.take(column)
        strip = np.where(is_own, column, self.alias.take(column))
        x = (place & np.uint64((1 << self.width_bits) - 1)).view(np.int64)
        x += strip << self.width_bits
        coin = place << np.uint64(1) >> np.uint64(64 - self.coin_bits)
        is_kept = coin < self.surely_kept.take(strip)
        unsure = np.flatnonzero(~is_kept)
        is_kept[unsure] = self._keeps(x[unsure], strip[unsure], coin[unsure], random_bytes)
        sign = place.view(np.int64) >> 63  # 0 or -1, the bit that neither place nor coin used
        x += sign
        is_kept &= x >= 0  # zero has one sign
        x ^= sign
        return x[is_kept]

    def _keeps(self, x: Integers, strip: Integers, coin: _Words, random_bytes: RandomBytes) -> _Mask:
        """True with probability scale * density / weight, given the first bits of the coin."""
        finer = uniform_words(x.size, random_bytes)
        uniform = (coin + finer * 2.0**-64) * 2.0**-self.coin_bits
        inner_end = strip << self.width_bits
        fall = (x - inner_end) / self.sigma * ((x + inner_end) / self.sigma) / 2
        probability = self.inner.take(strip) * np.exp(-fall)
        keeps: _Mask = uniform < probability
        for i in np.flatnonzero(np.abs(uniform - probability) < _DOUBT):
            start = int(coin[i]) << 64 | int(finer[i])
            keeps[i] = self._keeps_exactly(int(x[i]), int(strip[i]), start, random_bytes)
        return keeps

    def _keeps_exactly(self, x: int, strip: int, uniform: int, random_bytes: RandomBytes) -> bool:
        """The same for one place, with as many bits and digits as the comparison takes."""
        bits, digits = self.coin_bits + 64, _DIGITS
        while True:
            with localcontext(Context(prec=digits)):
                at_best = self.scale * _density(x, self.sigma) / self.weights[strip] * 2**bits
                error = at_best.scaleb(9 - digits)  # the exponent is below 2**22, and exp() is correctly rounded
                if uniform + 1 <= at_best - error:
                    return True
                if uniform >= at_best + error:
                    return False
            uniform = uniform << 64 | int(uniform_words(1, random_bytes)[0])
            bits, digits = bits + 64, digits + 20


@lru_cache(maxsize=16)  # 30 ms and 80 KB each
def _strips(sigma: int) -> _Strips:
    width_bits = max(0, sigma.bit_length() - 1 - _SIGMA_BITS)
    coin_bits = min(32, 63 - width_bits)
    with localcontext(Context(prec=_DIGITS)):
        density = [_density(h << width_bits, sigma) for h in range(_STRIPS + 1)]
        scale = int((_TOTAL - 2 * _STRIPS) / sum(density[:-1]))
        weights = [int(scale * at_inner_end) + 2 for at_inner_end in density[:-1]]
        weights[0] += _TOTAL - sum(weights)  # places there are kept a little less often: any weight will do
        inner = [scale * at / weight for at, weight in zip(density[:-1], weights, strict=True)]
        at_last = density[1:] if width_bits else density[:-1]  # not above the density of the strip's last place
        least = [scale * at / weight for at, weight in zip(at_last, weights, strict=True)]
        surely_kept = [max(0, int(probability * 2**coin_bits) - 1) for probability in least]
    threshold, alias = _alias_table(weights)
    return _Strips(
        sigma=sigma,
        width_bits=width_bits,
        scale=scale,
        weights=weights,
        threshold=np.array(threshold, dtype=np.uint64),
        alias=np.array(alias, dtype=np.int64),
        coin_bits=coin_bits,
        surely_kept=np.array(surely_kept, dtype=np.uint64),
        inner=np.array([float(at) for at in inner]),
    )


def _density(x: int, sigma: int) -> Decimal:
    return (Decimal(-x * x) / (2 * sigma * sigma)).exp()


def _alias_table(weights: list[int]) -> tuple[list[int], list[int]]:
    """Thresholds and aliases of equally likely columns, each of sum(weights) / len(weights) tickets (Vose 1991)."""
    column = sum(weights) // len(weights)
    left, alias = list(weights), list(range(len(weights)))
    poor = [i for i, weight in enumerate(left) if weight < column]
    rich = [i for i, weight in enumerate(left) if weight > column]
    while poor:
        i, giver = poor.pop(), rich[-1]
        alias[i] = giver
        left[giver] -= column - left[i]
        if left[giver] <= column:
            rich.pop()
        if left[giver] < column:
            poor.append(giver)
    return left, alias

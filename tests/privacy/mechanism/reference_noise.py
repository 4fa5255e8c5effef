"""The discrete Gaussian by another road, some twenty times slower: what `noise` is compared with.

The rejection sampler of Canonne, Kamath & Steinke 2020 (arXiv:2004.00010, algorithms 1-3) with an integer sigma that is
also the scale of the Laplace proposal. Every acceptance is then a run of coins whose probability is a product of ratios
of 64-bit integers: there is no table, no cut and no floating-point number in it. Not constant-time either.
"""

import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from confide.privacy.errors import InvalidPrivacyParameter
from confide.privacy.mechanism.noise import (
    MAX_SIGMA,
)  # a draw beyond 2**12 sigma would pass 2**62; its probability is below exp(-2**22)
from confide.privacy.mechanism.sampling import Integers, RandomBytes, uniform_words

_Mask = npt.NDArray[np.bool_]
_Coin = Callable[[Integers, int], _Mask]  # (which entries, k) -> heads with probability gamma / k


def discrete_gaussian(sigma: int, n: int, random_bytes: RandomBytes = os.urandom) -> Integers:
    """[n] exact independent samples with P(x) proportional to exp(-x^2 / (2 sigma^2)) over the integers.

    The standard deviation is at most sigma, and for sigma >= 2 equals it to 1e-14.

    Raises:
        InvalidPrivacyParameter: sigma is not an integer in [1, 2**50], or n is negative.
    """
    if not isinstance(sigma, int) or not 1 <= sigma <= MAX_SIGMA or n < 0:
        raise InvalidPrivacyParameter(f"need an integer sigma in [1, 2**50] and n >= 0, got {sigma!r} and {n}")
    out = np.empty(0, dtype=np.int64)
    while out.size < n:
        proposal = _discrete_laplace(sigma, int((n - out.size) * 1.4) + 16, random_bytes)
        out = np.concatenate([out, proposal[_accept(np.abs(np.abs(proposal) - sigma), sigma, random_bytes)]])
    return out[:n]


def _accept(gap: Integers, sigma: int, random_bytes: RandomBytes) -> _Mask:
    """True with probability exp(-gap^2 / (2 sigma^2)).

    With gap = q sigma + r the exponent is q^2/2 + q r/sigma + r^2/(2 sigma^2): no square has to fit a machine word.
    """
    q, r = gap // sigma, gap % sigma
    half = _exp_coin(lambda which, k: _below(2 * k, which.size, random_bytes) == 0)
    linear = _exp_coin(lambda which, k: _ratios(r[which], sigma, 1, k, random_bytes))
    square = _exp_coin(lambda which, k: _ratios(r[which], sigma, 2, 2 * k, random_bytes))
    alive = np.flatnonzero(_all_heads(half, q * q))
    so_far = alive
    alive = so_far[_all_heads(lambda which: linear(so_far[which]), q[so_far])]
    accepted = np.zeros(gap.size, dtype=np.bool_)
    accepted[alive[square(alive)]] = True
    return accepted


def _discrete_laplace(scale: int, n: int, random_bytes: RandomBytes) -> Integers:
    """At least n samples of P(x) proportional to exp(-|x| / scale)."""
    out = np.empty(0, dtype=np.int64)
    unit = _exp_coin(lambda which, k: _below(k, which.size, random_bytes) == 0)
    while out.size < n:
        u = _below(scale, int((n - out.size) * 1.7) + 16, random_bytes)
        keeps = _exp_coin(lambda which, k, u=u: _ratios(u[which], scale, 1, k, random_bytes))
        u = u[keeps(np.arange(u.size))]
        x = u + scale * _heads_in_a_row(unit, u.size)
        is_negative = _below(2, x.size, random_bytes) == 1
        out = np.concatenate([out, np.where(is_negative, -x, x)[~(is_negative & (x == 0))]])  # zero has one sign
    return out


def _exp_coin(coin: _Coin) -> Callable[[Integers], _Mask]:
    """A coin of probability exp(-gamma), gamma in [0, 1], from coins of gamma / k.

    They are flipped for k = 1, 2, ... until one fails; heads if that k is odd.
    """

    def flip(which: Integers) -> _Mask:
        heads = np.empty(which.size, dtype=np.bool_)
        todo, k = np.arange(which.size), 1
        while todo.size:
            goes_on = coin(which[todo], k)
            heads[todo[~goes_on]] = k % 2 == 1
            todo, k = todo[goes_on], k + 1
        return heads

    return flip


def _all_heads(flip: Callable[[Integers], _Mask], times: Integers) -> _Mask:
    """For each entry, whether that many flips in a row are heads."""
    result = np.zeros(times.size, dtype=np.bool_)
    alive, done = np.arange(times.size), 0
    while alive.size:
        is_finished = times[alive] == done
        result[alive[is_finished]] = True
        alive = alive[~is_finished]
        alive = alive[flip(alive)]
        done += 1
    return result


def _heads_in_a_row(flip: Callable[[Integers], _Mask], n: int) -> Integers:
    count = np.zeros(n, dtype=np.int64)
    alive = np.arange(n)
    while alive.size:
        alive = alive[flip(alive)]
        count[alive] += 1
    return count


def _ratios(numerator: Integers, denominator: int, power: int, k: int, random_bytes: RandomBytes) -> _Mask:
    """Heads with probability (numerator / denominator)^power / k, numerators in [0, denominator]."""
    heads: _Mask = _below(k, numerator.size, random_bytes) == 0
    for _ in range(power):
        alive = np.flatnonzero(heads)
        heads[alive] = _below(denominator, alive.size, random_bytes) < numerator[alive]
    return heads


def _below(bound: int, n: int, random_bytes: RandomBytes) -> Integers:
    """[n] exact uniform integers in [0, bound), by masking and rejection."""
    if bound == 1:
        return np.zeros(n, dtype=np.int64)
    mask = np.uint64((1 << (bound - 1).bit_length()) - 1)
    out = np.empty(n, dtype=np.int64)
    todo = np.arange(n)
    while todo.size:
        draw = (uniform_words(todo.size, random_bytes) & mask).astype(np.int64)
        is_in = draw < bound
        out[todo[is_in]] = draw[is_in]
        todo = todo[~is_in]
    return out

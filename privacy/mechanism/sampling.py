"""The sample of a step: exact Poisson sampling of units from random bytes.

Amplification by sampling (the `sample_rate` of an accountant) holds for this sampler, for coins nobody can predict, and
while nobody learns who was drawn or how many. Neither is logged or sent; how many also shows in how long a step takes,
so whoever lets a release leave lets it leave at a time that does not depend on the sample.
"""

import hashlib
import os
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from ..errors import InvalidPrivacyParameter

RandomBytes = Callable[[int], bytes]  # n -> n bytes, each call fresh

Integers = npt.NDArray[np.int64]


class SeededBytes:
    """A stream of bytes that repeats with its seed: AES-256 in counter mode under SHA-256 of the seed.

    For runs without protection that must be comparable. Whoever knows the seed knows every coin and all noise, so a
    private step refuses it.
    """

    def __init__(self, seed: bytes) -> None:
        key = hashlib.sha256(b"confide seeded bytes 1\0" + seed).digest()
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def __call__(self, size: int) -> bytes:
        """The next `size` bytes of the stream."""
        return self._stream.update(bytes(size))

    def __repr__(self) -> str:
        return "SeededBytes(...)"


def poisson_sample(n_units: int, sample_rate: float, random_bytes: RandomBytes = os.urandom) -> Integers:
    """Indices in [0, n_units), ascending, each present independently with probability `sample_rate`.

    Exact for every rate that is a multiple of 2**-64; others are rounded down to one, which errs on the safe side.

    Raises:
        InvalidPrivacyParameter: sample_rate is not in (0, 1] or n_units is negative.
    """
    if not (0 < sample_rate <= 1) or n_units < 0:
        raise InvalidPrivacyParameter(f"need sample_rate in (0, 1] and n_units >= 0; got {sample_rate}, {n_units}")
    if sample_rate == 1:
        return np.arange(n_units)
    threshold = np.uint64(int(Fraction(sample_rate) * 2**64))
    return np.flatnonzero(uniform_words(n_units, random_bytes) < threshold)


def choose(n: int, size: int, random_bytes: RandomBytes = os.urandom) -> Integers:
    """`size` of the indices in [0, n), ascending and without repeats; every subset has the same probability.

    Raises:
        InvalidPrivacyParameter: size is not in [0, n].
    """
    if not 0 <= size <= n:
        raise InvalidPrivacyParameter(f"cannot choose {size} of {n}")
    while True:  # sorting random words shuffles exactly, given that no two are equal
        words = uniform_words(n, random_bytes)
        if len(np.unique(words)) == n:
            return np.sort(np.argsort(words)[:size])


def uniform_words(n: int, random_bytes: RandomBytes) -> npt.NDArray[np.uint64]:
    """[n] independent uniform 64-bit integers."""
    return np.frombuffer(random_bytes(8 * n), dtype="<u8").astype(np.uint64, copy=False)

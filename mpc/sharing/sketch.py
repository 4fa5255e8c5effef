"""A public random linear sketch of a secret-shared vector, and the rule by which its rows tell a long vector.

Each party sketches its own share: z = R v modulo 2**b, with R of small integers drawn from a public seed, so the three
results are additive shares of the sketch. A row z_r has mean 0 and variance 4 |v|^2 and is nearly Gaussian, whatever
the shape of v. A row *exceeds* if z_r, read as a signed number, is outside a window of 1.85 standard deviations of a
vector of the largest allowed norm; more than `tau` exceeding rows mean a longer vector. Values that wrap are no way
round: a large entry, read modulo 2**b, leaves a row in the window with probability at most 1/2.

R = C H, two levels, so that millions of entries cost four additions each:

* H, four count sketches (Charikar, Chen, Farach-Colton 2002). v is cut into pieces of `PIECE` entries; a piece is
  multiplied by a slice of a long sequence of random signs that begins at a random place and added, at a random
  offset, to each of four tables. Entries of a piece never meet in a table; two entries of different pieces meet with
  probability at most 2**-12, and no vector but 0 vanishes from a table with a larger probability: of two different
  offsets of a piece at most one can cancel what is there.
* C, dense: each of the rows adds up all buckets, with coefficients that are 4 fair coins less 2. They are even or odd
  with probability 1/2, so a bucket of 2**(b-1) shows.

Everything here is public and the same at all three parties; only the vector is not. Proofs, rates of error and what is
merely measured: docs/norm-check.md. Out of scope: opening z, which would show two colluding parties numbers about one
site's vector. The parties compare it under a mask (`interval`), bit by bit.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..errors import InvalidField, NoRing
from ..fields import MAX_DIM, MAX_ROWS, canonical, octets, whole
from .ring import RingVector

SEED_BYTES = 32
ROWS = 256
MIN_ROWS = 64  # fewer can't tell an honest vector from a wrapped one at the rates below
PIECE = 2**13  # entries that are placed together: long enough for few calls, short enough for the first cache

_TABLES = 4
_OFFSETS = 2**12  # places in a table where a piece may begin
_BUCKETS = PIECE + _OFFSETS  # of one table; the last stays empty
_SIGNS = 2**18  # places in the sequence of signs where a slice may begin
_AT_ONCE = 32  # rows of C in memory

_WINDOW_TENTHS = 37  # of a norm, 1.85 standard deviations of a row; docs/norm-check.md compares others
_STEPS = 64  # fewest steps from 0 to the edge of the window, so a step is at most 1.6 % of it
_WINDOWS = 24  # so many times the window, its last step included, fit in the ring: then no wrapped vector hides in one
_FALSE_REJECT = 1e-9
# Probability of a case, at most, and probability that a row exceeds in it. The cases: entries of a vector at the bound
# meet, and lengthen it, in no table, in one, in two. The second is the largest over all shapes that were tried; two
# equal entries are the worst, since nothing evens their meetings out.
_ROW_AT_BOUND = ((1.0, 0.0800), (5e-4, 0.1130), (2e-7, 0.1480))


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of a sketch, in ring units: all that the comparison under masks needs."""

    ring_bits: int  # 32 or 64
    rows: int
    window: int  # a row of size at most this does not exceed; a whole number of steps
    tau: int  # most rows that may exceed
    bits_used: int  # top bits of a ring element that are compared; a step is 2**(ring_bits - bits_used) units

    def __post_init__(self) -> None:
        if self.ring_bits not in (32, 64):
            raise InvalidField(f"ring_bits must be 32 or 64, got {self.ring_bits!r}")
        whole("rows", self.rows, MIN_ROWS, MAX_ROWS)
        whole("tau", self.tau, 0, self.rows - 1)
        whole("bits_used", self.bits_used, 5, self.ring_bits)
        whole("window", self.window, 1, largest_window(self.ring_bits) - self.step)
        if self.window % self.step:
            raise InvalidField(f"window must be a multiple of the step {self.step}, got {self.window}")

    @property
    def step(self) -> int:
        """Resolution of the comparison: a row of size window + step or more always exceeds."""
        return 1 << (self.ring_bits - self.bits_used)


def limits(bound: int, ring_bits: int, rows: int = ROWS) -> Limits:
    """The limits that a vector of norm `bound` keeps but for one case in 10**9.

    With 256 rows a Gaussian vector of twice that norm passes with probability 2e-6, one of three times with 2e-25; the
    best shape that was found passes with 2e-3 and 1e-15 (docs/norm-check.md).

    Args:
        bound: largest L2 norm of an honest vector, in ring units.

    Raises:
        NoRing: `bound` is above `largest_bound(ring_bits)`.
    """
    whole("bound", bound, 1, 2**62)
    whole("rows", rows, MIN_ROWS, MAX_ROWS)
    if bound > largest_bound(ring_bits):
        raise NoRing(
            f"a norm of {bound} units can't be checked in {ring_bits} bits, {largest_bound(ring_bits)} is the most: "
            "take a larger ring or fewer scale_bits"
        )
    least = _least_window(bound)
    step_bits = max(0, (least // _STEPS).bit_length() - 1)
    window = -(-least >> step_bits) << step_bits
    return Limits(ring_bits=ring_bits, rows=rows, window=window, tau=_threshold(rows), bits_used=ring_bits - step_bits)


def largest_bound(ring_bits: int) -> int:
    """The largest norm, in ring units, that can be checked in a ring of 32 or 64 bits: about 2**(ring_bits - 6.5)."""
    edge = largest_window(ring_bits)
    step = 1 << ((edge // _STEPS).bit_length() - 1)
    return (edge // step - 1) * step * 10 // _WINDOW_TENTHS


def largest_window(ring_bits: int) -> int:
    """The most that a window and one step may be together, in ring units."""
    return (1 << ring_bits) // _WINDOWS


class Sketch:
    """The map v -> R v of one seed."""

    def __init__(self, seed: bytes, dim: int, ring_bits: int, rows: int = ROWS) -> None:
        """Expands nothing yet.

        Args:
            seed: 32 public bytes, drawn after the vector was fixed: a vector that is fixed later can be in the kernel.
            dim: entries of the vector.
            ring_bits: 32 or 64.
            rows: of the result.
        """
        octets("seed", seed, SEED_BYTES)
        whole("dim", dim, 1, MAX_DIM)
        whole("rows", rows, 1, MAX_ROWS)
        if ring_bits not in (32, 64):
            raise InvalidField(f"ring_bits must be 32 or 64, got {ring_bits!r}")
        self.dim, self.rows = dim, rows
        self._type = np.dtype("<u4" if ring_bits == 32 else "<u8")
        info = canonical("confide/mpc/sketch/1", dim, ring_bits, rows)
        self._key = HKDF(SHA256(), 32, salt=None, info=info).derive(seed)

    def sketch(self, vector: RingVector) -> RingVector:
        """R `vector`, [rows] ring elements; exact, so linear in `vector` modulo 2**ring_bits.

        At 10 million entries of 32 bits about 27 ms, where a plain float32 addition of as many takes 3.5; 10 ms of it
        are the same for every length above 20,000, and a thousand entries take 3. Memory besides the vector: 6 MiB.
        """
        if vector.dtype != self._type or vector.shape != (self.dim,):
            raise InvalidField(f"need {self.dim} entries of {self._type}, got {vector.shape} {vector.dtype}")
        stream = _Stream(self._key)
        return self._combine(self._hash(vector, stream), stream)

    def _hash(self, vector: RingVector, stream: "_Stream") -> list[tuple[int, RingVector]]:
        """H `vector`: of each table the buckets that pieces fall in, and which is the first of them.

        It is the dimension and the seed that say which those are, and nothing that is secret.
        """
        pieces = -(-self.dim // PIECE)
        signs = stream.signs(_SIGNS + PIECE).astype(self._type)  # -1 is 2**b - 1
        starts = (stream.words(pieces) % _SIGNS).tolist()
        offsets = (stream.words(pieces * _TABLES) % _OFFSETS).reshape(pieces, _TABLES).tolist()
        tables = np.zeros((_TABLES, _BUCKETS), self._type)
        signed = np.empty(PIECE, self._type)
        for piece, (start, places) in enumerate(zip(starts, offsets, strict=True)):
            entries = vector[piece * PIECE : (piece + 1) * PIECE]
            size = len(entries)
            part = np.multiply(entries, signs[start : start + size], out=signed[:size])
            for table, place in zip(tables, places, strict=True):
                bucket = table[place : place + size]
                np.add(bucket, part, out=bucket)
        firsts = [min(column) for column in zip(*offsets, strict=True)]
        ends = [max(column) + min(self.dim, PIECE) for column in zip(*offsets, strict=True)]
        return [(first, table[first:end]) for table, first, end in zip(tables, firsts, ends, strict=True)]

    def _combine(self, tables: list[tuple[int, RingVector]], stream: "_Stream") -> RingVector:
        """[rows], C times all buckets.

        By bytes of the buckets in float32, for the speed of its matrix product: 255 * 2 * 12288 < 2**24, so that it is
        exact. Coefficients of buckets in which no piece falls, most of them for a short vector, are drawn and passed
        over.
        """
        result = np.zeros(self.rows, self._type)
        weights = np.array([1 << 8 * i for i in range(self._type.itemsize)], self._type)
        for first, buckets in tables:
            limbs = buckets.view(np.uint8).reshape(len(buckets), -1).astype(np.float32)
            for start, coefficients in self._coefficients(stream, first, first + len(buckets)):
                sums = (coefficients @ limbs).astype(np.int64).astype(self._type)
                result[start : start + len(sums)] += (sums * weights).sum(axis=1, dtype=self._type)
        return result

    def _coefficients(self, stream: "_Stream", first: int, end: int) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """C for the buckets from `first` to `end` of one table, [some rows, buckets] from row `start` on.

        The memory is used again for the next.
        """
        half = _BUCKETS // 2
        block = np.empty((min(_AT_ONCE, self.rows), end - first), np.float32)
        low, high = slice(min(first, half), min(end, half)), slice(max(first, half) - half, max(end, half) - half)
        middle = low.stop - low.start
        for start in range(0, self.rows, _AT_ONCE):
            rows = min(_AT_ONCE, self.rows - start)
            coins = stream.octets(rows * half).reshape(rows, half)  # two coefficients a byte
            for part, nibbles in (
                (block[:rows, :middle], coins[:, low] & 15),
                (block[:rows, middle:], coins[:, high] >> 4),
            ):
                part[:] = (np.bitwise_count(nibbles) - np.uint8(2)).view(np.int8)
            yield start, block[:rows]


def interval(opened: RingVector, limits: Limits) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The interval of a mask's top `bits_used` bits if its row does not exceed: from `low` to `high`, both included.

    With low > high the interval goes round: from `low` up to the largest number, and from 0 up to `high`.

    Args:
        opened: any shape, y = z + mask modulo 2**ring_bits.
    """
    step_bits = limits.ring_bits - limits.bits_used
    high = (opened.astype(np.uint64) + np.uint64(limits.window)) & _ones(limits.ring_bits)
    high >>= np.uint64(step_bits)
    low = (high - np.uint64(2 * limits.window >> step_bits)) & _ones(limits.bits_used)
    return low, high


def _least_window(bound: int) -> int:
    return -(-_WINDOW_TENTHS * bound // 10)


@lru_cache(maxsize=16)
def _threshold(rows: int) -> int:
    """The least tau that a vector at the bound passes but for one case in 10**9."""
    tail = 0.0
    for count in range(rows, 0, -1):
        ways = math.comb(rows, count)
        tail += math.fsum(
            often * (ways * chance**count * (1 - chance) ** (rows - count)) for often, chance in _ROW_AT_BOUND
        )
        if tail > _FALSE_REJECT:
            return count
    return 0


def _ones(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)


class _Stream:
    """Public random numbers: an AES-256-CTR keystream, taken from front to back."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def octets(self, count: int) -> npt.NDArray[np.uint8]:
        """[count], uniform."""
        out = np.zeros(count, np.uint8)
        self._cipher.update_into(out.data, out.data)  # zeros, in place
        return out

    def words(self, count: int) -> npt.NDArray[Any]:
        """[count] uint32, uniform."""
        return self.octets(4 * count).view("<u4")

    def signs(self, count: int) -> npt.NDArray[np.int8]:
        """[count], -1 or 1."""
        bits = np.unpackbits(self.octets(-(-count // 8)), count=count, bitorder="little").view(np.int8)
        return 2 * bits - np.int8(1)

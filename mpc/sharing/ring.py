"""Fixed point in the integers modulo 2**32 or 2**64: choosing a ring, writing vectors into it, reading totals.

Sums are exact as long as they stay within half the ring; past that they wrap and nothing notices. Hence `plan_ring`
sizes the ring for the largest sum over a whole cohort. Nothing here hides anything: see `shares`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import InvalidField, NoRing, ShareMalformed
from ..fields import MAX_DIM, NUM_AGGREGATORS, Bytes, whole

INFLATION = 1e-3  # of the sensitivity by rounding, where it costs nothing
NARROW_INFLATION = 1e-2  # where it spares half the bytes

RingVector = npt.NDArray[Any]  # uint32 or uint64, little-endian, one dimension


@dataclass(frozen=True, slots=True)
class Ring:
    """The integers modulo 2**bits, in which the real number 1.0 is written as 2**scale_bits."""

    bits: int  # 32 or 64
    scale_bits: int  # in [0, bits - 2]

    def __post_init__(self) -> None:
        if self.bits not in (32, 64):
            raise InvalidField(f"bits must be 32 or 64, got {self.bits!r}")
        whole("scale_bits", self.scale_bits, 0, self.bits - 2)

    @property
    def unsigned(self) -> np.dtype[Any]:
        """Type of a ring element."""
        return np.dtype("<u4" if self.bits == 32 else "<u8")

    @property
    def signed(self) -> np.dtype[Any]:
        """Type in which a ring element is read as a number."""
        return np.dtype("<i4" if self.bits == 32 else "<i8")

    def capacity(self, max_abs: float) -> int:
        """The most vectors with entries of size at most `max_abs` whose sum cannot wrap."""
        if not 0 < max_abs < math.inf:
            raise InvalidField(f"max_abs must be positive and finite, got {max_abs}")
        largest = math.floor(math.ldexp(max_abs, self.scale_bits)) + 1  # rounding adds less than one unit
        return int((2 ** (self.bits - 1) - 1) // largest)


def plan_ring(
    sites: int, max_abs: float, dim: int, clip_norm: float, has_room: Callable[[Ring], bool] = lambda ring: True
) -> Ring:
    """The ring for the sum of `sites` vectors: one of 32 bits if it can hold the sum finely enough, else one of 64.

    Rounding moves each coordinate by less than one unit, so two neighbouring inputs that differ by at most `clip_norm`
    in L2 differ by at most `clip_norm + sqrt(dim) * 2**-scale_bits` once rounded. The scale is the coarsest at which
    the second term is at most `INFLATION` of the first. Where that does not fit in 32 bits but up to `NARROW_INFLATION`
    does, the finest scale that fits is taken: a percent more noise for half the bytes. The accountant must still be
    given the sum of both terms.

    Args:
        sites: vectors that may be added.
        max_abs: bound on any entry of one vector, noise included, or on an entry of the sum divided by `sites`.
        dim: entries of a vector.
        clip_norm: L2 sensitivity before rounding.
        has_room: whether a ring that holds the sum has room for all else.

    Raises:
        NoRing: 64 bits are too few.
    """
    whole("sites", sites, 1, 2**31)
    whole("dim", dim, 1, MAX_DIM)
    if not 0 < clip_norm < math.inf:
        raise InvalidField(f"clip_norm must be positive and finite, got {clip_norm}")
    wanted, least = _scale_for(dim, INFLATION * clip_norm), _scale_for(dim, NARROW_INFLATION * clip_norm)
    narrow = [Ring(32, scale_bits) for scale_bits in range(min(wanted, 30), least - 1, -1)]
    for ring in (*narrow, *([Ring(64, wanted)] if wanted <= 62 else [])):
        if ring.capacity(max_abs) >= sites and has_room(ring):
            return ring
    raise NoRing(f"no ring holds {sites} sites with max_abs {max_abs}, dim {dim}, clip_norm {clip_norm}: lower max_abs")


def _scale_for(dim: int, allowed: float) -> int:
    """The least scale_bits with which rounding moves a vector of `dim` entries by at most `allowed`, L2."""
    return max(0, math.ceil(math.log2(math.sqrt(dim) / allowed)))


def from_integers(values: npt.NDArray[np.int64], ring: Ring) -> RingVector:
    """Integers, in units of 2**-scale_bits, modulo 2**bits.

    No value is refused: an error that depends on one site's noised integers would tell more of them than the sum does.
    An entry, or a sum, outside [-2**(bits - 1), 2**(bits - 1)) is therefore read back as another number and nothing
    notices, so plan the ring for the noise as well. What cancels within a sum is right nonetheless.
    """
    if values.dtype != np.int64 or values.ndim != 1:
        raise InvalidField(f"need one int64 vector, got {values.dtype} of {values.ndim} dimensions")
    return values.astype(ring.unsigned)  # to an unsigned type C converts modulo 2**bits


def to_integers(vector: RingVector, ring: Ring) -> npt.NDArray[np.int64]:
    """The integer in [-2**(bits - 1), 2**(bits - 1)) that each ring element stands for."""
    if vector.dtype != ring.unsigned:
        raise InvalidField(f"need {ring.unsigned} entries, got {vector.dtype}")
    return vector.view(ring.signed).astype(np.int64)


def decode(units: npt.NDArray[np.int64], ring: Ring) -> npt.NDArray[np.float64]:
    """Integers in units of 2**-scale_bits as real numbers; exact up to 2**53 units, rounded to float64 beyond."""
    return units.astype(np.float64) * 2.0**-ring.scale_bits


class Total(NamedTuple):
    """An opened sum over sites."""

    units: npt.NDArray[np.int64]  # [dim], in units of 2**-scale_bits
    tags: npt.NDArray[np.uint64]  # [tag_count], the sums of the sites' tags modulo 2**64


def read_total(words: Bytes, tag_shares: Sequence[Bytes], ring: Ring, dim: int, tag_count: int = 0) -> Total:
    """The sum of all kept sites' vectors, which the parties have opened, and of their tags, which they have not.

    Args:
        words: `dim` ring elements, little-endian.
        tag_shares: each party's share of the sum of tags, `tag_count` words of 8 bytes.

    Raises:
        ShareMalformed: not so many elements, or not three shares of so many tags.
    """
    if len(words) != dim * ring.unsigned.itemsize:
        raise ShareMalformed(f"a total of {len(words)} bytes is no vector of {dim} elements of {ring.bits} bits")
    if len(tag_shares) != NUM_AGGREGATORS or any(len(share) != 8 * tag_count for share in tag_shares):
        raise ShareMalformed(f"need {NUM_AGGREGATORS} shares of {tag_count} tags")
    tags = np.zeros(tag_count, "<u8")
    for share in tag_shares:
        tags += np.frombuffer(share, tags.dtype)
    return Total(to_integers(np.frombuffer(words, ring.unsigned), ring), tags)

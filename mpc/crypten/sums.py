"""Sums on shares: a site's shared vectors as CrypTen's tensors, their total, its opening, and sketches.

The ring of a tensor is that of its storage. CrypTen's own is int64; a ring of 32 bits lies in int32, where torch adds
modulo 2**32 too. So a party never has more of a share than its residue, and none of its memory is copied or widened.

Why not int64 for both. Shares modulo 2**32 add up as int64 as well, if the total is reduced. But a party's sum of its
shares is then s + 2**32 k, with k the carries of its own additions, and k tells of single shares: of two shares x and y
with x + y = s modulo 2**32, k = 0 just if x <= s. Two parties that know all other shares would learn from it, beyond
the total, on which side of a known number one site's entry lies. It would have to be reduced before it is opened; here
there is nothing to reduce. And twice the memory passes twice as slowly (docs/benchmarks/sums.md).
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from ..sharing import Ring, ShareContext
from ..sharing.ring import RingVector
from ..sharing.shares import Share, Words, unpack
from ..sharing.sketch import Sketch
from . import runtime
from .runtime import ArithmeticSharedTensor

_OPENED_AT_ONCE = 2**20  # elements of a total


@dataclass(frozen=True, slots=True)
class SharedVector:
    """This party's share of a vector that a site has shared, and of what came with it."""

    vector: ArithmeticSharedTensor = field(repr=False)  # [dim], in the ring of the order
    masks: ArithmeticSharedTensor = field(repr=False)  # [rows], in the same ring
    mask_words: Words = field(repr=False)  # [rows], XOR shares of the masks, as the norm check takes them
    tags: ArithmeticSharedTensor = field(repr=False)  # [tag_count], modulo 2**64


class SharedTotal:
    """This party's share of a sum of vectors; one more vector is in memory while it is added."""

    def __init__(self, dim: int, ring: Ring, tag_count: int) -> None:
        self._vector = _shared(np.zeros(dim, ring.unsigned))
        self._tags = _shared(np.zeros(tag_count, "<u8"))
        self._scratch = np.empty(dim, ring.unsigned)

    @classmethod
    def of_words(cls, vector: RingVector, tags: Words) -> "SharedTotal":
        """Takes up what `vector` and `tags` were of another process's total, on their memory."""
        total = cls.__new__(cls)
        total._vector, total._tags, total._scratch = _shared(vector), _shared(tags), np.empty_like(vector)
        return total

    @property
    def vector(self) -> RingVector:
        """This party's share of the sum, [dim] ring elements: secret from the other two until the sum is opened."""
        return _words(self._vector)

    @property
    def tags(self) -> RingVector:
        """This party's share of the sum of tags, [tag_count] words."""
        return _words(self._tags)

    def merge(self, other: "SharedTotal") -> None:
        """Adds a total over other sites."""
        self._vector.add_(other._vector)
        self._tags.add_(other._tags)

    def add(self, share: Share, context: ShareContext) -> SharedVector:
        """Adds a vector, and gives this party's share of it; `vector` of that is overwritten by the next one."""
        added = self._unpacked(share, context)
        self._vector.add_(added.vector)
        self._tags.add_(added.tags)
        return added

    def subtract(self, share: Share, context: ShareContext) -> None:
        """Takes a vector out again."""
        taken = self._unpacked(share, context)
        self._vector.sub_(taken.vector)
        self._tags.sub_(taken.tags)

    def open(self) -> bytes:
        """The vector, little-endian, put together by all three parties: the sum of their shares, and nothing besides.

        In blocks (step `TOTL`), so that a party counts as silent when a block does not come in time, and into the
        memory of the last vector.

        Raises:
            PartyLost: a party is gone, silent or out of step.
        """
        opened = self._scratch
        for start in range(0, len(opened), _OPENED_AT_ONCE):
            block = self._vector[start : start + _OPENED_AT_ONCE]
            opened[start : start + _OPENED_AT_ONCE] = _opened(block, "TOTL")
        return opened.tobytes()

    def tag_share(self) -> bytes:
        """This party's share of the sum of tags."""
        return self.tags.tobytes()

    def _unpacked(self, share: Share, context: ShareContext) -> SharedVector:
        parts = unpack(share, context, out=self._scratch)
        return SharedVector(_shared(parts.vector), _shared(parts.masks), parts.mask_words, _shared(parts.tags))


def masked_sketch(added: SharedVector, sketch: Sketch) -> RingVector:
    """[rows], this party's share of the sketch of a vector under its masks.

    R is public and linear, so each party sketches its share.
    """
    return _words(_shared(sketch.sketch(_words(added.vector))).add_(added.masks))


def opened_rows(rows: RingVector) -> RingVector:
    """[vectors, rows], put together by all three parties (step `ROWS`) from their shares, of the same shape.

    Raises:
        PartyLost: a party is gone, silent or out of step.
    """
    return _opened(_shared(rows), "ROWS")


def _shared(words: npt.NDArray[np.uint32] | npt.NDArray[np.uint64]) -> ArithmeticSharedTensor:
    """Ring elements, as the share of a tensor on the same memory."""
    signed = words.view(f"<i{words.itemsize}")
    return ArithmeticSharedTensor.from_shares(torch.from_numpy(signed), precision=0)


def _words(tensor: ArithmeticSharedTensor) -> RingVector:
    """The share of a tensor as ring elements, on the same memory."""
    return _unsigned(tensor.share)


def _opened(tensor: ArithmeticSharedTensor, step: str) -> RingVector:
    return _unsigned(runtime.opened(tensor, step))


def _unsigned(elements: torch.Tensor) -> RingVector:
    signed = elements.numpy()
    return signed.view(f"<u{signed.itemsize}")

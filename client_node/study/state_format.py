"""Encodes the vector that a round starts from: float32, or int8 with one scale for every 64 numbers.

Coordinator and sites each compute it, and compare its SHA-256. The vector follows from released totals, so a coarser
copy of it is post-processing and costs no privacy. Updates are not encoded like this on their way: rounding before the
noise would have to be counted in a unit's sensitivity, and encoded shares would no longer add up in the ring.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import MessageInvalid

BLOCK = 64  # numbers that share one scale
_LARGEST = 127
_LEAST_SCALE = np.finfo(np.float32).tiny  # processors treat smaller (subnormal) numbers differently

StateKind = Literal["float32", "int8"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StateFormat:
    """The format in which rounds start from `dim` float32 numbers: the same bytes, and numbers back, on every machine.

    float32: little-endian. int8: first the scales of the blocks, float32 little-endian; then one signed byte for each
    number but the last `exact`, which follow in float32. A number is byte * scale, rounded once. The scale is the
    block's largest magnitude divided by 127, so the error is at most half a scale. A block is zero if its scale would
    be subnormal.
    """

    kind: StateKind
    dim: int
    exact: int = 0  # numbers at the end that are never rounded

    @property
    def size(self) -> int:
        """Bytes of an encoded vector."""
        return 4 * self.dim if self.kind == "float32" else 4 * (self._blocks + self.exact) + self._coded

    def encode(self, state: npt.NDArray[np.float32]) -> bytes:
        """Encodes a finite vector [dim] as bytes."""
        assert state.shape == (self.dim,)
        if self.kind == "float32":
            return state.astype("<f4").tobytes()
        padded = np.zeros(self._blocks * BLOCK, np.float32)
        padded[: self._coded] = state[: self._coded]
        blocks = padded.reshape(-1, BLOCK)
        scales = np.abs(blocks).max(axis=1) / np.float32(_LARGEST)
        scales[scales < _LEAST_SCALE] = 0
        divisors = np.where(scales > 0, scales, np.float32(np.inf))[:, None]  # makes every code of a zero block 0
        codes = np.clip(np.rint(blocks / divisors), -_LARGEST, _LARGEST).astype(np.int8)
        parts = scales.astype("<f4"), codes.reshape(-1)[: self._coded], state[self._coded :].astype("<f4")
        return b"".join(part.tobytes() for part in parts)

    def decode(self, data: bytes) -> npt.NDArray[np.float32]:
        """Decodes untrusted bytes into a vector [dim].

        Raises:
            MessageInvalid: `data` is not `size` bytes of finite numbers, or not the encoding of any vector.
        """
        if len(data) != self.size:
            raise MessageInvalid(f"a state of {len(data)} bytes, where {self.size} are due, does not fit the study")
        if self.kind == "float32":
            state = np.frombuffer(data, "<f4").astype(np.float32)
        else:
            scales = np.frombuffer(data, "<f4", self._blocks).astype(np.float32)
            codes = np.frombuffer(data, np.int8, self._coded, offset=4 * self._blocks)
            if not np.all((scales == 0) | (scales >= _LEAST_SCALE)) or np.any(codes < -_LARGEST):  # NaN fails too
                raise MessageInvalid("a state with a scale or code that no vector has")
            tail = np.frombuffer(data, "<f4", self.exact, offset=4 * self._blocks + self._coded)
            with np.errstate(over="ignore", invalid="ignore"):  # caught below
                spread = np.repeat(scales, BLOCK)[: self._coded]
                state = np.concatenate([codes.astype(np.float32) * spread, tail.astype(np.float32)])
        if not np.isfinite(state).all():
            raise MessageInvalid("a state that is not finite")
        return state

    @property
    def _coded(self) -> int:
        return self.dim - self.exact

    @property
    def _blocks(self) -> int:
        return -(-self._coded // BLOCK)

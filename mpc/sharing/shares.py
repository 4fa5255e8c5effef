"""Additive shares of an update for three aggregators: three 32-byte seeds, and one body for all.

A seed stands for a keystream. The body is the update minus the three keystreams of the three aggregators (XOR where a
part is shared by XOR). One aggregator gets the body as well, and its share is the body plus its own keystream; the
share of each other is its keystream. So everything but any one seed is independent of the update (computationally:
AES-256 as a pseudo-random function of the counter, HKDF-SHA256 as a pseudo-random function of the context), and all
three together are the update. The body needs no key of its own: for the relay it is a one-time pad with three pads, and
the site's signature covers it. Byte layouts: docs/formats-mpc.md.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from secrets import token_bytes
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..errors import InvalidField, ShareMalformed
from ..fields import (
    MAX_DIM,
    MAX_ROUND,
    MAX_ROWS,
    MAX_TAGS,
    NUM_AGGREGATORS,
    Bytes,
    canonical,
    hex_64,
    octets,
    text,
    whole,
)
from .ring import Ring, RingVector

SEED_BYTES = 32
PAYLOAD_BYTES = 1 + SEED_BYTES
_VERSION = 2
_BLOCK = 2**17  # bytes of a stream at a time, so that they stay in the cache
_ZEROS = memoryview(bytes(_BLOCK))
# Operations that put each part together from its shares, and take it apart; in the order of the body.
_PARTS = {
    "vector": (np.add, np.subtract),
    "masks": (np.add, np.subtract),
    "mask_words": (np.bitwise_xor, np.bitwise_xor),
    "tags": (np.add, np.subtract),
}

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareContext:
    """All that a share is bound to: it opens, expands and counts in this place only.

    `state` is among it because updates add up only if they start from one vector: whoever gives one site the real one
    and the others one that makes their updates vanish would read the one site's update off the total.

    `topup_for` marks a top-up: noise that a site adds to its update because others are missing. It names the one set
    of sites that it suffices for, so that it counts for no other, and neither stands for an update.
    """

    study: str
    run: str
    round: int
    state: str  # SHA-256 in hex of the public vector that the update was computed from
    site: str
    dim: int  # entries of the vector
    ring_bits: int  # 32 or 64
    scale_bits: int
    rows: int = 0  # masks that come with the vector, one for each row of the norm check's sketch
    tag_count: int = 0  # tags of the vector that come with it
    topup_for: str | None = None  # `set_name` of the sites to be summed; None for the update itself

    def __post_init__(self) -> None:
        for name in ("study", "run", "site"):
            text(name, getattr(self, name))
        whole("round", self.round, 0, MAX_ROUND)
        hex_64("state", self.state)
        if self.topup_for is not None:
            hex_64("topup_for", self.topup_for)
        whole("dim", self.dim, 1, MAX_DIM)
        whole("rows", self.rows, 0, MAX_ROWS)
        whole("tag_count", self.tag_count, 0, MAX_TAGS)
        Ring(self.ring_bits, self.scale_bits)  # refuses what is no ring

    @property
    def ring(self) -> Ring:
        """The ring of the shared vector."""
        return Ring(self.ring_bits, self.scale_bits)

    def __bytes__(self) -> bytes:
        place = (self.study, self.run, self.round, self.state, self.site)
        shape = (self.dim, self.ring_bits, self.scale_bits, self.rows, self.tag_count)
        if self.topup_for is None:
            return canonical("confide/mpc/context/2", *place, *shape)
        return canonical("confide/mpc/topup/2", *place, *shape, self.topup_for)


@dataclass(frozen=True, slots=True)
class Parts:
    """An update, or one aggregator's share of one: arrays that are shared each for itself."""

    vector: RingVector = field(repr=False)  # [dim], additive modulo 2**ring_bits
    masks: RingVector = field(repr=False)  # [rows], additive modulo 2**ring_bits; uniform, used once
    mask_words: Words = field(repr=False)  # [rows], shared by XOR: the same masks as words
    tags: Words = field(repr=False)  # [tag_count], additive modulo 2**64


@dataclass(frozen=True, slots=True)
class Share:
    """One aggregator's share of one update: a seed, and for one of the three the body."""

    aggregator_id: int  # 0, 1 or 2
    seed: bytes = field(repr=False)
    body: Bytes = field(default=b"", repr=False)  # `body_bytes` of the context, or none

    def __post_init__(self) -> None:
        whole("aggregator_id", self.aggregator_id, 0, NUM_AGGREGATORS - 1)
        octets("seed", self.seed, SEED_BYTES)


def set_name(sites: Iterable[str]) -> str:
    """Names a set of sites in the context of a top-up: a SHA-256 in hex over the sorted names."""
    names = sorted(sites)
    return sha256(canonical("confide/mpc/sites/1", len(names), *names)).hexdigest()


def body_bytes(context: ShareContext) -> int:
    """Size of the body that comes with one of the three shares."""
    element = context.ring_bits // 8
    return (context.dim + context.rows) * element + 8 * (context.rows + context.tag_count)


def expand(seed: bytes, context: ShareContext, aggregator_id: int, *, out: RingVector | None = None) -> Parts:
    """Expands a seed: one AES-256-CTR keystream a part, under a key for this context, aggregator and part only.

    The key is HKDF-SHA256(seed) with no salt and all three in `info`; the counter starts at 0, which is safe because no
    key is used for a second stream.

    Args:
        out: memory for the vector, whatever it holds; fresh memory if None.

    Raises:
        InvalidField: `out` is no vector of the context's ring and length.
    """
    vector = np.empty(context.dim, context.ring.unsigned) if out is None else out
    _require_vector("out", vector, context)
    parts = Parts(
        vector, np.empty(context.rows, vector.dtype), np.empty(context.rows, "<u8"), np.empty(context.tag_count, "<u8")
    )
    for name in _PARTS:
        stream, target = _stream(seed, context, aggregator_id, name), _octets(getattr(parts, name))
        for start in range(0, len(target), _BLOCK):
            block = target[start : start + _BLOCK]
            stream.update_into(_ZEROS[: len(block)], block)
    return parts


def new_seeds() -> tuple[bytes, bytes, bytes]:
    """Draws the seeds of the three aggregators' shares of one update from the operating system."""
    return token_bytes(SEED_BYTES), token_bytes(SEED_BYTES), token_bytes(SEED_BYTES)


def split(
    vector: RingVector, context: ShareContext, full: int, tags: Words | Sequence[int] = ()
) -> tuple[Share, Share, Share]:
    """Three shares of `vector` and its `tags`, with fresh masks and seeds from the operating system.

    Args:
        vector: as for `masked`.
        full: the aggregator that gets the body; rotate it over the sites to spread the load.
        tags: `context.tag_count` words.

    Raises:
        InvalidField: the vector or the tags do not fit the context.
    """
    whole("full", full, 0, NUM_AGGREGATORS - 1)
    seeds = new_seeds()
    body = masked(vector, context, seeds, tags)
    first, second, third = (
        Share(aggregator_id, seed, body if aggregator_id == full else b"") for aggregator_id, seed in enumerate(seeds)
    )
    return first, second, third


def masked(
    vector: npt.NDArray[Any],
    context: ShareContext,
    seeds: Sequence[bytes],
    tags: Words | Sequence[int] = (),
    *,
    room: int = 0,
    note: Callable[[memoryview], object] = lambda part: None,
) -> memoryview:
    """Memory with the body of an update: itself less all three keystreams, fresh masks likewise, in one pass.

    Args:
        vector: `context.dim` elements of `context.ring`, or as many int64, which are taken modulo the ring's size.
        seeds: fresh ones.
        tags: `context.tag_count` words.
        room: bytes of undefined content in front of the body.
        note: is given the body's parts in their order, while they are in the cache.

    Raises:
        InvalidField: the vector or the tags do not fit the context.
    """
    if vector.dtype != np.int64 or vector.shape != (context.dim,):
        _require_vector("vector", vector, context)
    if len(tags) != context.tag_count:
        raise InvalidField(f"need {context.tag_count} tags, got {len(tags)}")
    element = context.ring.unsigned
    own = np.frombuffer(token_bytes(context.rows * element.itemsize), element)
    update = Parts(vector, own, own.astype("<u8"), np.array(tags, "<u8"))
    memory = np.empty(room + body_bytes(context), np.uint8)
    parts = _parted(memory[room:], context)
    for name, (_, part) in _PARTS.items():
        source, target = getattr(update, name), getattr(parts, name)
        streams = [_stream(seed, context, aggregator_id, name) for aggregator_id, seed in enumerate(seeds)]
        step = _BLOCK // target.itemsize
        pad = np.empty(min(step, len(target)), target.dtype)
        for start in range(0, len(target), step):
            block = target[start : start + step]
            block[:] = source[start : start + step]  # to an unsigned type C converts modulo 2**bits
            mask = pad[: len(block)]
            for stream in streams:
                stream.update_into(_ZEROS[: block.nbytes], _octets(mask))
                part(block, mask, out=block)
            note(_octets(block))
    return memory.data


def unpack(share: Share, context: ShareContext, *, out: RingVector | None = None) -> Parts:
    """The share as arrays in memory of their own, but for the vector if `out` is given: see `expand`.

    Raises:
        ShareMalformed: the body has the wrong length.
        InvalidField: as `expand`.
    """
    check_body(share.body, context)
    parts = expand(share.seed, context, share.aggregator_id, out=out)
    if share.body:
        body = _parted(np.frombuffer(share.body, np.uint8), context)
        for name, (join, _) in _PARTS.items():
            join(getattr(parts, name), getattr(body, name), out=getattr(parts, name))
    return parts


def check_body(body: Bytes, context: ShareContext) -> None:
    """Checks the length of a body; none at all is right too.

    Raises:
        ShareMalformed: it is another.
    """
    if len(body) not in (0, body_bytes(context)):
        raise ShareMalformed(f"a body of {len(body)} bytes where {body_bytes(context)} or none are right")


def payload_of(share: Share) -> bytes:
    """The bytes that are sealed of a share: a version byte and the seed."""
    return bytes((_VERSION,)) + share.seed


def seed_in(payload: bytes) -> bytes:
    """The seed in a payload.

    Raises:
        ShareMalformed: wrong version or length.
    """
    if len(payload) != PAYLOAD_BYTES or payload[0] != _VERSION:
        raise ShareMalformed(f"a payload of {len(payload)} bytes is no seed of version {_VERSION}")
    return payload[1:]


def _parted(body: npt.NDArray[np.uint8], context: ShareContext) -> Parts:
    """A body's arrays, as views into it."""
    element = context.ring.unsigned
    kinds = ((context.dim, element), (context.rows, element), (context.rows, "<u8"), (context.tag_count, "<u8"))
    arrays, start = [], 0
    for count, kind in kinds:
        end = start + count * np.dtype(kind).itemsize
        arrays.append(body[start:end].view(kind))
        start = end
    return Parts(*arrays)


def _stream(seed: bytes, context: ShareContext, aggregator_id: int, part: str) -> CipherContext:
    info = canonical("confide/mpc/expand/2", bytes(context), aggregator_id, part)
    key = HKDF(SHA256(), 32, salt=None, info=info).derive(octets("seed", seed, SEED_BYTES))
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()


def _octets(array: npt.NDArray[Any]) -> memoryview:
    return array.view(np.uint8).data


def _require_vector(name: str, vector: RingVector, context: ShareContext) -> None:
    kind = context.ring.unsigned
    if vector.dtype != kind or vector.shape != (context.dim,) or not vector.flags.c_contiguous:
        raise InvalidField(f"{name} must be {context.dim} entries of {kind}, got {vector.shape} {vector.dtype}")

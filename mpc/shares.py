"""Additive shares of a ring vector for three aggregators; two of the three are 32-byte seeds.

Any two shares are independent of the vector: the seeds are uniform, and the full share is the vector minus two
keystreams of which the pair misses at least one (computationally, AES-256 as a pseudo-random function). All three
together are the vector. Byte layouts: docs/formats-mpc.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from secrets import token_bytes

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .errors import InvalidField, ShareMalformed
from .fields import MAX_DIM, MAX_ROUND, NUM_AGGREGATORS, canonical, hex_64, octets, text, whole
from .ring import Ring, RingVector

SEED_BYTES = 32
PAYLOAD_HEAD = 2  # version, kind
_VERSION, _SEED, _VECTOR = 1, 0, 1


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
    topup_for: str | None = None  # `set_name` of the sites to be summed; None for the update itself

    def __post_init__(self) -> None:
        for name in ("study", "run", "site"):
            text(name, getattr(self, name))
        whole("round", self.round, 0, MAX_ROUND)
        hex_64("state", self.state)
        if self.topup_for is not None:
            hex_64("topup_for", self.topup_for)
        whole("dim", self.dim, 1, MAX_DIM)
        Ring(self.ring_bits, self.scale_bits)  # refuses what is no ring

    @property
    def ring(self) -> Ring:
        """The ring of the shared vector."""
        return Ring(self.ring_bits, self.scale_bits)

    def __bytes__(self) -> bytes:
        place = (self.study, self.run, self.round, self.state, self.site, self.dim, self.ring_bits, self.scale_bits)
        if self.topup_for is None:
            return canonical("confide/mpc/context/1", *place)
        return canonical("confide/mpc/topup/1", *place, self.topup_for)


@dataclass(frozen=True, slots=True)
class Share:
    """What one aggregator gets of one update: a seed or a vector, behind a version and a kind byte."""

    aggregator_id: int  # 0, 1 or 2
    payload: bytes = field(repr=False)

    def __post_init__(self) -> None:
        whole("aggregator_id", self.aggregator_id, 0, NUM_AGGREGATORS - 1)


def set_name(sites: Iterable[str]) -> str:
    """What stands for a set of sites in the context of a top-up: a SHA-256 in hex over the sorted names."""
    names = sorted(sites)
    return sha256(canonical("confide/mpc/sites/1", len(names), *names)).hexdigest()


def vector_payload_bytes(dim: int, ring_bits: int) -> int:
    """Size of the larger kind of payload."""
    return PAYLOAD_HEAD + dim * ring_bits // 8


def expand(seed: bytes, context: ShareContext, aggregator_id: int) -> RingVector:
    """The vector that a seed stands for: an AES-256-CTR keystream under a key for this context and aggregator only.

    The key is HKDF-SHA256(seed) with no salt and the context in `info`; the counter starts at 0, which is safe because
    no key is used for a second stream.
    """
    info = canonical("confide/mpc/expand/1", bytes(context), aggregator_id)
    key = HKDF(SHA256(), 32, salt=None, info=info).derive(octets("seed", seed, SEED_BYTES))
    stream = np.zeros(context.dim, context.ring.unsigned)
    view = stream.data.cast("B")
    Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update_into(view, view)  # zeros, in place
    return stream


def split(vector: RingVector, context: ShareContext, full: int) -> tuple[Share, Share, Share]:
    """Three shares whose vectors add up to `vector`, with fresh randomness from the operating system.

    Args:
        vector: `context.dim` elements of `context.ring`.
        full: the aggregator that gets the large share; rotate it over the sites to spread the load.
    """
    whole("full", full, 0, NUM_AGGREGATORS - 1)
    if vector.dtype != context.ring.unsigned or vector.shape != (context.dim,):
        raise InvalidField(f"need {context.dim} entries of {context.ring.unsigned}, got {vector.shape} {vector.dtype}")
    rest = vector.copy()
    payloads = {}
    for aggregator_id in range(NUM_AGGREGATORS):
        if aggregator_id != full:
            seed = token_bytes(SEED_BYTES)
            rest -= expand(seed, context, aggregator_id)
            payloads[aggregator_id] = bytes((_VERSION, _SEED)) + seed
    payloads[full] = bytes((_VERSION, _VECTOR)) + rest.tobytes()
    return Share(0, payloads[0]), Share(1, payloads[1]), Share(2, payloads[2])


def unpack(share: Share, context: ShareContext) -> RingVector:
    """The share as `context.dim` ring elements, in memory of its own.

    Raises:
        ShareMalformed: wrong version, kind or length.
    """
    check_payload(share.payload, context)
    body = memoryview(share.payload)[PAYLOAD_HEAD:]
    if share.payload[1] == _SEED:
        return expand(bytes(body), context, share.aggregator_id)
    return np.frombuffer(body, context.ring.unsigned).copy()


def check_payload(payload: bytes, context: ShareContext) -> None:
    """Checks the layout without expanding anything.

    Raises:
        ShareMalformed: wrong version, kind or length.
    """
    sizes = {_SEED: PAYLOAD_HEAD + SEED_BYTES, _VECTOR: vector_payload_bytes(context.dim, context.ring_bits)}
    if len(payload) < PAYLOAD_HEAD or payload[0] != _VERSION or sizes.get(payload[1]) != len(payload):
        raise ShareMalformed(f"a payload of {len(payload)} bytes is no share of {context.dim} entries")

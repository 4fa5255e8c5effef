"""Sealing shares to the aggregators: HPKE (RFC 9180) to one party's key, and a signature of the site over all three.

Only the seed of a share is sealed: a body is masked already (see `shares`), and follows in the open. The relay between
site and aggregators learns the sizes and nothing else. HPKE's base mode does not say who sealed: the Ed25519 signature
does, and it covers the digests of all three sealed shares, bodies included, so that the parties can tell whether they
hold parts of one and the same update. Site and relay: numpy and cryptography only. Byte layout: docs/formats-mpc.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy.typing as npt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..errors import EnvelopeRejected, InvalidField, ShareMalformed
from ..fields import NUM_AGGREGATORS, Bytes, canonical, octets, whole
from . import hpke
from .hpke import KEMS, Kem, new_keypair
from .position import POSITION_BYTES, Position
from .shares import (
    PAYLOAD_BYTES,
    Share,
    ShareContext,
    Words,
    body_bytes,
    check_body,
    masked,
    new_seeds,
    payload_of,
    seed_in,
)

__all__ = [
    "Envelope",
    "check_update",
    "max_envelope_bytes",
    "new_keypair",
    "open_envelope",
    "position_in",
    "seal_update",
    "signed_position",
]

_VERSION, _DIGEST, _SIGNATURE, _IDENTITY = 3, 32, 64, 32
_UNPLACED = 2  # the version before, without a position: a site that was upgraded within a round has sealed such
_POSITION = 2  # where it begins, after version and suite
_DIGESTS = {_VERSION: _POSITION + POSITION_BYTES, _UNPLACED: _POSITION}  # where they begin, by version


def max_envelope_bytes(context: ShareContext) -> int:
    """The largest envelope of an honest site in this context, whatever the suite."""
    return max(_seal_at(_VERSION) + kem.sealed_bytes(PAYLOAD_BYTES) for kem in KEMS) + body_bytes(context)


@dataclass(frozen=True, slots=True)
class Envelope:
    """One aggregator's sealed share, and the site's signature over the digests of all three."""

    kem: Kem
    seal: bytes = field(repr=False)  # HPKE encapsulated key, sealed seed and tag
    body: Bytes = field(repr=False)  # of the share; of one of the three
    digests: tuple[bytes, bytes, bytes]  # SHA-256 of seal and body, in aggregator order
    signature: bytes
    position: Position | None  # of the site when it sealed; None in an envelope of the version before
    frame: memoryview | None = field(default=None, repr=False, compare=False)  # room for the head, then the body

    @property
    def head(self) -> bytes:
        """All but the body: version, suite, position, three digests, signature, seal."""
        version, place = (_UNPLACED, b"") if self.position is None else (_VERSION, self.position.to_bytes())
        return b"".join((bytes((version, self.kem.code)), place, *self.digests, self.signature, self.seal))

    def to_bytes(self) -> bytes:
        """Head and body."""
        return b"".join((self.head, self.body))

    def framed(self) -> Bytes:
        """The same without a copy, if the body has room in front of it: a view, valid until the next call."""
        head = self.head
        if self.frame is None or len(self.frame) != len(head) + len(self.body):
            return self.to_bytes()
        self.frame[: len(head)] = head
        return self.frame

    @classmethod
    def from_bytes(cls, data: Bytes, context: ShareContext) -> "Envelope":
        """Reads what `to_bytes` wrote; there is one encoding for one envelope. The body stays a view into `data`.

        Raises:
            EnvelopeRejected: unknown version or suite, or a length that is neither with the context's body nor without.
        """
        view = memoryview(data)
        version, position = _place(view)
        kem = {kem.code: kem for kem in KEMS}.get(view[1])
        if kem is None:
            raise EnvelopeRejected(f"an envelope of an unknown suite, {view[1]}")
        seal = _seal_at(version)
        small = seal + kem.sealed_bytes(PAYLOAD_BYTES)
        if len(view) not in (small, small + body_bytes(context)):
            raise EnvelopeRejected(
                f"an envelope of {len(view)} bytes; {small} or {small + body_bytes(context)} are right"
            )
        starts = range(_DIGESTS[version], seal - _SIGNATURE, _DIGEST)
        first, second, third = (bytes(view[start : start + _DIGEST]) for start in starts)
        signature = bytes(view[seal - _SIGNATURE : seal])
        return cls(kem, bytes(view[seal:small]), view[small:], (first, second, third), signature, position)

    def digest(self) -> bytes:
        """SHA-256 of seal and body: what this envelope's place in `digests` should hold."""
        return _digest(self.seal, self.body)


def seal_update(
    vector: npt.NDArray[Any],
    context: ShareContext,
    recipients: Sequence[bytes],
    signer: Ed25519PrivateKey,
    full: int,
    tags: Words | Sequence[int] = (),
    *,
    position: Position,
) -> tuple[Envelope, Envelope, Envelope]:
    """Splits `vector` and seals one share to each aggregator.

    Keep the result and send the same bytes again on a retry: a second draw for one round would count as another set.

    Args:
        vector: `context.dim` integers, or elements of `context.ring`. No integer is refused: see `ring.from_integers`.
        recipients: raw public keys of the three aggregators, in their order.
        signer: the site's identity.
        full: the aggregator that gets the body.
        tags: `context.tag_count` tags of the vector.
        position: the site's own, which the signature covers: an aggregator takes no update from behind a later one.

    Raises:
        InvalidField: a key, the vector or the tags have the wrong size, or a key is no usable point.
    """
    whole("full", full, 0, NUM_AGGREGATORS - 1)
    if len(recipients) != NUM_AGGREGATORS:
        raise InvalidField(f"need {NUM_AGGREGATORS} recipients, got {len(recipients)}")
    kems, seeds = [hpke.kem_of_public(key) for key in recipients], new_seeds()
    seals = [
        _seal(Share(aggregator_id, seed), context, key)
        for aggregator_id, (seed, key) in enumerate(zip(seeds, recipients, strict=True))
    ]
    hashes = [sha256(seal) for seal in seals]
    room = _seal_at(_VERSION) + len(seals[full])
    frame = masked(vector, context, seeds, tags, room=room, note=hashes[full].update)
    bodies = [(frame[room:], frame) if aggregator_id == full else (b"", None) for aggregator_id in range(len(seals))]
    first, second, third = (found.digest() for found in hashes)
    digests = (first, second, third)
    signature = signer.sign(_statement(context, digests, position))
    zero, one, two = (
        Envelope(kem, seal, body, digests, signature, position, memory)
        for kem, seal, (body, memory) in zip(kems, seals, bodies, strict=True)
    )
    return zero, one, two


def check_update(envelopes: Sequence[Bytes], context: ShareContext, identity: bytes) -> None:
    """Checks all that can be checked of a site's three envelopes without opening one; for the relay.

    A site that signs two sets of digests for one round, and gets both past the relay, stops that round at every attempt
    (`Equivocation`). What passes here can at worst fail to open, and then its site is left out.

    Args:
        envelopes: for aggregators 0, 1, 2.
        identity: the site's raw Ed25519 public key.

    Raises:
        EnvelopeRejected: not three, or one is no envelope of the right length, carries other digests than the first,
            holds other sealed bytes than it says, or is not signed by this site for this context; the message says
            which.
    """
    if len(envelopes) != NUM_AGGREGATORS:
        raise EnvelopeRejected(f"{len(envelopes)} envelopes; one is needed for each of {NUM_AGGREGATORS} aggregators")
    digests = None
    for aggregator_id, data in enumerate(envelopes):
        try:
            envelope = Envelope.from_bytes(data, context)
            digests = digests or envelope.digests
            if envelope.digests != digests:
                raise EnvelopeRejected("the digests are not those of the envelope for aggregator 0")
            _check_signed(envelope, context, aggregator_id, identity)
        except EnvelopeRejected as err:
            raise EnvelopeRejected(f"envelope for aggregator {aggregator_id}: {err}") from err


def position_in(data: Bytes) -> Position | None:
    """The position that an envelope states; None in one of the version before. For who trusts the bytes already.

    Raises:
        EnvelopeRejected: it is no envelope.
    """
    return _place(memoryview(data))[1]


def signed_position(data: Bytes, context: ShareContext, identity: bytes) -> Position | None:
    """The position that a site states in an envelope for this context, under its signature; None as in `position_in`.

    Args:
        identity: the site's raw Ed25519 public key, from the caller's own list.

    Raises:
        EnvelopeRejected: it is no envelope, or not signed by this site for this context.
    """
    envelope = Envelope.from_bytes(data, context)
    _check_signature(envelope, context, identity)
    return envelope.position


def open_envelope(
    envelope: Envelope, context: ShareContext, aggregator_id: int, *, identity: bytes, private_key: bytes
) -> Share:
    """This aggregator's share, once the site's signature, the digest, the seal and the layout are right.

    Nothing about a share that was returned can turn out unsound later: `shares.unpack` takes it.

    Args:
        identity: the site's raw Ed25519 public key, from this aggregator's own list.
        private_key: this aggregator's raw HPKE key.

    Raises:
        EnvelopeRejected: one of them is not.
        InvalidField: `private_key` is no key.
    """
    whole("aggregator_id", aggregator_id, 0, NUM_AGGREGATORS - 1)
    _check_signed(envelope, context, aggregator_id, identity)
    if envelope.kem is not hpke.kem_of_private(private_key):
        raise EnvelopeRejected(f"sealed with {envelope.kem.name}, and this party's key is for another suite")
    payload = hpke.unseal(envelope.seal, private_key, _info(context, aggregator_id))
    try:
        check_body(envelope.body, context)
        seed = seed_in(payload)
    except ShareMalformed as err:
        raise EnvelopeRejected(str(err)) from err
    return Share(aggregator_id, seed, envelope.body)


def _place(view: memoryview) -> tuple[int, Position | None]:
    """An envelope's version, and its position if that version has one."""
    version = view[0] if view else 0
    if version not in _DIGESTS or len(view) < _DIGESTS[version]:
        raise EnvelopeRejected(f"{len(view)} bytes that are no envelope of version {_VERSION}")
    if version == _UNPLACED:
        return version, None
    try:
        return version, Position.from_bytes(view[_POSITION : _POSITION + POSITION_BYTES])
    except InvalidField as err:
        raise EnvelopeRejected(str(err)) from err


def _seal_at(version: int) -> int:
    return _DIGESTS[version] + NUM_AGGREGATORS * _DIGEST + _SIGNATURE


def _check_signed(envelope: Envelope, context: ShareContext, aggregator_id: int, identity: bytes) -> None:
    _check_signature(envelope, context, identity)
    if envelope.digest() != envelope.digests[aggregator_id]:
        raise EnvelopeRejected("the sealed bytes are not those that the site signed")


def _check_signature(envelope: Envelope, context: ShareContext, identity: bytes) -> None:
    try:
        key = Ed25519PublicKey.from_public_bytes(octets("identity", identity, _IDENTITY))
        key.verify(envelope.signature, _statement(context, envelope.digests, envelope.position))
    except InvalidSignature as err:
        raise EnvelopeRejected("the signature is not this site's for this round and state") from err


def _seal(share: Share, context: ShareContext, recipient: bytes) -> bytes:
    try:
        return hpke.seal(payload_of(share), recipient, _info(context, share.aggregator_id))
    except InvalidField as err:
        raise InvalidField(f"the key of aggregator {share.aggregator_id}: {err}") from err


def _digest(seal: bytes, body: Bytes) -> bytes:
    digest = sha256(seal)
    digest.update(body)
    return digest.digest()


def _info(context: ShareContext, aggregator_id: int) -> bytes:
    return canonical("confide/mpc/seal/2", bytes(context), aggregator_id)


def _statement(context: ShareContext, digests: tuple[bytes, bytes, bytes], position: Position | None) -> bytes:
    named = sha256(bytes(context)).digest()
    if position is None:
        return canonical("confide/mpc/envelope/2", named, *digests)
    return canonical("confide/mpc/envelope/3", named, position.to_bytes(), *digests)

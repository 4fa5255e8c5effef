"""Sealing shares to the aggregators: HPKE (RFC 9180) to one party's key, and a signature of the site over all three.

The relay between site and aggregators learns the sizes and nothing else. HPKE's base mode does not say who sealed:
the Ed25519 signature does, and it covers the digests of all three ciphertexts, so that the parties can tell whether
they hold parts of one and the same update. Site and relay: numpy and cryptography only. Byte layout:
docs/formats-mpc.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from .errors import EnvelopeRejected, InvalidField, ShareMalformed
from .fields import MAX_DIM, NUM_AGGREGATORS, canonical, octets, whole
from .mapped import Octets
from .ring import RingVector
from .shares import Share, ShareContext, check_payload, split, vector_payload_bytes

KEY_BYTES = 32
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_SEAL_OVERHEAD = 48  # encapsulated key and tag
_VERSION, _DIGEST, _SIGNATURE = 1, 32, 64
_HEAD = 1 + NUM_AGGREGATORS * _DIGEST + _SIGNATURE


def max_envelope_bytes(dim: int, ring_bits: int) -> int:
    """The largest envelope of an honest site for a vector of `dim` entries."""
    return _HEAD + _SEAL_OVERHEAD + vector_payload_bytes(dim, ring_bits)


@dataclass(frozen=True, slots=True)
class Envelope:
    """One aggregator's sealed share, and the site's signature over the digests of all three."""

    sealed: bytes = field(repr=False)  # HPKE encapsulated key, ciphertext and tag
    digests: tuple[bytes, bytes, bytes]  # SHA-256 of the sealed bytes, in aggregator order
    signature: bytes

    def to_bytes(self) -> bytes:
        """Version byte, three digests, signature, sealed bytes to the end."""
        return b"".join((bytes((_VERSION,)), *self.digests, self.signature, self.sealed))

    @classmethod
    def from_bytes(cls, data: Octets, *, max_bytes: int = max_envelope_bytes(MAX_DIM, 64)) -> "Envelope":
        """Reads what `to_bytes` wrote; there is one encoding for one envelope.

        Raises:
            EnvelopeRejected: unknown version, too short, or more than `max_bytes`.
        """
        least = _HEAD + _SEAL_OVERHEAD
        if not least <= len(data) <= max_bytes:
            raise EnvelopeRejected(f"an envelope of {len(data)} bytes; {least} to {max_bytes} are allowed")
        if data[0] != _VERSION:
            raise EnvelopeRejected(f"envelope version {data[0]}; only {_VERSION} is known")
        first, second, third = (bytes(data[1 + i * _DIGEST : 1 + (i + 1) * _DIGEST]) for i in range(NUM_AGGREGATORS))
        return cls(bytes(data[_HEAD:]), (first, second, third), bytes(data[_HEAD - _SIGNATURE : _HEAD]))


def new_keypair() -> tuple[bytes, bytes]:
    """A fresh X25519 key pair of an aggregator, as 32 raw bytes each: (private, public). Make one per run."""
    private = X25519PrivateKey.generate()
    return private.private_bytes_raw(), private.public_key().public_bytes_raw()


def seal_update(
    vector: RingVector, context: ShareContext, recipients: Sequence[bytes], signer: Ed25519PrivateKey, full: int
) -> tuple[Envelope, Envelope, Envelope]:
    """Splits `vector` and seals one share to each aggregator.

    Keep the result and send the same bytes again on a retry: a second draw for one round would count as another set.

    Args:
        recipients: raw public keys of the three aggregators, in their order.
        signer: the site's identity.
        full: the aggregator that gets the large share.

    Raises:
        InvalidField: a key or the vector has the wrong size, or a key is no usable point.
    """
    if len(recipients) != NUM_AGGREGATORS:
        raise InvalidField(f"need {NUM_AGGREGATORS} recipients, got {len(recipients)}")
    shares = split(vector, context, full)
    sealed = [_seal(share, context, key) for share, key in zip(shares, recipients, strict=True)]
    first, second, third = (sha256(part).digest() for part in sealed)
    digests = (first, second, third)
    signature = signer.sign(_statement(context, digests))
    return tuple(Envelope(part, digests, signature) for part in sealed)  # type: ignore[return-value]  # three of them


def check_update(envelopes: Sequence[Octets], context: ShareContext, identity: bytes) -> None:
    """Checks all that can be checked of a site's three envelopes without opening one; for the relay.

    A site that signs two sets of digests for one round, and gets both past the relay, stops that round at every attempt
    (`Equivocation`). What passes here can at worst fail to open, and then its site is left out.

    Args:
        envelopes: for aggregators 0, 1, 2.
        identity: the site's raw Ed25519 public key.

    Raises:
        EnvelopeRejected: not three, or one is too long or no envelope, carries other digests than the first, holds
            other sealed bytes than it says, or is not signed by this site for this context; the message says which.
    """
    if len(envelopes) != NUM_AGGREGATORS:
        raise EnvelopeRejected(f"{len(envelopes)} envelopes; one is needed for each of {NUM_AGGREGATORS} aggregators")
    limit = max_envelope_bytes(context.dim, context.ring_bits)
    digests = None
    for aggregator_id, data in enumerate(envelopes):
        try:
            envelope = Envelope.from_bytes(data, max_bytes=limit)
            digests = digests or envelope.digests
            if envelope.digests != digests:
                raise EnvelopeRejected("the digests are not those of the envelope for aggregator 0")
            _check_signed(envelope, context, aggregator_id, identity)
        except EnvelopeRejected as err:
            raise EnvelopeRejected(f"envelope for aggregator {aggregator_id}: {err}") from err


def open_envelope(
    envelope: Envelope, context: ShareContext, aggregator_id: int, *, identity: bytes, private_key: bytes
) -> Share:
    """This aggregator's share, once the site's signature, the digest, the seal and the layout are right.

    Args:
        identity: the site's raw Ed25519 public key, from this aggregator's own list.
        private_key: this aggregator's raw X25519 key.

    Raises:
        EnvelopeRejected: one of them is not.
    """
    whole("aggregator_id", aggregator_id, 0, NUM_AGGREGATORS - 1)
    _check_signed(envelope, context, aggregator_id, identity)
    private = X25519PrivateKey.from_private_bytes(octets("private_key", private_key, KEY_BYTES))
    try:
        payload = _SUITE.decrypt(envelope.sealed, private, info=_info(context, aggregator_id))
        check_payload(payload, context)
    except InvalidTag as err:
        raise EnvelopeRejected("the sealed bytes do not open with this key, party, round and state") from err
    except ShareMalformed as err:
        raise EnvelopeRejected(str(err)) from err
    return Share(aggregator_id, payload)


def _check_signed(envelope: Envelope, context: ShareContext, aggregator_id: int, identity: bytes) -> None:
    try:
        key = Ed25519PublicKey.from_public_bytes(octets("identity", identity, KEY_BYTES))
        key.verify(envelope.signature, _statement(context, envelope.digests))
    except InvalidSignature as err:
        raise EnvelopeRejected("the signature is not this site's for this round and state") from err
    if sha256(envelope.sealed).digest() != envelope.digests[aggregator_id]:
        raise EnvelopeRejected("the sealed bytes are not those that the site signed")


def _seal(share: Share, context: ShareContext, recipient: bytes) -> bytes:
    key = X25519PublicKey.from_public_bytes(octets("recipient", recipient, KEY_BYTES))
    try:
        return _SUITE.encrypt(share.payload, key, info=_info(context, share.aggregator_id))
    except ValueError as err:  # a point of small order
        raise InvalidField(f"the key of aggregator {share.aggregator_id} is unusable") from err


def _info(context: ShareContext, aggregator_id: int) -> bytes:
    return canonical("confide/mpc/seal/1", bytes(context), aggregator_id)


def _statement(context: ShareContext, digests: tuple[bytes, bytes, bytes]) -> bytes:
    return canonical("confide/mpc/envelope/1", sha256(bytes(context)).digest(), *digests)

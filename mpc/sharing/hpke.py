"""The two HPKE suites (RFC 9180) that shares are sealed with, and the keys of each as raw bytes.

"x25519": DHKEM(X25519, HKDF-SHA256). "mlkem768-x25519": the hybrid of ML-KEM-768 (FIPS 203) and X25519, which holds as
long as one of the two does: for those who fear that sealed shares are kept until there is a quantum computer. Both with
HKDF-SHA256 and AES-256-GCM. A key's length says which suite it is for.
"""

from dataclasses import dataclass, field
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from ..errors import EnvelopeRejected, InvalidField

KemName = Literal["x25519", "mlkem768-x25519"]

_CURVE_BYTES = 32  # of any X25519 key
_TAG_BYTES = 16


@dataclass(frozen=True, slots=True)
class Kem:
    """One suite: its sizes in bytes, and what is done with its keys."""

    name: KemName
    code: int  # its byte in an envelope
    public_bytes: int
    private_bytes: int
    encapsulated_bytes: int
    suite: Suite = field(repr=False)

    def sealed_bytes(self, plaintext_bytes: int) -> int:
        """Length of what `seal` makes of a plaintext."""
        return self.encapsulated_bytes + plaintext_bytes + _TAG_BYTES


X25519 = Kem("x25519", 1, 32, 32, 32, Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM))
HYBRID = Kem(
    "mlkem768-x25519", 2, 1184 + 32, 64 + 32, 1088 + 32, Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
)
KEMS = (X25519, HYBRID)


def kem_named(name: str) -> Kem:
    """The suite of that name.

    Raises:
        InvalidField: there is none.
    """
    for kem in KEMS:
        if kem.name == name:
            return kem
    raise InvalidField(f"kem must be one of {', '.join(kem.name for kem in KEMS)}, got {name!r}")


def kem_of_public(key: bytes) -> Kem:
    """The suite that a raw public key is for.

    Raises:
        InvalidField: its length is that of none.
    """
    for kem in KEMS:
        if len(key) == kem.public_bytes:
            return kem
    raise InvalidField(f"a public key has {' or '.join(str(kem.public_bytes) for kem in KEMS)} bytes, not {len(key)}")


def kem_of_private(key: bytes) -> Kem:
    """The suite that a raw private key is for.

    Raises:
        InvalidField: its length is that of none.
    """
    for kem in KEMS:
        if isinstance(key, bytes) and len(key) == kem.private_bytes:
            return kem
    raise InvalidField(f"private_key must be {' or '.join(str(kem.private_bytes) for kem in KEMS)} bytes")


def new_keypair(kem: KemName = "x25519") -> tuple[bytes, bytes]:
    """A fresh key pair of an aggregator as raw bytes: (private, public). Make one per run.

    A hybrid key is the ML-KEM-768 key (the private one as its 64-byte seed) and the X25519 key, one after the other.
    """
    curve = X25519PrivateKey.generate()
    private, public = curve.private_bytes_raw(), curve.public_key().public_bytes_raw()
    if kem_named(kem) is X25519:
        return private, public
    lattice = MLKEM768PrivateKey.generate()
    return lattice.private_bytes_raw() + private, lattice.public_key().public_bytes_raw() + public


def seal(plaintext: bytes, public_key: bytes, info: bytes) -> bytes:
    """Encapsulated key, ciphertext and tag, for whoever has the private key and the same `info`.

    Raises:
        InvalidField: the key is of no suite, or no usable one (a point of small order, coefficients out of range).
    """
    kem = kem_of_public(public_key)
    try:
        curve = X25519PublicKey.from_public_bytes(public_key[-_CURVE_BYTES:])
        if kem is X25519:
            return kem.suite.encrypt(plaintext, curve, info=info)
        lattice = MLKEM768PublicKey.from_public_bytes(public_key[:-_CURVE_BYTES])
        return kem.suite.encrypt(plaintext, MLKEM768X25519PublicKey(lattice, curve), info=info)
    except ValueError as err:
        raise InvalidField(f"a public key of {len(public_key)} bytes is unusable") from err


def unseal(sealed: bytes, private_key: bytes, info: bytes) -> bytes:
    """The plaintext in `sealed`.

    Raises:
        EnvelopeRejected: it was not sealed to this key with this `info`.
        InvalidField: the key is of no suite.
    """
    kem = kem_of_private(private_key)
    curve = X25519PrivateKey.from_private_bytes(private_key[-_CURVE_BYTES:])
    try:
        if kem is X25519:
            return kem.suite.decrypt(sealed, curve, info=info)
        lattice = MLKEM768PrivateKey.from_seed_bytes(private_key[:-_CURVE_BYTES])
        return kem.suite.decrypt(sealed, MLKEM768X25519PrivateKey(lattice, curve), info=info)
    except InvalidTag as err:
        raise EnvelopeRejected("the sealed bytes do not open with this key, party, round and state") from err

"""Private keys of a node: made on its own machine, never sent anywhere.

There are two keys, because two parties check them. The transport key (ECDSA P-384, OpenSSH form) is Flower's: the
coordinator's gate admits a node by it, and a revocation there acts at the next request. The identity key (Ed25519)
signs replies, ledger entries and sealed shares; a study names it, so its signatures outlive the transport.

Both come from the operating system's random generator by way of OpenSSL. Keys lie in files that only their owner may
read, sealed with a passphrase if the site wants it (`secret_files`, docs/keys.md). Instead of a key a file may hold the
URI of one that a PKCS#11 token holds (`token_keys`).
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from pydantic import Field, TypeAdapter

from ...models.strict import StrictModel
from ..errors import AlreadyEnrolled, IdentityMissing
from ..files import damaged, move_durably, read_json, write_private
from ..secret_files import read_secret, write_secret
from .token_uri import SCHEME, TokenUri

if TYPE_CHECKING:
    from . import token_keys

KEYS = "keys"  # the folder of keys under the home
_TRANSPORT, _IDENTITY, _NAME = "transport.key", "identity.key", "name.json"
_NEXT = "transport.next"
_MAX_BYTES = 2**16
_IN_TOKEN = SCHEME.encode()
_REMEDY = "Without it this node is nobody in its federation: restore both keys from one backup, or enrol anew"
_NEXT_REMEDY = (
    "It is a transport key that the coordinator may know already: run `client-node keys rotate` after restoring it"
)
_NAME_REMEDY = "It holds this node's name, for its log, and nothing else does: delete it"


class _Named(StrictModel):
    name: Annotated[str, Field(max_length=63)]


_NAME_FORM = TypeAdapter(_Named)


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """A node's two private keys and the name that the federation gave it ("" before enrolment)."""

    home: Path
    name: str
    signer: Ed25519PrivateKey = field(repr=False)
    transport_key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def create(cls, home: Path, name: str = "") -> "NodeIdentity":
        """Makes both keys and writes them under `home`; keys that are there already are kept and loaded.

        Raises:
            IdentityMissing: only one of the two key files is there, or one of them cannot be read.
            KeysSealed: the home's keys are sealed, and the passphrase is not given.
        """
        folder = home / KEYS
        for private in (home, folder):
            private.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        if not (folder / _TRANSPORT).exists() and not (folder / _IDENTITY).exists():
            transport, signer = ec.generate_private_key(ec.SECP384R1()), Ed25519PrivateKey.generate()
            _write_transport(folder / _TRANSPORT, transport)
            write_signer(folder / _IDENTITY, signer)
        identity = cls.load(home)
        return identity.named(name) if name else identity

    @classmethod
    def create_in_token(cls, home: Path, uri: str) -> "NodeIdentity":
        """Has a PKCS#11 token make both keys; the home holds their URIs, and no key. It comes before enrolment.

        A call that was cut short is completed by the next one; a key that it has made meanwhile stays in the token.

        Args:
            uri: of the token, with the path of its module (RFC 7512).

        Raises:
            AlreadyEnrolled: this home has keys; nothing was changed.
            TokenUnusable: the token cannot be used, or makes no such keys.
        """
        token, folder = TokenUri.parse(uri), home / KEYS
        for private in (home, folder):
            private.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        paths = (folder / _TRANSPORT, folder / _IDENTITY)
        there = [path for path in paths if path.exists()]
        if len(there) == len(paths) or not all(_content(path, _REMEDY).startswith(_IN_TOKEN) for path in there):
            raise AlreadyEnrolled(
                f"{home} has keys already; nothing was changed. A key that has lain on a disk gains nothing in a "
                "token: name a new home, and enrol that"
            )
        if paths[0] not in there:
            _make_in_token(paths[0], token, "p384", "confide-transport")
        if paths[1] not in there:
            _make_in_token(paths[1], token, "ed25519", "confide-identity")
        return cls.load(home)

    @classmethod
    def load(cls, home: Path) -> "NodeIdentity":
        """Reads the keys under `home`.

        Raises:
            IdentityMissing: one is absent, damaged or readable by others.
            KeysSealed: they are sealed, and the passphrase is not given.
        """
        folder = home / KEYS
        transport = _transport(folder / _TRANSPORT, _REMEDY)
        signer = read_signer(folder / _IDENTITY)
        named = read_json(folder / _NAME, _NAME_FORM, remedy=_NAME_REMEDY, max_bytes=_MAX_BYTES)
        return cls(home, named.name if named else "", signer, transport)

    def named(self, name: str) -> "NodeIdentity":
        """Returns the same keys with the name that the federation gave them, stored for the next start."""
        write_private(self.home / KEYS / _NAME, json.dumps({"name": name}).encode())
        return NodeIdentity(self.home, name, self.signer, self.transport_key)

    @property
    def identity_hex(self) -> str:
        """The Ed25519 public key, 32 bytes in hex: the participant's `identity` in a study."""
        return self.signer.public_key().public_bytes_raw().hex()

    @property
    def transport_public(self) -> bytes:
        """Public transport key in OpenSSH form, `ecdsa-sha2-nistp384 ...`."""
        return self.transport_key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)

    @property
    def transport_fingerprint(self) -> str:
        """Fingerprint by which the coordinator's register knows the transport key."""
        return fingerprint(self.transport_public)


def read_signer(path: Path) -> Ed25519PrivateKey:
    """Reads an identity key. Raises `IdentityMissing` if it is absent, damaged or readable by others."""
    signer = _key(path, load_pem_private_key, "ed25519", _REMEDY)
    if not isinstance(signer, Ed25519PrivateKey):
        raise damaged(path, "is a key of another kind", remedy=_REMEDY, error=IdentityMissing)
    return signer


def write_signer(path: Path, signer: Ed25519PrivateKey) -> None:
    """Writes an identity key, durably."""
    write_secret(path, signer.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def make_signer(path: Path, *, beside: Path) -> None:
    """Makes an identity key in the file at `path`; in a token, if the one at `beside` is in one.

    Raises:
        IdentityMissing: that one cannot be read.
        TokenUnusable: the token cannot be used.
    """
    present = _content(beside, _REMEDY)
    if present.startswith(_IN_TOKEN):
        _make_in_token(path, _token_uri(present), "ed25519", "confide-identity")
    else:
        write_signer(path, Ed25519PrivateKey.generate())


def copy_signer(path: Path, target: Path) -> None:
    """Copies an identity key, or the URI of one in a token, durably. Raises `IdentityMissing`."""
    write_secret(target, _content(path, _REMEDY))


def next_path(home: Path) -> Path:
    """Path of the transport key that comes next, while a rotation is under way."""
    return home / KEYS / _NEXT


def next_key(home: Path) -> ec.EllipticCurvePrivateKey:
    """Reads the transport key that comes next; makes it if there is none. Raises `IdentityMissing`."""
    path = next_path(home)
    if not path.exists():
        present = _content(home / KEYS / _TRANSPORT, _REMEDY)
        if present.startswith(_IN_TOKEN):  # the next one does not lie on a disk either
            _make_in_token(path, _token_uri(present), "p384", "confide-transport")
        else:
            _write_transport(path, ec.generate_private_key(ec.SECP384R1()))
    return _transport(path, _NEXT_REMEDY)


def take_next_key(home: Path) -> None:
    """Puts the transport key that comes next in the place of the present one, durably."""
    move_durably(next_path(home), home / KEYS / _TRANSPORT)


def fingerprint(transport_public: bytes) -> str:
    """Computes the SHA-256, in hex, of a transport key in the form that Flower sends (PEM); OpenSSH form is read too.

    Raises:
        ValueError: not an elliptic-curve public key in either form.
    """
    return hashlib.sha256(wire_form(transport_public)).hexdigest()


def wire_form(transport_public: bytes) -> bytes:
    """Writes a transport key as Flower sends and stores it: PEM, SubjectPublicKeyInfo. Raises ValueError."""
    return load_transport_public(transport_public).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def load_transport_public(data: bytes) -> ec.EllipticCurvePublicKey:
    """Reads a P-384 public key in OpenSSH or PEM form. Raises ValueError for anything else."""
    try:
        key = load_pem_public_key(data) if data.startswith(b"-----") else load_ssh_public_key(data)
    except (UnsupportedAlgorithm, NotImplementedError) as err:  # the latter: an OpenSSH key with a compressed point
        raise ValueError("unsupported kind of public key") from err
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("the transport key must be an ECDSA key on P-384")
    return key


def _make_in_token(path: Path, token: TokenUri, kind: "token_keys.Kind", label: str) -> None:
    from . import token_keys

    write_secret(path, token_keys.make(token, kind, label).text().encode() + b"\n")


def _write_transport(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))


def _transport(path: Path, remedy: str) -> ec.EllipticCurvePrivateKey:
    key = _key(path, load_ssh_private_key, "p384", remedy)
    if not (isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1)):
        raise damaged(path, "is a key of another kind", remedy=remedy, error=IdentityMissing)
    return key


def _key(path: Path, load: Callable[[bytes, None], object], kind: "token_keys.Kind", remedy: str) -> object:
    data = _content(path, remedy)
    if data.startswith(_IN_TOKEN):
        from . import token_keys

        uri = _token_uri(data)
        return token_keys.TokenEd25519Key(uri) if kind == "ed25519" else token_keys.TokenP384Key(uri)
    try:
        return load(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise damaged(path, "is no key: it was cut short or changed", remedy=remedy, error=IdentityMissing) from err


def _token_uri(data: bytes) -> TokenUri:
    return TokenUri.parse(data.decode("utf-8", "replace"))


def _content(path: Path, remedy: str) -> bytes:
    data = read_secret(path, remedy=remedy, error=IdentityMissing, max_bytes=_MAX_BYTES)
    if data is None:
        raise IdentityMissing(f"{path} is missing; enrol this node, or restore its keys from a backup")
    return data

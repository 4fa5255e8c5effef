"""Reads from the headers of a request which key asks, and proves that the caller holds it.

The gate and the SuperLink must see the same caller. Where a header comes twice, the one would read the first copy and
the other the last; so each of a node's headers may come once, and the SuperLink gets headers that are written anew from
what was read here, and no other.
"""

import binascii
import datetime as dt
import time
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from ...client_node.enrolment.identity import fingerprint, load_transport_public
from ...client_node.enrolment.sessions import HELLO_HEADER, SESSION_HEADER
from ..fleet import flower

_SESSION, _HELLO = SESSION_HEADER.encode(), HELLO_HEADER.encode()
_ONCE = frozenset({flower.KEY_HEADER, flower.TIMESTAMP_HEADER, flower.SIGNATURE_HEADER, _SESSION, _HELLO})
_MAX_KEY = 1024  # bytes; a P-384 key is shorter


@dataclass(frozen=True, slots=True)
class Credentials:
    """A node's word on who it is, as a request shows it. Nothing of it is proven before `verify`."""

    key_id: str  # fingerprint of the transport key
    age_s: float  # how long ago the timestamp was signed, by the clock of the caller
    session: bytes | None
    hello: bytes | None
    _key: ec.EllipticCurvePublicKey = field(repr=False)
    _wire: bytes = field(repr=False)
    _stamp: bytes = field(repr=False)
    _signature: bytes = field(repr=False)

    @classmethod
    def read(cls, headers: Iterable[tuple[bytes, bytes]]) -> Self:
        """Reads headers with names in lower case. Raises ValueError if one is missing, unreadable or there twice."""
        own = [(name, value) for name, value in headers if name in _ONCE]
        if any(count > 1 for count in Counter(name for name, _ in own).values()):
            raise ValueError("a header comes twice")
        shown = dict(own)
        try:
            wire = b64decode(shown[flower.KEY_HEADER], validate=True)
            signature = b64decode(shown[flower.SIGNATURE_HEADER], validate=True)
            stamp = shown[flower.TIMESTAMP_HEADER]
            signed_at = dt.datetime.fromisoformat(stamp.decode("ascii")).timestamp()
        except (KeyError, binascii.Error) as err:
            raise ValueError("a header is missing or not base64") from err
        key, key_id = _read_key(wire)
        return cls(
            key_id, time.time() - signed_at, shown.get(_SESSION), shown.get(_HELLO), key, wire, stamp, signature
        )  # fmt: skip

    def verify(self) -> None:
        """Checks the key's signature of the timestamp. Raises `cryptography.exceptions.InvalidSignature`."""
        self._key.verify(self._signature, self._stamp, ec.ECDSA(hashes.SHA256()))

    def for_superlink(self) -> list[tuple[bytes, bytes]]:
        """Writes the headers by which Flower knows the same caller."""
        return [
            (b"content-type", b"application/protobuf"),
            (b"accept", b"application/protobuf"),
            (flower.KEY_HEADER, b64encode(self._wire)),
            (flower.TIMESTAMP_HEADER, self._stamp),
            (flower.SIGNATURE_HEADER, b64encode(self._signature)),
        ]


@lru_cache(maxsize=4096)
def _read_key(wire: bytes) -> tuple[ec.EllipticCurvePublicKey, str]:
    if len(wire) > _MAX_KEY:
        raise ValueError("a P-384 key is shorter")
    return load_transport_public(wire), fingerprint(wire)

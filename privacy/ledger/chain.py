"""A signed list of entries in which each names the one before: what makes a ledger tamper-evident.

The hash of an entry covers everything in it and the previous hash; the signature covers the hash. So a flipped byte, a
missing, moved or foreign entry shows at a known place. What it cannot show by itself is a list cut off at its end or a
second list by the same key: for that a replica remembers the last head and calls `check_extension`.

The key may change on the way, by an entry of a succession (`succession`): entries after it are signed by the later key.
"""

import hashlib
import time as clock
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError, field_validator

from ..errors import LedgerBroken
from . import canonical, succession

ENTRY_DOMAIN = "confide ledger entry 1"
SIGNATURE_DOMAIN = "confide ledger signature 1"
GENESIS = "0" * 64  # the hash "before" entry 0
MAX_BODY = 1 << 20  # bytes of one body in canonical JSON

Hex64 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Hex128 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]
Time = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]


def now() -> str:
    """The clock's time in the form that entries and reports state it."""
    return moment(clock.time())


def moment(seconds: float) -> str:
    """Writes a time of the clock, in seconds since 1970, in the form of `now`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Entry(BaseModel):
    """One line of a ledger. `time` is what the site's clock said, for people; nothing is decided by it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    seq: int = Field(ge=0, lt=2**48)
    time: Time
    kind: Annotated[str, StringConstraints(pattern=r"^[a-z]{1,16}$")]
    body: dict[str, JsonValue]
    previous: Hex64
    hash: Hex64
    signature: Hex128

    @classmethod
    def parse(cls, value: object) -> "Entry":
        """Checks types, lengths and alphabets; says nothing about hash and signature.

        Raises:
            LedgerBroken: naming the sequence number, where there is one.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as err:
            seq = value.get("seq") if isinstance(value, Mapping) else None
            problem = err.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in problem["loc"])
            name = seq if type(seq) is int else "?"
            raise LedgerBroken(f"entry {name}: {where}: {problem['msg']}") from err

    @field_validator("body")
    @classmethod
    def _has_canonical_form(cls, body: dict[str, JsonValue]) -> dict[str, JsonValue]:
        canonical.encode(body)
        return body

    def digest(self) -> str:
        """The hash that this entry should carry."""
        return _digest(self.seq, self.time, self.kind, self.body, self.previous)


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry of a chain: its number and hash. `START` comes before entry 0."""

    seq: int
    hash: str


START = Head(-1, GENESIS)


def extend(head: Head, signer: Ed25519PrivateKey, time: str, kind: str, body: Mapping[str, Any]) -> Entry:
    """The signed entry that follows `head`."""
    digest = _digest(head.seq + 1, time, kind, body, head.hash)
    signature = canonical.sign(signer, SIGNATURE_DOMAIN, bytes.fromhex(digest))
    return Entry(
        seq=head.seq + 1, time=time, kind=kind, body=dict(body), previous=head.hash, hash=digest, signature=signature
    )


def check_extension(known_head: Head, entries: Iterable[Entry], public_key: str) -> Head:
    """Accepts `entries` as what follows `known_head`, without gap, fork or forgery, and returns the new head.

    For whoever keeps a copy of a site's ledger: keep the returned head, and ask for entries from `head.seq + 1` on.

    Args:
        public_key: the key that signs what follows `known_head`; a succession among `entries` changes it.

    Raises:
        LedgerBroken: naming the first bad entry.
    """
    return follow(known_head, entries, public_key)[0]


def follow(known_head: Head, entries: Iterable[Entry], public_key: str) -> tuple[Head, str]:
    """Like `check_extension`; returns the key that signs what follows as well."""
    head, key = known_head, public_key
    for entry in entries:
        _check_link(entry, head)
        _check_signature(entry, key)
        head, key = Head(entry.seq, entry.hash), key_after(entry, key)
    return head, key


def key_after(entry: Entry, key: str) -> str:
    """Returns the key that signs what follows `entry`, which `key` has signed: another one after a succession.

    Raises:
        LedgerBroken: the entry is of a succession that does not hold.
    """
    if entry.kind != succession.KIND:
        return key
    try:
        return succession.key_handed_to(entry.body, key=key, previous=entry.previous)
    except ValueError as err:
        raise LedgerBroken(f"entry {entry.seq}: {err}") from err


def check_links(known_head: Head, entries: Iterable[Entry], public_key: str) -> Head:
    """Like `check_extension`, but of the signatures it checks the last one alone: half the time of a long chain.

    A hash covers all that comes before, so the last signature vouches for every entry's contents: enough for a site
    that takes up its own ledger. Whoever is shown a part of a ledger, or passes one on, needs `check_extension`.

    Raises:
        LedgerBroken: naming the first bad entry.
    """
    head, last, signed_by, key = known_head, None, public_key, public_key
    for last in entries:
        _check_link(last, head)
        head, signed_by, key = Head(last.seq, last.hash), key, key_after(last, key)
    if last is not None:
        _check_signature(last, signed_by)
    return head


def verify_chain(entries: Sequence[Entry], public_key: str) -> Head:
    """Checks a whole ledger from entry 0 on, which must name `public_key`.

    Raises:
        LedgerBroken: naming the first bad entry.
    """
    if not entries:
        raise LedgerBroken("entry 0 is missing: the ledger is empty")
    if opened_by(entries[0]) != public_key:
        raise not_opened()
    return check_extension(START, entries, public_key)


def opened_by(first: Entry) -> str:
    """Returns the key that opens a ledger with `first`. Raises LedgerBroken if it opens none."""
    key = first.body.get("public_key")
    if first.kind != "open" or not isinstance(key, str):
        raise not_opened()
    return key


def not_opened() -> LedgerBroken:
    """Makes the error for a ledger of another key."""
    return LedgerBroken("entry 0 does not open a ledger of the given public key")


def _check_link(entry: Entry, head: Head) -> None:
    if entry.seq != head.seq + 1:
        raise LedgerBroken(f"entry {head.seq + 1} is missing or out of order: found entry {entry.seq} in its place")
    if entry.previous != head.hash:
        raise LedgerBroken(f"entry {entry.seq} does not follow entry {head.seq}: its previous hash is another")
    if entry.hash != entry.digest():
        raise LedgerBroken(f"entry {entry.seq} was changed: its contents do not give its hash")


def _check_signature(entry: Entry, public_key: str) -> None:
    if not canonical.is_signed(public_key, SIGNATURE_DOMAIN, bytes.fromhex(entry.hash), entry.signature):
        raise LedgerBroken(f"entry {entry.seq} is not signed by the ledger's key")


def _digest(seq: int, time: str, kind: str, body: Mapping[str, Any], previous: str) -> str:
    try:
        contents = canonical.encode({"seq": seq, "time": time, "kind": kind, "body": body, "previous": previous})
    except ValueError as err:
        raise LedgerBroken(f"entry {seq}: {err}") from err
    if len(contents) > MAX_BODY:
        raise LedgerBroken(f"entry {seq} is {len(contents)} bytes long; at most {MAX_BODY} are allowed")
    return hashlib.sha256(ENTRY_DOMAIN.encode() + b"\n" + contents).hexdigest()

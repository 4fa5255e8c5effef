"""The certificate authorities that a node trusts for its coordinator, and the statement by which they change.

A node trusts the CA that its invitation pinned, in `ca.crt`. When that CA is to have a successor, the coordinator
signs a statement that lists both, with the key that the node pinned when it enrolled; then one that lists the successor
alone. The same statement carries the successions of that key (`enrolment.protocol.follow`), if another has followed it.
A statement from the network counts only if a CA that the node trusts vouches for the connection that it came
by, and no CA is dropped before one that stays has vouched for a connection. So whoever has the signing key alone, or
the key of a CA alone, changes nothing. A person may bring a statement as a file, for a node that was away, and compares
what it lists.

An older statement than the last one is refused, so that a CA which was dropped stays dropped.
"""

import datetime as dt
import hashlib
import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import Field, SerializerFunctionWrapHandler, TypeAdapter, ValidationError, model_serializer

from ..models.strict import Digest, StrictModel
from ..privacy.ledger import canonical
from ..privacy.ledger.succession import MOST_OF_COORDINATOR, CoordinatorSuccession
from .enrolment import Enrolment, NodeIdentity, protocol
from .enrolment.protocol import AUTHORITY_PATH, AuthorityQuery, send_signed
from .errors import FileDamaged, KeyNotFollowed, StatementRefused
from .files import locked, read_json, read_private, write_private

FILE = "authority.json"  # under the home: the time of the last statement
MOST_BYTES = 64 << 10  # of a statement
_DOMAIN = "confide authority 1"
_ANSWER_S = 60.0  # from the request to the end of the answer
_AHEAD_MS = 86_400_000  # that a statement's time may be ahead of this machine's clock
_REMEDY = "It holds the time of the coordinator's last statement about its CA: restore it from a backup, or delete it"

Pem = Annotated[str, Field(max_length=16 << 10)]


class Statement(StrictModel):
    """The coordinator's signed list of the CAs that vouch for its gate, the present one first."""

    format: Literal["confide-authority-1"] = "confide-authority-1"
    coordinator: Digest  # its Ed25519 public key
    made: Annotated[int, Field(ge=0, lt=2**48)]  # milliseconds since 1970, by the coordinator's clock
    certificates: Annotated[tuple[Pem, ...], Field(min_length=1, max_length=2)]
    successions: Annotated[tuple[CoordinatorSuccession, ...], Field(max_length=MOST_OF_COORDINATOR)] = ()  # of its key
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

    @model_serializer(mode="wrap")
    def _without_no_successions(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: dict[str, Any] = serialize(self)
        return plain if self.successions else {name: value for name, value in plain.items() if name != "successions"}

    @classmethod
    def issue(
        cls,
        certificates: tuple[bytes, ...],
        signer: Ed25519PrivateKey,
        successions: tuple[CoordinatorSuccession, ...] = (),
        *,
        made: int | None = None,
    ) -> Self:
        """Signs a list of certificates, PEM, as of now, with the `successions` that led to the signing key."""
        said = {
            "format": "confide-authority-1",
            "coordinator": signer.public_key().public_bytes_raw().hex(),
            "made": _now() if made is None else made,
            "certificates": [pem.decode() for pem in certificates],
        }
        if successions:
            said["successions"] = [each.model_dump(mode="json") for each in successions]
        signature = canonical.sign(signer, _DOMAIN, canonical.encode(said))
        return cls.model_validate_json(json.dumps(said | {"signature": signature}))

    @classmethod
    def read(cls, data: bytes, *known: str) -> Self:
        """Reads a statement of the coordinator, and checks all of it but its time.

        Args:
            known: the keys of the coordinator that are known, hex, the present one last.

        Raises:
            StatementRefused: it is none, is not signed by that key or one that follows it, or lists what is no CA.
            KeyNotFollowed: it is signed by a key before that one.
        """
        try:
            found = cls.model_validate_json(data[: MOST_BYTES + 1])
        except ValidationError as err:
            fields = ", ".join(sorted({str(each["loc"][0]) for each in err.errors() if each["loc"]})) or "its form"
            raise StatementRefused(f"this is no whole statement about the coordinator's CA ({fields})") from None
        said = found.model_dump(mode="json", exclude={"signature"})
        is_signed = canonical.is_signed(found.coordinator, _DOMAIN, canonical.encode(said), found.signature)
        problem = protocol.chain_problem(found.successions, found.coordinator)
        keys = {found.coordinator, *(each.old for each in found.successions)}
        if not problem and is_signed and found.coordinator in known[:-1]:
            raise KeyNotFollowed(protocol.why_not_followed(known, found.coordinator))
        if known[-1] not in keys or problem or not is_signed:
            raise StatementRefused(
                "the statement about the coordinator's CA is not signed by this node's coordinator; nothing was changed"
            )
        listed = found.listed()
        if len(set(listed)) < len(listed) or not all(map(_is_authority, listed)):
            raise StatementRefused(
                "the statement lists a certificate twice, or one that is no CA's; nothing was changed"
            )
        return found

    def listed(self) -> tuple[x509.Certificate, ...]:
        """Reads the certificates. Raises `StatementRefused` if one is none, or has more around it."""
        found = []
        for pem in self.certificates:
            try:
                certificate = x509.load_pem_x509_certificate(pem.encode())
            except (ValueError, x509.InvalidVersion) as err:
                raise StatementRefused("the statement lists what is no certificate; nothing was changed") from err
            if certificate.public_bytes(Encoding.PEM) != pem.encode():
                raise StatementRefused("the statement holds more than its certificates; nothing was changed")
            found.append(certificate)
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Trust:
    """The CAs that a node trusts for its coordinator, the present one first."""

    certificates: tuple[x509.Certificate, ...]
    has_changed: bool = False  # by the call that returned this

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each certificate's DER form, in hex, by which people and the coordinator name it."""
        return tuple(digest(each) for each in self.certificates)

    @property
    def ends(self) -> tuple[dt.datetime, ...]:
        """The end of each."""
        return tuple(each.not_valid_after_utc for each in self.certificates)


class _Last(StrictModel):
    made: Annotated[int, Field(ge=0, lt=2**48)]


_FORM = TypeAdapter(_Last)


def digest(certificate: x509.Certificate) -> str:
    """Computes the SHA-256 of a certificate's DER form, in hex."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def mark(digests: tuple[str, ...], coordinators: tuple[str, ...] = ()) -> str:
    """Computes the digest of a list of CAs, which the gate tells with every answer to a node.

    Args:
        coordinators: the keys that the coordinator has had, the present one last; they count if it has had several.

    Raises:
        ValueError: one is not in hex.
    """
    listed = b"confide authorities 1\n" + b"".join(map(bytes.fromhex, digests))
    if len(coordinators) > 1:
        listed += b"keys\n" + b"".join(map(bytes.fromhex, coordinators))
    return hashlib.sha256(listed).hexdigest()


def trusted(home: Path) -> Trust:
    """Reads the CAs that the node at `home` trusts. Raises `NotEnrolled`."""
    return Trust(tuple(x509.load_pem_x509_certificates(Enrolment.load(home).ca_pem().encode())))


def fetch(home: Path) -> Trust:
    """Asks the coordinator which CAs vouch for it, takes that list and its key, and confirms what is new.

    Raises:
        IdentityMissing, NotEnrolled, FileDamaged: a file of this node cannot be used.
        CoordinatorUnreachable, WrongCoordinator, CoordinatorRefused: it does not answer; or, where a CA is to be
            dropped, not yet under one that stays. What is trusted is as before, or only the confirmation was lost.
        StatementRefused: the answer is forged, older than the last one, or not about a CA that this node trusts.
        KeyNotFollowed: the coordinator signs with an older key than the one that this node knows, or with a second
            successor of one.
    """
    identity, enrolment = NodeIdentity.load(home), Enrolment.load(home)
    own_pem, before = enrolment.ca_pem(), trusted(home)
    statement = Statement.read(_asked(identity, enrolment, before.digests, own_pem), *enrolment.coordinators)
    followed = protocol.follow(home, statement.successions, statement.coordinator)
    listed = Trust(statement.listed())
    pem = "".join(statement.certificates)
    is_same = listed.digests == before.digests
    if not is_same:
        _require_newer(home, statement)
    if not set(before.digests) <= set(listed.digests):
        staying = [
            each
            for each, sha256 in zip(statement.certificates, listed.digests, strict=True)
            if sha256 in before.digests
        ]
        if not staying:
            raise StatementRefused("the statement lists no CA that this node trusts; nothing was changed")
        again = Statement.read(_asked(identity, followed, before.digests, "".join(staying)), *followed.coordinators)
        if again.certificates != statement.certificates:
            raise StatementRefused("the coordinator's CAs change just now; nothing was changed")
    with locked(enrolment.ca_path):  # no request meanwhile: a person who brings a statement waits for nobody
        if trusted(home).digests != before.digests:
            raise StatementRefused("what this node trusts was changed meanwhile, and stays so; ask again")
        if is_same:
            _note(home, statement)
        else:
            _require_newer(home, statement)
            _take(home, enrolment, statement)
    if not is_same or followed.coordinators != enrolment.coordinators:
        _asked(identity, followed, listed.digests, pem)  # so that the coordinator knows
    return Trust(listed.certificates, has_changed=not is_same)


def read_file(home: Path, file: Path) -> Statement:
    """Reads a statement that a person brings as a file, and checks it as `Statement.read` does, and its time.

    Raises:
        StatementRefused: it cannot be taken.
        NotEnrolled: there is no enrolment under `home`.
        FileDamaged: the time of the last statement cannot be read.
    """
    enrolment = Enrolment.load(home)
    try:
        data = read_private(file, max_bytes=MOST_BYTES + 1)
    except OSError as err:
        raise StatementRefused(f"{file} cannot be read: {err.strerror}") from err
    statement = Statement.read(data, *enrolment.coordinators)
    if _changes(home, statement):
        _require_newer(home, statement)
    return statement


def accept(home: Path, statement: Statement) -> Trust:
    """Takes a statement that `read_file` read; a person has compared what it lists, and a new key of the coordinator's.

    A running daemon heeds it at once.

    Raises:
        As `read_file`.
    """
    enrolment = Enrolment.load(home)
    with locked(enrolment.ca_path):
        before, listed = trusted(home), statement.listed()
        if _changes(home, statement):
            _require_newer(home, statement)
        protocol.follow(home, statement.successions, statement.coordinator)
        _take(home, enrolment, statement)
    return Trust(listed, has_changed=before.digests != Trust(listed).digests)


def _changes(home: Path, statement: Statement) -> bool:
    """True if a statement changes what this node trusts, or by which key it knows its coordinator."""
    is_same_key = statement.coordinator == Enrolment.load(home).coordinator
    return not is_same_key or Trust(statement.listed()).digests != trusted(home).digests


def _asked(identity: NodeIdentity, enrolment: Enrolment, trusts: tuple[str, ...], pem: str) -> bytes:
    query = AuthorityQuery(
        identity=identity.identity_hex, timestamp=time.time(), nonce=secrets.token_hex(16), trusts=trusts,
        coordinator=enrolment.coordinator if enrolment.successions else None,
    )  # fmt: skip
    return send_signed(query, AUTHORITY_PATH, identity, enrolment, ca_pem=pem, most_bytes=MOST_BYTES, most_s=_ANSWER_S)


def _require_newer(home: Path, statement: Statement) -> None:
    last = _last(home)
    if last is not None and statement.made <= last.made:
        raise StatementRefused(
            f"the statement about the coordinator's CA is of {_moment(statement.made)}, and this node has taken one of "
            f"{_moment(last.made)}; nothing was changed. If the coordinator's clock was put back, ask its operator "
            "for one with the right time"
        )
    if statement.made > _now() + _AHEAD_MS:
        raise StatementRefused(
            f"the statement about the coordinator's CA is dated {_moment(statement.made)}, which is to come by this "
            "machine's clock; nothing was changed. Set the clock that is wrong"
        )


def _take(home: Path, enrolment: Enrolment, statement: Statement) -> None:
    write_private(enrolment.ca_path, "".join(statement.certificates).encode())
    _note(home, statement)  # last: if it is not reached, the same list is noted when it is fetched again


def _note(home: Path, statement: Statement) -> None:
    """Notes the time of a statement that lists what is trusted; one of a wrong clock would shut later ones out."""
    last = _last(home)
    if (last is None or statement.made > last.made) and statement.made <= _now() + _AHEAD_MS:
        write_private(home / FILE, _Last(made=statement.made).model_dump_json().encode())


def _last(home: Path) -> _Last | None:
    """Reads the time of the last statement; None if there is none, or if it was noted by a clock that was ahead.

    Such a time would keep every right one out, until it has come.
    """
    last = read_json(home / FILE, _FORM, remedy=_REMEDY, error=FileDamaged, max_bytes=1024)
    return None if last is None or last.made > _now() + _AHEAD_MS else last


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        certificate.public_key()
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, UnsupportedAlgorithm):
        return False
    return bool(is_ca)


def _now() -> int:
    return int(1000 * time.time())


def _moment(milliseconds: int) -> str:
    return f"{dt.datetime.fromtimestamp(milliseconds // 1000, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"

"""Enrolment with a one-time invitation code, and the signed request for the list of studies.

The code carries the coordinator's address, a secret and the SHA-256 of the federation's CA certificate. So the first
contact needs no trust in the network: the node fetches the CA certificate unverified, compares its digest with the
code, and sends the secret only over a connection that this CA vouches for. Later requests outside Flower's protocol are
signed with the node's identity key.
"""

import base64
import hashlib
import json
import logging
import math
import re
import secrets
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_serializer,
)

from ...privacy.ledger.succession import MOST_OF_COORDINATOR, CoordinatorSuccession, keys_of
from ..errors import (
    AlreadyEnrolled,
    CallUnknown,
    CodeExpired,
    CodeInvalid,
    CodeUsed,
    CoordinatorRefused,
    CoordinatorUnreachable,
    EnrolmentFailed,
    KeyNotFollowed,
    NotEnrolled,
    ProxyInvalid,
    WrongCoordinator,
)
from ..files import damaged, locked, read_json, read_own, stamp, write_private
from ..secret_files import write_secret
from . import outbound
from .identity import KEYS, NodeIdentity, next_key, next_path, take_next_key

logger = logging.getLogger(__name__)

Role = Literal["train", "aggregate"]
Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_ADDRESS = r"^[A-Za-z0-9.:\[\]-]{1,255}:[0-9]{1,5}$"
Address = Annotated[str, StringConstraints(pattern=_ADDRESS)]

CA_PATH, ENROLL_PATH, STUDIES_PATH = "/confide/v1/ca", "/confide/v1/enroll", "/confide/v1/studies"
ROTATE_PATH = "/confide/v1/rotate"
AUTHORITY_PATH = "/confide/v1/authority"
AUTHORITY_HEADER = "confide-authority"  # of answers to enrolled nodes: `authority.mark` of the CAs to trust
SIGNATURE_HEADER = "confide-signature"
PARTY_FOLDER = "party"  # under the home, of an aggregator: its certificate and key for the other two
_FILE, _CA_FILE = "enrolment.json", "ca.crt"
_SECRET_BYTES = 16
_TIMEOUT = 20.0  # seconds
_MAX_ANSWER = 32 << 20  # bytes; a list of studies holds vocabularies, no tensors
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_MOST_AUTHORITIES = 2  # the CA, and its successor
_MAX_KEPT = 2**16  # bytes of a file in the home
_REMEDY = "It is this node's place in its federation: restore it from a backup, or enrol anew from a fresh home"
_CA_REMEDY = (
    "It is the certificate by which this node knows its coordinator: restore it from a backup, or from another node of "
    "the federation, where it is the same"
)
_PARTY_REMEDY = (
    "With party.key it is how the other aggregators know this one, and studies name it: restore both from one backup, "
    "or enrol anew"
)
_REFUSED = {"used": CodeUsed, "expired": CodeExpired, "unknown": CodeInvalid}


@dataclass(frozen=True, slots=True)
class InvitationCode:
    """An invitation code, `host:port/BASE32`: the operator hands it to a site, on paper or by telephone if need be."""

    address: str
    secret: bytes  # 16 bytes
    ca_digest: bytes  # SHA-256 of the CA certificate, DER

    def __repr__(self) -> str:
        return f"InvitationCode(address={self.address!r}, secret=<hidden>)"

    def text(self) -> str:
        """The code in its written form."""
        return f"{self.address}/{base64.b32encode(self.secret + self.ca_digest).decode().rstrip('=')}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a written code; case, spaces and line breaks do not matter. Raises `CodeInvalid`."""
        address, _, tail = "".join(text.split()).rpartition("/")
        try:
            raw = base64.b32decode(tail.upper() + "=" * (-len(tail) % 8))
        except ValueError:
            raw = b""
        if not re.fullmatch(_ADDRESS, address) or len(raw) != _SECRET_BYTES + 32:
            raise CodeInvalid(
                "this is not a whole invitation code (HOST:PORT/LETTERS); copy it again from the invitation"
            )
        return cls(address, raw[:_SECRET_BYTES], raw[_SECRET_BYTES:])


class EnrolRequest(BaseModel):
    """A node's request to join: the secret, its public keys, and proofs of possession of the private keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    secret: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$"), Field(repr=False)]
    transport_public: Annotated[str, StringConstraints(max_length=512)]  # OpenSSH form
    identity: Hex32
    roles_wanted: tuple[Role, ...] | None = Field(default=None, max_length=2)
    party_address: Address | None = None  # where the other aggregators reach this one
    party_certificate: Annotated[str, StringConstraints(max_length=8192)] | None = None  # PEM
    identity_proof: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]
    transport_proof: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{2,256}$")]

    def proven(self) -> bytes:
        """The bytes that both proofs sign: everything that is registered, bound to the invitation."""
        parts = self.model_dump(mode="json", exclude={"secret", "identity_proof", "transport_proof"})
        parts["invitation"] = hashlib.sha256(bytes.fromhex(self.secret)).hexdigest()
        return b"confide enrolment 1\n" + json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()


_Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


Successions = tuple[CoordinatorSuccession, ...]
_Successions = Annotated[Successions, Field(max_length=MOST_OF_COORDINATOR)]


class EnrolAnswer(BaseModel):
    """The coordinator's answer to it: the name and roles that the operator gave to the invitation."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: _Name
    roles: tuple[Role, ...]
    coordinator: Hex32  # Ed25519 public key that signs studies and rounds
    successions: _Successions = ()  # that led to it


class _Listed(BaseModel):
    """What a list of studies says of the coordinator's key, if that has followed another."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    coordinator: Hex32
    successions: Annotated[_Successions, Field(min_length=1)]


class SignedQuery(BaseModel):
    """A request that a node signs with its identity key; time and nonce make it valid once, for five minutes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    domain: ClassVar[bytes]  # keeps signatures of one kind apart from all others
    identity: Hex32
    timestamp: float  # seconds since the epoch
    nonce: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]

    @classmethod
    def signed_part(cls, body: bytes) -> bytes:
        """Bytes that the signature in the header covers."""
        return cls.domain + body


class StudiesQuery(SignedQuery):
    """A node's signed request for the list of studies."""

    domain = b"confide studies 1\n"


class RotateRequest(SignedQuery):
    """A node's signed request to be known by another transport key from now on, with proof that it holds that key."""

    domain = b"confide rotation 1\n"
    transport_public: Annotated[str, StringConstraints(max_length=512)]  # OpenSSH form
    transport_proof: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{2,256}$")]

    def proven(self) -> bytes:
        """The bytes that the new transport key signs: it, and whose it is to be."""
        return b"confide rotated key 1\n" + f"{self.identity} {self.nonce} {self.transport_public}".encode()


class AuthorityQuery(SignedQuery):
    """A node's signed question which CAs vouch for the coordinator; it says which ones the node trusts.

    It says by which key the node knows the coordinator too, once it knows that this key has followed another. Before,
    the field is left out, as coordinators that have had one key alone may not know it.
    """

    domain = b"confide authority query 1\n"
    trusts: Annotated[tuple[Hex32, ...], Field(min_length=1, max_length=2)]  # SHA-256 of certificates, the first first
    coordinator: Hex32 | None = None  # Ed25519 public key

    @model_serializer(mode="wrap")
    def _without_no_key(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: dict[str, Any] = serialize(self)
        return {name: value for name, value in plain.items() if name != "coordinator" or value is not None}


class _Kept(BaseModel):
    """What `enrolment.json` holds."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
    name: _Name
    roles: tuple[Role, ...]
    address: Address
    coordinator: Hex32
    successions: _Successions = ()
    party_address: Address | None = None
    proxy: str | None = Field(default=None, max_length=2048, repr=False)


_FORM = TypeAdapter(_Kept)


@dataclass(frozen=True, slots=True)
class Enrolment:
    """This node's membership in a federation, as stored in `enrolment.json`."""

    name: str
    roles: tuple[Role, ...]
    address: str  # the coordinator's gate, host:port
    coordinator: str  # its Ed25519 public key, hex: the newest that this node knows
    ca_path: Path
    successions: Successions = ()  # of that key, oldest first
    party_address: str | None = None
    proxy: str | None = field(default=None, repr=False)  # as `outbound.check_proxy` returns it; may hold a password

    @classmethod
    def load(cls, home: Path) -> "Enrolment":
        """Reads the enrolment under `home`. Raises `NotEnrolled`, also for a damaged file."""
        kept = read_json(home / _FILE, _FORM, remedy=_REMEDY, error=NotEnrolled, max_bytes=_MAX_KEPT)
        if kept is None:
            raise NotEnrolled(f"{home} belongs to no federation yet; run `client-node enroll CODE`")
        try:
            proxy = None if kept.proxy is None else outbound.check_proxy(kept.proxy)
        except ProxyInvalid as err:
            raise ProxyInvalid(f"{home / _FILE}: {err}") from None
        return cls(
            name=kept.name, roles=kept.roles, address=kept.address,
            coordinator=kept.coordinator, ca_path=home / _CA_FILE, successions=kept.successions,
            party_address=kept.party_address, proxy=proxy,
        )  # fmt: skip

    @property
    def coordinators(self) -> tuple[str, ...]:
        """All keys of the coordinator that this node knows, hex, the present one last: studies may name any of them."""
        return (*(each.old for each in self.successions), self.coordinator)

    def ca_pem(self) -> str:
        """Reads the certificate of the federation's CA, and of its successor if that is trusted already.

        Raises:
            NotEnrolled: the file holds anything else.
        """
        pem = _certificate(self.ca_path, remedy=_CA_REMEDY, error=NotEnrolled)
        try:
            found = len(x509.load_pem_x509_certificates(pem.encode()))
        except (ValueError, x509.InvalidVersion):
            found = 0
        if not (found == pem.count("-----BEGIN") and found <= _MOST_AUTHORITIES):
            problem = "holds more than one or two whole certificates"
            raise damaged(self.ca_path, problem, remedy=_CA_REMEDY, error=NotEnrolled)
        return pem


_Complete = Callable[[Path, Callable[[], tuple[Enrolment, str]]], object]


def enrol(
    code: str,
    home: Path,
    *,
    roles_wanted: tuple[Role, ...] | None = None,
    party_address: str | None = None,
    party_certificate: str | None = None,
    proxy: str | None = None,
    again: bool = False,
    complete: _Complete | None = None,
) -> Enrolment:
    """Joins the federation that issued `code`; makes this node's keys under `home` if there are none.

    Until the coordinator admits the node, only the keys are stored. So a failed call can be repeated, also with another
    code.

    Args:
        roles_wanted: roles that this node offers to take; None leaves them to the invitation.
        party_address: host:port at which the other aggregators reach this node, for the role "aggregate".
        party_certificate: PEM certificate of that address; made under `home`/party if only an address is given.
        proxy: `http://[USER:PASSWORD@]HOST:PORT` or `env`; kept, and used from now on.
        again: True if this node, which has left the federation, comes back: with the identity key that it has, another
            transport key, and what is not given here as it was. Ledger, policy and decisions are not touched.
        complete: of a node that comes back, completes a rotation of its identity key that was cut short: the
            coordinator may know it by the key that is not in place yet. It is given the home, and finds out the
            coordinator of the code with its CA (PEM).

    Raises:
        NotEnrolled: `again`, and `home` has no enrolment.
        ProxyInvalid: `proxy` is in neither form.
        CodeInvalid, CodeUsed, CodeExpired: the code is damaged, was used, or is too old.
        WrongCoordinator: a coordinator with another CA than the code's answers at the address.
        CoordinatorUnreachable: nobody answers.
        AlreadyEnrolled: `home` has an enrolment, and this is not `again`.
        EnrolmentFailed: the coordinator refuses, or `again` led to another federation or name than before.
    """
    invitation = InvitationCode.parse(code)
    proxy = None if proxy is None else outbound.check_proxy(proxy)
    if again:
        before = Enrolment.load(home)
        if complete is not None:
            _complete(complete, home, invitation, replace(before, proxy=proxy or before.proxy))
        with locked(home / KEYS):  # a daemon that finds the coordinator to know another key already takes that up
            own = replace(NodeIdentity.load(home), transport_key=next_key(home))
            return _join(invitation, own, roles_wanted, party_address, party_certificate, proxy, before)
    if (home / _FILE).exists():
        raise AlreadyEnrolled(
            f"{home} already belongs to a federation as {Enrolment.load(home).name!r}; use another home. If this node "
            "has left it and comes back: --again"
        )
    return _join(invitation, NodeIdentity.create(home), roles_wanted, party_address, party_certificate, proxy, None)


def _complete(complete: _Complete, home: Path, invitation: InvitationCode, before: Enrolment) -> None:
    def way() -> tuple[Enrolment, str]:
        return replace(before, address=invitation.address), _fetch_ca(invitation, before.proxy).decode()

    try:
        complete(home, way)
    except CoordinatorRefused as err:  # then it knows the present key, or says below that it knows neither
        logger.warning("the rotation of this node's identity key is not completed: %s", err)


def _join(
    invitation: InvitationCode,
    identity: NodeIdentity,
    roles_wanted: tuple[Role, ...] | None,
    party_address: str | None,
    party_certificate: str | None,
    proxy: str | None,
    before: Enrolment | None,
) -> Enrolment:
    """Asks to be enrolled with these keys, and stores the answer; `before` is what a node had that comes back."""
    home = identity.home
    if before is not None:
        party_address, proxy = party_address or before.party_address, proxy or before.proxy
    if party_address is not None and party_certificate is None:
        party_certificate = _make_party_certificate(home)
    ca_pem = _fetch_ca(invitation, proxy)
    request = _signed_request(identity, invitation.secret, roles_wanted, party_address, party_certificate)
    way = _Way(invitation.address, outbound.trusting(ca_pem.decode()), proxy)
    body = way.exchange("POST", ENROLL_PATH, request.model_dump_json().encode())
    try:
        answer = EnrolAnswer.model_validate_json(body)
    except ValidationError as err:
        raise EnrolmentFailed(
            "the coordinator's answer cannot be read; its version may differ from this node's"
        ) from err
    if problem := chain_problem(answer.successions, answer.coordinator):
        raise EnrolmentFailed(f"the coordinator's answer cannot be taken: {problem}; nothing was changed here")
    if before is not None and not _leads_back(before, answer):
        raise EnrolmentFailed(
            f"this code is for {answer.name} of a coordinator with the key {answer.coordinator[:16]}..., and this home "
            f"is {before.name} of {before.coordinator[:16]}...; nothing was changed here. Have what it enrolled "
            "revoked there, and ask for a code of this home's name"
        )
    write_private(home / _CA_FILE, ca_pem)
    identity.named(answer.name)
    kept = {
        "name": answer.name, "roles": answer.roles, "address": invitation.address,
        "coordinator": answer.coordinator, "party_address": party_address, "proxy": proxy,
        **_plain(answer.successions if before is None else _followed(before, answer.successions, answer.coordinator)),
    }  # fmt: skip
    with locked(home / _FILE):  # a daemon may follow to a new key of the coordinator's just now
        write_private(home / _FILE, json.dumps(kept, indent=2).encode())
    if before is not None:
        take_next_key(home)  # last: until then, the same as a rotation that was cut short
    return Enrolment.load(home)


def _leads_back(before: Enrolment, answer: EnrolAnswer) -> bool:
    """True if a coordinator's answer is that of the federation, and for the name, that this node had."""
    try:
        _followed(before, answer.successions, answer.coordinator)
    except KeyNotFollowed:
        return False
    return answer.name == before.name


def change_proxy(home: Path, proxy: str | None) -> Enrolment:
    """Stores another proxy, or none, for this node; a daemon takes it up at its next start.

    Raises:
        NotEnrolled: there is no enrolment under `home`.
        ProxyInvalid: `proxy` is not in the form that `outbound.check_proxy` takes.
    """
    with locked(home / _FILE):
        with suppress(ProxyInvalid):
            Enrolment.load(home)
        kept = json.loads((home / _FILE).read_text())
        kept["proxy"] = None if proxy is None else outbound.check_proxy(proxy)
        write_private(home / _FILE, json.dumps(kept, indent=2).encode())
    return Enrolment.load(home)


def enrolment_stamp(home: Path) -> object:
    """Tells by another value than before that another enrolment lies under `home`; None if there is none."""
    return stamp(home / _FILE)


def follow(home: Path, successions: Successions, coordinator: str) -> Enrolment:
    """Goes on with the coordinator's key (hex) to which `successions` lead from the one that this node knows.

    They are stored, durably, since studies may name earlier keys. Those that are known already change nothing, and no
    other past takes the place of the known one.

    Raises:
        NotEnrolled: there is no enrolment under `home`.
        KeyNotFollowed: they do not hold, or lead to a key that does not follow from the known one.
    """
    if problem := chain_problem(successions, coordinator):
        raise KeyNotFollowed(problem)
    with locked(home / _FILE):
        known = Enrolment.load(home)
        found = _followed(known, successions, coordinator)
        if found == known.successions:
            return known
        kept = json.loads((home / _FILE).read_text()) | {"coordinator": coordinator} | _plain(found)
        write_private(home / _FILE, json.dumps(kept, indent=2).encode())
    if coordinator != known.coordinator:
        logger.info("the coordinator signs with the key %s now; before, it was %s", coordinator, known.coordinator)
    return Enrolment.load(home)


def chain_problem(successions: Successions, coordinator: str) -> str:
    """Says why `successions` of a coordinator's keys do not lead to `coordinator`, "" if they do, or there are none."""
    try:
        keys = keys_of(successions) or (coordinator,)
    except ValueError as err:
        return f"the coordinator's keys do not follow one another: {err}"
    if keys[-1] != coordinator:
        return "the coordinator's earlier keys lead to another key than its present one"
    found = [problem for each in successions if (problem := each.problem())]
    return f"a succession of the coordinator's keys does not hold: {found[0]}" if found else ""


def _followed(known: Enrolment, successions: Successions, coordinator: str) -> Successions:
    """Returns what is known after a sound chain: the known past, or its past if none is, and what follows since.

    Raises:
        KeyNotFollowed: the chain does not hold the key that is known as the present one, or leads back.
    """
    chain = keys_of(successions) or (coordinator,)
    if known.coordinator not in chain:
        raise KeyNotFollowed(why_not_followed(known.coordinators, coordinator))
    at = chain.index(known.coordinator)
    found = (*(known.successions or successions[:at]), *successions[at:])
    if len(found) > MOST_OF_COORDINATOR or chain_problem(found, coordinator):
        raise KeyNotFollowed(why_not_followed(known.coordinators, coordinator))
    return found


def why_not_followed(known: tuple[str, ...], coordinator: str) -> str:
    """Says what is wrong about a coordinator's key that does not follow from the newest of the `known` ones."""
    if coordinator in known[:-1]:
        return (
            "the coordinator goes by a key that another one has followed since, as after a restored backup; restore "
            "one there that was made after the rotation of its signing key"
        )
    return "the key does not follow from the one by which this node knows its coordinator"


def _plain(successions: Successions) -> dict[str, Any]:
    return {"successions": [each.model_dump(mode="json") for each in successions]} if successions else {}


def fetch_studies(home: Path) -> list[dict[str, Any]]:
    """Fetches every study that the coordinator offers to this node.

    A new key of the coordinator's that comes with it is followed.

    Returns:
        Dictionaries with `canonical` (base64 of the study's canonical JSON), `hash` and the coordinator's `signature`
        (both hex), and a list `successions` of keys of its parties, if there were any. Nothing in them is checked here.

    Raises:
        NotEnrolled, CoordinatorUnreachable, WrongCoordinator, CoordinatorRefused, KeyNotFollowed
    """
    identity, enrolment = NodeIdentity.load(home), Enrolment.load(home)
    query = StudiesQuery(identity=identity.identity_hex, timestamp=time.time(), nonce=secrets.token_hex(16))
    studies, listed = read_listed(send_signed(query, STUDIES_PATH, identity, enrolment))
    if listed is not None:
        follow(home, listed.successions, listed.coordinator)
    elif enrolment.successions:  # it knows of none, and so goes by the first key
        raise KeyNotFollowed(why_not_followed(enrolment.coordinators, enrolment.coordinators[0]))
    return studies


def read_listed(answer: bytes) -> tuple[list[dict[str, Any]], "_Listed | None"]:
    """Reads a list of studies, and what it says of a new key of the coordinator's. Raises CoordinatorRefused."""
    try:
        found = json.loads(answer)
        listed = _Listed.model_validate(found) if "successions" in found else None
        studies = [
            {name: str(study[name]) for name in ("canonical", "hash", "signature")}
            | ({"successions": list(study["successions"])} if study.get("successions") else {})
            for study in found["studies"]
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as err:  # the last at brackets within brackets
        raise CoordinatorRefused("the coordinator's list of studies cannot be read; its version may differ") from err
    return studies, listed


def send_signed(
    query: SignedQuery,
    path: str,
    identity: NodeIdentity,
    enrolment: Enrolment,
    *,
    ca_pem: str | None = None,
    most_bytes: int | None = None,
    most_s: float = math.inf,
) -> bytes:
    """Sends a query under the node's signature; returns the answer.

    Args:
        ca_pem: the only CAs to trust for it; None for those of the enrolment.
        most_bytes, most_s: of the answer, from the request to its end; None for what a list of studies may have.

    Raises:
        CoordinatorUnreachable, WrongCoordinator, CoordinatorRefused
    """
    body = query.model_dump_json().encode()
    signature = identity.signer.sign(query.signed_part(body)).hex()
    trusting = outbound.trusting(enrolment.ca_pem() if ca_pem is None else ca_pem)
    way = _Way(enrolment.address, trusting, enrolment.proxy, enrolment.ca_path)
    return way.exchange("POST", path, body, {SIGNATURE_HEADER: signature}, most_bytes or _MAX_ANSWER, most_s)


def rotate(home: Path) -> NodeIdentity:
    """Makes a new transport key, has the coordinator know this node by it, and returns the node's keys as they are now.

    The identity key vouches for the new one. That lies in `keys/transport.next` until the coordinator knows it, and
    only then takes the place of the old one, which is refused from then on. So a rotation that was cut short anywhere
    is completed by the same request again, and never leaves the node without the key that the coordinator knows.

    Raises:
        IdentityMissing: the node's keys cannot be read.
        NotEnrolled, CoordinatorUnreachable, WrongCoordinator: nothing is known to have changed; the old key is kept.
        CoordinatorRefused: it does not take the key; nothing has changed.
    """
    with locked(home / KEYS):
        return _rotated(home)


def complete_rotation(home: Path) -> NodeIdentity:
    """Completes a rotation that was cut short, if there is one; returns the node's keys as they are now.

    Raises:
        As `rotate`.
    """
    with locked(home / KEYS):  # a command that is about to complete it does so first
        return _rotated(home) if next_path(home).exists() else NodeIdentity.load(home)


def _rotated(home: Path) -> NodeIdentity:
    own, enrolment = NodeIdentity.load(home), Enrolment.load(home)
    fresh = replace(own, transport_key=next_key(home))
    unproven = RotateRequest(
        identity=own.identity_hex, timestamp=time.time(), nonce=secrets.token_hex(16),
        transport_public=fresh.transport_public.decode(), transport_proof="00",
    )  # fmt: skip
    proof = fresh.transport_key.sign(unproven.proven(), ec.ECDSA(hashes.SHA256())).hex()
    send_signed(unproven.model_copy(update={"transport_proof": proof}), ROTATE_PATH, own, enrolment)
    take_next_key(home)
    return fresh


def _signed_request(
    identity: NodeIdentity,
    secret: bytes,
    roles_wanted: tuple[Role, ...] | None,
    party_address: str | None,
    party_certificate: str | None,
) -> EnrolRequest:
    try:
        unsigned = EnrolRequest(
            secret=secret.hex(), transport_public=identity.transport_public.decode(), identity=identity.identity_hex,
            roles_wanted=roles_wanted, party_address=party_address, party_certificate=party_certificate,
            identity_proof="0" * 128, transport_proof="00",
        )  # fmt: skip
    except ValidationError as err:
        fields = ", ".join(str(problem["loc"][0]) for problem in err.errors())
        raise EnrolmentFailed(f"{fields}: not in the form that enrolment takes (an address is HOST:PORT)") from err
    proven = unsigned.proven()
    proofs = {
        "identity_proof": identity.signer.sign(proven).hex(),
        "transport_proof": identity.transport_key.sign(proven, ec.ECDSA(hashes.SHA256())).hex(),
    }
    return unsigned.model_copy(update=proofs)


def _fetch_ca(invitation: InvitationCode, proxy: str | None) -> bytes:
    """Fetches the CA certificate; the code holds its digest, so this one connection needs no verification."""
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    pem = _Way(invitation.address, unverified, proxy).exchange("GET", CA_PATH)
    try:
        found = hashlib.sha256(x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)).digest()
    except (ValueError, x509.InvalidVersion) as err:
        raise WrongCoordinator(f"{invitation.address} is not a coordinator: it has no CA certificate to show") from err
    if not secrets.compare_digest(found, invitation.ca_digest):
        raise WrongCoordinator(
            f"{invitation.address} is not the coordinator that issued this code: its CA certificate is another one. "
            "The code was not sent. Ask the operator whether the address is right, and for a new code if that CA has "
            "had a successor since"
        )
    return pem


@dataclass(frozen=True, slots=True)
class _Way:
    """A way to the gate: its address, whom TLS trusts there, and the proxy between."""

    address: str
    context: ssl.SSLContext
    proxy: str | None = field(repr=False)
    ca_path: Path | None = None

    def exchange(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] = _NO_HEADERS,
        most_bytes: int = _MAX_ANSWER,
        most_s: float = math.inf,
    ) -> bytes:
        """Sends one request to the gate and turns its failures into our errors."""
        import httpx  # for who asks alone: it is a tenth of what a light command may take

        address, until = self.address, time.monotonic() + most_s
        try:
            with (
                outbound.open_client(address, self.context, self.proxy, _TIMEOUT) as client,
                client.stream(method, f"https://{address}{path}", content=body, headers=headers) as response,
            ):
                answer = bytearray()
                for chunk in response.iter_bytes():
                    answer += chunk
                    if len(answer) > most_bytes:
                        raise WrongCoordinator(f"{address} sent more than {most_bytes} bytes; is it the coordinator?")
                    if time.monotonic() > until:
                        raise CoordinatorUnreachable(f"{address} has not answered whole within {most_s:.0f} s")
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as err:
            if trouble := outbound.certificate_trouble(err, self.ca_path):
                raise WrongCoordinator(f"{address}: {trouble}") from err
            trouble = outbound.connection_trouble(err, self.proxy)
            raise CoordinatorUnreachable(f"{address}: {trouble}; is the coordinator up, the port open?") from err
        except (httpx.HTTPError, httpx.InvalidURL) as err:
            raise CoordinatorUnreachable(
                f"{address} does not answer as a coordinator does ({type(err).__name__})"
            ) from err
        if response.status_code != httpx.codes.OK:
            _raise_refusal(address, path, response.status_code, bytes(answer))
        return bytes(answer)


def _raise_refusal(address: str, path: str, status: int, answer: bytes) -> NoReturn:
    try:
        told = json.loads(answer)
        reason, message = str(told["error"])[:64], str(told.get("message", ""))[:500]
    except (ValueError, KeyError, TypeError, AttributeError):
        reason, message = "", ""
    if path == CA_PATH:
        raise WrongCoordinator(f"{address} is not a coordinator: it answers {status} when asked for its CA certificate")
    if status >= 500:
        raise CoordinatorUnreachable(f"the coordinator at {address} cannot answer just now ({status}); try again")
    if path == ENROLL_PATH:
        what = {
            "used": "this code was used already; ask the operator for a new one",
            "expired": "this code has expired; ask the operator for a new one",
            "unknown": "the coordinator does not know this code; copy it again, or ask for a new one",
        }
        raise _REFUSED.get(reason, EnrolmentFailed)(what.get(reason, message or f"the coordinator refused ({status})"))
    if status == 404:
        raise CallUnknown("the coordinator runs a version that does not know this request")
    raise CoordinatorRefused(message or f"the coordinator refused the request ({status} {reason})")


def _make_party_certificate(home: Path) -> str:
    from ...mpc.links.certificates import new_certificate  # only aggregators need it

    folder = home / PARTY_FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    kept = folder / "party.pem"
    if not kept.exists():
        certificate, key = new_certificate("confide aggregator")
        write_secret(folder / "party.key", key)
        write_private(kept, certificate)
    return _certificate(kept, remedy=_PARTY_REMEDY, error=EnrolmentFailed)


def _certificate(path: Path, *, remedy: str, error: type[Exception]) -> str:
    """Reads a certificate in PEM; as `error`, says why a file is none."""
    pem = read_own(path, remedy=remedy, error=error, max_bytes=_MAX_KEPT)
    if pem is None:
        raise damaged(path, "is missing", remedy=remedy, error=error)
    try:
        x509.load_pem_x509_certificate(pem)
        return pem.decode()
    except (ValueError, x509.InvalidVersion) as err:
        raise damaged(path, "is no certificate: it was cut short or changed", remedy=remedy, error=error) from err

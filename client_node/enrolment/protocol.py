"""Enrolment with a one-time invitation code, and the signed request for the list of studies.

The code carries the coordinator's address, a secret and the SHA-256 of the federation's CA certificate. So the first
contact needs no trust in the network: the node fetches the CA certificate unverified, compares its digest with the
code, and sends the secret only over a connection that this CA vouches for. Later requests outside Flower's protocol are
signed with the node's identity key.
"""

import base64
import hashlib
import json
import re
import secrets
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ..errors import (
    AlreadyEnrolled,
    CodeExpired,
    CodeInvalid,
    CodeUsed,
    CoordinatorRefused,
    CoordinatorUnreachable,
    EnrolmentFailed,
    NotEnrolled,
    WrongCoordinator,
)
from ..files import write_private
from .identity import NodeIdentity

Role = Literal["train", "aggregate"]
Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_ADDRESS = r"^[A-Za-z0-9.:\[\]-]{1,255}:[0-9]{1,5}$"
Address = Annotated[str, StringConstraints(pattern=_ADDRESS)]

CA_PATH, ENROLL_PATH, STUDIES_PATH = "/confide/v1/ca", "/confide/v1/enroll", "/confide/v1/studies"
SIGNATURE_HEADER = "confide-signature"
PARTY_FOLDER = "party"  # under the home, of an aggregator: its certificate and key for the other two
_FILE = "enrolment.json"
_SECRET_BYTES = 16
_TIMEOUT = 20.0  # seconds
_MAX_ANSWER = 32 << 20  # bytes; a list of studies holds vocabularies, no tensors
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


class EnrolAnswer(BaseModel):
    """The coordinator's answer to it: the name and roles that the operator gave to the invitation."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    roles: tuple[Role, ...]
    coordinator: Hex32  # Ed25519 public key that signs studies and rounds


class StudiesQuery(BaseModel):
    """A node's signed request for the list of studies; time and nonce make it valid once, for five minutes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    identity: Hex32
    timestamp: float  # seconds since the epoch
    nonce: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]

    @staticmethod
    def signed_part(body: bytes) -> bytes:
        """Bytes that the signature in the header covers."""
        return b"confide studies 1\n" + body


@dataclass(frozen=True, slots=True)
class Enrolment:
    """This node's membership in a federation, as stored in `enrolment.json`."""

    name: str
    roles: tuple[Role, ...]
    address: str  # the coordinator's gate, host:port
    coordinator: str  # its Ed25519 public key, hex
    ca_path: Path
    party_address: str | None = None

    @classmethod
    def load(cls, home: Path) -> "Enrolment":
        """Reads the enrolment under `home`. Raises `NotEnrolled`."""
        try:
            kept = json.loads((home / _FILE).read_text())
            return cls(
                name=kept["name"], roles=tuple(kept["roles"]), address=kept["address"],
                coordinator=kept["coordinator"], ca_path=home / "ca.crt", party_address=kept.get("party_address"),
            )  # fmt: skip
        except OSError as err:
            raise NotEnrolled(f"{home} belongs to no federation yet; run `client-node enroll CODE`") from err
        except (ValueError, KeyError, TypeError) as err:
            raise NotEnrolled(f"{home / _FILE} is damaged; restore it from a backup, or enrol anew") from err


def enrol(
    code: str,
    home: Path,
    *,
    roles_wanted: tuple[Role, ...] | None = None,
    party_address: str | None = None,
    party_certificate: str | None = None,
) -> Enrolment:
    """Joins the federation that issued `code`; makes this node's keys under `home` if there are none.

    Until the coordinator admits the node, only the keys are stored. So a failed call can be repeated, also with another
    code.

    Args:
        roles_wanted: roles that this node offers to take; None leaves them to the invitation.
        party_address: host:port at which the other aggregators reach this node, for the role "aggregate".
        party_certificate: PEM certificate of that address; made under `home`/party if only an address is given.

    Raises:
        CodeInvalid, CodeUsed, CodeExpired: the code is damaged, was used, or is too old.
        WrongCoordinator: a coordinator with another CA than the code's answers at the address.
        CoordinatorUnreachable: nobody answers.
        AlreadyEnrolled: `home` has an enrolment.
    """
    invitation = InvitationCode.parse(code)
    if (home / _FILE).exists():
        raise AlreadyEnrolled(
            f"{home} already belongs to a federation as {Enrolment.load(home).name!r}; use another home"
        )
    identity = NodeIdentity.create(home)
    if party_address is not None and party_certificate is None:
        party_certificate = _make_party_certificate(home)
    ca_pem = _fetch_ca(invitation)
    request = _signed_request(identity, invitation.secret, roles_wanted, party_address, party_certificate)
    body = _post(invitation.address, ca_pem.decode(), ENROLL_PATH, request.model_dump_json().encode(), {})
    try:
        answer = EnrolAnswer.model_validate_json(body)
    except ValidationError as err:
        raise EnrolmentFailed(
            "the coordinator's answer cannot be read; its version may differ from this node's"
        ) from err
    write_private(home / "ca.crt", ca_pem)
    identity.named(answer.name)
    kept = {
        "name": answer.name, "roles": answer.roles, "address": invitation.address,
        "coordinator": answer.coordinator, "party_address": party_address,
    }  # fmt: skip
    write_private(home / _FILE, json.dumps(kept, indent=2).encode())
    return Enrolment.load(home)


def fetch_studies(home: Path) -> list[dict[str, Any]]:
    """Fetches every study that the coordinator offers to this node.

    Returns:
        Dictionaries with `canonical` (base64 of the study's canonical JSON), `hash` and the coordinator's `signature`
        (both hex). Nothing in them is checked here.

    Raises:
        NotEnrolled, CoordinatorUnreachable, WrongCoordinator, CoordinatorRefused
    """
    identity, enrolment = NodeIdentity.load(home), Enrolment.load(home)
    query = StudiesQuery(identity=identity.identity_hex, timestamp=time.time(), nonce=secrets.token_hex(16))
    body = query.model_dump_json().encode()
    signature = identity.signer.sign(StudiesQuery.signed_part(body)).hex()
    answer = _post(enrolment.address, enrolment.ca_path.read_text(), STUDIES_PATH, body, {SIGNATURE_HEADER: signature})
    try:
        studies = json.loads(answer)["studies"]
        return [{name: str(study[name]) for name in ("canonical", "hash", "signature")} for study in studies]
    except (ValueError, KeyError, TypeError) as err:
        raise CoordinatorRefused("the coordinator's list of studies cannot be read; its version may differ") from err


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


def _fetch_ca(invitation: InvitationCode) -> bytes:
    """Fetches the CA certificate; the code holds its digest, so this one connection needs no verification."""
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    pem = _exchange("GET", invitation.address, unverified, CA_PATH, b"", {})
    try:
        found = hashlib.sha256(x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)).digest()
    except (ValueError, x509.InvalidVersion) as err:
        raise WrongCoordinator(f"{invitation.address} is not a coordinator: it has no CA certificate to show") from err
    if not secrets.compare_digest(found, invitation.ca_digest):
        raise WrongCoordinator(
            f"{invitation.address} is not the coordinator that issued this code: its CA certificate is another one. "
            "The code was not sent. Ask the operator whether the address is right."
        )
    return pem


def _post(address: str, ca_pem: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    verified = ssl.create_default_context(cadata=ca_pem)
    verified.minimum_version = ssl.TLSVersion.TLSv1_3
    return _exchange("POST", address, verified, path, body, headers)


def _exchange(
    method: str, address: str, context: ssl.SSLContext, path: str, body: bytes, headers: dict[str, str]
) -> bytes:
    """Sends one request to the gate and turns its failures into our errors."""
    import httpx  # for who asks alone: it is a tenth of what a light command may take

    try:
        with (
            httpx.Client(verify=context, timeout=_TIMEOUT, trust_env=False) as client,
            client.stream(method, f"https://{address}{path}", content=body, headers=headers) as response,
        ):
            answer = bytearray()
            for chunk in response.iter_bytes():
                answer += chunk
                if len(answer) > _MAX_ANSWER:
                    raise WrongCoordinator(f"{address} sent more than {_MAX_ANSWER} bytes; is it the coordinator?")
    except httpx.ConnectError as err:
        if "CERTIFICATE_VERIFY_FAILED" in str(err):
            raise WrongCoordinator(
                f"the certificate of {address} is not from this federation's CA, or not for that name"
            ) from err
        raise CoordinatorUnreachable(
            f"nobody answers at {address} ({err}); is the coordinator up, the port open?"
        ) from err
    except (httpx.HTTPError, httpx.InvalidURL) as err:
        raise CoordinatorUnreachable(f"{address} does not answer as a coordinator does ({type(err).__name__})") from err
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
    raise CoordinatorRefused(message or f"the coordinator refused the request ({status} {reason})")


def _make_party_certificate(home: Path) -> str:
    from ...mpc.links.certificates import make_certificate  # only aggregators need it

    folder = home / PARTY_FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    kept = folder / "party.pem"
    if not kept.exists():
        kept, _ = make_certificate(folder, "confide aggregator")
    return kept.read_text()

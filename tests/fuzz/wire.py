"""Bytes from the network: from a stranger at the gate, an enrolled node, the coordinator."""

import base64
import datetime as dt
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from pydantic import ValidationError

from confide.client_node import authority
from confide.client_node.enrolment import protocol
from confide.client_node.enrolment.identity import load_transport_public
from confide.client_node.enrolment.join_file import make_join_file, read_join_file
from confide.client_node.enrolment.outbound import check_proxy
from confide.client_node.enrolment.protocol import (
    AuthorityQuery,
    EnrolAnswer,
    EnrolRequest,
    InvitationCode,
    RotateRequest,
    StudiesQuery,
)
from confide.client_node.enrolment.sessions import Hello
from confide.client_node.errors import (
    CodeExpired,
    CodeInvalid,
    CoordinatorRefused,
    MessageInvalid,
    PacketInvalid,
    ProxyInvalid,
    StatementRefused,
)
from confide.client_node.flower import pack, unpack
from confide.client_node.spoken_hash import parse as parse_words
from confide.client_node.spoken_hash import words
from confide.client_node.study.state_format import StateFormat
from confide.client_node.succession import partners
from confide.client_node.succession.rotation import FollowRequest
from confide.client_node.wire import messages, one_body
from confide.client_node.wire.decisions import DecisionsWord
from confide.client_node.wire.messages import Packet, sign, verify
from confide.coordinator.fleet import flower as fleet_flower
from confide.coordinator.fleet.calls import read_ids, write_ids
from confide.coordinator.gateway.credentials import Credentials
from confide.privacy.ledger.succession import CoordinatorSuccession, Succession
from confide.versions import Speaks

from ..client_node.conftest import identity_of, key_of
from ..client_node.wire.test_messages import EVERY_MESSAGE
from .inputs import as_json, from_file, from_text, scratch
from .target import Target

_IDENTITY = identity_of("svi")
_MODELS = tuple(dict.fromkeys(map(type, EVERY_MESSAGE)))


def _bodies() -> list[bytes]:
    return [sign(message, key_of("svi")).body for message in EVERY_MESSAGE]


def _texts() -> list[bytes]:
    return [
        json.dumps({"kind": each.kind, "message": json.loads(each.model_dump_json())}).encode()
        for each in EVERY_MESSAGE
    ]


def _read_signed(data: bytes) -> object:
    """Signs whatever the bytes say with an enrolled key, as a site that lies would."""
    try:
        said = json.loads(data)
        kind, message = str(said["kind"]), json.dumps(said["message"])
        signature = key_of("svi").sign(messages._signed_bytes(kind, message, {})).hex()
        body = json.dumps({"kind": kind, "message": message, "blobs": {}, "signature": signature}).encode()
    except (ValueError, TypeError, KeyError, RecursionError):
        raise MessageInvalid("not even the liar can sign this") from None
    return verify(Packet(body), _IDENTITY, *_MODELS)


def _transport_keys() -> list[bytes]:
    key = ec.derive_private_key(2**200 + 7, ec.SECP384R1()).public_key()
    forms = ((Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), (Encoding.OpenSSH, PublicFormat.OpenSSH))
    return [key.public_bytes(*form) for form in forms]


def _headers() -> list[bytes]:
    key = ec.derive_private_key(2**200 + 7, ec.SECP384R1())
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    stamp = b"2026-01-31T12:00:00+00:00"
    signature = key.sign(stamp, ec.ECDSA(hashes.SHA256()))
    pairs = {
        fleet_flower.KEY_HEADER: base64.b64encode(pem),
        fleet_flower.SIGNATURE_HEADER: base64.b64encode(signature),
        fleet_flower.TIMESTAMP_HEADER: stamp,
    }
    return [b"\n".join(name + b":" + value for name, value in pairs.items())]


def _read_headers(data: bytes) -> object:
    shown = Credentials.read(tuple(line.partition(b":")[::2]) for line in data.split(b"\n"))
    try:
        shown.verify()
    except InvalidSignature:
        return None
    return shown.for_superlink()


_CALLS = (
    "push-messages",
    "pull-messages",
    "activate-node",
    "deactivate-node",
    "push-object",
    one_body.GIVE,
    one_body.TAKE,
)


def _claims() -> list[bytes]:
    push = PushMessagesRequest(
        node=Node(node_id=7), messages_list=[MessageProto()], message_object_trees=[ObjectTree(object_id="a" * 64)]
    )
    pull = PullMessagesRequest(node=Node(node_id=2**63))
    return [
        *(bytes([place]) + pull.SerializeToString() for place in (1, 6)),
        bytes([2]) + ActivateNodeRequest(public_key=b"key", heartbeat_interval=10.0).SerializeToString(),
        b"\x00" + push.SerializeToString(),
        b"\x05" + one_body.join([push.SerializeToString(), b"part", b""]),
    ]


def _read_claim(data: bytes) -> object:
    return fleet_flower.read_claim(_CALLS[data[0] % len(_CALLS)] if data else "push-messages", data[1:])


def _packed() -> list[bytes]:
    """Flower's objects of a packet, as frames: a node reads them from the coordinator, and the reverse."""
    records = pack(Packet(b"{}", {"state": bytes(130 << 10), "small": b"1"}))
    parts = get_all_nested_objects(records)
    return [
        one_body.join([records.object_id.encode(), *(name.encode() + part.deflate() for name, part in parts.items())])
    ]


def _read_packed(data: bytes) -> object:
    """Inflates the objects as `Session.receive` does, and unpacks what comes out."""
    first, *parts = one_body.split(data) or [b""]
    try:
        contents = {part[:64].decode("ascii"): part[64:] for part in parts}
        records: Any = inflate_object_from_contents(first.decode("ascii"), contents)
    except Exception as err:
        raise PacketInvalid("Flower cannot put it together") from err  # `Undelivered` at a node
    return unpack(records) if hasattr(records, "array_records") else None


def _model(model: Any) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        found = model.model_validate_json(data)
        return found.proven() if isinstance(found, EnrolRequest | RotateRequest) else found

    return read


def _read_follower(data: bytes) -> object:
    found = FollowRequest.model_validate_json(data)
    return found.keys(), [stated.problem() for stated in found.successions]


@cache
def _home() -> Path:
    return scratch("successions")


def _read_successions(data: bytes) -> object:
    """Reads what a list of studies says of keys of a study's parties, as `catalogue.refresh` does."""
    beside = b'{"studies": [{"canonical": "", "hash": "", "signature": "", "successions": %s}]}'
    studies, _ = protocol.read_listed(beside % data)
    offered = [each for study in studies for each in study.get("successions", ())]
    home = _home()
    (home / partners.FILE).unlink(missing_ok=True)
    return partners.take(home, [identity_of("coordinator")], {"svi": identity_of("next")}, offered)


def _join_files() -> list[bytes]:
    code = InvitationCode("fed.example.org:9443", b"s" * 16, b"c" * 32).text()
    made = make_join_file("north", ("train",), "Fever", code, dt.datetime(2099, 1, 1, tzinfo=dt.UTC))
    return [made.model_dump_json().encode()]


def _statements() -> list[bytes]:
    """Lists of one CA and of two, RSA and ECDSA, and one with a new key of the coordinator's."""
    pems = [
        _authority_of(rsa.generate_private_key(65537, 2048)),
        _authority_of(ec.generate_private_key(ec.SECP384R1())),
    ]
    lists = (tuple(pems[:1]), tuple(pems))
    issued = [authority.Statement.issue(each, key_of("svi"), made=1) for each in lists]
    followed = authority.Statement.issue(lists[0], key_of("next"), (_key_followed(),), made=1)
    return [each.model_dump_json().encode() for each in (*issued, followed)]


def _key_followed() -> CoordinatorSuccession:
    return CoordinatorSuccession.make(key_of("svi"), key_of("next"), "2026-03-01T09:00:00Z")


def _read_studies(data: bytes) -> object:
    """Reads a list of studies as `catalogue.refresh` does, from a coordinator that lies."""
    studies, listed = protocol.read_listed(data)
    return studies, listed and protocol.chain_problem(listed.successions, listed.coordinator)


def _authority_of(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "CA")])
    begins = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, begins, begins + dt.timedelta(days=9))
    constraints = x509.BasicConstraints(ca=True, path_length=None)
    return builder.add_extension(constraints, critical=True).sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _read_listed(data: bytes) -> object:
    """Reads what a statement lists, as if its signature held."""
    found = authority.Statement.model_validate_json(data).listed()
    return [authority._is_authority(each) for each in found]


_REQUEST = {
    "secret": "ab" * 16,
    "transport_public": "ecdsa-sha2-nistp384 AAAA",
    "identity": "cd" * 32,
    "roles_wanted": ["train"],
    "party_address": "agg.example.org:9000",
    "identity_proof": "ef" * 64,
    "transport_proof": "12" * 50,
}
_SUCCESSION = Succession.make(
    "svi", identity_of("coordinator"), key_of("svi"), key_of("next"), "2026-03-01T09:00:00Z"
).model_dump()
_QUERY = {"identity": "ab" * 32, "timestamp": 1.5, "nonce": "cd" * 16}
_FORMS = (StateFormat(kind="float32", dim=40), StateFormat(kind="int8", dim=200, exact=8))


def _states() -> list[bytes]:
    return [form.encode(np.linspace(-1, 1, form.dim, dtype=np.float32)) for form in _FORMS]


def _read_state(data: bytes) -> object:
    return _FORMS[len(data) != _FORMS[0].size].decode(data)


TARGETS = (
    Target(
        name="gate: key in a header",
        sender="a stranger",
        made=_transport_keys,
        read=load_transport_public,
        refusals=(ValueError,),
    ),
    Target(name="gate: headers", sender="a stranger", made=_headers, read=_read_headers, refusals=(ValueError,)),
    Target(
        name="gate: request to join",
        sender="a stranger",
        made=as_json(_REQUEST),
        read=_model(EnrolRequest),
        refusals=(ValidationError,),
    ),
    Target(
        name="gate: request for studies",
        sender="a stranger",
        made=as_json(_QUERY),
        read=_model(StudiesQuery),
        refusals=(ValidationError,),
    ),
    Target(
        name="gate: request for a new key",
        sender="a stranger",
        made=as_json({**_QUERY, "transport_public": "ecdsa-sha2-nistp384 AAAA", "transport_proof": "12" * 50}),
        read=_model(RotateRequest),
        refusals=(ValidationError,),
    ),
    Target(
        name="gate: request for a new identity",
        sender="a stranger",
        made=as_json({**_QUERY, "identity": _SUCCESSION["old"], "successions": [_SUCCESSION]}),
        read=_read_follower,
        refusals=(ValidationError,),
    ),
    Target(
        name="successions with a study",
        sender="the coordinator",
        made=as_json([_SUCCESSION]),
        read=_read_successions,
        refusals=(CoordinatorRefused,),
    ),
    Target(
        name="gate: question about CAs",
        sender="a stranger",
        made=as_json(
            {**_QUERY, "trusts": ["ab" * 32]},
            {**_QUERY, "trusts": ["ab" * 32, "cd" * 32], "coordinator": "ef" * 32},
        ),
        read=_model(AuthorityQuery),
        refusals=(ValidationError,),
    ),
    Target(
        name="gate: word on decisions",
        sender="a stranger",
        made=as_json(
            {
                **_QUERY,
                "coordinator": "ef" * 32,
                "decisions": [
                    {"study": "ab" * 32, "verdict": "approved", "runs_left": 3, "until": "2026-12-31"},
                    {"study": "cd" * 32, "verdict": "revoked", "runs_left": 0, "until": None},
                ],
            }
        ),
        read=_model(DecisionsWord),
        refusals=(ValidationError,),
    ),
    Target(
        name="list of CAs",
        sender="the coordinator, people",
        made=_statements,
        read=lambda data: authority.Statement.read(data, _IDENTITY),
        refusals=(StatementRefused,),
    ),
    Target(
        name="list of CAs, signed by a liar",
        sender="the coordinator",
        made=_statements,
        read=_read_listed,
        refusals=(ValidationError, StatementRefused),
    ),
    Target(
        name="gate: introduction",
        sender="an enrolled node",
        made=as_json({"version": "1.0", "oldest": 1, "newest": 2, "session": "ab" * 16, "place": "cd" * 16}),
        read=Hello.read,
        refusals=(ValueError,),
    ),
    Target(
        name="version and protocols",
        sender="the coordinator or a party",
        made=as_json({"version": "1.0", "oldest": 1, "newest": 2}),
        read=Speaks.read,
        refusals=(ValueError,),
    ),
    Target(
        name="gate: claims of a call", sender="an enrolled node", made=_claims, read=_read_claim, refusals=(ValueError,)
    ),
    Target(
        name="one body",
        sender="an enrolled node",
        made=lambda: [one_body.join([b"head", b"", b"part" * 9])],
        read=one_body.split,
        refusals=(ValueError,),
    ),
    Target(
        name="ids of nodes",
        sender="the SuperLink",
        made=lambda: [write_ids([1, 2**64 - 1])],
        read=read_ids,
        refusals=(ValueError,),
    ),
    Target(
        name="packet of Flower's objects",
        sender="the coordinator or a node",
        made=_packed,
        read=_read_packed,
        refusals=(PacketInvalid, ValueError),
    ),
    Target(
        name="message, unsigned",
        sender="the coordinator or a node",
        made=_bodies,
        read=lambda data: verify(Packet(data), _IDENTITY, *_MODELS),
        refusals=(MessageInvalid,),
    ),
    Target(
        name="message, signed by a liar",
        sender="an enrolled node",
        made=_texts,
        read=_read_signed,
        refusals=(MessageInvalid,),
    ),
    Target(
        name="start of a round", sender="the coordinator", made=_states, read=_read_state, refusals=(MessageInvalid,)
    ),
    Target(
        name="list of studies",
        sender="the coordinator",
        made=as_json(
            {"studies": [{"canonical": "e30=", "hash": "ab" * 32, "signature": "cd" * 64}]},
            {
                "studies": [{"canonical": "e30=", "hash": "ab" * 32, "signature": "cd" * 64, "successions": [{}]}],
                "coordinator": identity_of("next"),
                "successions": [_key_followed().model_dump()],
            },
        ),
        read=_read_studies,
        refusals=(CoordinatorRefused,),
    ),
    Target(
        name="answer to a request to join",
        sender="the coordinator",
        made=as_json(
            {"name": "north", "roles": ["train"], "coordinator": "ab" * 32},
            {
                "name": "north",
                "roles": ["train"],
                "coordinator": identity_of("next"),
                "successions": [_key_followed().model_dump()],
            },
        ),
        read=_model(EnrolAnswer),
        refusals=(ValidationError,),
    ),
    Target(
        name="invitation code",
        sender="people",
        made=lambda: [InvitationCode("fed.example.org:9443", b"s" * 16, b"c" * 32).text().encode()],
        read=from_text(InvitationCode.parse),
        refusals=(CodeInvalid,),
    ),
    Target(
        name="join file",
        sender="people",
        made=_join_files,
        read=from_file("north.join", read_join_file),
        refusals=(CodeInvalid, CodeExpired),
    ),
    Target(
        name="words of a hash",
        sender="people",
        made=lambda: [" ".join(words("ab" * 32)).encode(), b"cd" * 32],
        read=from_text(parse_words),
        refusals=(ValueError,),
        most=20_000,  # a wrong word is compared with all 2,048
    ),
    Target(
        name="proxy",
        sender="people",
        made=lambda: [b"http://user:pass@proxy.example.org:3128", b"env"],
        read=from_text(check_proxy),
        refusals=(ProxyInvalid,),
    ),
)

"""The node's end of Flower: a connection on which questions come and answers go. Only this file of the package
imports flwr.

It speaks the Fleet protocol of flwr 1.42, protobuf over HTTPS, and carries a message with its parts in one body
(`wire.one_body`), where Flower needs a request for each part. Unlike a stock SuperNode it
never fetches or runs an app bundle, so a site runs only code that it installed, and it starts no process for a message.

Public in Flower are `flwr.app` and the protocol's messages (`flwr.proto`). Not public, and so bound to one minor
version: the header names, `flwr.common.serde`, `flwr.app.message`, and `flwr.supercore.inflatable`, which cuts messages
into objects and puts them together. `tests/client_node/test_flower_contract.py` says what each must do.

Delivery is at most once: a message is lost if the process that pulled it dies. The coordinator then asks anew.
"""

from . import flower_version

# isort: split
import base64
import datetime as dt
import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    pull_and_inflate_object_from_tree,
    push_objects,
)

from .. import versions
from ..versions import OWN, Speaks
from .enrolment import Enrolment, NodeIdentity, outbound, protocol
from .enrolment.identity import wire_form
from .enrolment.sessions import HELLO_HEADER, SESSION_HEADER, Hello
from .errors import PacketInvalid, VersionRefused
from .wire import one_body
from .wire.messages import Packet

__all__ = ["FLOWER", "Connection", "Question", "Session", "Undelivered", "failure_text", "pack", "unpack"]

FLOWER = flower_version.MINOR
MAX_BODY = 1 << 20
MAX_PACKET = 1 << 30  # bytes of all blobs together
MAX_BLOBS = 4096
FAILED = 2  # Flower's code for "the app raised"

_SMALL = 128 << 10  # bytes; a blob up to this size travels in one record with the body
_LARGE = 4 << 20  # above, as an array
_BLOB, _STYPE = "blob/", "confide.bytes"
_INTERVAL_S = 10.0  # the shortest that Flower takes; it calls a node offline after two without a heartbeat
_HEARTBEAT_S = 5.0
_HEARTBEAT_CALL_S = 5.0
_CALL_S = 30.0
_TAKE_S = 75.0  # the gate holds this call, for less
_LEAVE_S = 2.0
_RETRY_S = (0.25, 5.0)
_ARRIVAL_S = 120.0  # for the parts of a message to arrive after its head
_PROTOBUF = "application/protobuf"
_FLEET = "/v1/fleet/"

T = TypeVar("T")


class Connection:
    """Sends one daemon's requests to the gate, each signed with the node's transport key."""

    def __init__(
        self, identity: NodeIdentity, enrolment: Enrolment, hello: Hello,
        on_sent: Callable[[int], None] = lambda num_bytes: None,
    ) -> None:  # fmt: skip
        self._enrolment, self._ca = enrolment, enrolment.ca_pem()
        self._client = self._opened(self._ca)
        self._outdated: list[httpx.Client] = []  # a heartbeat may be on its way on one of them
        self.told_authorities = ""  # `authority.mark` of the CAs that the gate wants trusted, as it said last
        self._url = f"https://{enrolment.address}"
        self._key, self._hello, self._on_sent = identity.transport_key, hello, on_sent
        self._name = identity.name
        self.gate: Speaks | None = None  # what the coordinator speaks, as it told last
        self.public_key = wire_form(identity.transport_public)

    def call(self, name: str, request: Any, answer_type: Callable[[], T], *, timeout: float = _CALL_S) -> T:
        """Sends one call of the Fleet protocol.

        Raises:
            VersionRefused: this version and the coordinator's have no protocol in common.
            httpx.HTTPError: what httpx raises, and for a refusal `httpx.HTTPStatusError`.
        """
        answer = answer_type()
        content = request.SerializeToString(deterministic=True)
        answer.ParseFromString(self.post(_FLEET + name, content, timeout=timeout))  # type: ignore[attr-defined]
        return answer

    def post(self, path: str, content: bytes, *, timeout: float = _CALL_S) -> bytes:
        """Sends a body; returns the answer's. Raises as `call` does."""
        headers = {"content-type": _PROTOBUF, "accept": _PROTOBUF, SESSION_HEADER: self._hello.session}
        if path == _FLEET + "activate-node":
            headers[HELLO_HEADER] = self._hello.model_dump_json()
        response = self._client.post(
            self._url + path, content=content, headers=headers | self._signed(), timeout=timeout
        )
        self._on_sent(len(content))
        self._require_common(response)
        self.told_authorities = response.headers.get(protocol.AUTHORITY_HEADER, self.told_authorities)
        return response.raise_for_status().content

    def _require_common(self, response: httpx.Response) -> None:
        """Notes what the coordinator speaks, where it tells. Raises `VersionRefused` unless that is ours as well."""
        if (told := response.headers.get(versions.HEADER)) is None:
            return
        try:
            self.gate = Speaks.read(told)
        except ValueError as err:
            raise VersionRefused("the coordinator's version cannot be read; upgrade this node first") from err
        if self.gate.common(OWN) is None:
            raise VersionRefused(versions.apart(self._name or "this node", OWN, self.gate))

    def trust_anew(self) -> bool:
        """Trusts what `ca.crt` holds now, on connections that are opened from now on; returns True if that is new.

        Raises:
            NotEnrolled: the file is damaged; what was trusted before is trusted on.
        """
        found = self._enrolment.ca_pem()
        if found == self._ca:
            return False
        opened = self._opened(found)
        for client in self._outdated:
            client.close()
        self._outdated = [self._client]
        self._client, self._ca = opened, found
        return True

    def close(self) -> None:
        """Closes every connection."""
        for client in (*self._outdated, self._client):
            client.close()

    def _opened(self, ca_pem: str) -> httpx.Client:
        return outbound.open_client(self._enrolment.address, outbound.trusting(ca_pem), self._enrolment.proxy, _CALL_S)

    def _signed(self) -> dict[str, str]:
        """Headers by which Flower knows a node: its key, the time, and the key's signature of the time."""
        stamp = dt.datetime.now(dt.UTC).isoformat()
        signature = self._key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
        return {
            FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(self.public_key).decode(),
            TIMESTAMP_HEADER: stamp,
            FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(signature).decode(),
        }


class Undelivered(Exception):
    """A message that did not arrive whole; Flower raises many kinds when parts are missing or malformed."""


@dataclass(frozen=True, slots=True)
class Question:
    """The head of a message to this node, and what came with it; `Session.receive` fetches the rest."""

    kind: str
    until: float  # seconds since the epoch; afterwards nobody waits for an answer
    head: Message
    tree: ObjectTree
    parts: Mapping[str, bytes] = field(default_factory=dict)  # by their SHA-256


class Session:
    """A node id at the SuperLink with its heartbeat; replaced by a new session after any failure."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._node = Node()
        self._over = threading.Event()
        self.is_taking = False  # true while it waits for a question
        self._broken: Exception | None = None
        self._pulse = threading.Thread(target=self._beat, name="confide-heartbeat", daemon=True)

    def open(self) -> None:
        """Tells the SuperLink that this node is there."""
        request = ActivateNodeRequest(public_key=self._connection.public_key, heartbeat_interval=_INTERVAL_S)
        self._node = Node(node_id=self._connection.call("activate-node", request, ActivateNodeResponse).node_id)
        self._pulse.start()

    def close(self) -> None:
        """Ends the heartbeat."""
        self._over.set()

    def leave(self) -> None:
        """Tells the SuperLink that this node stops, so that no round waits for it."""
        self._over.set()
        if self._pulse.is_alive():
            self._pulse.join(0.5)  # a beat after the goodbye would make the node one that has just connected
        if self._node.node_id:
            request = DeactivateNodeRequest(node_id=self._node.node_id)
            with suppress(httpx.HTTPError, RuntimeError):
                self._connection.call("deactivate-node", request, DeactivateNodeResponse, timeout=_LEAVE_S)

    def check(self) -> None:
        """Raises the error that the heartbeat met, if any."""
        if self._broken is not None:
            raise self._broken

    def pull(self) -> Question | None:
        """Takes the next message, if there is one."""
        request = PullMessagesRequest(node=self._node).SerializeToString()
        self.is_taking = True
        try:
            body = self._connection.post(one_body.CALLS + one_body.TAKE, request, timeout=_TAKE_S)
        finally:
            self.is_taking = False
        if not body:
            return None
        first, *parts = one_body.split(body)
        answer = PullMessagesResponse.FromString(first)
        head = message_from_proto(answer.messages_list[0])
        return Question(
            kind=head.metadata.message_type.partition(".")[2],
            until=head.metadata.created_at + head.metadata.ttl,
            head=head,
            tree=answer.message_object_trees[0],
            parts={hashlib.sha256(part).hexdigest(): part for part in parts},
        )

    def receive(self, question: Question) -> Message:
        """Receives the whole message; parts that did not come with its head may still be on their way to the SuperLink.

        After a broken connection it asks again for the missing parts, until the request's time is over; parts that
        have come are kept.

        Raises:
            Undelivered: it did not arrive whole.
            httpx.HTTPError: the connection broke for too long.
        """
        run_id, until = question.head.metadata.run_id, question.until

        def confirm(object_id: str) -> None:
            request = ConfirmMessageReceivedRequest(node=self._node, run_id=run_id, message_object_id=object_id)
            self._patiently("confirm-message-received", request, ConfirmMessageReceivedResponse, until)

        def pull_object(request: PullObjectRequest) -> PullObjectResponse:
            return self._patiently("pull-object", request, PullObjectResponse, until)

        fetch = make_pull_object_fn_protobuf(pull_object, self._node, run_id)
        try:
            if all(node.object_id in question.parts for node in iterate_object_tree(question.tree)):
                message = inflate_object_from_contents(question.tree.object_id, dict(question.parts))
                if not isinstance(message, Message):
                    raise TypeError(type(message).__name__)
            else:
                message = pull_and_inflate_object_from_tree(
                    question.tree, lambda name: question.parts.get(name) or fetch(name), confirm,
                    return_type=Message, initial_backoff=0.02, backoff_cap=0.5, max_time=_ARRIVAL_S,
                )  # fmt: skip
        except (httpx.HTTPError, OSError):
            raise
        except Exception as err:
            raise Undelivered(type(err).__name__) from err
        message.metadata.__dict__["_message_id"] = question.tree.object_id
        return message

    def answer(self, message: Message, records: RecordDict, *, until: float) -> None:
        """Sends the answer to a message; retries during short absences of the coordinator, `until` its time is over."""
        self._send(Message(records, reply_to=message), until)

    def fail(self, message: Message, told: str, *, until: float) -> None:
        """Sends a failure in place of an answer, as `failure_text` made it."""
        self._send(Message(Error(FAILED, told), reply_to=message), until)

    def _send(self, reply: Message, until: float) -> None:
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            tree, parts = get_object_tree(reply), get_all_nested_objects(reply)
            # Flower would send how long the app ran, which grows with the number of drawn records: we send 0.
            request = PushMessagesRequest(
                node=self._node, messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[tree], clientapp_runtime_list=[0.0],
            )  # fmt: skip
            frames = [request.SerializeToString(), *one_body.fitting(part.deflate() for part in parts.values())]
            body = one_body.join(frames)
            answer = PushMessagesResponse.FromString(
                _patiently(lambda: self._connection.post(one_body.CALLS + one_body.GIVE, body), until)
            )

            def push_object(part: PushObjectRequest) -> PushObjectResponse:
                return self._patiently("push-object", part, PushObjectResponse, until)

            if answer.objects_to_push:
                push = make_push_object_fn_protobuf(push_object, self._node, reply.metadata.run_id, answer.session_id)
                push_objects(parts, push, object_ids_to_push=set(answer.objects_to_push))

    def _patiently(self, name: str, request: Any, answer_type: Callable[[], T], until: float) -> T:
        return _patiently(lambda: self._connection.call(name, request, answer_type), until)

    def _beat(self) -> None:
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=_INTERVAL_S)
        while not self._over.wait(_HEARTBEAT_S * random.uniform(0.9, 1.0)):  # noqa: S311 (spreads load, guards nothing)
            try:
                if self.is_taking:
                    continue  # the gate holds the request, and vouches for this node as long as it does
                answer = self._connection.call(
                    "send-node-heartbeat", request, SendNodeHeartbeatResponse, timeout=_HEARTBEAT_CALL_S
                )
                if not answer.success:
                    raise RuntimeError("the SuperLink does not know this node any more")
            except httpx.TransportError:
                continue  # the next pull meets it too
            except Exception as err:
                self._broken = err
                return


def _patiently(ask: Callable[[], T], until: float) -> T:
    """Asks, and again during short absences of the coordinator, `until` the time is over."""
    delay = _RETRY_S[0]
    while True:
        try:
            return ask()
        except (httpx.TransportError, httpx.HTTPStatusError) as err:
            away = isinstance(err, httpx.TransportError) or err.response.status_code in (502, 503, 504)
            if not away or time.time() + delay > until:
                raise
        time.sleep(delay)
        delay = min(delay * 1.7, _RETRY_S[1])


def pack(packet: Packet) -> RecordDict:
    """Packs a packet into Flower's records, in as few objects as possible: each costs several requests on its way.

    The body and small blobs are one record. A larger blob has a record of its own, so that a blob
    for all nodes is uploaded once when their messages are pushed together. The largest blobs are arrays, which Flower
    cuts at 5 MiB.

    Raises:
        PacketInvalid: the packet is over the limits.
    """
    _check(packet)
    small = {_BLOB + name: blob for name, blob in packet.blobs.items() if len(blob) <= _SMALL}
    records = RecordDict({"packet": ConfigRecord({"body": packet.body, **small})})
    for name, blob in packet.blobs.items():
        if len(blob) > _LARGE:
            array = Array(dtype="uint8", shape=(len(blob),), stype=_STYPE, data=blob)
            records[_BLOB + name] = ArrayRecord({"data": array})
        elif len(blob) > _SMALL:
            records[_BLOB + name] = ConfigRecord({"data": blob})
    return records


def unpack(records: RecordDict) -> Packet:
    """Unpacks the packet in a message from the network. Raises `PacketInvalid` unless `pack` could have made it."""
    first = records.get("packet")
    if not isinstance(first, ConfigRecord):
        raise PacketInvalid("a message has no packet")
    parts: dict[str, Any] = dict(first)
    body = parts.pop("body", None)
    for name, record in records.items():
        if name == "packet":
            continue
        if name in parts or not isinstance(record, ConfigRecord | ArrayRecord) or set(record) != {"data"}:
            raise PacketInvalid("a blob is there twice, or not alone in its record")
        data = record["data"]
        parts[name] = bytes(data.data) if isinstance(data, Array) and data.stype == _STYPE else data
    if not isinstance(body, bytes) or not all(isinstance(part, bytes) for part in parts.values()):
        raise PacketInvalid("a message's parts must be bytes")
    if not all(name.startswith(_BLOB) for name in parts):
        raise PacketInvalid("a message has a part that does not belong there")
    packet = Packet(body, {name.removeprefix(_BLOB): part for name, part in parts.items()})
    _check(packet)
    return packet


def _check(packet: Packet) -> None:
    if len(packet.body) > MAX_BODY:
        raise PacketInvalid(f"a message's body may have {MAX_BODY} bytes, this one has {len(packet.body)}")
    if len(packet.blobs) > MAX_BLOBS or packet.size - len(packet.body) > MAX_PACKET:
        raise PacketInvalid(f"a message may carry {MAX_BLOBS} blobs and {MAX_PACKET} bytes; this one is over that")


def failure_text(error: str, message: str) -> str:
    """Encodes a handler's failure for Flower's one text field."""
    return json.dumps({"error": error[:64], "message": message[:2000]})

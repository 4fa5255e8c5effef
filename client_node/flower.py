"""The node's end of Flower: a long-lived process that answers messages. Only this file of the package imports flwr.

It speaks the Fleet protocol of flwr 1.42 with Flower's own client. Unlike a stock SuperNode it never fetches or runs an
app bundle, so a site runs only code that it installed, and it starts no process for a message.
`flwr.supernode.fleet_http_client` and `flwr.supercore.inflatable` are not public API: the minor version is pinned, and
the system tests drive this file against a real SuperLink.

Delivery is at most once: a message is lost if the process that pulled it dies. The coordinator then asks anew.
"""

import base64
import datetime as dt
import json
import logging
import random
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
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
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, push_objects
from flwr.supernode.fleet_http_client import FleetHttpClient

from .enrolment import Enrolment, NodeIdentity
from .enrolment.identity import wire_form
from .errors import ClientNodeError, PacketInvalid
from .wire.messages import Packet

logger = logging.getLogger(__name__)

STOPPED, REFUSED = 0, 77  # exit codes; a supervisor starts the node again unless it was refused
MAX_BODY = 1 << 20
MAX_PACKET = 1 << 30  # bytes of all blobs together
MAX_BLOBS = 4096
FAILED = 2  # Flower's code for "the app raised"

_SMALL = 128 << 10  # bytes; a blob up to this size travels in one record with the body
_LARGE = 4 << 20  # above, as an array
_BLOB, _STYPE = "blob/", "confide.bytes"
_REFUSED_HEADER = "confide-refused"
_HEARTBEAT_S = 15.0  # Flower calls a node offline after two of these
_POLL_S = (0.05, 0.5)  # from the last message on
_RESTING_POLL_S = 2.0  # after a minute without a message
_RESTING_AFTER_S = 60.0
_BUSY_S = 1.0  # keeps the shortest poll this long after a message: the next phase of a round follows soon
_RETRY_S = (0.25, 5.0)
_ARRIVAL_S = 120.0  # for the parts of a message to arrive after its head

T = TypeVar("T")


class WarmNode:
    """Pulls messages for this node and answers each with the packet that `handle(kind, packet)` returns.

    A handler's failure is answered with the error's class name. Its text is sent only if it is a ClientNodeError whose
    `public` is true, because any other text may quote a record.
    """

    def __init__(self, identity: NodeIdentity, enrolment: Enrolment, handle: Callable[[str, Packet], Packet]) -> None:
        self._identity, self._enrolment, self._handle = identity, enrolment, handle
        self._last_complaint = ("", 0.0)

    def run(self, stop: threading.Event) -> int:
        """Serves until `stop` is set; keeps reconnecting while the coordinator is away.

        Returns:
            0 when stopped, 77 when the coordinator refuses this node's key.
        """
        delay = _RETRY_S[0]
        with self._client() as client:
            session = _Session(client, self._identity)
            while not stop.is_set():
                try:
                    session.open()
                    logger.info("%s is connected to %s", self._identity.name, self._enrolment.address)
                    delay = _RETRY_S[0]
                    self._serve(session, stop)
                except Exception as err:  # a daemon outlives whatever Flower raises
                    if reason := _refusal(err):
                        logger.error("%s", _REFUSALS.get(reason, _REFUSALS["unknown"]) % self._enrolment.address)
                        return REFUSED
                    self._complain(err)
                finally:
                    session.close()
                if not stop.wait(delay * random.uniform(0.8, 1.2)):  # noqa: S311 (spreads load, guards nothing)
                    session = _Session(client, self._identity)
                delay = min(delay * 1.7, _RETRY_S[1])
            session.leave()
        return STOPPED

    def _client(self) -> FleetHttpClient:
        context = ssl.create_default_context(cafile=str(self._enrolment.ca_path))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        address = f"https://{self._enrolment.address}"
        return FleetHttpClient(address, interceptors=[_Signing(self._identity)], verify=context)

    def _serve(self, session: "_Session", stop: threading.Event) -> None:
        last, wait = time.monotonic(), _POLL_S[0]
        while not stop.is_set():
            session.check()
            asked = time.monotonic()
            head = session.pull()
            idle = time.monotonic() - last
            if head is None:
                if time.monotonic() - asked > _POLL_S[1]:
                    continue  # the gate held the poll until now
                if idle > _BUSY_S:
                    wait = _RESTING_POLL_S if idle > _RESTING_AFTER_S else min(wait * 1.3, _POLL_S[1])
                stop.wait(wait * random.uniform(0.8, 1.2))  # noqa: S311
                continue
            try:
                self._answer(session, *head)
            except httpx.HTTPStatusError as err:
                if err.response.status_code != httpx.codes.FORBIDDEN:
                    raise
                logger.warning("the run that asked is over; its message was dropped")
            last, wait = time.monotonic(), _POLL_S[0]

    def _answer(self, session: "_Session", head: Message, tree: ObjectTree) -> None:
        kind = head.metadata.message_type.partition(".")[2]
        try:
            message = session.receive(head, tree)
        except (httpx.HTTPError, OSError):
            raise
        except Exception as err:  # Flower raises many kinds when parts are missing or malformed
            logger.warning("%s: the message did not arrive whole (%s)", kind, type(err).__name__)
            return
        received = 0
        try:
            packet = unpack(message.content)
            received = _size(packet)
            reply = Message(pack(self._handle(kind, packet)), reply_to=message)
            outcome = "answered"
        except Exception as err:  # the coordinator is told that it failed; the daemon lives on
            reply = Message(Error(FAILED, _told(err)), reply_to=message)
            outcome = f"failed: {type(err).__name__}"
            logger.debug("handler failed", exc_info=True)
        # No duration: it grows with the number of drawn records, and logs may leave the site.
        logger.info("%s: %d bytes, %s", kind, received, outcome)
        del message
        session.send(reply, until=head.metadata.created_at + head.metadata.ttl)

    def _complain(self, err: Exception) -> None:
        """Logs one line when the trouble changes, and one a minute while it lasts."""
        text, now = _trouble(err), time.monotonic()
        if text != self._last_complaint[0] or now - self._last_complaint[1] > 60:
            logger.warning("%s: %s; trying again", self._enrolment.address, text)
            self._last_complaint = (text, now)


class _Signing:
    """Signs the time of each request with the transport key, as Flower's own interceptor does.

    Flower's imports a web framework: half a second at every start of a node, and as much memory as all the rest.
    """

    def __init__(self, identity: NodeIdentity) -> None:
        self._key = identity.transport_key
        self._public = base64.b64encode(wire_form(identity.transport_public)).decode()

    def intercept(self, context: Any, call_next: Callable[[Any], httpx.Response]) -> httpx.Response:
        stamp = dt.datetime.now(dt.UTC).isoformat()
        signature = self._key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
        context.request.headers.update(
            {
                FLEET_HTTP_PUBLIC_KEY_HEADER: self._public,
                TIMESTAMP_HEADER: stamp,
                FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(signature).decode(),
            }
        )
        return call_next(context)


class _Session:
    """A node id at the SuperLink with its heartbeat; replaced by a new session after any failure."""

    def __init__(self, client: FleetHttpClient, identity: NodeIdentity) -> None:
        self._client, self._identity = client, identity
        self._node = Node()
        self._over = threading.Event()
        self._broken: Exception | None = None
        self._pulse = threading.Thread(target=self._beat, name="confide-heartbeat", daemon=True)

    def open(self) -> None:
        request = ActivateNodeRequest(
            public_key=wire_form(self._identity.transport_public), heartbeat_interval=_HEARTBEAT_S
        )
        self._node = Node(node_id=self._client.ActivateNode(request).node_id)
        self._pulse.start()

    def close(self) -> None:
        self._over.set()

    def leave(self) -> None:
        """Tells the SuperLink that this node stops, so that no round waits for it."""
        if self._node.node_id:
            with suppress(httpx.HTTPError, RuntimeError):
                self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))

    def check(self) -> None:
        """Raises the error that the heartbeat met, if any."""
        if self._broken is not None:
            raise self._broken

    def pull(self) -> tuple[Message, ObjectTree] | None:
        answer = self._client.PullMessages(PullMessagesRequest(node=self._node))
        if not answer.messages_list:
            return None
        return message_from_proto(answer.messages_list[0]), answer.message_object_trees[0]

    def receive(self, head: Message, tree: ObjectTree) -> Message:
        """Receives the whole message; its parts may still be on their way to the SuperLink.

        After a broken connection it asks again for the missing parts, until the request's time is over; parts that
        have come are kept.
        """
        run_id, until = head.metadata.run_id, head.metadata.created_at + head.metadata.ttl

        def confirm(object_id: str) -> None:
            request = ConfirmMessageReceivedRequest(node=self._node, run_id=run_id, message_object_id=object_id)
            _patiently(lambda: self._client.ConfirmMessageReceived(request), until)

        def pull_object(request: PullObjectRequest) -> Any:
            return _patiently(lambda: self._client.PullObject(request), until)

        message = pull_and_inflate_object_from_tree(
            tree, make_pull_object_fn_protobuf(pull_object, self._node, run_id), confirm, return_type=Message,
            initial_backoff=0.02, backoff_cap=0.5, max_time=_ARRIVAL_S,
        )  # fmt: skip
        message.metadata.__dict__["_message_id"] = tree.object_id
        return message

    def send(self, reply: Message, *, until: float) -> None:
        """Sends a reply; retries during short absences of the coordinator, until the request's time is over."""
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            tree, parts = get_object_tree(reply), get_all_nested_objects(reply)
            # Flower would send how long the app ran, which grows with the number of drawn records: we send 0.
            request = PushMessagesRequest(
                node=self._node, messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[tree], clientapp_runtime_list=[0.0],
            )  # fmt: skip
            answer = _patiently(lambda: self._client.PushMessages(request), until)

            def push_object(part: PushObjectRequest) -> Any:
                return _patiently(lambda: self._client.PushObject(part), until)

            push = make_push_object_fn_protobuf(push_object, self._node, reply.metadata.run_id, answer.session_id)
            push_objects(parts, push, object_ids_to_push=set(answer.objects_to_push))

    def _beat(self) -> None:
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=_HEARTBEAT_S)
        while not self._over.wait(_HEARTBEAT_S * random.uniform(0.5, 0.6)):  # noqa: S311
            try:
                if not self._client.SendNodeHeartbeat(request).success:
                    raise RuntimeError("the SuperLink does not know this node any more")
            except httpx.TransportError:
                continue  # the next pull meets it too
            except Exception as err:
                self._broken = err
                return


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
    if len(packet.blobs) > MAX_BLOBS or _size(packet) - len(packet.body) > MAX_PACKET:
        raise PacketInvalid(f"a message may carry {MAX_BLOBS} blobs and {MAX_PACKET} bytes; this one is over that")


def _size(packet: Packet) -> int:
    return len(packet.body) + sum(map(len, packet.blobs.values()))


def failure_text(error: str, message: str) -> str:
    """Encodes a handler's failure for Flower's one text field."""
    return json.dumps({"error": error[:64], "message": message[:2000]})


def _told(err: Exception) -> str:
    is_public = isinstance(err, ClientNodeError) and err.public
    return failure_text(type(err).__name__, str(err) if is_public else "")


def _patiently(call: Callable[[], T], until: float) -> T:
    delay = _RETRY_S[0]
    while True:
        try:
            return call()
        except (httpx.TransportError, httpx.HTTPStatusError) as err:
            away = isinstance(err, httpx.TransportError) or err.response.status_code in (502, 503, 504)
            if not away or time.time() + delay > until:
                raise
        time.sleep(delay)
        delay = min(delay * 1.7, _RETRY_S[1])


def _refusal(err: Exception) -> str | None:
    """Reason for which the gate refuses this node for good; None if trying again may help."""
    if isinstance(err, httpx.HTTPStatusError) and err.response.status_code == httpx.codes.UNAUTHORIZED:
        reason: str | None = err.response.headers.get(_REFUSED_HEADER)
        return reason
    return None


_REFUSALS: Mapping[str, str] = {
    "revoked": "the coordinator at %s has revoked this node; ask its operator, and enrol anew with a new code",
    "unknown": "the coordinator at %s does not know this node's key; enrol this node, or check which home it uses",
    "signature": "the coordinator at %s cannot verify this node's signature; restore its keys from a backup",
}


def _trouble(err: Exception) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(err):
        return "its certificate is not from the CA that this node enrolled with, or not for that name; nothing was sent"
    if isinstance(err, httpx.TransportError):
        return "the coordinator does not answer"
    if isinstance(err, httpx.HTTPStatusError):
        code = err.response.status_code
        return f"the coordinator cannot serve this node just now ({code}); check this machine's clock if it lasts"
    return f"the connection broke ({type(err).__name__})"

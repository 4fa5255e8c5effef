"""The coordinator's end of Flower. Besides the SuperLink's own process the only file of this package that imports flwr.

`Fleet` runs in the process that drives a run, over a `Carrier`. `open_grid` gives it one, on Flower's Grid: it does
what Flower's own `flwr-serverapp` does for a ServerApp, but in a process that is warm already, so a run starts at once
also on a busy machine. `Control` runs in `coordinator serve` and speaks to the SuperLink's interfaces on loopback, one
small HTTP request for each order: the `flwr` command would take two seconds to start. The rest reads the few protobuf
fields that the gate checks.

Public in Flower are `flwr.app`, `flwr.serverapp` and the messages of `flwr.proto`. The rest of what is imported here is
bound to one minor version; `tests/coordinator/fleet/test_flower_contract.py` says what each part must do.
"""

from ...client_node import flower_version  # noqa: F401 (refuses another Flower in words, before its modules fail)

# isort: split
import hashlib
import json
import logging
import ssl
import time
import warnings
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx
from flwr.app import Error, Message
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.constant import TIMESTAMP_HEADER as _TIMESTAMP
from flwr.common.serde import fab_to_proto, message_from_proto, message_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListNodesResponse,
    RegisterNodeRequest,
    RegisterNodeResponse,
    StartRunRequest,
    StartRunResponse,
    StopRunRequest,
    StopRunResponse,
    UnregisterNodeRequest,
    UnregisterNodeResponse,
)
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    AcquireTaskResponse,
    GetNodesRequest,
    GetNodesResponse,
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
    PushTaskOutputRequest,
)
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    TASK_TOKEN_HEADER,
    TaskType,
)
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.superlink.grid import HttpGrid

from ...client_node.enrolment.identity import fingerprint, wire_form
from ...client_node.errors import PacketInvalid
from ...client_node.flower import pack, unpack
from ...client_node.wire import one_body
from ...client_node.wire.messages import Packet
from ...models.strict import one_line
from ..errors import SuperLinkFailed
from .calls import COLLECT, NODES, SEND, WAIT_HEADER
from .nodes import NodeFailure
from .wake import wake

logger = logging.getLogger(__name__)

KEY_HEADER = FLEET_HTTP_PUBLIC_KEY_HEADER.encode()
SIGNATURE_HEADER = FLEET_HTTP_SIGNATURE_HEADER.encode()
TIMESTAMP_HEADER = _TIMESTAMP.encode()

_ANSWER_S = 30.0  # for the SuperLink to answer; Flower's own patience
_WAIT_S = 5.0  # for answers, until a waiting driver looks by itself whether a node has connected anew
_RESTARTED = "it has connected anew since it was asked, and the question is lost"
_CALL_S = 4.0  # `serve` must end within 5 s, also while the SuperLink hangs
_RETRY_S = 5.0  # for the SuperLink to come back; one that was started anew knows no earlier task
_FAILURE = 32 << 10  # characters of a node's failure, in which one may be written as twelve
_KEY_TAKEN = 23  # Flower's ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE

T = TypeVar("T")

_fingerprint = lru_cache(maxsize=4096)(fingerprint)  # of the same keys many times in a round


class Fleet:
    """The federation's nodes by name, for the driver of a run.

    A node is identified by its enrolled key: `names` (transport key's fingerprint -> name, without those that are
    revoked) comes from the coordinator's own register. The name that Flower keeps beside a node is never used.
    """

    def __init__(self, carrier: "Carrier", names: Callable[[], Mapping[str, str]] | None = None) -> None:
        self._carrier, self._names = carrier, names

    def trust(self, names: Callable[[], Mapping[str, str]]) -> None:
        """Sets the register that maps keys to names, and is read each time; before, no node is known."""
        self._names = names

    def online(self) -> set[str]:
        """Names the nodes whose heartbeat has not lapsed."""
        return {name for name, node in self._nodes().items() if node.is_online}

    def ask(
        self, kind: str, requests: Mapping[str, Packet], timeout: float, *, together: bool = False
    ) -> Iterator[tuple[str, Packet | NodeFailure]]:
        """Sends each node its packet and yields one answer or failure for each name, as it arrives.

        Blobs that several requests share are uploaded once. A request that is not taken within `timeout` seconds is
        never delivered later.

        Args:
            kind: the kind of message for the node's handler, a Python identifier.
            requests: node name -> packet.
            timeout: seconds; missing answers are then yielded as failures.
            together: see `nodes.Fleet`.
        """
        deadline = time.monotonic() + timeout
        waiting = yield from self._send(kind, requests, timeout)
        while waiting:
            left = deadline - time.monotonic()
            before = len(waiting)
            for reply in self._carrier.collect(waiting, min(_WAIT_S, max(left, 0.0))):
                if (asked := waiting.get(reply.metadata.reply_to_message_id)) is None:
                    continue
                if reply.metadata.src_node_id not in (asked.node_id, SUPERLINK_NODE_ID):
                    logger.warning("node %d answered in place of %s; ignored", reply.metadata.src_node_id, asked.name)
                    continue
                del waiting[reply.metadata.reply_to_message_id]
                yield asked.name, _read_reply(reply)
            if len(waiting) < before:
                continue
            lost = [waiting.pop(message_id).name for message_id in self._lost(waiting)]
            left = deadline - time.monotonic()
            # Once one of them has answered or failed, nobody waits for those that come back.
            if together and left > 0 and waiting and len(waiting) + len(lost) == len(requests):
                waiting |= yield from self._send(kind, {name: requests[name] for name in lost}, left)
            else:
                for name in lost:
                    yield name, NodeFailure(reason="restarted", message=_RESTARTED)
            if left <= 0:
                break
        for asked in waiting.values():
            yield asked.name, NodeFailure(reason="timeout", message=f"no answer within {timeout:g} s")

    def _send(
        self, kind: str, requests: Mapping[str, Packet], timeout: float
    ) -> Generator[tuple[str, NodeFailure], None, dict[str, "_Asked"]]:
        """Sends each node its packet; yields the failures, and returns what was sent by the message's id."""
        nodes = self._nodes()
        reached = [name for name in requests if name in nodes]
        for name in requests:
            if name not in nodes:
                yield name, NodeFailure(reason="offline", message="it is not connected")
        messages = [
            Message(pack(requests[name]), nodes[name].node_id, f"query.{kind}", ttl=timeout, group_id="")
            for name in reached
        ]
        taken = self._carrier.send(messages) if messages else []
        if len(taken) != len(messages):
            raise SuperLinkFailed(f"the SuperLink took {len(taken)} of {len(messages)} messages")
        sent: dict[str, _Asked] = {}
        for name, each in zip(reached, taken, strict=True):
            if not each.message_id:
                yield name, NodeFailure(reason="unknown", message="its key is not registered with the SuperLink")
            else:
                sent[each.message_id] = _Asked(name, nodes[name].node_id, each.activation)
        wake([asked.node_id for asked in sent.values()])
        return sent

    def _lost(self, waiting: Mapping[str, "_Asked"]) -> list[str]:
        """Finds the messages to nodes that have connected anew since: whatever they had taken before is lost.

        A node connects anew only when it was started, or has given up what it did, and the SuperLink then drops what it
        was asked before and has not taken. Activations are told apart by being the same or not, never by their order:
        the clock may have been set back in between.
        """
        nodes = self._nodes()
        return [
            message_id
            for message_id, asked in waiting.items()
            if asked.name in nodes and nodes[asked.name].activation != asked.activation
        ]

    def _nodes(self) -> dict[str, "_Node"]:
        if self._names is None:
            raise SuperLinkFailed("the fleet has no register of keys; call Fleet.trust first")
        found, names = dict[str, _Node](), self._names()
        for node in self._carrier.nodes():
            name, is_online = names.get(_fingerprint(node.public_key)), node.online_until > time.time()
            if name is not None and (is_online or name not in found):
                found[name] = _Node(node.node_id, is_online, node.last_activated_at)
        return found


@dataclass(frozen=True, slots=True)
class _Node:
    """A node as the SuperLink knows it."""

    node_id: int
    is_online: bool
    activation: str  # its last one, as the SuperLink names it


@dataclass(frozen=True, slots=True)
class _Asked:
    """A message that waits for its answer."""

    name: str
    node_id: int
    activation: str  # of the node, when the SuperLink took the message


def _read_reply(reply: Message) -> Packet | NodeFailure:
    if reply.has_error():
        if reply.metadata.src_node_id != SUPERLINK_NODE_ID:
            return _read_failure(reply.error.reason or "")
        if reply.error.code == ErrorCode.NODE_UNAVAILABLE:
            return NodeFailure(reason="offline")
        return NodeFailure(reason="timeout", message="the message or its answer expired or did not arrive whole")
    try:
        return unpack(reply.content)
    except PacketInvalid as err:
        return NodeFailure(reason="invalid", message=str(err))


def _read_failure(text: str) -> NodeFailure:
    """Reads what `failure_text` wrote at a node, or anything else: nothing of it is signed, and it goes into logs."""
    try:
        told = json.loads(text) if len(text) <= _FAILURE else {}
        error, message = told["error"], told["message"]
    except (ValueError, KeyError, TypeError, RecursionError):  # the last at brackets within brackets
        error = message = None
    if not isinstance(error, str) or not isinstance(message, str):
        return NodeFailure(reason="failed", error="unreadable")
    return NodeFailure(reason="failed", error=one_line(error[:64]), message=one_line(message[:2000]))


@dataclass(frozen=True, slots=True)
class Sent:
    """A message as it was sent: its id, empty if it was not taken, and the activation of its node at that moment."""

    message_id: str
    activation: str = ""


class Carrier(Protocol):
    """Carries messages between a driver and the nodes."""

    def nodes(self) -> Iterable[NodeInfo]:
        """Lists the nodes that are online."""

    def send(self, messages: Sequence[Message]) -> list[Sent]:
        """Sends messages; returns what became of them in the same order."""

    def collect(self, asked: Collection[str], wait_s: float) -> list[Message]:
        """Takes answers to these messages that are whole, as soon as there are some.

        Returns none when `wait_s` seconds are over, and before that when a node has connected.
        """


@dataclass(slots=True)
class _Batch:
    """Messages of one request, and those of their parts that no request before it had."""

    heads: list[ProtoMessage] = field(default_factory=list)
    trees: list[ObjectTree] = field(default_factory=list)
    fresh: list[bytes] = field(default_factory=list)
    room: int = one_body.ROOM

    def is_full_for(self, more: Iterable[bytes]) -> bool:
        """True if these parts would fit into a request of their own, and do not into this one any more."""
        return self.room < sum(map(len, more)) <= one_body.ROOM

    def add(self, head: ProtoMessage, tree: ObjectTree, fresh: Iterable[bytes]) -> None:
        """Adds a message. What of it no request has room for travels alone."""
        self.heads.append(head)
        self.trees.append(tree)
        for part in one_body.fitting(fresh, self.room, most=1 << 20):
            self.fresh.append(part)
            self.room -= len(part)


class OneBodyGrid(HttpGrid):
    """Flower's Grid, and a `Carrier` that needs one request for what the Grid does in many (`superlink_process`)."""

    def nodes(self) -> Iterable[NodeInfo]:
        """See `Carrier`."""
        answer = self._ask(NODES, GetNodesRequest().SerializeToString())
        return list(GetNodesResponse.FromString(answer).nodes)

    def send(self, messages: Sequence[Message]) -> list[Sent]:
        """See `Carrier`. Each request has as many messages as it has room for all parts of.

        Nodes poll all the while. One that takes a message whose parts come one by one, behind those of hundreds of
        others, gives it up.
        """
        sent: list[Sent] = []
        batch, parts = _Batch(), dict[str, bytes]()
        with no_object_id_recompute():
            for message in messages:
                message.metadata.__dict__["_message_id"] = message.object_id
                objects = get_all_nested_objects(message)
                fresh = {name: part.deflate() for name, part in objects.items() if name not in parts}
                if batch.is_full_for(fresh.values()):
                    sent += self._send(batch, parts)
                    batch = _Batch()
                parts |= fresh
                head = message_to_proto(remove_content_from_message(message))
                batch.add(head, get_object_tree(message), fresh.values())
        return sent + (self._send(batch, parts) if batch.heads else [])

    def _send(self, batch: "_Batch", parts: Mapping[str, bytes]) -> list[Sent]:
        pushed = PushAppMessagesRequest(messages_list=batch.heads, message_object_trees=batch.trees)
        body = one_body.join([pushed.SerializeToString(), *batch.fresh])
        first, *activations = one_body.split(self._ask(SEND, body), most=len(batch.heads) + 1)
        answer = PushAppMessagesResponse.FromString(first)
        for name in answer.objects_to_push:
            request = PushObjectRequest(
                node=self.node, run_id=self.run.run_id, object_id=name, object_content=parts[name],
                session_id=answer.session_id,
            )  # fmt: skip
            if not self._runtime_client.PushObject(request).stored:
                # Its node has connected anew, and its question is gone: `Fleet` sees that by the node's activation.
                logger.warning("the SuperLink has no message any more for a part that it asked for")
        return [Sent(*pair) for pair in zip(answer.message_ids, map(bytes.decode, activations), strict=True)]

    def collect(self, asked: Collection[str], wait_s: float) -> list[Message]:
        """See `Carrier`."""
        request = PullAppMessagesRequest(message_ids=asked).SerializeToString()
        body = self._ask(COLLECT, request, wait_s)
        if not body:
            return []
        head, *parts = one_body.split(body, most=1 << 20)
        found = PullAppMessagesResponse.FromString(head)
        contents = {hashlib.sha256(part).hexdigest(): part for part in parts}
        pairs = zip(found.messages_list, found.message_object_trees, strict=True)
        return [_inflated(message_from_proto(head), tree, contents) for head, tree in pairs]

    def _ask(self, path: str, body: bytes, wait_s: float = 0.0) -> bytes:
        """Sends one of our own calls, over the Grid's connections; tries again for a while if they break."""
        headers = {TASK_TOKEN_HEADER: self._token, WAIT_HEADER: f"{wait_s:.3f}"}
        url, timeout = f"https://{self._addr}{path}", _ANSWER_S + wait_s

        def send() -> httpx.Response:
            answer = self._runtime_client._client.post(url, content=body, headers=headers, timeout=timeout)
            return answer.raise_for_status()

        return bytes(self._retry_invoker.invoke(send).content)


def _inflated(head: Message, tree: ObjectTree, parts: dict[str, bytes]) -> Message:
    """Puts an answer together; what is no answer of its sender to this question becomes a failure to answer it."""
    try:
        message = inflate_object_from_contents(tree.object_id, parts, keep_object_contents=True)
        if not isinstance(message, Message):
            raise TypeError(type(message).__name__)
        own, told = message.metadata, head.metadata
        if (own.src_node_id, own.reply_to_message_id) != (told.src_node_id, told.reply_to_message_id):
            raise ValueError("it says that it is another's")
    except Exception as err:  # Flower raises many kinds; the bytes are a node's
        logger.warning("an answer of node %d cannot be read (%s)", head.metadata.src_node_id, type(err).__name__)
        head.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
        return make_message(metadata=head.metadata, error=Error(ErrorCode.MESSAGE_UNAVAILABLE, "unreadable"))
    return message


@dataclass(frozen=True, slots=True)
class Task:
    """Permission to speak to nodes in one run of Flower's; a driver must use it within 30 seconds."""

    flower_run: int
    token: str = field(repr=False)


@contextmanager
def open_grid(port: int, ca_path: Path, token: str) -> Iterator[OneBodyGrid]:
    """Opens Flower's Grid for the task of `token`, and tells the SuperLink at the end that the task is done.

    One at a time in a process: Flower keeps the identity of its task in a class. While it is open a thread keeps the
    task alive; if the SuperLink has ended the task, it interrupts the main thread as Ctrl-C does.

    Raises:
        httpx.HTTPError: the SuperLink does not answer, or does not know the task.
    """
    from flwr.common.constant import SubStatus
    from flwr.common.serde import run_from_proto
    from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
    from flwr.supercore.task_identity import TaskIdentity

    grid = OneBodyGrid(f"127.0.0.1:{port}", root_certificates=ca_path.read_bytes(), token=token)
    grid._retry_invoker.max_time = _RETRY_S
    client = grid._runtime_client
    try:
        task = client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, task.run.run_id
        TaskIdentity.node_id = task.context.node_id
        grid.set_run(run_from_proto(task.run))
        pulse = HeartbeatSender(make_task_heartbeat_fn_http(client))
        pulse.start()
        try:
            yield grid
        finally:
            if pulse.is_running:  # it ends by itself if the SuperLink refuses it
                pulse.stop()
            grid._retry_invoker.max_tries = 1
            with suppress(httpx.HTTPError):  # it also finds out by itself, from the missing heartbeats
                client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.COMPLETED))
    finally:
        grid.close()


class Control:
    """Sends orders to the SuperLink over its operator interface on loopback."""

    def __init__(self, port: int, ca_path: Path) -> None:
        self._client = httpx.Client(
            base_url=f"https://127.0.0.1:{port}", verify=ssl.create_default_context(cafile=str(ca_path)),
            timeout=_CALL_S, trust_env=False,
            headers={"content-type": "application/protobuf", "accept": "application/protobuf"},
        )  # fmt: skip

    def register(self, transport_public: bytes, name: str) -> int:
        """Registers a key; returns its node id, the present one if the key is registered already."""
        key = wire_form(transport_public)
        try:
            request = RegisterNodeRequest(public_key=key, name=name)
            return int(self._call("control/register-node", request, RegisterNodeResponse).node_id)
        except _KeyTaken:
            nodes = self._call("control/list-nodes", ListNodesRequest(), ListNodesResponse).nodes_info
            return int(next(node.node_id for node in nodes if node.public_key == key))

    def unregister(self, node_id: int) -> None:
        """Unregisters a node; an unknown node is no error."""
        try:
            self._call("control/unregister-node", UnregisterNodeRequest(node_id=node_id), UnregisterNodeResponse)
        except _NotFound:
            logger.debug("node %d was not registered", node_id)

    def is_up(self) -> bool:
        """True if the SuperLink answers."""
        try:
            self._call("control/list-nodes", ListNodesRequest(), ListNodesResponse)
        except SuperLinkFailed:
            return False
        return True

    def start_task(self, fab: bytes) -> Task:
        """Starts a run of Flower's and claims its task, so that nobody else drives it."""
        bundle = fab_to_proto(Fab(hashlib.sha256(fab).hexdigest(), fab, {}))
        answer = self._call("control/start-run", StartRunRequest(fab=bundle), StartRunResponse)
        if not answer.HasField("run_id"):
            raise SuperLinkFailed("the SuperLink did not start the run; its log says why")
        wanted = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
        while True:
            claimed = self._call("runtime/acquire-task", wanted, AcquireTaskResponse)
            if not claimed.token:
                raise SuperLinkFailed("the SuperLink has no task for the run that it started")
            if claimed.task.run_id == answer.run_id:
                return Task(int(answer.run_id), claimed.token)
            self.stop_run(claimed.task.run_id)  # left over by a start that was interrupted just here

    def stop_run(self, flower_run: int) -> None:
        """Ends a run of Flower's: nodes are given no more messages of it."""
        self._call("control/stop-run", StopRunRequest(run_id=flower_run), StopRunResponse)

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def _call(self, order: str, request: Any, answer_type: Callable[[], T]) -> T:
        try:
            response = self._client.post(f"/v1/{order}", content=request.SerializeToString())
        except httpx.HTTPError as err:
            raise SuperLinkFailed(f"the SuperLink does not answer ({type(err).__name__})") from err
        if response.is_error:
            code = _error_code(response.content)
            refused = _KeyTaken if code == _KEY_TAKEN else _NotFound if response.status_code == 404 else SuperLinkFailed
            raise refused(f"the SuperLink refused {order}: {response.status_code}, code {code}")
        answer = answer_type()
        answer.ParseFromString(response.content)  # type: ignore[attr-defined]
        return answer


class _KeyTaken(SuperLinkFailed):
    pass


class _NotFound(SuperLinkFailed):
    pass


def _error_code(content: bytes) -> int | None:
    try:
        code = json.loads(content)["code"]
        return int(code)
    except (ValueError, KeyError, TypeError):
        return None


def build_fab(folder: Path) -> bytes:
    """Builds the app bundle of `folder`, as `flwr run` would send it."""
    from flwr.cli.build import build_fab_from_disk  # half a second to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Flower's use of pathspec
        return bytes(build_fab_from_disk(folder))


@dataclass(frozen=True, slots=True)
class Claim:
    """The claims of a node's request: the nodes that it speaks for, and the number of parts of its message."""

    node_ids: tuple[int, ...]  # of the caller first, then of the senders of its messages; empty for an activation
    parts: int = 0


_NODE_CALLS: Mapping[str, Callable[[bytes], Any]] = {
    "send-node-heartbeat": SendNodeHeartbeatRequest.FromString,
    "pull-messages": PullMessagesRequest.FromString,
    one_body.TAKE: PullMessagesRequest.FromString,
    "pull-object": PullObjectRequest.FromString,
    "push-object": PushObjectRequest.FromString,
    "confirm-message-received": ConfirmMessageReceivedRequest.FromString,
}


def read_claim(call: str, body: bytes) -> Claim:
    """Reads from a request's body the claims that the gate checks. Raises ValueError if it cannot be read."""
    try:
        if call == "activate-node":
            ActivateNodeRequest.FromString(body)
            return Claim(())
        if call == "deactivate-node":
            return Claim((DeactivateNodeRequest.FromString(body).node_id,))
        if call in ("push-messages", one_body.GIVE):
            push = PushMessagesRequest.FromString(body if call == "push-messages" else _head(body))
            if len(push.messages_list) != 1 or len(push.message_object_trees) != 1:
                raise ValueError("one message at a time")
            senders = (push.node.node_id, *(message.metadata.src_node_id for message in push.messages_list))
            return Claim(senders, _count(push.message_object_trees[0]))
        return Claim((_NODE_CALLS[call](body).node.node_id,))
    except ValueError:
        raise
    except Exception as err:  # protobuf's DecodeError derives from Exception alone
        raise ValueError("not a protobuf message of this call") from err


def _head(body: bytes) -> bytes:
    frames = one_body.split(body)
    if not frames or len(frames[0]) > one_body.HEAD:
        raise ValueError("a body without a head, or with one that is too long")
    return frames[0]


def heartbeat_taken() -> bytes:
    """Writes the answer to a heartbeat of a node that the SuperLink knows."""
    return bytes(SendNodeHeartbeatResponse(success=True).SerializeToString())


def deactivation(node_id: int) -> bytes:
    """Writes the request that makes the SuperLink count a node as offline."""
    return bytes(DeactivateNodeRequest(node_id=node_id).SerializeToString())


def activated_node(answer: bytes) -> int:
    """Reads the node id with which the SuperLink answered an activation."""
    return int(ActivateNodeResponse.FromString(answer).node_id)


def _count(tree: ObjectTree) -> int:
    return 1 + sum(_count(child) for child in tree.children)

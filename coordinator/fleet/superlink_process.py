"""The SuperLink's process: Flower's own, with calls that carry a message and its parts in one body.

Flower moves a message as a head and its parts, a request each, some twenty for a question and its answer. Each costs
the SuperLink milliseconds around a handler that takes microseconds. The calls here do the same steps by Flower's own
handlers and state, in one request: a node takes a question, a node gives its answer, a driver sends questions, a driver
collects answers as soon as they are whole. Flower's own calls stay, and both may be mixed: what does not fit into one
body travels by them.

A node is authenticated as Flower does it, a driver by its task's token, the gate by a secret that its parent drew. The
gate vouches for the nodes that hold a connection to it, which then send no heartbeats.

Run by `gateway.superlink` with the arguments of `flower-superlink`; imports modules of Flower that are bound to one
minor version, and nobody imports it but tests.
"""

from ...client_node import flower_version  # noqa: F401 (refuses another Flower in words, before its modules fail)

# isort: split
import asyncio
import datetime as dt
import hashlib
import hmac
import json
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import uvicorn
from flwr.app import Message
from flwr.common.constant import Status
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PushObjectRequest
from flwr.proto.runtime_pb2 import (
    GetNodesRequest,
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PushAppMessagesRequest,
)
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.linkstate import linkstate_factory
from flwr.supercore.constant import TASK_TOKEN_HEADER, NodeStatus
from flwr.supercore.error import FlowerError
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.superlink import extensions
from flwr.superlink.cli import flower_superlink
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request

from ...client_node.wire import one_body
from . import calls
from .link_state import ListedLinkState

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 75  # for connections of the gate, whose handshakes cost as much as a question
_HEAD = 4 << 10  # bytes of a request that carries nothing
_SENT = 256 << 20  # bytes of what a driver or the gate sends, which have shown who they are before
_IN_THREAD = 1 << 18  # bytes of a body from which on it is handled beside the others
_LONGEST_WAIT_S = 30.0
_LOOK_S = 1.0  # how often a waiting driver's questions are looked through for those that nobody will answer
_ANSWERS = one_body.ROOM  # bytes of the answers that are collected at a time, if there is more than one
_BEAT = 10.0  # seconds; the shortest interval that Flower takes
_ACTIVATION = "/v1/fleet/activate-node"
_CHANGING = ("/v1/fleet/push-messages", "/v1/fleet/push-object", _ACTIVATION)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
Headers = dict[str, str]


class Changes:
    """Tells those who wait in the SuperLink's loop that there may be answers, or that a node has connected."""

    def __init__(self) -> None:
        self.answers, self.nodes = 0, 0
        self._event = asyncio.Event()

    def note(self, *, nodes: bool = False) -> None:
        """Wakes everybody who waits."""
        self.answers += 1
        self.nodes += nodes
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, since: int, seconds: float) -> None:
        """Waits until `answers` is not `since` any more, or so long."""
        if self.answers == since:
            try:
                async with asyncio.timeout(seconds):
                    await self._event.wait()
            except TimeoutError:
                pass


class OneBody:
    """ASGI middleware around Flower's app that answers the calls of our own."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], *, secret: bytes = b"") -> None:
        self._app, self._secret = app, secret
        self._changes = Changes()
        self._calls: dict[str, Callable[[Request, Receive], Awaitable[tuple[bytes, Headers]]]] = {
            one_body.CALLS + one_body.TAKE: self._take,
            one_body.CALLS + one_body.GIVE: self._give,
            calls.SEND: self._send,
            calls.COLLECT: self._collect,
            calls.NODES: self._nodes,
            calls.BEATS: self._beats,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or lets Flower do it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope["path"]
        call = self._calls.get(path) if scope["method"] == "POST" else None
        if call is None:
            return await self._app(scope, receive, self._noting(path, send) if path in _CHANGING else send)
        status, headers = 200, Headers()
        try:
            answer, headers = await call(Request(scope), receive)
        except FlowerError as err:
            told = API_ERROR_MAP[err.code]
            logger.info("[%s][ApiError:%s] %s", path, err.code, err.message)
            status, answer = told.http_status_code, json.dumps(err.to_json(told.public_message)).encode()
        except HTTPException as err:
            status, answer = err.status_code, b""
        except ValueError:
            status, answer = 400, b""
        except Exception as err:  # as Flower does: the caller learns no more
            logger.error("[%s][UnexpectedError:%s]", path, type(err).__name__, exc_info=True)
            status, answer = 500, b""
        shown = [(name.encode(), value.encode()) for name, value in headers.items()]
        shown.append((b"content-length", str(len(answer)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": shown})
        await send({"type": "http.response.body", "body": answer})
        return None

    def _noting(self, path: str, send: Send) -> Send:
        """Wraps `send` so that a change is noted when Flower has answered with 200, and no refused one."""

        async def noted(event: Scope) -> None:
            await send(event)
            if event["type"] == "http.response.start" and event["status"] == 200:
                self._changes.note(nodes=path == _ACTIVATION)

        return noted

    async def _take(self, request: Request, receive: Receive) -> tuple[bytes, Headers]:
        asked = _read(PullMessagesRequest, await _body(receive, _HEAD))
        state = _of_node(request, asked)
        found = next_question(state, asked)
        if not found.messages_list:
            return b"", {}
        run_id, tree = found.messages_list[0].metadata.run_id, found.message_object_trees[0]
        names = _names(tree)
        parts = one_body.fitting(part for name in names if (part := state.get_object(run_id, name)))
        if len(parts) == len(names):
            received = ConfirmMessageReceivedRequest(run_id=run_id, message_object_id=tree.object_id, node=asked.node)
            fleet_handlers.confirm_message_received(received, state, state.object_store)
        more = state.is_waited_for(asked.node.node_id)
        return one_body.join([found.SerializeToString(), *parts]), {calls.MORE_HEADER: str(int(more))}

    async def _give(self, request: Request, receive: Receive) -> tuple[bytes, Headers]:
        body = await _body(receive, one_body.MAX_BODY)
        head, *parts = _frames(body)
        pushed = _read(PushMessagesRequest, head)
        state = _of_node(request, pushed)
        answer = await _beside(len(body), give, state, pushed, parts)
        self._changes.note()
        return answer.SerializeToString(), {}

    async def _send(self, request: Request, receive: Receive) -> tuple[bytes, Headers]:
        state, task = _of_task(request)
        body = await _body(receive, _SENT)
        head, *parts = _frames(body, most=1 << 20)
        pushed = _read(PushAppMessagesRequest, head)
        answer = await _beside(len(body), send_questions, state, task, pushed, parts)
        activations = (state.activation_at(name).encode() for name in answer.message_ids)
        return one_body.join([answer.SerializeToString(), *activations]), {}

    async def _collect(self, request: Request, receive: Receive) -> tuple[bytes, Headers]:
        state, task = _of_task(request)
        wait_s = float(request.headers.get(calls.WAIT_HEADER, "0"))
        if not math.isfinite(wait_s):
            raise ValueError("a wait that never ends")
        asked = list(dict.fromkeys(_read(PullAppMessagesRequest, await _body(receive, _SENT)).message_ids))
        loop = asyncio.get_running_loop()
        until = loop.time() + min(wait_s, _LONGEST_WAIT_S)
        look, nodes = min(loop.time() + _LOOK_S, until), self._changes.nodes
        gone = asyncio.ensure_future(receive())  # the next that comes is the end of the connection
        try:
            while not gone.done():  # else the answers would be handed out to nobody
                seen, now = self._changes.answers, loop.time()
                found = whole_answers(state, task.run_id, asked)
                if not found and now >= look:
                    found, look = unanswerable(state, task.run_id, asked), min(now + _LOOK_S, until)
                if found:
                    return one_body.join(packed(state, found)), {}
                if now >= until or self._changes.nodes != nodes:
                    break
                await self._changes.wait(seen, max(0.001, min(look, until) - now))
        finally:
            gone.cancel()
        return b"", {}

    async def _nodes(self, request: Request, receive: Receive) -> tuple[bytes, Headers]:
        state, task = _of_task(request)
        asked = _read(GetNodesRequest, await _body(receive, _HEAD))
        return runtime_handlers.get_nodes(asked, state, task).SerializeToString(), {}

    async def _beats(self, request: Request, receive: Receive) -> tuple[bytes, Headers]:
        shown = request.headers.get(calls.SECRET_HEADER, "").encode()
        if not self._secret or not hmac.compare_digest(shown, self._secret):
            raise HTTPException(401)
        state, nodes = _state(request), calls.read_ids(await _body(receive, _SENT))
        online = {node.node_id for node in state.get_node_info(node_ids=nodes, statuses=[NodeStatus.ONLINE])}
        for node in online:  # of others it would be an activation, also of one that has just said that it stops
            state.acknowledge_node_heartbeat(node, _BEAT)
        unknown = [node for node in nodes if node not in online]
        return calls.Beats(unknown=unknown, waiting=state.waited_for()).to_json(), {}


def next_question(state: ListedLinkState, asked: PullMessagesRequest) -> Any:
    """Takes a node's next question of a run that is not over; drops those of runs that are.

    A driver that died leaves them behind, and Flower refuses whatever a node then asks about them.
    """
    while (found := fleet_handlers.pull_messages(asked, state, state.object_store)).messages_list:
        head = found.messages_list[0].metadata
        if state.get_run_status({head.run_id})[head.run_id].status != Status.FINISHED:
            break
        state.delete_messages({head.message_id})
        state.object_store.delete(head.message_id)
    return found


def give(state: ListedLinkState, pushed: PushMessagesRequest, parts: Iterable[bytes]) -> Any:
    """Stores a node's answer with its parts; what the answer names as missing then is to be pushed part by part."""
    answer = fleet_handlers.push_messages(pushed, state)
    run_id, missing = pushed.messages_list[0].metadata.run_id, set(answer.objects_to_push)
    for name, part in _named(parts):
        if name in missing:
            request = PushObjectRequest(
                node=pushed.node, run_id=run_id, object_id=name, object_content=part, session_id=answer.session_id
            )
            if fleet_handlers.push_object(request, state).stored:
                missing.remove(name)
    answer.objects_to_push[:] = [name for name in answer.objects_to_push if name in missing]
    return answer


def send_questions(state: ListedLinkState, task: Task, pushed: PushAppMessagesRequest, parts: Iterable[bytes]) -> Any:
    """Stores a driver's questions with their parts, as `give` does."""
    answer = runtime_handlers.push_messages(pushed, state, task)
    missing = set(answer.objects_to_push)
    for name, part in _named(parts):
        if name in missing and state.store_object(task.run_id, answer.session_id, name, part):
            missing.remove(name)
    answer.objects_to_push[:] = [name for name in answer.objects_to_push if name in missing]
    return answer


def whole_answers(state: ListedLinkState, run_id: int, asked: Iterable[str]) -> list[Message]:
    """Claims answers to these questions of which every part is there, as many as `_ANSWERS` bytes, or one.

    Flower's own way says "offline" in place of an answer whose node has left since. A node that was removed answers
    nothing any more.
    """
    chosen, room = list[Message](), _ANSWERS
    with state.lock:  # an answer is stored in two steps, by another thread if it is a large one
        for question in asked:
            answer = state.message_ins_id_to_message_res_id.get(question)
            if answer is None or (size := _size(state, answer)) is None or (chosen and size > room):
                continue
            message = state.message_res_store[answer]
            head, node = message.metadata, state.nodes.get(message.metadata.src_node_id)
            if head.run_id != run_id:
                raise ValueError("a question of another run")
            is_over = head.created_at + head.ttl <= time.time()
            if head.delivered_at != "" or is_over or node is None or node.status == NodeStatus.UNREGISTERED:
                continue
            head.delivered_at = dt.datetime.now(dt.UTC).isoformat()
            chosen.append(message)
            room -= size
    return chosen


def unanswerable(state: ListedLinkState, run_id: int, asked: Iterable[str]) -> list[Message]:
    """Claims what Flower says in place of answers that will not come, or not whole: of expired questions and of nodes
    that are offline.
    """
    online = {node.node_id for node in state.get_node_info(statuses=[NodeStatus.ONLINE])}
    hopeless = set()
    with state.lock:
        for question in asked:
            answer = state.message_ins_id_to_message_res_id.get(question)
            if answer is None or state.message_res_store[answer].metadata.src_node_id not in online:
                hopeless.add(question)
        return state.get_message_res(hopeless, run_id) if hopeless else []


def packed(state: ListedLinkState, answers: Iterable[Message]) -> list[bytes]:
    """Frames of claimed answers: their heads and trees, then each part once. Drops them and their questions."""
    store, heads, trees = state.object_store, [], []
    parts: dict[str, bytes] = {}
    for answer in answers:
        name = answer.metadata.message_id
        try:
            tree = store.get_object_tree(name)
        except NoObjectInStoreError:
            tree = ObjectTree(object_id=name)  # of which the driver finds no part: it did not arrive whole
        heads.append(message_to_proto(answer))
        trees.append(tree)
        parts |= {name: store.get(name) or b"" for name in _names(tree)}
    for head in heads:
        question = head.metadata.reply_to_message_id
        if half := state.message_ins_id_to_message_res_id.get(question):
            store.delete(half)  # in place of which Flower has said something else
        state.delete_messages(message_ins_ids={question})
        store.delete(head.metadata.message_id)
        store.delete(question)  # which a node that was killed has not confirmed
    response = PullAppMessagesResponse(messages_list=heads, message_object_trees=trees)
    return [response.SerializeToString(), *parts.values()]


def _size(state: ListedLinkState, message_id: str) -> int | None:
    """Bytes of a message's parts; None while some of them have not come."""
    try:
        names = _names(state.object_store.get_object_tree(message_id))
    except NoObjectInStoreError:  # it took too long to come, and Flower has given it up
        return None
    sizes = [len(state.object_store.get(name) or b"") for name in names]
    return sum(sizes) if all(sizes) else None


def _names(tree: ObjectTree) -> list[str]:
    return list(dict.fromkeys(node.object_id for node in iterate_object_tree(tree)))


def _named(parts: Iterable[bytes]) -> Iterable[tuple[str, bytes]]:
    return ((hashlib.sha256(part).hexdigest(), part) for part in parts)


def _frames(body: bytes, most: int = one_body.MOST + 1) -> list[bytes]:
    if not (frames := one_body.split(body, most)):
        raise ValueError("a body without a head")
    return frames


def _read(kind: Any, content: bytes) -> Any:
    try:
        return kind.FromString(content)
    except Exception as err:  # protobuf's DecodeError derives from Exception alone
        raise ValueError("not a protobuf message of this call") from err


def _state(request: Request) -> ListedLinkState:
    state: ListedLinkState = request.app.state.linkstate_factory.state()
    return state


def _of_node(request: Request, message: Any) -> ListedLinkState:
    request.state.protobuf_request = message
    authenticate_node(request)
    return _state(request)


def _of_task(request: Request) -> tuple[ListedLinkState, Task]:
    state, tokens = _state(request), request.headers.getlist(TASK_TOKEN_HEADER)
    task = state.get_task_by_token(tokens[0]) if len(tokens) == 1 else None
    if task is None:
        raise HTTPException(401)
    return state, task


async def _beside(size: int, handler: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a handler in the loop, or in a thread if its hashing would hold up the others."""
    return handler(*arguments) if size < _IN_THREAD else await run_in_threadpool(handler, *arguments)


async def _body(receive: Receive, most: int) -> bytes:
    """Reads a body. Raises `HTTPException` (413) as soon as it has more than `most` bytes."""
    body, more = bytearray(), True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ValueError("the connection broke")
        body += event.get("body", b"")
        if len(body) > most:
            raise HTTPException(413)
        more = event.get("more_body", False)
    return bytes(body)


def main() -> None:
    """Runs `flower-superlink` with `OneBody` around it, on a `ListedLinkState`."""
    secret = os.environ.pop(calls.SECRET_VARIABLE, "").encode()
    extensions.get_middleware = lambda: (Middleware(OneBody, secret=secret),)
    linkstate_factory.InMemoryLinkState = ListedLinkState  # type: ignore[assignment, attr-defined]
    serve = uvicorn.run

    def run(*arguments: Any, **more: Any) -> None:
        more |= {"timeout_keep_alive": KEEP_ALIVE_S, "access_log": False}  # no line for each request of each node
        serve(*arguments, **more)

    uvicorn.run = run
    flower_superlink()


if __name__ == "__main__":
    main()

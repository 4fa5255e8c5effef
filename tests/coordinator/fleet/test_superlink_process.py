"""Questions and answers in one body: Flower's own SuperLink with our calls, the gate and nodes, all in this process."""

import asyncio
import datetime as dt
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.app import Message
from flwr.common.constant import NOOP_FLWR_AID
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.server.superlink.linkstate import linkstate_factory
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink import extensions, main
from hypothesis import given
from hypothesis import strategies as st
from starlette.middleware import Middleware

from confide.client_node import flower as node_flower
from confide.client_node.enrolment import Enrolment, NodeIdentity, outbound
from confide.client_node.enrolment.identity import wire_form
from confide.client_node.enrolment.sessions import LOCK_FILE, Hello
from confide.client_node.flower import Connection, Session, pack, unpack
from confide.client_node.warm_node import WarmNode
from confide.client_node.wire import one_body
from confide.client_node.wire.messages import Packet
from confide.coordinator.federation.pki import Pki
from confide.coordinator.fleet import calls, flower, superlink_process
from confide.coordinator.fleet.flower import Fleet, OneBodyGrid, open_grid
from confide.coordinator.fleet.link_state import ListedLinkState
from confide.coordinator.fleet.nodes import NodeFailure
from confide.coordinator.fleet.superlink_process import OneBody, whole_answers
from confide.coordinator.fleet.wake import PORT_VARIABLE
from confide.coordinator.gateway import vouching
from confide.coordinator.gateway.crowd import Limits
from confide.coordinator.gateway.gate import FleetGate, serve_gate

from ..gateway.played import PlayedRegister

SECRET = "s" * 64
ROOMY = Limits(per_address=1000)
LARGE = secrets.token_bytes(9 << 20)  # of which one part of 5 MiB does not fit into the first body


class Chain:
    """SuperLink and gate with their state, before which `north` and `south` are enrolled."""

    def __init__(self, home: Path, pki: Pki, stack: ExitStack) -> None:
        self.home, self.pki, self._stack = home, pki, stack
        self.app = main.create_app()
        self.state: ListedLinkState = self.app.state.linkstate_factory.state()
        self.requests: list[str] = []
        self.superlink = serve_gate(self._counted, "127.0.0.1", 0, pki.certificate_path, pki.key_path, limits=ROOMY)
        stack.callback(self.superlink.stop)
        self.register = PlayedRegister()
        self.gate_app = FleetGate(
            self.register, enrol=lambda _: pytest.fail("no"), rotate=lambda _: "",
            studies=lambda _: {"studies": []}, ca_path=pki.ca_path,
            superlink=self.superlink.port, secret=SECRET,
        )  # fmt: skip
        self.gate = serve_gate(self.gate_app, "127.0.0.1", 0, pki.certificate_path, pki.key_path, limits=ROOMY)
        stack.callback(self.gate.stop)
        self.identities = {name: self._enrol(name) for name in ("north", "south")}

    async def _counted(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.requests.append(scope["path"])
        await self.app(scope, receive, send)

    def _enrol(self, name: str) -> NodeIdentity:
        identity = NodeIdentity.create(self.home / name, name)
        (self.home / name / LOCK_FILE).touch()
        (self.home / name / "ca.crt").write_bytes(self.pki.ca_path.read_bytes())
        facts = {"name": name, "roles": ["train"], "address": f"127.0.0.1:{self.gate.port}",
                 "coordinator": self.pki.identity_hex}  # fmt: skip
        (self.home / name / "enrolment.json").write_text(json.dumps(facts))
        self.register.known[identity.transport_fingerprint] = name
        self.state.create_node(NOOP_FLWR_AID, "", wire_form(identity.transport_public), 0)
        return identity

    def node_id(self, name: str) -> int:
        found = self.state.get_node_id_by_public_key(wire_form(self.identities[name].transport_public))
        assert found is not None
        return found

    def connection(self, name: str) -> Connection:
        home = self.home / name
        connection = Connection(NodeIdentity.load(home), Enrolment.load(home), Hello.of(home))
        self._stack.callback(connection.close)
        return connection

    def session(self, name: str) -> Session:
        """A node in the test's hand: connected, and asking for nothing by itself."""
        session = Session(self.connection(name))
        session.open()
        self._stack.callback(session.close)
        return session

    def serve_and_drive(self, handle: Callable[[str, Packet], Packet] = lambda kind, packet: packet) -> Fleet:
        """A warm node at north that answers by itself, and a driver that sees it."""
        home, stop = self.home / "north", threading.Event()
        node = WarmNode(NodeIdentity.load(home), Enrolment.load(home), handle)
        thread = threading.Thread(target=node.run, args=(stop,))
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(stop.set)
        fleet = self.drive()
        until(lambda: "north" in fleet.online())
        return fleet

    def drive(self) -> Fleet:
        """The driver of a new run."""
        run = self.state.create_run(
            "", "", self.fab(), {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        (task,) = self.state.get_tasks(run_ids=[run])
        token = self.state.claim_task(task.task_id)
        assert token is not None
        grid = self._stack.enter_context(open_grid(self.superlink.port, self.pki.ca_path, token))
        assert isinstance(grid, OneBodyGrid)
        return Fleet(grid, lambda: self.register.known)

    def fab(self) -> str:
        return self.state.store_fab(Fab("", b"nothing to run", {}))

    def post(self, path: str, body: bytes, **headers: str) -> httpx.Response:
        """A request to the SuperLink itself, as any process of this machine may send."""
        trusting = outbound.trusting(self.pki.ca_path.read_text())
        return httpx.post(
            f"https://127.0.0.1:{self.superlink.port}{path}", content=body, headers=headers, verify=trusting
        )


def grid_of(fleet: Fleet) -> OneBodyGrid:
    assert isinstance(fleet._carrier, OneBodyGrid)
    return fleet._carrier


def until(met: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not met():
        assert time.monotonic() < end, "not met in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.create(tmp_path_factory.mktemp("coordinator"), [])


@pytest.fixture
def chain(pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chain]:
    monkeypatch.setattr(extensions, "get_middleware", lambda: (Middleware(OneBody, secret=SECRET.encode()),))
    monkeypatch.setattr(linkstate_factory, "InMemoryLinkState", ListedLinkState)
    monkeypatch.setattr(vouching, "BEAT_S", 0.3)
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, None)
    with ExitStack() as stack:
        made = Chain(tmp_path, pki, stack)
        monkeypatch.setenv(PORT_VARIABLE, str(made.superlink.port))
        yield made


def test_a_question_and_its_answer_are_four_requests_to_the_superlink(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(lambda: chain.requests.count(calls.BEATS) > 1)
    monkeypatch.setattr(vouching, "BEAT_S", 60.0)  # one just now may have seen the question before its node took it
    time.sleep(0.5)
    fleet = chain.serve_and_drive()
    packet = Packet(b"{}", {"state": secrets.token_bytes(300_000)})
    assert dict(fleet.ask("plan", {"north": packet}, 30.0)) == {"north": packet}
    chain.requests.clear()  # from now on its request is held, and the SuperLink is asked only when it is called
    assert dict(fleet.ask("plan", {"north": packet}, 30.0)) == {"north": packet}
    own = Counter(path for path in chain.requests if path not in (calls.NODES, calls.BEATS, calls.COLLECT))
    assert own == {calls.SEND: 1, one_body.CALLS + one_body.TAKE: 1, one_body.CALLS + one_body.GIVE: 1}
    assert not chain.state.message_ins_store
    assert len(chain.state.object_store) == 0


def test_what_does_not_fit_into_one_body_travels_by_flowers_own_calls(chain: Chain) -> None:
    fleet = chain.serve_and_drive()
    packet = Packet(b"{}", {"state": LARGE})
    assert dict(fleet.ask("plan", {"north": packet}, 60.0)) == {"north": packet}
    assert {"/v1/fleet/pull-object", "/v1/fleet/push-object", "/v1/runtime/push-object"} <= set(chain.requests)
    assert len(chain.state.object_store) == 0


def test_questions_to_many_nodes_go_in_as_many_requests_as_have_room_for_all_their_parts(chain: Chain) -> None:
    """A node that polled meanwhile would wait for parts that come one by one, behind those of all others."""
    chain.session("north")
    fleet, node = chain.drive(), chain.node_id("north")
    shared = secrets.token_bytes(1_000_000)
    packets = [Packet(secrets.token_bytes(400_000), {"state": shared}) for _ in range(30)]
    sent = grid_of(fleet).send([Message(pack(packet), node, "query.plan", group_id="") for packet in packets])
    count = Counter(chain.requests)
    assert count[calls.SEND] == 3  # 13 MB in bodies of 6 MiB
    assert "/v1/runtime/push-object" not in count
    assert len({one.message_id for one in sent}) == 30
    assert all(superlink_process._size(chain.state, one.message_id) for one in sent)  # None, were a part not there


def test_a_message_that_does_not_arrive_whole_is_told_of_and_not_waited_for(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_flower, "_ARRIVAL_S", 0.5)
    fleet = chain.serve_and_drive()
    began = time.monotonic()
    with monkeypatch.context() as patched:
        client = grid_of(fleet)._runtime_client
        patched.setattr(client, "PushObject", lambda _: SimpleNamespace(stored=True))  # its parts never come
        (told,) = dict(fleet.ask("plan", {"north": Packet(b"{}", {"state": LARGE})}, 60.0)).values()
    assert isinstance(told, NodeFailure)
    assert (told.reason, told.error) == ("failed", "Undelivered")
    assert time.monotonic() - began < 30
    assert dict(fleet.ask("plan", {"north": Packet(b"{}")}, 20.0)) == {"north": Packet(b"{}")}


def test_an_idle_node_asks_the_superlink_for_nothing_and_stays_online(chain: Chain) -> None:
    chain.serve_and_drive()
    until(lambda: one_body.CALLS + one_body.TAKE in chain.requests)
    chain.requests.clear()
    node = chain.state.nodes[chain.node_id("north")]
    node.online_until = time.time() + 5
    until(lambda: chain.requests.count(calls.BEATS) > 2)
    assert node.online_until > time.time() + 10
    assert set(chain.requests) == {calls.BEATS}


def test_a_beat_brings_nobody_back_who_has_left(chain: Chain) -> None:
    """One that was on its way when its node said goodbye would let rounds wait for it."""
    session = chain.session("north")
    node = chain.node_id("north")
    session.leave()
    told = chain.post(calls.BEATS, calls.write_ids([node]), **{calls.SECRET_HEADER: SECRET}).content
    assert calls.Beats.model_validate_json(told) == calls.Beats(unknown=[node], waiting=[])
    assert chain.state.nodes[node].online_until <= time.time()


def test_a_call_that_is_lost_costs_no_more_than_a_beat(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PORT_VARIABLE)
    fleet = chain.serve_and_drive()
    until(lambda: one_body.CALLS + one_body.TAKE in chain.requests)
    assert dict(fleet.ask("plan", {"north": Packet(b"{}")}, 20.0)) == {"north": Packet(b"{}")}


def test_nodes_that_are_held_connect_anew_when_the_superlink_has_forgotten_them(chain: Chain) -> None:
    fleet = chain.serve_and_drive()
    until(lambda: one_body.CALLS + one_body.TAKE in chain.requests)
    before, key = chain.node_id("north"), wire_form(chain.identities["north"].transport_public)
    del chain.state.nodes[before], chain.state.node_public_key_to_node_id[key]  # as after its restart
    after = chain.state.create_node(NOOP_FLWR_AID, "", key, 0)
    until(lambda: "north" in fleet.online())
    assert after != before
    assert dict(fleet.ask("plan", {"north": Packet(b"{}")}, 20.0)) == {"north": Packet(b"{}")}


def test_an_answer_whose_receipt_is_lost_is_given_again_and_counts_once(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between gate and SuperLink the connection breaks after the answer has arrived: the gate says 503."""
    post, given = Connection.post, []

    def broken(self: Connection, path: str, content: bytes, **more: Any) -> bytes:
        answer = post(self, path, content, **more)
        if path.endswith(one_body.GIVE):
            given.append(content)
            if len(given) == 1:
                raise httpx.ReadError("connection reset")
        return answer

    monkeypatch.setattr(Connection, "post", broken)
    handled = []

    def handle(kind: str, packet: Packet) -> Packet:
        handled.append(kind)
        return packet

    fleet = chain.serve_and_drive(handle)
    assert dict(fleet.ask("plan", {"north": Packet(b"{}")}, 20.0)) == {"north": Packet(b"{}")}
    until(lambda: len(given) == 2)
    assert given[0] == given[1]
    assert handled == ["plan"]
    assert dict(fleet.ask("more", {"north": Packet(b"2")}, 20.0)) == {"north": Packet(b"2")}


def ask(fleet: Fleet, packet: Packet) -> tuple[threading.Thread, dict[str, Any]]:
    """The thread that asks north and waits, and where it puts the answer."""
    found: dict[str, Any] = {}
    asking = threading.Thread(target=lambda: found.update(fleet.ask("plan", {"north": packet}, 20.0)))
    asking.start()
    return asking, found


def asked_of(session: Session, fleet: Fleet, packet: Packet) -> Any:
    """A question that has reached a node in the test's hand; and what `ask` returns."""
    asking, found = ask(fleet, packet)
    question = None
    while question is None:
        assert asking.is_alive(), f"nothing was asked: {found}"
        question = session.pull()
    return question, asking, found


def give_half_an_answer(session: Session, question: Any) -> None:
    """The first body goes, with all but one part; then the node is killed."""
    message = session.receive(question)
    session._patiently = lambda *_: pytest.fail("killed")  # type: ignore[method-assign, misc]
    with pytest.raises(pytest.fail.Exception):
        session.answer(message, pack(Packet(b"{}", {"state": LARGE})), until=question.until)


def test_a_node_killed_with_half_an_answer_given_is_asked_anew_when_it_is_back(chain: Chain) -> None:
    """Its first body came, with all but one part; the rest never does."""
    session, fleet = chain.session("north"), chain.drive()
    question, asking, found = asked_of(session, fleet, Packet(b"{}"))
    give_half_an_answer(session, question)
    assert len(chain.state.message_res_store) == 1
    assert not found
    chain.session("north")  # the next daemon on its home
    asking.join()
    assert isinstance(found["north"], NodeFailure)
    assert found["north"].reason == "restarted"


def test_a_node_killed_with_half_an_answer_that_stays_away_is_given_up(chain: Chain) -> None:
    session, fleet = chain.session("north"), chain.drive()
    question, asking, found = asked_of(session, fleet, Packet(b"{}"))
    give_half_an_answer(session, question)
    session.close()
    chain.gate_app._vouching.leave(chain.node_id("north"))  # it was silent for some seconds
    chain.state.nodes[chain.node_id("north")].online_until = time.time()  # and Flower has waited for a heartbeat
    asking.join()
    assert isinstance(found["north"], NodeFailure)
    assert found["north"].reason in ("offline", "timeout")


def test_what_a_daemon_was_asked_before_it_died_does_not_reach_the_next_one(chain: Chain) -> None:
    first, fleet = chain.session("north"), chain.drive()
    asking, failures = ask(fleet, Packet(b"old"))
    until(lambda: chain.state.message_ins_store)
    first.close()
    second = chain.session("north")
    asking.join()
    assert failures["north"].reason == "restarted"
    question, asking, found = asked_of(second, fleet, Packet(b"new"))
    message = second.receive(question)
    assert unpack(message.content).body == b"new"
    second.answer(message, pack(Packet(b"answer")), until=question.until)
    asking.join()
    assert found == {"north": Packet(b"answer")}


@pytest.mark.parametrize("back_s", [3600.0, -3600.0])
def test_questions_arrive_after_the_clock_was_set(chain: Chain, back_s: float) -> None:
    """By the new clock, the node has connected in an hour's time, or an hour ago."""
    session, fleet = chain.session("north"), chain.drive()
    moment = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=back_s)
    chain.state.nodes[chain.node_id("north")].last_activated_at = moment.isoformat()
    question, asking, found = asked_of(session, fleet, Packet(b"{}"))
    session.answer(session.receive(question), pack(Packet(b"here")), until=question.until)
    asking.join()
    assert found == {"north": Packet(b"here")}


def test_a_node_that_connects_anew_by_a_clock_set_back_is_not_brought_old_questions(chain: Chain) -> None:
    session, fleet = chain.session("north"), chain.drive()
    node = chain.state.nodes[chain.node_id("north")]
    asking, failures = ask(fleet, Packet(b"old"))
    until(lambda: chain.state.message_ins_store)
    session.close()
    second = chain.session("north")
    node.last_activated_at = (dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)).isoformat()
    asking.join()
    assert failures["north"].reason == "restarted"
    question, asking, found = asked_of(second, fleet, Packet(b"new"))
    assert unpack(second.receive(question).content).body == b"new"
    second.answer(second.receive(question), pack(Packet(b"answer")), until=question.until)
    asking.join()
    assert found == {"north": Packet(b"answer")}


def test_a_node_that_connects_anew_while_its_question_is_sent_ends_no_run(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its question is dropped, and the SuperLink then keeps no part of it."""
    monkeypatch.setattr(flower, "_WAIT_S", 0.5)
    session, fleet = chain.session("north"), chain.drive()
    grid = grid_of(fleet)
    push, pushed = grid._runtime_client.PushObject, list[bool]()

    def slow(request: Any) -> Any:
        if not pushed:
            session.close()
            chain.session("north")
            chain.post(calls.BEATS, b"", **{calls.SECRET_HEADER: SECRET})
        answer = push(request)
        pushed.append(answer.stored)
        return answer

    grid._runtime_client.PushObject = slow
    (answer,) = dict(fleet.ask("plan", {"north": Packet(b"{}", {"state": LARGE})}, 20.0)).values()
    assert not pushed[0]
    assert isinstance(answer, NodeFailure)
    assert answer.reason == "restarted"


def test_a_question_of_a_run_that_is_over_is_dropped_and_the_next_one_taken(chain: Chain) -> None:
    session, fleet = chain.session("north"), chain.drive()
    grid = grid_of(fleet)
    message = Message(pack(Packet(b"{}")), chain.node_id("north"), "query.plan", ttl=60.0, group_id="")
    name = grid.send([message])[0].message_id
    over = chain.state.create_run("", "", chain.fab(), {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP)
    (task,) = chain.state.get_tasks(run_ids=[over])
    assert chain.state.claim_task(task.task_id)
    chain.state.finish_task(task.task_id, "failed", "")  # its driver died, and Flower drops no message
    chain.state.message_ins_store[name].metadata.__dict__["_run_id"] = over
    chain.requests.clear()
    refused = list[Exception]()

    def pull() -> None:
        try:
            assert session.pull() is None
        except Exception as err:
            refused.append(err)

    pulling = threading.Thread(target=pull)
    pulling.start()
    until(lambda: not chain.state.message_ins_store)
    assert len(chain.state.object_store) == 0
    session.leave()
    pulling.join()
    assert not refused  # or it would connect anew


def test_a_whole_answer_counts_though_its_node_has_left(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    session, fleet = chain.session("north"), chain.drive()
    question, asking, found = asked_of(session, fleet, Packet(b"{}"))
    message = session.receive(question)
    with monkeypatch.context() as held:
        held.setattr(superlink_process, "whole_answers", lambda *_: [])
        held.setattr(superlink_process, "unanswerable", lambda *_: [])
        session.answer(message, pack(Packet(b"here")), until=question.until)
        session.leave()
    asking.join()
    assert found == {"north": Packet(b"here")}
    assert len(chain.state.object_store) == 0


def test_an_answer_that_stays_half_leaves_nothing_in_the_store(chain: Chain) -> None:
    session, fleet = chain.session("north"), chain.drive()
    question, asking, found = asked_of(session, fleet, Packet(b"{}"))
    give_half_an_answer(session, question)
    session.leave()
    asking.join()
    assert isinstance(found["north"], NodeFailure)
    assert len(chain.state.object_store) == 0


def test_a_refused_activation_wakes_no_driver(chain: Chain) -> None:
    session, fleet = chain.session("north"), chain.drive()
    until(lambda: "north" in fleet.online())
    asking = threading.Thread(target=lambda: list(fleet.ask("plan", {"north": Packet(b"{}")}, 3.0)))
    asking.start()
    until(lambda: calls.COLLECT in chain.requests)
    before = chain.requests.count(calls.COLLECT)
    assert all(chain.post("/v1/fleet/activate-node", b"x").status_code != 200 for _ in range(10))
    assert chain.requests.count(calls.COLLECT) == before
    session.leave()
    asking.join()


def test_bodies_are_bounded_and_waits_end(chain: Chain) -> None:
    grid = grid_of(chain.drive())
    assert chain.post(one_body.CALLS + one_body.TAKE, bytes(1 << 20)).status_code == 413
    for wait in ("nan", "inf"):
        headers = {"flwr-task-token": grid._token, calls.WAIT_HEADER: wait}
        assert chain.post(calls.COLLECT, b"", **headers).status_code == 400


def test_a_beat_in_flight_does_not_send_a_node_away_that_has_just_connected(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.session("north").close()
    beats, upstream, node = chain.gate_app._vouching, chain.gate_app._upstream, chain.node_id("north")
    post, told = upstream.post, threading.Event()

    async def late(path: str, headers: Any, body: bytes, *, first: bool = False) -> Any:
        answer = await post(path, headers, body, first=first)
        if path == calls.BEATS and node in calls.Beats.model_validate_json(answer[2]).unknown:
            beats.connect(node)  # as when it connects while this answer is on its way
            told.set()
        return answer

    monkeypatch.setattr(upstream, "post", late)
    chain.state.deactivate_node(node)
    beats.hear(node)
    assert told.wait(10)
    monkeypatch.setattr(upstream, "post", post)
    time.sleep(0.05)
    assert not beats.is_forgotten(node)


def test_a_beat_does_not_wait_behind_the_polls_of_many_nodes(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    chain.serve_and_drive()
    monkeypatch.setattr(chain.gate_app._upstream, "_slots", asyncio.Semaphore(0))  # as while all connections are taken
    chain.requests.clear()
    until(lambda: chain.requests.count(calls.BEATS) > 1)


def test_no_error_ends_the_beats(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    upstream, failed = chain.gate_app._upstream, threading.Event()

    async def odd(*_: Any, **__: Any) -> Any:
        failed.set()
        raise LookupError("nobody's")

    with monkeypatch.context() as broken:
        broken.setattr(upstream, "post", odd)
        assert failed.wait(10)
    chain.requests.clear()
    until(lambda: calls.BEATS in chain.requests)
    assert "a beat failed (LookupError" in caplog.text


def test_a_driver_that_dies_while_it_waits_leaves_its_answers_to_the_next_question(chain: Chain) -> None:
    """Its call is over with its connection: the answer is not handed out to nobody."""
    session, fleet = chain.session("north"), chain.drive()
    grid = grid_of(fleet)
    headers = {"flwr-task-token": grid._token, calls.WAIT_HEADER: "20"}
    question, asking, found = asked_of(session, fleet, Packet(b"{}"))
    asks = PullAppMessagesRequest(message_ids=[question.tree.object_id]).SerializeToString()
    trusting = outbound.trusting(chain.pki.ca_path.read_text())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"https://127.0.0.1:{chain.superlink.port}{calls.COLLECT}", content=asks, headers=headers,
                   verify=trusting, timeout=httpx.Timeout(60, read=0.5))  # fmt: skip
    session.answer(session.receive(question), pack(Packet(b"here")), until=question.until)
    asking.join()
    assert found == {"north": Packet(b"here")}


def test_an_answer_that_says_that_it_is_anothers_counts_as_its_senders_failure(chain: Chain) -> None:
    """The head passes the gate as south's; the message inside says north's."""
    north, south, fleet = chain.session("north"), chain.session("south"), chain.drive()
    found: dict[str, Any] = {}
    requests = dict.fromkeys(("north", "south"), Packet(b"{}"))
    asking = threading.Thread(target=lambda: found.update(fleet.ask("plan", requests, 20.0)))
    asking.start()
    questions = {}
    for name, session in (("north", north), ("south", south)):
        while name not in questions:
            if (question := session.pull()) is not None:
                questions[name] = question
    message = south.receive(questions["south"])
    post = south._connection.post

    def forged(path: str, content: bytes, **more: Any) -> bytes:
        head, *parts = one_body.split(content)
        push = PushMessagesRequest.FromString(head)
        push.messages_list[0].metadata.reply_to_message_id = questions["south"].tree.object_id
        push.messages_list[0].metadata.src_node_id = chain.node_id("south")
        return post(path, one_body.join([push.SerializeToString(), *parts]), **more)

    south._connection.post = forged  # type: ignore[method-assign]
    message.metadata.__dict__["_message_id"] = questions["north"].tree.object_id
    message.metadata.__dict__["_dst_node_id"] = chain.node_id("north")
    south.answer(message, pack(Packet(b"forged")), until=questions["south"].until)
    north.answer(north.receive(questions["north"]), pack(Packet(b"mine")), until=questions["north"].until)
    asking.join()
    assert found["north"] == Packet(b"mine")
    assert isinstance(found["south"], NodeFailure)


def test_the_gate_lets_no_node_give_an_answer_in_anothers_name(chain: Chain) -> None:
    chain.session("south")
    forger = chain.session("north")
    push = PushMessagesRequest(node=forger._node)
    push.messages_list.add().metadata.src_node_id = chain.node_id("south")
    push.message_object_trees.add().object_id = "a" * 64
    for body in (one_body.join([push.SerializeToString()]), b"", b"\xff\xff\xff\xff", one_body.join([b"x"] * 300)):
        with pytest.raises(httpx.HTTPStatusError, match="400"):
            forger._connection.post(one_body.CALLS + one_body.GIVE, body)


def test_strangers_on_this_machine_learn_nothing_and_vouch_for_nobody(chain: Chain) -> None:
    chain.drive()
    for path in (
        calls.SEND,
        calls.COLLECT,
        calls.NODES,
        calls.BEATS,
        *(one_body.CALLS + each for each in ("take", "give")),
    ):
        for headers in ({}, {"flwr-task-token": "guess", calls.SECRET_HEADER: "guess"}):
            body = one_body.join([b""]) if path.endswith(("send", "give")) else b""
            assert chain.post(path, body, **headers).status_code == 401
    assert chain.post(one_body.CALLS + "take", b"\xff").status_code == 400


def test_our_calls_for_drivers_and_the_gate_do_not_pass_the_gate(chain: Chain) -> None:
    connection = chain.connection("north")
    for path in (calls.SEND, calls.COLLECT, calls.NODES, calls.BEATS):
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            connection.post(path, b"")


def test_the_same_answer_given_twice_is_stored_once(chain: Chain) -> None:
    session, fleet = chain.session("north"), chain.drive()
    question, asking, found = asked_of(session, fleet, Packet(b"{}"))
    bodies, post = list[bytes](), session._connection.post

    def kept(path: str, content: bytes, **more: Any) -> bytes:
        bodies.append(content)
        return post(path, content, **more)

    session._connection.post = kept  # type: ignore[method-assign]
    session.answer(session.receive(question), pack(Packet(b"once")), until=question.until)
    asking.join()
    assert found == {"north": Packet(b"once")}
    answer = PushMessagesResponse.FromString(post(one_body.CALLS + one_body.GIVE, bodies[0]))
    assert not answer.objects_to_push  # there is no question for it any more, so nothing is kept
    assert not chain.state.message_res_store
    assert len(chain.state.object_store) == 0


def test_an_answer_that_is_being_stored_is_waited_for_and_not_met_half(chain: Chain) -> None:
    """Large ones are stored in a thread: first the head, then the names of its parts."""
    state, found = chain.state, list[object]()
    looking = threading.Thread(target=lambda: found.append(whole_answers(state, 1, ["question"])))
    with state.lock:
        state.message_ins_id_to_message_res_id["question"] = "a" * 64
        looking.start()
        looking.join(0.2)
        assert not found
    looking.join()
    assert found == [[]]  # Flower has dropped its parts: it never becomes whole


@given(st.lists(st.binary(max_size=50), max_size=8))
def test_frames_arrive_as_they_were_joined(frames: list[bytes]) -> None:
    assert one_body.split(one_body.join(frames)) == frames


@given(st.binary(max_size=60))
def test_any_bytes_are_frames_or_refused(body: bytes) -> None:
    try:
        frames = one_body.split(body)
    except ValueError:
        return
    assert one_body.join(frames) == body


def test_parts_are_chosen_that_fit_together() -> None:
    parts = [bytes(5), bytes(4), bytes(3), bytes(2)]
    assert one_body.fitting(parts, room=10) == [bytes(5), bytes(4)]
    assert one_body.fitting(parts, room=8) == [bytes(5), bytes(3)]
    assert one_body.fitting(parts, room=100, most=3) == parts[:3]

"""The fleet over a carrier that a test holds in its hand."""

import datetime as dt
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Sequence

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from confide.client_node.enrolment.identity import NodeIdentity, fingerprint, wire_form
from confide.client_node.flower import failure_text, pack, unpack
from confide.client_node.wire.messages import Packet
from confide.coordinator.errors import SuperLinkFailed
from confide.coordinator.fleet.flower import Fleet, Sent, read_claim
from confide.coordinator.fleet.nodes import NodeFailure

NODES = {"north": 11, "south": 12, "west": 13}
Answer = Callable[[Message], Message | None]


def echo(message: Message) -> Message:
    return Message(pack(unpack(message.content)), reply_to=message)


def later() -> str:
    """The time of an activation after all that was written before."""
    return dt.datetime.now(dt.UTC).isoformat()


class HeldCarrier:
    """A carrier of messages; `answers` says what each node replies."""

    def __init__(self, keys: dict[str, bytes], answers: dict[str, Answer]) -> None:
        self.online = [
            NodeInfo(node_id=NODES[name], public_key=key, name="whatever", online_until=time.time() + 60)
            for name, key in keys.items()
        ]
        self.answers, self.pushes, self.waiting = answers, [], {}

    def nodes(self) -> Iterable[NodeInfo]:
        return self.online

    def send(self, messages: Sequence[Message]) -> list[Sent]:
        self.pushes.append(list(messages))
        for number, message in enumerate(self.pushes[-1]):
            message.metadata.__dict__["_message_id"] = f"{len(self.pushes)}-{number}"
            self.waiting[message.metadata.message_id] = message
        activations = {node.node_id: node.last_activated_at for node in self.online}
        return [
            Sent(message.metadata.message_id, activations.get(message.metadata.dst_node_id, ""))
            for message in self.pushes[-1]
        ]

    def collect(self, asked: Collection[str], wait_s: float) -> list[Message]:
        names = {number: name for name, number in NODES.items()}
        replies = []
        for message_id in asked:
            if (message := self.waiting.get(message_id)) is not None:
                reply = self.answers.get(names[message.metadata.dst_node_id], echo)(message)
                if reply is not None:
                    replies.append(reply)
        if not replies:
            time.sleep(min(wait_s, 0.05))
        return replies


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    home = tmp_path_factory.mktemp("nodes")
    return {name: wire_form(NodeIdentity.create(home / name).transport_public) for name in NODES}


@pytest.fixture
def fleet_with(keys: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Fleet, HeldCarrier]]:
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)

    def make(**answers: Answer) -> tuple[Fleet, HeldCarrier]:
        carrier = HeldCarrier(keys, answers)
        return Fleet(carrier, lambda: {fingerprint(key): name for name, key in keys.items()}), carrier

    return make


def test_every_node_asked_gives_exactly_one_answer(fleet_with: Callable[..., tuple[Fleet, HeldCarrier]]) -> None:
    fleet, _ = fleet_with()
    requests = {name: Packet(name.encode(), {"state": b"same"}) for name in NODES}
    assert sorted(fleet.ask("plan", requests, 5.0)) == sorted(requests.items())  # type: ignore[type-var]


def test_all_requests_go_in_one_push_so_that_shared_blobs_are_uploaded_once(
    fleet_with: Callable[..., tuple[Fleet, HeldCarrier]],
) -> None:
    fleet, carrier = fleet_with()
    state = bytes(200_000)
    list(fleet.ask("plan", {name: Packet(name.encode(), {"state": state}) for name in NODES}, 5.0))
    (push,) = carrier.pushes
    assert len({message.content["blob/state"].object_id for message in push}) == 1


def test_a_vector_that_goes_to_every_site_is_kept_once_at_the_superlink() -> None:
    state = secrets.token_bytes(20_000_000)
    kept = {}
    for site in range(10):
        objects = get_all_nested_objects(pack(Packet(body=f"plan for site {site}".encode(), blobs={"state": state})))
        kept |= {name: len(each.deflate()) for name, each in objects.items()}
    assert sum(kept.values()) < len(state) + 100_000


def test_a_request_dies_with_its_deadline(fleet_with: Callable[..., tuple[Fleet, HeldCarrier]]) -> None:
    fleet, carrier = fleet_with()
    list(fleet.ask("plan", {"north": Packet(b"")}, 7.5))
    assert [message.metadata.ttl for message in carrier.pushes[0]] == [7.5]


@pytest.mark.parametrize("answers_itself", [True, False])
def test_an_answer_from_another_node_does_not_count(
    fleet_with: Callable[..., tuple[Fleet, HeldCarrier]], answers_itself: bool
) -> None:
    replies = []

    def forged_first(message: Message) -> Message | None:
        replies.append(echo(message))
        if len(replies) == 1:
            replies[0].metadata.__dict__["_src_node_id"] = NODES["south"]
        return replies[-1] if len(replies) == 1 or answers_itself else None

    fleet, _ = fleet_with(north=forged_first)
    ((name, answer),) = fleet.ask("plan", {"north": Packet(b"mine")}, 30.0 if answers_itself else 0.5)
    assert name == "north"
    if answers_itself:
        assert answer == Packet(b"mine")
    else:
        assert isinstance(answer, NodeFailure)
        assert answer.reason == "timeout"


def test_a_silent_node_is_a_timeout_and_holds_nobody_else(fleet_with: Callable[..., tuple[Fleet, HeldCarrier]]) -> None:
    fleet, _ = fleet_with(south=lambda _: None)
    answers = dict(fleet.ask("plan", dict.fromkeys(NODES, Packet(b"x")), 1.0))
    assert answers["north"] == answers["west"] == Packet(b"x")
    assert isinstance(answers["south"], NodeFailure)
    assert answers["south"].reason == "timeout"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Error(5, "a node may say so of itself"), NodeFailure(reason="failed", error="unreadable")),
        (
            Error(2, failure_text("BudgetExceeded", "over")),
            NodeFailure(reason="failed", error="BudgetExceeded", message="over"),
        ),
        (Error(2, "not ours"), NodeFailure(reason="failed", error="unreadable")),
        (Error(2, None), NodeFailure(reason="failed", error="unreadable")),
        (Error(2, "[" * 100_000), NodeFailure(reason="failed", error="unreadable")),
        (Error(2, "[" * 20_000), NodeFailure(reason="failed", error="unreadable")),
        (Error(2, '{"error": [1], "message": "x"}'), NodeFailure(reason="failed", error="unreadable")),
        (
            Error(2, r'{"error": "\ud800", "message": "a\nb\u001b[2J\udfff"}'),
            NodeFailure(reason="failed", error=" ", message="a b [2J "),
        ),
        (
            Error(2, failure_text("E" * 64, "\U0001f600" * 3000)),
            NodeFailure(reason="failed", error="E" * 64, message="\U0001f600" * 2000),
        ),
    ],
)
def test_failures_say_what_happened(
    fleet_with: Callable[..., tuple[Fleet, HeldCarrier]], error: Error, expected: NodeFailure
) -> None:
    fleet, _ = fleet_with(north=lambda message: Message(error, reply_to=message))
    assert dict(fleet.ask("plan", {"north": Packet(b"")}, 5.0)) == {"north": expected}


@pytest.mark.parametrize(("code", "reason"), [(5, "offline"), (3, "timeout"), (4, "timeout")])
def test_what_the_superlink_says_of_a_node_is_told(
    fleet_with: Callable[..., tuple[Fleet, HeldCarrier]], code: int, reason: str
) -> None:
    def generated(message: Message) -> Message:
        reply = Message(Error(code), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = 1
        return reply

    fleet, _ = fleet_with(north=generated)
    answer = dict(fleet.ask("plan", {"north": Packet(b"")}, 5.0))["north"]
    assert isinstance(answer, NodeFailure)
    assert answer.reason == reason


def test_an_answer_in_another_form_is_invalid(fleet_with: Callable[..., tuple[Fleet, HeldCarrier]]) -> None:
    fleet, _ = fleet_with(north=lambda m: Message(RecordDict({"x": ConfigRecord({"y": 1})}), reply_to=m))
    answer = dict(fleet.ask("plan", {"north": Packet(b"")}, 5.0))["north"]
    assert isinstance(answer, NodeFailure)
    assert answer.reason == "invalid"


def test_who_is_online_is_decided_by_our_register(
    fleet_with: Callable[..., tuple[Fleet, HeldCarrier]], keys: dict[str, bytes]
) -> None:
    fleet, carrier = fleet_with()
    carrier.online[1].online_until = time.time() - 1
    fleet.trust(lambda: {fingerprint(keys["north"]): "north", fingerprint(keys["south"]): "south"})
    assert fleet.online() == {"north"}  # south is silent, west is nobody's key


def test_a_fleet_without_a_register_knows_nobody(keys: dict[str, bytes]) -> None:
    with pytest.raises(SuperLinkFailed, match="no register"):
        Fleet(HeldCarrier(keys, {})).online()


def test_a_node_that_is_not_connected_fails_at_once(fleet_with: Callable[..., tuple[Fleet, HeldCarrier]]) -> None:
    fleet, carrier = fleet_with()
    answer = dict(fleet.ask("plan", {"east": Packet(b"")}, 5.0))["east"]
    assert isinstance(answer, NodeFailure)
    assert answer.reason == "offline"
    assert not carrier.pushes


@given(
    st.sampled_from(["activate-node", "deactivate-node", "push-messages", "pull-object", "push-object"]), st.binary()
)
def test_the_gates_reader_meets_anything_with_one_error(call: str, body: bytes) -> None:
    try:
        claim = read_claim(call, body)
    except ValueError:
        return
    assert claim.parts >= 0


def test_a_question_to_a_node_that_connects_anew_is_given_up_at_once(
    fleet_with: Callable[..., tuple[Fleet, HeldCarrier]],
) -> None:
    def die_and_come_back(message: Message) -> None:
        carrier.online[0].last_activated_at = later()

    fleet, carrier = fleet_with(north=die_and_come_back, south=lambda _: None)
    answers = fleet.ask("plan", dict.fromkeys(("north", "south"), Packet(b"x")), 5.0)
    name, failure = next(answers)
    assert name == "north"
    assert isinstance(failure, NodeFailure)
    assert failure.reason == "restarted"
    carrier.answers["south"] = echo
    assert dict(answers) == {"south": Packet(b"x")}


@pytest.mark.parametrize("together", [True, False])
def test_a_node_that_others_wait_for_is_asked_again_when_it_connects_anew(
    fleet_with: Callable[..., tuple[Fleet, HeldCarrier]], together: bool
) -> None:
    def die_and_come_back(message: Message) -> Message | None:
        carrier.online[0].last_activated_at = later()
        if message in carrier.pushes[0]:
            return None
        carrier.answers["south"] = echo  # which has waited for it
        return echo(message)

    fleet, carrier = fleet_with(north=die_and_come_back, south=lambda _: None)
    asked = dict.fromkeys(("north", "south"), Packet(b"x"))
    answers = dict(fleet.ask("aggregate", asked, 3.0, together=together))
    if together:
        assert answers == asked
        assert [len(push) for push in carrier.pushes] == [2, 1]
        assert 0 < carrier.pushes[1][0].metadata.ttl < 3.0
    else:
        assert [failure.reason for failure in answers.values() if isinstance(failure, NodeFailure)] == [
            "restarted", "timeout",
        ]  # fmt: skip


def test_a_node_that_nobody_waits_for_any_more_is_not_asked_again(
    fleet_with: Callable[..., tuple[Fleet, HeldCarrier]],
) -> None:
    def die_and_come_back(message: Message) -> None:
        carrier.online[0].last_activated_at = later()

    fleet, carrier = fleet_with(north=die_and_come_back)
    answers = dict(fleet.ask("aggregate", dict.fromkeys(("north", "south"), Packet(b"x")), 5.0, together=True))
    assert isinstance(answers["north"], NodeFailure)
    assert answers["north"].reason == "restarted"
    assert len(carrier.pushes) == 1


def test_a_node_that_others_have_stopped_waiting_for_is_not_asked_again(
    fleet_with: Callable[..., tuple[Fleet, HeldCarrier]],
) -> None:
    """West still sends its answer: north would wait for partners who are through."""

    def die_and_come_back(message: Message) -> None:
        carrier.online[0].last_activated_at = later()

    fleet, carrier = fleet_with(north=die_and_come_back, west=lambda _: None)
    answers = fleet.ask("aggregate", dict.fromkeys(NODES, Packet(b"x")), 30.0, together=True)
    assert next(answers) == ("south", Packet(b"x"))
    name, failure = next(answers)
    assert (name, isinstance(failure, NodeFailure) and failure.reason) == ("north", "restarted")
    assert len(carrier.pushes) == 1


def test_nobody_is_asked_again_when_the_time_is_over(
    fleet_with: Callable[..., tuple[Fleet, HeldCarrier]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower takes a time to live of 0 for its own default, of hours."""

    def die_and_come_back(message: Message) -> None:
        if time.monotonic() - began > 0.55:
            carrier.online[0].last_activated_at = later()

    fleet, carrier = fleet_with(north=die_and_come_back, south=lambda _: None)
    began = time.monotonic()
    answers = dict(fleet.ask("aggregate", dict.fromkeys(("north", "south"), Packet(b"x")), 0.6, together=True))
    assert all(isinstance(answer, NodeFailure) for answer in answers.values())
    assert all(0 < message.metadata.ttl <= 0.6 for push in carrier.pushes for message in push)

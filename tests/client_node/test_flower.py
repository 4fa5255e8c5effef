"""How packets become Flower's records and back, and what leaves a node when its handler fails."""

import json
import threading
from typing import Any

import httpx
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PullObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.client_node import flower, warm_node
from confide.client_node.errors import ClientNodeError, PacketInvalid
from confide.client_node.flower import failure_text, pack, unpack
from confide.client_node.wire.messages import Packet


def travelled(records: RecordDict) -> RecordDict:
    """The records after Flower took them apart and put them together again."""
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    parts = {name: part.deflate() for name, part in get_all_nested_objects(records).items()}
    again = inflate_object_from_contents(records.object_id, parts)
    assert isinstance(again, RecordDict)
    return again


@pytest.mark.slow
@given(st.binary(max_size=300), st.dictionaries(st.text(max_size=20), st.binary(max_size=100), max_size=6))
@settings(max_examples=40, deadline=None)
def test_a_packet_arrives_as_it_was_sent(body: bytes, blobs: dict[str, bytes]) -> None:
    assert unpack(travelled(pack(Packet(body, blobs)))) == Packet(body, blobs)


# Around the two sizes at which a blob changes its form; 5 MiB is where Flower cuts arrays.
@pytest.mark.parametrize("size", [0, 128 << 10, (128 << 10) + 1, 4 << 20, (4 << 20) + 1, (5 << 20) + 7])
def test_blobs_of_every_size_arrive(size: int) -> None:
    blob = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert unpack(travelled(pack(Packet(b"{}", {"state": blob})))).blobs["state"] == blob


def test_a_small_packet_is_two_objects_below_its_message() -> None:
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    assert len(get_all_nested_objects(pack(Packet(b"{}", {"a": b"1", "b": b"2"})))) == 2


@pytest.mark.parametrize(
    "packet",
    [
        Packet(bytes((1 << 20) + 1)),
        Packet(b"", {str(number): b"" for number in range(4097)}),
    ],
)
def test_what_is_over_the_limits_is_not_sent(packet: Packet) -> None:
    with pytest.raises(PacketInvalid):
        pack(packet)


@pytest.mark.parametrize(
    "records",
    [
        RecordDict(),
        RecordDict({"packet": MetricRecord({"body": 1})}),
        RecordDict({"packet": ConfigRecord({"body": "text"})}),
        RecordDict({"packet": ConfigRecord({"blob/a": b""})}),
        RecordDict({"packet": ConfigRecord({"body": b"", "other": b""})}),
        RecordDict({"packet": ConfigRecord({"body": b"", "blob/a": 1})}),
        RecordDict({"packet": ConfigRecord({"body": b""}), "blob/a": ConfigRecord({"data": b"", "more": b""})}),
        RecordDict({"packet": ConfigRecord({"body": b""}), "blob/a": MetricRecord({"data": 1})}),
        RecordDict({"packet": ConfigRecord({"body": b"", "blob/a": b""}), "blob/a": ConfigRecord({"data": b""})}),
        RecordDict({"packet": ConfigRecord({"body": b""}), "elsewhere": ConfigRecord({"data": b""})}),
        RecordDict(
            {
                "packet": ConfigRecord({"body": b""}),
                "blob/a": ArrayRecord({"data": Array(dtype="uint8", shape=(1,), stype="numpy.ndarray", data=b"x")}),
            }
        ),
    ],
)
def test_any_other_form_is_refused(records: RecordDict) -> None:
    with pytest.raises(PacketInvalid):
        unpack(records)


VALUES = st.integers(-5, 5) | st.text(max_size=5) | st.binary(max_size=5) | st.lists(st.integers(0, 3), max_size=2)
NAMES = st.sampled_from(["packet", "blob/a", "body", "data", ""])


@given(st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES, max_size=3), max_size=4))
@settings(max_examples=150, deadline=None)
def test_the_decoder_meets_anything_with_one_error(content: dict[str, dict[str, object]]) -> None:
    records = RecordDict({name: ConfigRecord(values) for name, values in content.items()})  # type: ignore[arg-type]
    try:
        packet = unpack(records)
    except PacketInvalid:
        return
    assert isinstance(packet.body, bytes)


class Spilling(ClientNodeError):
    """An error whose text may quote a record."""


@pytest.mark.parametrize("err", [ValueError("patient 7"), Spilling("patient 7"), MemoryError("patient 7")])
def test_a_failure_that_is_not_marked_public_is_told_by_its_class_alone(err: Exception) -> None:
    assert json.loads(warm_node._told(err)) == {"error": type(err).__name__, "message": ""}


def test_a_public_failure_is_told_with_its_text() -> None:
    assert json.loads(warm_node._told(PacketInvalid("no blob"))) == {"error": "PacketInvalid", "message": "no blob"}


def test_a_failure_is_cut_to_size() -> None:
    assert len(failure_text("E" * 1000, "m" * 100_000)) < 2200


class Line:
    """A SuperLink with one message, on a line that breaks at every second question for one of its parts."""

    def __init__(self, message: Message) -> None:
        self.tree, self.parts = get_object_tree(message), get_all_nested_objects(message)
        self.asked, self.given, self.confirmed = 0, list[str](), list[str]()
        self._lock = threading.Lock()

    def call(self, name: str, request: Any, answer_type: object) -> PullObjectResponse | None:
        return self.pull_object(request) if name == "pull-object" else self.confirm(request)

    def pull_object(self, request: PullObjectRequest) -> PullObjectResponse:
        with self._lock:
            self.asked += 1
            if self.asked % 2:
                raise httpx.ReadError("connection reset")
            self.given.append(request.object_id)
        content = self.parts[request.object_id].deflate()
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def confirm(self, request: ConfirmMessageReceivedRequest) -> None:
        self.confirmed.append(request.message_object_id)


@pytest.fixture
def _in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def sent(blob: bytes, *, ttl: float) -> Message:
    return Message(pack(Packet(b"{}", {"state": blob})), 1, "query.step", ttl=ttl, group_id="")


def asked(message: Message, line: Line) -> flower.Question:
    return flower.Question("step", message.metadata.created_at + message.metadata.ttl, message, line.tree)


def session_on(line: Line) -> flower.Session:
    session = object.__new__(flower.Session)  # without the identity and the heartbeat that pulling does not need
    session._connection, session._node = line, Node(node_id=1)
    return session


@pytest.mark.usefixtures("_in_a_run")
def test_a_state_goes_on_where_a_broken_connection_left_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower, "_RETRY_S", (0.01, 0.05))
    blob = bytes(range(256)) * (12 << 12)  # 12 MiB: three parts
    message = sent(blob, ttl=60)
    line = Line(message)
    received = session_on(line).receive(asked(message, line))
    assert unpack(received.content).blobs["state"] == blob
    assert sorted(line.given) == sorted(line.parts)  # each part came once, however often it was asked for
    assert len(line.parts) > 4
    assert line.asked > len(line.parts)
    assert line.confirmed == [line.tree.object_id]


@pytest.mark.usefixtures("_in_a_run")
def test_a_request_whose_time_is_over_is_not_waited_for() -> None:
    message = sent(b"state", ttl=0.001)
    line = Line(message)
    with pytest.raises(httpx.TransportError):
        session_on(line).receive(asked(message, line))
    assert line.confirmed == []

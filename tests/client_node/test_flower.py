"""How packets become Flower's records and back, and what leaves a node when its handler fails."""

import json

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.client_node import flower
from confide.client_node.errors import ClientNodeError, PacketInvalid
from confide.client_node.flower import failure_text, pack, unpack
from confide.client_node.messages import Packet


def travelled(records: RecordDict) -> RecordDict:
    """The records after Flower took them apart and put them together again."""
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    parts = {name: part.deflate() for name, part in get_all_nested_objects(records).items()}
    again = inflate_object_from_contents(records.object_id, parts)
    assert isinstance(again, RecordDict)
    return again


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
    assert json.loads(flower._told(err)) == {"error": type(err).__name__, "message": ""}


def test_a_public_failure_is_told_with_its_text() -> None:
    assert json.loads(flower._told(PacketInvalid("no blob"))) == {"error": "PacketInvalid", "message": "no blob"}


def test_a_failure_is_cut_to_size() -> None:
    assert len(failure_text("E" * 1000, "m" * 100_000)) < 2200

import contextlib
import dataclasses
import socket
import struct
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.mpc.errors import FrameRejected, InvalidField
from confide.mpc.links import frames
from confide.mpc.links.frames import (
    Channel,
    config_from_wire,
    config_to_wire,
    order_from_wire,
    order_to_wire,
    unpack_message,
)
from confide.mpc.sharing.ring import Ring

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture
def pair():
    ends = [Channel(end) for end in socket.socketpair()]
    yield ends
    for end in ends:
        end.close()


@pytest.fixture(scope="module")
def order(kit):
    return kit.Round(1, Ring(32, 20), 3, 5, np.random.default_rng(0)).order(0)


def wire(message):
    return unpack_message(msgpack.packb(message))


def frame(data, size=None):
    return struct.pack(">Q", len(data) if size is None else size) + data


def received(data, **limit):
    """What comes out of these bytes, after which the other end closes."""
    ours, theirs = socket.socketpair()
    end = Channel(theirs)
    try:
        ours.sendall(data)
        ours.close()
        return end.receive(**limit)
    finally:
        end.close()


def test_messages_come_back(pair):
    pair[0].send("a", names=("x", "y"))
    pair[0].send("b")
    assert pair[1].receive() == {"kind": "a", "names": ("x", "y")}
    assert pair[1].receive() == {"kind": "b"}


def test_arrays_of_a_message_come_back_and_can_be_written_to(pair):
    arrays = {
        "state": np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::2],
        "ids": np.zeros((0, 5), np.int64),
        "is_completion": np.array([True, False]),
        "one": np.array(3.0),
        "share": np.frombuffer(b"share", np.uint8),
    }
    pair[0].send("release", round=7, **arrays)
    message = pair[1].receive(array_bytes=sum(array.nbytes for array in arrays.values()))
    assert message.keys() == {"kind", "round", *arrays}
    for name, array in arrays.items():
        assert (message[name].dtype, message[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(message[name], array)
        assert message[name].flags.writeable


def test_frame_over_the_limit_is_refused_before_it_is_read(pair):
    pair[0]._end.sendall(struct.pack(">Q", 2**63))
    with pytest.raises(FrameRejected):
        pair[1].receive()


@pytest.mark.parametrize("limit", [0, 15])
def test_arrays_over_the_limit_are_refused_before_they_are_read(pair, limit):
    pair[0]._end.sendall(frame(msgpack.packb({"kind": "a", "arrays": {"x": ("<i8", 1), "y": ("<i8", 1)}})))
    with pytest.raises(FrameRejected, match="16 bytes"):
        pair[1].receive(array_bytes=limit)


@pytest.mark.parametrize(
    ("head", "data"),
    [
        ({"arrays": {}}, b""),
        ({"kind": "a"}, b""),
        ({"kind": 1, "arrays": {}}, b""),
        ({"kind": "a", "arrays": ["x"]}, b""),
        ({"kind": "a", "arrays": {"kind": ("<i8", 0)}}, frame(b"")),
        ({"kind": "a", "n": 1, "arrays": {"n": ("<i8", 0)}}, frame(b"")),
        ({"kind": "a", "arrays": {b"x": ("<i8", 0)}}, frame(b"")),
        ({"kind": "a", "arrays": {"x": ("|O", 1)}}, frame(bytes(8))),
        ({"kind": "a", "arrays": {"x": ("<i8", -1)}}, frame(b"")),
        ({"kind": "a", "arrays": {"x": ("<i8", True)}}, frame(bytes(8))),
        ({"kind": "a", "arrays": {"x": ()}}, frame(b"")),
        ({"kind": "a", "arrays": {"x": ("<i8", 2)}}, frame(bytes(8))),
        ({"kind": "a", "arrays": {"x": ("<i8", 1)}}, frame(bytes(7))),
        ({"kind": "a", "arrays": {"x": ("<i8", 1)}}, frame(bytes(9))),
        ({"kind": "a", "arrays": {"x": ("<i8", 0, 2**64 - 1)}}, frame(b"")),
    ],
    ids=[
        "no kind", "no arrays", "kind", "arrays", "named kind", "named as a value", "name", "type", "size", "bool",
        "nothing", "cut short", "cut inside", "too long", "shape",
    ],
)  # fmt: skip
def test_a_message_with_one_thing_wrong_is_refused(head, data):
    with pytest.raises(FrameRejected):
        received(frame(msgpack.packb(head)) + data, array_bytes=64)


@given(anything | st.fixed_dictionaries({"kind": st.text(), "arrays": anything}), st.binary(max_size=40))
def test_whatever_comes_is_a_message_or_refused(head, data):
    with contextlib.suppress(FrameRejected, EOFError):  # an array that was announced and did not come
        assert isinstance(received(frame(msgpack.packb(head)) + data, array_bytes=2**20)["kind"], str)


def test_reading_past_the_end_says_so(pair):
    with pytest.raises(EOFError):
        received(frame(b"half", size=10))


def test_an_end_that_died_with_a_message_unread_is_gone(pair):
    ours, theirs = pair
    ours.send("total", total=np.zeros(8))
    theirs.close()
    with pytest.raises(EOFError, match="the other end is gone"):
        ours.receive()


@given(st.binary(max_size=60))
def test_any_bytes_are_a_map_or_refused(data):
    with contextlib.suppress(FrameRejected):
        assert isinstance(unpack_message(data), dict)


@pytest.mark.parametrize(
    "data", [b"\xc1", b"\x81\x01\x01", b"\x90", b"\xdf\xff\xff\xff\xff", b"\x91" * 3000, b"\x80\x80"]
)
def test_bytes_that_are_no_message_are_refused(data):
    with pytest.raises(FrameRejected):
        unpack_message(data)


def test_order_comes_back_equal(order):
    assert order_from_wire(wire(order_to_wire(order))) == order


def test_configuration_comes_back_equal(kit, tmp_path):
    config = kit.configs(tmp_path, 3)[0]
    for listen, shards in ((None, None), ("0.0.0.0:9", 3)):
        again = dataclasses.replace(config, listen=listen, shards=shards)
        assert config_from_wire(wire(config_to_wire(again))) == again


@given(data=st.data())
def test_order_with_any_one_field_changed_is_sound_or_refused(order, data):
    fields = order_to_wire(order)
    name = data.draw(st.sampled_from(sorted(fields)))
    fields[name] = data.draw(anything)
    try:
        changed = order_from_wire(wire(fields))
    except (InvalidField, FrameRejected):
        return
    assert len(changed.digest()) == 32


@pytest.mark.parametrize("drop", [True, False])
def test_missing_and_unknown_fields_are_refused(order, drop):
    fields = order_to_wire(order)
    fields.pop("dim") if drop else fields.update(extra=1)
    with pytest.raises(FrameRejected):
        order_from_wire(fields)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"kind": "b", "n": 1},
        {"kind": "a"},
        {"kind": "a", "n": True},
        {"kind": "a", "n": 1, "m": 1},
        {"kind": "a", "n": np.array(1)},
    ],
)
def test_take_wants_exactly_the_schema(message):
    with pytest.raises(FrameRejected):
        frames.take(message, "a", n=int)


def test_paths_come_back_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {"a": tmp_path / "x", "b": Path("y")}
    assert frames.paths_from_wire(wire(frames.paths_to_wire(files))) == {"a": tmp_path / "x", "b": tmp_path / "y"}


@pytest.mark.parametrize("value", [{"a": "relative"}, {"a": 1}, {"a": b"/x"}, {b"a": "/x"}, {"a": None}])
def test_paths_must_be_absolute_texts_by_site(value):
    with pytest.raises(FrameRejected):
        frames.paths_from_wire(value)


def test_names_must_be_texts():
    with pytest.raises(FrameRejected):
        frames.take_names(("a", 1))

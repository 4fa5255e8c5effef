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


def test_messages_come_back(pair):
    pair[0].send({"kind": "a", "names": ("x", "y")})
    pair[0].send_raw(b"raw")
    assert pair[1].receive() == {"kind": "a", "names": ("x", "y")}
    assert pair[1].receive_raw(3) == b"raw"


def test_frame_over_the_limit_is_refused_before_it_is_read(pair):
    pair[0]._end.sendall(struct.pack(">Q", 2**63))
    with pytest.raises(FrameRejected):
        pair[1].receive()


def test_reading_past_the_end_says_so(pair):
    pair[0]._end.sendall(struct.pack(">Q", 10) + b"half")
    pair[0].close()
    with pytest.raises(EOFError):
        pair[1].receive_raw(10)


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
    for listen in (None, "0.0.0.0:9"):
        again = dataclasses.replace(config, listen=listen)
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
    "message", [{}, {"kind": "b", "n": 1}, {"kind": "a"}, {"kind": "a", "n": True}, {"kind": "a", "n": 1, "m": 1}]
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

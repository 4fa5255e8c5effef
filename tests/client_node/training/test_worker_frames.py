import socket

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.client_node.data.records import Records
from confide.client_node.training.worker_frames import from_arrays, receive, send, to_arrays
from confide.mpc.errors import FrameRejected
from confide.mpc.links.frames import Channel

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


def test_messages_come_back_with_their_arrays(pair: list[Channel]):
    arrays = {
        "state": np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::2],
        "ids": np.zeros((0, 5), np.int64),
        "is_completion": np.array([True, False]),
        "one": np.array(3.0),
    }
    send(pair[0], "release", arrays, round=7)
    kind, fields, received = receive(pair[1])
    assert (kind, fields) == ("release", {"round": 7})
    assert received.keys() == arrays.keys()
    for name, array in arrays.items():
        assert received[name].dtype == array.dtype
        np.testing.assert_array_equal(received[name], array)


def test_records_come_back_whatever_their_columns_hold(pair: list[Channel]):
    records = Records(
        columns={
            "units": np.array(["ä", None, "x" * 300], dtype=object),  # a column may have any name
            "age": np.array([1.5, np.nan, 3.0]),
            "sick": np.array([True, False, True]),
        },
        units=np.array([0, 1, 0]),
        labels=None,
    )
    send(pair[0], "release", to_arrays(records))
    received = from_arrays(receive(pair[1])[2])
    assert received.labels is None
    np.testing.assert_array_equal(received.units, records.units)
    assert received.columns.keys() == records.columns.keys()
    for name, column in records.columns.items():
        np.testing.assert_array_equal(received.columns[name], column)


@given(anything | st.fixed_dictionaries({"kind": st.text(), "fields": st.just({}), "arrays": anything}))
def test_whatever_comes_is_a_message_or_refused(message: object):
    ours, theirs = (Channel(end) for end in socket.socketpair())
    ours.send_raw(msgpack.packb(message))
    ours.close()
    try:
        receive(theirs)
    except (FrameRejected, EOFError):  # an array that was announced and did not come
        pass
    finally:
        theirs.close()

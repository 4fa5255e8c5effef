import socket

import numpy as np

from confide.client_node.data.records import Records
from confide.client_node.training.record_arrays import from_arrays, to_arrays
from confide.mpc.links.frames import Channel


def test_records_come_back_whatever_their_columns_hold():
    records = Records(
        columns={
            "units": np.array(["ä", None, "x" * 300], dtype=object),  # a column may have any name
            "age": np.array([1.5, np.nan, 3.0]),
            "sick": np.array([True, False, True]),
        },
        units=np.array([0, 1, 0]),
        labels=None,
    )
    node, worker = (Channel(end) for end in socket.socketpair())
    node.send("release", **to_arrays(records), round=7)
    received = from_arrays(worker.receive(array_bytes=None))
    node.close()
    worker.close()
    assert received.labels is None
    np.testing.assert_array_equal(received.units, records.units)
    assert received.columns.keys() == records.columns.keys()
    for name, column in records.columns.items():
        np.testing.assert_array_equal(received.columns[name], column)

"""Frames between a node and its workers: a map, then the arrays that it announces, over a private socket pair.

The pair has no name and no address: nobody else can open it, and nothing is written to disk.
"""

import math
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from ...mpc.errors import FrameRejected
from ...mpc.links import Channel
from ..data import Records

Arrays = dict[str, npt.NDArray[Any]]

_COLUMN = "column "  # before the name of each, so that none is taken for another array
_DTYPES = ("<i8", "<f4", "<f8", "|b1", "|u1")


def send(channel: Channel, kind: str, arrays: Arrays | None = None, **fields: Any) -> None:
    """Sends one message; arrays are of int64, float32, float64, bool or bytes."""
    sent = {name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}
    announced = {name: (array.dtype.str, *array.shape) for name, array in sent.items()}
    channel.send({"kind": kind, "fields": fields, "arrays": announced})
    for array in sent.values():
        channel.send_raw(array.reshape(-1).view(np.uint8).data)


def receive(channel: Channel) -> tuple[str, dict[str, Any], Arrays]:
    """Receives the next message: kind, fields and arrays.

    Raises:
        FrameRejected: the bytes are not a message of this format.
        EOFError: the other process is gone.
    """
    message = channel.receive()
    kind, fields, announced = (message.get(name) for name in ("kind", "fields", "arrays"))
    if not isinstance(kind, str) or not isinstance(fields, dict) or not isinstance(announced, dict):
        raise FrameRejected("a message between a node and its workers is malformed")
    return kind, fields, {name: _array(channel, described) for name, described in announced.items()}


def _array(channel: Channel, described: object) -> npt.NDArray[Any]:
    dtype, *shape = described if isinstance(described, tuple) and described else (None,)
    sizes = [size for size in shape if type(size) is int and size >= 0]
    if dtype not in _DTYPES or len(sizes) != len(shape):
        raise FrameRejected("an array between a node and its workers is malformed")
    kind = np.dtype(str(dtype))
    size = math.prod(sizes) * kind.itemsize
    data = channel.receive_raw(size)
    if len(data) != size:
        raise FrameRejected("an array between a node and its workers is cut short")
    return np.frombuffer(data, kind).reshape(sizes).copy()  # bytes could not be written to


def to_arrays(records: Records) -> Arrays:
    """Turns records into arrays: a column of texts becomes the bytes of a msgpack list."""
    columns = {f"{_COLUMN}{name}": _written(column) for name, column in records.columns.items()}
    labels = {} if records.labels is None else {"labels": records.labels}
    return {"units": records.units, **labels, **columns}


def from_arrays(arrays: Arrays) -> Records:
    """Turns the arrays of `to_arrays` back into records."""
    columns = {name.removeprefix(_COLUMN): _read(array) for name, array in arrays.items() if name.startswith(_COLUMN)}
    return Records(columns, arrays["units"], arrays.get("labels"))


def _written(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.frombuffer(msgpack.packb(column.tolist()), np.uint8) if column.dtype == object else column


def _read(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.dtype != np.uint8:
        return array
    values = msgpack.unpackb(array.data)
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column

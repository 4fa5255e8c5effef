"""Encodes records as arrays for the way from the node to its workers: over a private socket pair, never by a disk."""

from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from ..data import Records

Arrays = dict[str, npt.NDArray[Any]]

_COLUMN = "column "  # before the name of each, so that none is taken for another array


def to_arrays(records: Records) -> Arrays:
    """Turns records into arrays: a column of texts or lists becomes the bytes of a msgpack list."""
    columns = {f"{_COLUMN}{name}": _written(column) for name, column in records.columns.items()}
    labels = {} if records.labels is None else {"labels": records.labels}
    return {"units": records.units, **labels, **columns}


def from_arrays(arrays: Mapping[str, Any]) -> Records:
    """Turns the arrays of `to_arrays` back into records; ignores other entries."""
    columns = {name.removeprefix(_COLUMN): _read(array) for name, array in arrays.items() if name.startswith(_COLUMN)}
    return Records(columns, arrays["units"], arrays.get("labels"))


def _written(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.frombuffer(msgpack.packb(column.tolist()), np.uint8) if column.dtype == object else column


def _read(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.dtype != np.uint8:
        return array
    values = msgpack.unpackb(array.data)
    return np.fromiter(values, dtype=object, count=len(values))  # an assignment would take lists of one length apart

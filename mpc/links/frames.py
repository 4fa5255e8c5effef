"""Messages over the socket pair between a process and its child: an aggregator and its party, a node and its workers.

A message is a msgpack map, behind which the arrays come that it announces; each of these is a frame, bytes behind their
length. Every length is checked against a limit before memory is taken. Both ends belong to one organisation, and nobody
else can open the pair; the checks are there because what one end forwards came from others. Sealed shares do not travel
here: the aggregator names the files that hold them.
"""

import contextlib
import math
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from ..errors import FrameRejected, MpcError, NormExceeded
from .orders import Order, PartyConfig

MAX_MESSAGE = 16 * 2**20  # 4,096 sites with names, keys and two paths of a thousand bytes are below 10 MiB
_LENGTH = struct.Struct(">Q")
_DTYPES = ("<i8", "<f4", "<f8", "|b1", "|u1")  # of arrays


class Channel:
    """One end of the pair. Reading past the other end's close raises EOFError."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def fileno(self) -> int:
        """The file descriptor, for poll."""
        return self._end.fileno()

    def settimeout(self, seconds: float | None) -> None:
        """Silence after which a send or receive raises TimeoutError."""
        self._end.settimeout(seconds)

    def close(self) -> None:
        """Ends the conversation, also for a thread that waits for the next frame."""
        with contextlib.suppress(OSError):  # closed before, or the other end is gone
            self._end.shutdown(socket.SHUT_RDWR)
        self._end.close()

    def send(self, kind: str, **values: Any) -> None:
        """Sends one message; values are what msgpack knows, or arrays of int64, float32, float64, bool or bytes."""
        assert "arrays" not in values
        arrays = {name: np.asarray(value, order="C") for name, value in values.items() if isinstance(value, np.ndarray)}
        announced = {name: (array.dtype.str, *array.shape) for name, array in arrays.items()}
        rest = {name: value for name, value in values.items() if name not in arrays}
        self._send_frame(msgpack.packb({"kind": kind, "arrays": announced, **rest}))
        for array in arrays.values():
            self._send_frame(array.reshape(-1).view(np.uint8).data)

    def receive(self, *, array_bytes: int | None = 0) -> dict[str, Any]:
        """Reads the next message: its `kind` and its values, by name.

        Args:
            array_bytes: most that its arrays may take together; None where the other end runs our code on our data.

        Raises:
            FrameRejected: it is too long or no such message.
        """
        message = unpack_message(self._receive_frame(MAX_MESSAGE))
        announced = message.pop("arrays", None)
        if not isinstance(message.get("kind"), str) or not isinstance(announced, dict):
            raise FrameRejected("a message lacks its kind or its arrays")
        if not all(isinstance(name, str) and name not in message for name in announced):
            raise FrameRejected("an array of a message has no name of its own")
        described = {name: _described(shape) for name, shape in announced.items()}
        size = sum(math.prod(shape) * dtype.itemsize for dtype, shape in described.values())
        if array_bytes is not None and size > array_bytes:
            raise FrameRejected(f"arrays of {size} bytes where {array_bytes} are allowed")
        return message | {name: self._receive_array(*each) for name, each in described.items()}

    def _receive_array(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        data = self._receive_frame(math.prod(shape) * dtype.itemsize)
        try:
            return np.frombuffer(data, dtype).reshape(shape)
        except (ValueError, OverflowError) as err:  # cut short, or a shape that no array has
            raise FrameRejected("an array is not what its message announced") from err

    def _send_frame(self, data: bytes | memoryview) -> None:
        self._end.sendall(_LENGTH.pack(len(data)))
        self._end.sendall(data)

    def _receive_frame(self, limit: int) -> bytearray:
        (size,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if size > limit:
            raise FrameRejected(f"a frame of {size} bytes where {limit} are allowed")
        return self._exactly(size)

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        view, got = memoryview(data), 0
        while got < size:
            try:
                count = self._end.recv_into(view[got:])
            except ConnectionResetError:  # of one that was killed before it had read what we sent
                count = 0
            if count == 0:
                raise EOFError("the other end is gone")
            got += count
        return data


def end_with_parent(channel: Channel, last: Callable[[], None] = lambda: None) -> None:
    """Ends this process as soon as the parent's end of the pair is closed, whatever the main thread waits for.

    Linux could signal the death of the parent's thread that started us; but that thread may end long before.

    Args:
        last: what is done before it ends, in another thread than the main one.
    """
    poll = select.poll()
    poll.register(channel.fileno(), 0)  # hang-up is always reported

    def watch() -> None:
        poll.poll()
        last()
        os._exit(0)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def unpack_message(data: bytes | bytearray) -> dict[str, Any]:
    """A msgpack map with text keys; arrays become tuples.

    Raises:
        FrameRejected: it is anything else.
    """
    try:
        message = msgpack.unpackb(data, use_list=False, raw=False, strict_map_key=True)
    except (ValueError, TypeError, RecursionError) as err:  # msgpack's own errors are ValueErrors
        raise FrameRejected("a frame is no msgpack") from err
    if not isinstance(message, dict) or not all(isinstance(name, str) for name in message):
        raise FrameRejected("a frame is no map with text keys")
    return message


def take(message: dict[str, Any], kind: str, /, **schema: type) -> tuple[Any, ...]:
    """The values of a message of `kind` that has exactly the fields of `schema`, with exactly those types.

    Raises:
        FrameRejected: it differs.
    """
    if message.get("kind") != kind or message.keys() != {"kind", *schema}:
        raise FrameRejected(f"expected a message {kind} with {sorted(schema)}, got {sorted(message)}")
    for name, expected in schema.items():
        if type(message[name]) is not expected:
            raise FrameRejected(f"{name} in a message {kind} must be {expected.__name__}")
    return tuple(message[name] for name in schema)


def take_names(value: tuple[Any, ...]) -> tuple[str, ...]:
    """`value`, if it holds nothing but texts.

    Raises:
        FrameRejected: it does not.
    """
    if not all(isinstance(name, str) for name in value):
        raise FrameRejected("site names must be texts")
    return value


def paths_to_wire(files: Mapping[str, Path]) -> dict[str, str]:
    """The paths of envelopes as text, by site."""
    return {site: str(path.absolute()) for site, path in files.items()}


def paths_from_wire(value: dict[Any, Any]) -> dict[str, Path]:
    """Reads what `paths_to_wire` wrote.

    Raises:
        FrameRejected: a site or path is no text, or a path is not absolute.
    """
    if not all(
        isinstance(site, str) and isinstance(path, str) and Path(path).is_absolute() for site, path in value.items()
    ):
        raise FrameRejected("files must be absolute paths by site")
    return {site: Path(path) for site, path in value.items()}


def order_to_wire(order: Order) -> dict[str, Any]:
    """The order's fields."""
    return {item.name: getattr(order, item.name) for item in fields(Order)}


def order_from_wire(data: dict[str, Any]) -> Order:
    """Reads what `order_to_wire` wrote.

    Raises:
        FrameRejected: other fields than an order's.
        InvalidField: a field is out of range.
    """
    _same_fields(data, Order)
    return Order(**data)


def config_to_wire(config: PartyConfig) -> dict[str, Any]:
    """The configuration's fields, paths as text; a key is text too if it is a path, and bytes if it is the key."""
    values = {item.name: getattr(config, item.name) for item in fields(PartyConfig)}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def config_from_wire(data: dict[str, Any]) -> PartyConfig:
    """Reads what `config_to_wire` wrote.

    Raises:
        FrameRejected: other fields than a configuration's.
        InvalidField: a field is out of range.
    """
    _same_fields(data, PartyConfig)
    paths = {name: data[name] for name in ("certificate", "key", "journal")}
    if isinstance(paths["key"], bytes):
        del paths["key"]
    if not all(isinstance(path, str) for path in paths.values()):
        raise FrameRejected("paths must be texts")
    return PartyConfig(**{**data, **{name: Path(path) for name, path in paths.items()}})


def _same_fields(data: dict[str, Any], kind: type[Order] | type[PartyConfig]) -> None:
    if data.keys() != {item.name for item in fields(kind)}:
        raise FrameRejected(f"these are not the fields of {kind.__name__}: {sorted(data)}")


def _described(announced: object) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """An array's type and shape as a message announces it."""
    dtype, *shape = announced if isinstance(announced, tuple) and announced else (None,)
    if dtype not in _DTYPES or not all(type(size) is int and size >= 0 for size in shape):
        raise FrameRejected("an array of a message is malformed")
    return np.dtype(str(dtype)), tuple(shape)


def failure(err: MpcError) -> dict[str, Any]:
    """The message by which a party tells its daemon of an error."""
    kept = err.kept if isinstance(err, NormExceeded) else ()
    return {"kind": "error", "error": type(err).__name__, "message": str(err), "names": err.names, "kept": kept}

"""Wakes the gate when a run's driver has pushed messages, so that nothing is asked for nodes that nobody has called.

Flower's nodes poll, and a poll costs the SuperLink several milliseconds of processor time. The gate therefore holds the
polls of nodes for which the SuperLink had nothing, and asks it again for a node only when that node is called: the
driver, another process on this machine, sends a datagram with the ids of the nodes to which it has pushed messages. A
lost datagram costs some seconds, until the SuperLink tells the gate for whom it has messages (`gateway.vouching`); a
forged one of another local process costs a poll a node. The gate listens on the SuperLink's port number, in UDP.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress

from .calls import read_ids, write_ids

PORT_VARIABLE = "CONFIDE_WAKE_PORT"  # in the environment of the driver
_AT_ONCE = 4096  # ids in a datagram
_MOST = 65536  # nodes whose calls are remembered; a forger is not to fill the memory

logger = logging.getLogger(__name__)


def wake(nodes: Sequence[int]) -> None:
    """Calls nodes at the gate of the coordinator that started this process; does nothing outside a driver."""
    with suppress(OSError, ValueError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        gate = ("127.0.0.1", int(os.environ.get(PORT_VARIABLE, "")))
        for start in range(0, len(nodes), _AT_ONCE):
            sender.sendto(write_ids(nodes[start : start + _AT_ONCE]), gate)


class WakeListener:
    """Receives the calls of nodes for the gate.

    Calls are numbered: who remembers `latest` before it looks for messages, and finds none, knows by `changed` when to
    look again, and misses no call that comes while it looks.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._count = 0
        self._everybody = 0  # the last call of all nodes
        self._calls: dict[int, int] = {}  # node -> its last call
        self._waiting: dict[int, set[asyncio.Future[None]]] = {}
        self._transport: asyncio.DatagramTransport | None = None

    async def open(self) -> None:
        """Starts to listen; if the port is taken, nodes only wait longer for their messages."""
        loop = asyncio.get_running_loop()
        try:
            self._transport, _ = await loop.create_datagram_endpoint(
                lambda: _Ear(self), local_addr=("127.0.0.1", self._port)
            )
        except OSError as err:
            logger.warning("UDP port %d is taken (%s): nodes hear of messages some seconds late", self._port, err)

    def close(self) -> None:
        """Frees the port and calls everybody."""
        if self._transport is not None:
            self._transport.close()
        self.call_all()

    def call(self, nodes: Iterable[int]) -> None:
        """Calls these nodes."""
        self._count += 1
        for node in nodes:
            if len(self._calls) >= _MOST and node not in self._calls:
                return self.call_all()
            self._calls[node] = self._count
            self._release(node)
        return None

    def call_all(self) -> None:
        """Calls every node."""
        self._count += 1
        self._everybody = self._count
        self._calls.clear()
        for node in list(self._waiting):
            self._release(node)

    def latest(self, node: int) -> int:
        """Number of this node's last call."""
        return max(self._everybody, self._calls.get(node, 0))

    async def changed(self, node: int, since: int) -> None:
        """Waits for a call of this node; returns at once if its last one is not number `since`."""
        if self.latest(node) != since:
            return
        called = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(node, set()).add(called)
        try:
            await called
        finally:
            waiting = self._waiting.get(node, set())
            waiting.discard(called)
            if not waiting:
                self._waiting.pop(node, None)

    def _release(self, node: int) -> None:
        for called in self._waiting.pop(node, ()):
            if not called.done():
                called.set_result(None)


class _Ear(asyncio.DatagramProtocol):
    def __init__(self, listener: WakeListener) -> None:
        self._listener = listener

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        with suppress(ValueError):  # nobody's
            self._listener.call(read_ids(data))

"""Wakes the gate when a run's driver has pushed messages, so that nodes need not poll all the time.

Flower's nodes poll, and a poll costs the SuperLink several milliseconds of processor time. The gate therefore holds a
node's fruitless poll for up to `HOLD_S` seconds. The driver, another process on this machine, sends one datagram after
it has pushed messages; the gate then repeats every poll that it holds. A lost datagram costs at most the rest of that
time, a forged one of another local process costs one poll. The gate listens on the SuperLink's port number, in UDP.
"""

import asyncio
import logging
import os
import socket
from contextlib import suppress

HOLD_S = 2.5  # how long a poll is held; a node that stops waits this long for its last one
PORT_VARIABLE = "CONFIDE_WAKE_PORT"  # in the environment of the driver

logger = logging.getLogger(__name__)


def wake() -> None:
    """Wakes the gate of the coordinator that started this process; does nothing outside a driver."""
    with suppress(OSError, ValueError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"", ("127.0.0.1", int(os.environ.get(PORT_VARIABLE, ""))))


class WakeListener:
    """Receives wake-up calls for the gate. `count` grows with every call; `changed` waits for the next one."""

    def __init__(self, port: int) -> None:
        self.count = 0
        self._port = port
        self._event = asyncio.Event()
        self._transport: asyncio.DatagramTransport | None = None

    async def open(self) -> None:
        """Starts to listen; if the port is taken, nodes only wait longer for their messages."""
        loop = asyncio.get_running_loop()
        try:
            self._transport, _ = await loop.create_datagram_endpoint(
                lambda: _Ear(self), local_addr=("127.0.0.1", self._port)
            )
        except OSError as err:
            logger.warning("UDP port %d is taken (%s): nodes hear of messages up to %g s late", self._port, err, HOLD_S)

    def close(self) -> None:
        """Frees the port and releases every waiting poll."""
        if self._transport is not None:
            self._transport.close()
        self.heard()

    def heard(self) -> None:
        """Counts a call and releases every waiting poll."""
        self.count += 1
        self._event.set()
        self._event = asyncio.Event()

    async def changed(self, since: int) -> None:
        """Waits for a call; returns at once if `count` differs from `since`."""
        if self.count == since:
            await self._event.wait()


class _Ear(asyncio.DatagramProtocol):
    def __init__(self, listener: WakeListener) -> None:
        self._listener = listener

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._listener.heard()

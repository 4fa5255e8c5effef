"""Joins network namespaces by links with delay, loss and little bandwidth, as between cities.

Each namespace has one address, on a TUN device whose packets this process passes on. Linux's `tc netem` does the same
for kernels that have it; this needs /dev/net/tun and root alone.
"""

import ctypes
import fcntl
import heapq
import itertools
import os
import random
import selectors
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI, _CLONE_NEWNET = 0x400454CA, 0x0001, 0x1000, 0x40000000
_BUFFER_S = 0.25  # of packets that wait for a link, as a home router's; what comes on top is dropped
_NET = "10.99.0."
_DEVICE = "wan0"


@dataclass(frozen=True, slots=True)
class Way:
    """Names the troubles of every packet between two namespaces."""

    rtt_ms: float = 0.0  # there and back
    loss: float = 0.0  # share of packets, each way
    mbit_s: float | None = None  # of each namespace, up and down; None: unlimited


@dataclass(slots=True)
class _End:
    """A namespace's device, and until when its links are busy."""

    device: int
    up_free: float = 0.0
    down_free: float = 0.0
    passed: int = 0  # bytes that left it


@dataclass(order=True, slots=True)
class _Flight:
    due: float
    number: int
    packet: bytes = field(compare=False)
    to: _End = field(compare=False)


class Links:
    """Namespaces by name, as a context; `way` may be set at any time.

    Raises:
        PermissionError: this is not root.
    """

    def __init__(self, names: Sequence[str], *, seed: int = 0) -> None:
        self.way = Way()
        self._mark = f"wan{os.getpid()}"
        self._addresses = {name: f"{_NET}{place}" for place, name in enumerate(names, 1)}
        self._ends: dict[str, _End] = {}  # address -> its end
        self._chance, self._count = random.Random(seed), itertools.count()
        self._wake, self._ended = os.pipe()
        self._thread = threading.Thread(target=self._pass_on, name="links", daemon=True)

    def __enter__(self) -> "Links":
        try:
            for name, address in self._addresses.items():
                self._ends[address] = _End(self._made(name, address))
        except BaseException:
            self._remove()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._ended)
        self._thread.join()
        self._remove()

    def address(self, name: str) -> str:
        """Address of a namespace."""
        return self._addresses[name]

    def words(self, name: str) -> list[str]:
        """Begins the command line of a process that shall run in a namespace."""
        return ["ip", "netns", "exec", self._namespace(name)]

    def passed(self) -> int:
        """Bytes that have left all namespaces so far, headers included."""
        return sum(end.passed for end in self._ends.values())

    def _namespace(self, name: str) -> str:
        return f"{self._mark}-{name}"

    def _made(self, name: str, address: str) -> int:
        """Makes a namespace with a device; returns the device, of which we are the other end."""
        space = self._namespace(name)
        _run("ip", "netns", "add", space)
        found: list[int] = []

        def open_there() -> None:  # only this thread changes its namespace, and ends
            with Path("/run/netns", space).open() as file:
                if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", _DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
            found.append(device)

        thread = threading.Thread(target=open_there)
        thread.start()
        thread.join()
        for words in (
            ["ip", "link", "set", "lo", "up"],
            ["ip", "address", "add", f"{address}/24", "dev", _DEVICE],
            ["ip", "link", "set", _DEVICE, "up"],
        ):
            _run(*self.words(name), *words)
        return found[0]

    def _remove(self) -> None:
        for end in self._ends.values():
            os.close(end.device)
        self._ends.clear()
        for name in self._addresses:
            if Path("/run/netns", self._namespace(name)).exists():
                _run("ip", "netns", "delete", self._namespace(name))

    def _pass_on(self) -> None:
        """Reads packets as they leave, and gives each to its end when it is due."""
        flights: list[_Flight] = []
        with selectors.DefaultSelector() as ready:
            ready.register(self._wake, selectors.EVENT_READ, None)
            for end in self._ends.values():
                ready.register(end.device, selectors.EVENT_READ, end)
            while True:
                now = time.monotonic()
                while flights and flights[0].due <= now:
                    flight = heapq.heappop(flights)
                    try:
                        os.write(flight.to.device, flight.packet)
                    except OSError:  # the device has no room: a packet is lost, as elsewhere
                        continue
                wait = None if not flights else max(0.0, flights[0].due - time.monotonic())
                for key, _ in ready.select(wait):
                    if key.data is None:
                        return
                    self._take(key.data, flights)

    def _take(self, end: _End, flights: list[_Flight]) -> None:
        """Takes what has left one namespace."""
        for _ in range(64):
            try:
                packet = os.read(end.device, 65_536)
            except BlockingIOError:
                return
            to = self._ends.get(".".join(map(str, packet[16:20]))) if packet[0] >> 4 == 4 else None
            if to is None:  # IPv6's own announcements, multicast
                continue
            end.passed += len(packet)
            way, due = self.way, time.monotonic()
            if way.loss and self._chance.random() < way.loss:
                continue
            if way.mbit_s is not None:
                took = len(packet) * 8 / (way.mbit_s * 1e6)
                if max(end.up_free, to.down_free) - due > _BUFFER_S:
                    continue
                end.up_free = max(end.up_free, due) + took
                to.down_free = max(to.down_free, end.up_free) + took
                due = to.down_free
            heapq.heappush(flights, _Flight(due + way.rtt_ms / 2000, next(self._count), packet, to))


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)

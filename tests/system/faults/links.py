"""A link to the coordinator that is cut, held, delayed, slow or broken off in the middle of messages.

A node reaches its coordinator through a proxy of ours, as through a hospital's (`client-node proxy`).
"""

import random
import socket
import socketserver
import threading
import time
from contextlib import suppress
from dataclasses import replace

from .attempts import after, attempt
from .bench import PARTY, SITE, Bench
from .outcomes import Outcome, Outcomes
from .points import BY_NAME, reach

TROUBLED_S = 15.0
_CHUNK = 1 << 14


class Link(socketserver.ThreadingTCPServer):
    """A CONNECT proxy on loopback whose `trouble` may be set at any time; seeded, so that breaks can be repeated."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.trouble = ""
        self.chance = random.Random("confide links")
        self._open: set[socket.socket] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Setting of `client-node proxy`."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def begin(self, trouble: str) -> None:
        """Sets the trouble; a cut ends what is open."""
        self.trouble = trouble
        if trouble == "cut":
            self.cut()

    def cut(self) -> None:
        """Ends every open connection."""
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def pump(self, source: socket.socket, sink: socket.socket) -> None:
        """Passes on what comes, as the trouble of the moment allows."""
        self._open.add(source)
        until_break = self.chance.randrange(200, 20_000)
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                while self.trouble == "held":
                    time.sleep(0.05)
                if self.trouble == "delayed by 0.5 s":
                    time.sleep(0.5)
                if self.trouble == "8 KiB/s":
                    time.sleep(len(data) / 8192)
                if self.trouble == "broken off":
                    until_break -= len(data)
                    if until_break < 0:
                        sink.sendall(data[: len(data) // 2])  # half of it
                        break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.discard(source)


class _Tunnel(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        link: Link = self.server  # type: ignore[assignment]
        target = self.rfile.readline().decode().split()[1]
        while self.rfile.readline().strip():
            pass
        if link.trouble == "cut":
            return
        host, _, port = target.rpartition(":")
        with socket.create_connection((host, int(port))) as far:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=link.pump, args=(far, self.connection), daemon=True)
            back.start()
            link.pump(self.connection, far)
            back.join()


_POINTS = {SITE: ("sites are asked", "answer stored at the site"), PARTY: ("aggregators are ordered",)}
TROUBLES = ("cut", "held", "broken off", "delayed by 0.5 s", "8 KiB/s")


def trouble_each(bench: Bench, outcomes: Outcomes) -> None:
    """Troubles the links of a site and of an aggregator, in each way at one or two points."""
    for owner, points in _POINTS.items():
        planned = [
            Outcome(group="link", fault=f"{trouble}, {TROUBLED_S:.0f} s", target=owner, point=point)
            for trouble in TROUBLES
            for point in points
        ]
        if all(map(outcomes.has, planned)) or outcomes.is_enough(planned[0].group):
            continue
        link = Link()
        bench.ensure_run(needs=40)
        _go_through(bench, owner, link.url)
        try:
            for each in planned:
                link.begin("")
                attempt(bench, outcomes, each, lambda planned, link=link: _trouble(bench, link, planned), needs=30)
        finally:
            link.begin("")
            _go_through(bench, owner, "none")
            link.shutdown()
            link.server_close()


def _go_through(bench: Bench, owner: str, url: str) -> None:
    bench.federation.kill(owner)
    bench.federation.client(owner, "proxy", url)
    bench.restart(owner)
    before = bench.committed()
    bench.wait(lambda: bench.committed() > before, "a round by another way")


def _trouble(bench: Bench, link: Link, planned: Outcome) -> Outcome:
    reach(bench, BY_NAME[planned.point])
    at = bench.committed()
    link.begin(planned.fault.rpartition(",")[0])
    time.sleep(TROUBLED_S)
    before = bench.committed()
    link.begin("")
    return after(bench, replace(planned, figures={"rounds meanwhile": before - at}), time.monotonic(), before)

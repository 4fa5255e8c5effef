"""A proxy between two parties of a federation that can hold, cut, delay, slow down or break what it passes on."""

import random
import socket
import socketserver
import threading
import time
from contextlib import suppress

_CHUNK = 1 << 14


class Link(socketserver.ThreadingTCPServer):
    """A proxy on loopback whose `trouble` may be set at any time; seeded, so that breaks can be repeated.

    Without a target it is an HTTP proxy that takes CONNECT; with one, whatever reaches its port goes to the target's.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *, port: int = 0, target: int | None = None) -> None:
        """Serves at once.

        Args:
            port: its own; 0 for any that is free.
            target: a port of this machine.
        """
        super().__init__(("127.0.0.1", port), _Tunnel)
        self.target = target
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

    def end(self) -> None:
        """Ends the proxy and what is open."""
        self.shutdown()
        self.server_close()
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
        place = ("127.0.0.1", link.target) if link.target is not None else self._asked()
        if link.trouble == "cut":
            return
        with suppress(OSError), socket.create_connection(place) as far:
            if link.target is None:
                self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=link.pump, args=(far, self.connection), daemon=True)
            back.start()
            link.pump(self.connection, far)
            back.join()

    def _asked(self) -> tuple[str, int]:
        host, _, port = self.rfile.readline().decode().split()[1].rpartition(":")
        while self.rfile.readline().strip():
            pass
        return host, int(port)

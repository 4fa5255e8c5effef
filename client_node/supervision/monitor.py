"""Serves `/healthz`, `/readyz` and `/metrics` on a loopback port, to programs on this machine alone.

It binds 127.0.0.1 and nothing else. A page in somebody's browser cannot read it by another name for that address (DNS
rebinding): a request must name this machine in `Host`, and have no `Origin`. It takes GET without a body, answers a few
requests at a time, and says nothing of who asked in any log.
"""

import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ...mpc.crash import TextLeftOut
from ..errors import MonitorUnavailable

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
_AT_ONCE = 4  # requests
_REQUEST_S = 5.0  # for a request to arrive
_FRESH_S = 2.0  # answers are made anew no more often, however often somebody asks
_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Tells whether all is well, and why not in one sentence each."""

    reasons: tuple[str, ...] = ()  # none if all is well

    @property
    def is_well(self) -> bool:
        """True if there is no reason against it."""
        return not self.reasons


@dataclass(frozen=True, slots=True)
class Answers:
    """Makes what the monitor tells; any of them may be called from any thread."""

    alive: Callable[[], Verdict]  # the process lives: else only a new one helps
    ready: Callable[[], Verdict]  # it can do its work just now
    metrics: Callable[[], bytes]  # as Prometheus reads them
    content_type: str  # of the metrics


class Monitor:
    """The running server. Port 0 takes a free one.

    Raises:
        MonitorUnavailable: the port is taken.
    """

    def __init__(self, port: int, answers: Answers) -> None:
        try:
            self._server = _Server((HOST, port), _Handler)
        except OSError as err:
            raise MonitorUnavailable(
                f"the monitor cannot listen on {HOST}:{port} ({err.strerror}); nothing was started. Choose another "
                "port with --monitor"
            ) from err
        self.port = int(self._server.server_address[1])
        self._server.hosts = frozenset({f"{HOST}:{self.port}", f"localhost:{self.port}"})
        self._server.pages = {
            "/healthz": _Page(lambda: _told(answers.alive())),
            "/readyz": _Page(lambda: _told(answers.ready())),
            "/metrics": _Page(lambda: (200, answers.content_type, answers.metrics())),
        }
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="confide-monitor", daemon=True
        )
        self._thread.start()
        logger.info("healthz, readyz and metrics at http://%s:%d", HOST, self.port)

    def stop(self) -> None:
        """Closes the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Page:
    """One answer, made anew when it is asked for and no longer fresh."""

    def __init__(self, make: Callable[[], tuple[int, str, bytes]]) -> None:
        self._make, self._mutex = make, threading.Lock()
        self._made, self._at = (503, _JSON, b""), -_FRESH_S

    def answer(self) -> tuple[int, str, bytes]:
        with self._mutex:
            if time.monotonic() - self._at >= _FRESH_S:
                self._made, self._at = self._make(), time.monotonic()
            return self._made


def _told(verdict: Verdict) -> tuple[int, str, bytes]:
    said = {"ok": verdict.is_well, "reason": " ".join(verdict.reasons)}
    return 200 if verdict.is_well else 503, _JSON, json.dumps(said).encode() + b"\n"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    hosts: frozenset[str] = frozenset()
    pages: dict[str, _Page] = {}  # noqa: RUF012 (replaced before the first request)

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._places = threading.BoundedSemaphore(_AT_ONCE)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):  # whoever keeps connections open shuts out others like it
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        end = threading.Timer(_REQUEST_S, _end, (request,))  # also of one that sends a byte now and then
        end.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            end.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Leaves out what was sent; Python's own way prints it."""
        logger.debug("a request to the monitor broke off")


def _end(request: socket.socket) -> None:
    with suppress(OSError):  # it is closed already
        request.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _REQUEST_S
    server_version, sys_version = "confide", ""
    protocol_version = "HTTP/1.0"  # one request a connection

    def do_GET(self) -> None:
        named, page = self.headers.get_all("host", []), self.server.pages.get(self.path)
        if len(named) != 1 or named[0].lower() not in self.server.hosts or "origin" in self.headers:
            return self._say(421, "text/plain", b"this port answers this machine alone\n")
        if page is None:
            return self._say(404, "text/plain", b"there is /healthz, /readyz and /metrics\n")
        try:
            answer = page.answer()
        except Exception as err:
            logger.error("the monitor cannot answer %s", self.path, exc_info=TextLeftOut.of(err))
            answer = 500, "text/plain", b"an error that should not happen; the log says where\n"
        self._say(*answer)

    def _refuse(self) -> None:
        self._say(405, "text/plain", b"only GET\n", ("Allow", "GET"))

    do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = do_TRACE = do_CONNECT = _refuse

    def _say(self, status: int, kind: str, body: bytes, *more: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"), ("Cross-Origin-Resource-Policy", "same-origin"), *more,
        ):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Logs nothing: a scrape every few seconds would fill the log."""

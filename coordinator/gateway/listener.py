"""Listens for the gate: TLS, the serving thread, and the log of refused parties.

The log has at most one line a minute for each refused party and reason; further refusals are counted. A party whose TLS
handshake fails has shown no key, so all of these share a line.
"""

import asyncio
import logging
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn

from ..errors import CoordinatorError

logger = logging.getLogger("confide.gate")

_QUIET_S = 60.0
_MAX_PARTIES = 2048  # parties remembered; a flood of made-up keys must not fill memory or the log
_MAX_LINES = 120  # lines a minute, over all parties


class ListenerLog:
    """Rate-limited log of refused parties."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}  # (reason, party) -> last line, silent since
        self._window, self._lines = 0.0, 0

    def turned_away(self, reason: str, party: str, text: str, *args: object) -> None:
        """Logs `text` unless a line for the same reason and party was written within the last minute."""
        now = time.monotonic()
        last, silent = self._seen.get((reason, party), (-_QUIET_S, 0))
        if now - last < _QUIET_S:
            self._seen[reason, party] = (last, silent + 1)
            return
        if not self._may_write(now):
            return
        if len(self._seen) >= _MAX_PARTIES:
            self._seen = {who: kept for who, kept in self._seen.items() if now - kept[0] < _QUIET_S}
        self._seen[reason, party] = (now, 0)
        repeated = f" ({silent} more like this since the last line)" if silent else ""
        logger.warning("turned away: " + text + repeated, *args)

    def passed(self, text: str, *args: object) -> None:
        """Logs a rare success, such as an enrolment."""
        logger.info(text, *args)

    def _may_write(self, now: float) -> bool:
        if now - self._window >= _QUIET_S:
            self._window, self._lines = now, 0
        self._lines += 1
        return self._lines <= _MAX_LINES


_handshakes = ListenerLog()


class _WatchedTls(ssl.SSLObject):
    """TLS that logs a failed handshake; asyncio would drop it without a word."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLWantReadError:
            raise
        except (ssl.SSLError, ConnectionError) as err:
            reason = getattr(err, "reason", None) or type(err).__name__
            _handshakes.turned_away("tls", str(reason), "TLS handshake failed: %s%s", reason, _explain(str(reason)))
            raise


class GateServer:
    """A running gate; `stop` ends it."""

    def __init__(self, server: uvicorn.Server, listener: socket.socket, tls: ssl.SSLContext) -> None:
        self.port: int = listener.getsockname()[1]
        self._server, self._listener, self._tls = server, listener, tls
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._serve, name="confide-gate", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.run(self._accept())

    async def _accept(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._server.serve(sockets=[self._listener])

    def show(self, certificate: Path, key: Path) -> None:
        """Shows another certificate to connections that are opened from now on.

        Raises:
            OSError: the files cannot be read, or do not belong together; the gate goes on as it was.
        """
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        if self._loop is not None:  # in its thread, no handshake meets the new certificate with the old key
            self._loop.call_soon_threadsafe(self._tls.load_cert_chain, certificate, key)

    @property
    def is_alive(self) -> bool:
        """True if the gate still serves."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Stops accepting requests, finishes those in progress and closes the port."""
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._listener.close()


def serve_gate(app: Any, host: str, port: int, certificate: Path, key: Path) -> GateServer:
    """Serves `app` over TLS 1.3 in a thread of its own; returns once the port is open. Port 0 takes a free one.

    Raises:
        CoordinatorError: the address is taken, or is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as err:
        listener.close()
        raise CoordinatorError(
            f"the gate cannot listen on {host}:{port} ({err.strerror}); choose another port"
        ) from err
    listener.listen(256)
    config = uvicorn.Config(
        app, ssl_certfile=certificate, ssl_keyfile=key, log_config=None, log_level="warning", access_log=False,
        ws="none", lifespan="on", timeout_keep_alive=30, timeout_graceful_shutdown=3, limit_concurrency=1024,
        server_header=False,
    )  # fmt: skip
    config.load()
    tls = config.ssl
    if tls is None:
        raise CoordinatorError("the gate has no TLS context; it never serves in the clear")
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    tls.sslobject_class = _WatchedTls
    server = GateServer(uvicorn.Server(config), listener, tls)
    deadline = time.monotonic() + 10
    while not server._server.started:
        if not server.is_alive or time.monotonic() > deadline:
            raise CoordinatorError(f"the gate did not start on {host}:{port}; its log says why")
        time.sleep(0.005)
    return server


def _explain(reason: str) -> str:
    if "UNKNOWN_CA" in reason or "BAD_CERTIFICATE" in reason or "CERTIFICATE_UNKNOWN" in reason:
        return " (the other side trusts another CA; it may be enrolled elsewhere)"
    if "HTTP_REQUEST" in reason or "WRONG_VERSION" in reason or "UNSUPPORTED_PROTOCOL" in reason:
        return " (the other side does not speak TLS 1.3)"
    return ""

"""Listens for HTTP with uvicorn: what every service of ours asks of a connection before a request reaches it."""

import asyncio
import ipaddress
import logging
import re
import signal
import ssl
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S, SEND_S = 20.0, 30.0  # for the head of a request to come, and for a part of an answer to be taken
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?")


class PortTaken(Exception):
    """The address cannot be listened on."""


class Hasty(H11Protocol):
    """uvicorn's HTTP, that ends connections on which no whole head of a request comes."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Takes what has come."""
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits no more."""
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        """Begins to count while no request is being answered."""
        is_idle = self.cycle is None or self.cycle.response_complete
        if not is_idle and self._late is not None:
            self._late.cancel()
            self._late = None
        elif is_idle and self._late is None:
            self._late = self.loop.call_later(HEAD_S, self._end_if_idle)

    def _end_if_idle(self) -> None:
        self._late = None
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.close()


class Listening:
    """A service whose port is open."""

    def __init__(self, server: uvicorn.Server, port: int) -> None:
        self._server, self.port = server, port

    def stop(self) -> None:
        """Takes no more requests, ends those that are being answered, and lets `listen` return."""
        self._server.should_exit = True


def listen(
    app: ASGIApp,
    host: str,
    port: int,
    announce: Callable[[Listening], None],
    *,
    tls: ssl.SSLContext | None = None,
    most: int,
    ending: Callable[[], None] = lambda: None,
) -> None:
    """Serves until `Listening.stop`, or, in the main thread, SIGINT or SIGTERM.

    Args:
        port: 0 takes a free one.
        announce: called once the port is open.
        most: connections at once; more are answered with 503.
        ending: called when the service is told to end, before connections are closed.

    Raises:
        PortTaken: the address cannot be listened on.
    """
    for logger in map(logging.getLogger, ("uvicorn", "uvicorn.error")):  # its tracebacks may tell of requests
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
    config = uvicorn.Config(
        in_time(app), host=host, port=port, http=Hasty, ws="none", lifespan="off", log_config=None, log_level="error",
        access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=15, timeout_graceful_shutdown=3,
        limit_concurrency=most, h11_max_incomplete_event_size=1 << 16,
    )  # fmt: skip
    if tls is not None:
        config.load()
        config.ssl = tls
    _Server(config, announce, ending).run()


def in_time(app: ASGIApp) -> ASGIApp:
    """Ends whoever does not take what is sent to them."""

    async def bounded(scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            async with asyncio.timeout(SEND_S):
                await send(message)

        with suppress(TimeoutError):
            await app(scope, receive, sent)

    return bounded


def only_under(app: ASGIApp, names: Collection[str], refusal: ASGIApp) -> ASGIApp:
    """Refuses requests under other names: a web page must not reach a loopback port under a name of its own."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        is_known = scope["type"] != "http" or host_of(Headers(scope=scope).getlist("host")) in names
        await (app if is_known else refusal)(scope, receive, send)

    return guarded


def host_of(named: list[str]) -> str:
    """Reads the name in a request's Host headers, in lower case, without the port; "" if there is not exactly one."""
    found = _HOST.fullmatch(named[0]) if len(named) == 1 else None
    return "" if found is None else (found[1] or found[2]).lower()


def is_loopback(host: str) -> bool:
    """True if only this machine reaches that address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Makes a context of TLS 1.3 that shows the certificate. Raises OSError or ssl.SSLError if the files are unfit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    return context


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, announce: Callable[[Listening], None], ending: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._announce, self._ending = announce, ending

    async def shutdown(self, sockets: "list[object] | None" = None) -> None:  # type: ignore[override]
        self._ending()
        await super().shutdown()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ends on SIGINT and SIGTERM, as uvicorn does, and does not raise them once more behind that."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: "list[object] | None" = None) -> None:  # type: ignore[override]
        try:
            await super().startup()
        except SystemExit:  # uvicorn's own way of saying that the port is taken
            raise PortTaken(f"{self.config.host}:{self.config.port}") from None
        self._announce(Listening(self, self.servers[0].sockets[0].getsockname()[1]))

"""Listens for the service: on this machine alone by default, else with TLS and a token."""

import asyncio
import ipaddress
import logging
import secrets
import signal
import ssl
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import ServiceRefused
from .app import Service, refused
from .engine import Engine
from .served import Served

_LEAST_TOKEN, _MOST_TOKEN = 32, 1000  # characters
_HEAD_S, _SEND_S = 20.0, 30.0  # for the head of a request to come, and for a part of an answer to be taken
_MORE = 256  # connections beyond those that are served and wait: they are told to come again
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """The place where the service listens, and what it asks of those who come."""

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None  # a new token is made if there is none
    certificate: Path | None = None  # PEM, with the chain
    key: Path | None = None

    @property
    def is_loopback(self) -> bool:
        """True if only this machine reaches it."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """Bounds of what is done at once."""

    rows: int = 16  # texts that are written together
    waiting: int = 128  # requests that may wait
    seconds: float = 120.0  # after which a request is ended


class Listening:
    """A service whose port is open."""

    def __init__(self, server: uvicorn.Server, port: int) -> None:
        self._server, self.port = server, port

    def stop(self) -> None:
        """Takes no more requests, cuts all texts, and lets `run` return."""
        self._server.should_exit = True


def run(
    served: Served,
    address: Address,
    bounds: Bounds,
    announce: Callable[[Listening], None],
    prefixes: Sequence[str] = (),
) -> None:
    """Serves until the process is told to end (SIGINT, SIGTERM); texts that are being written are then cut.

    Args:
        prefixes: texts that many requests begin with, which are read once.
        announce: called once the port is open.

    Raises:
        ServiceRefused: the address is open to others without TLS and a token, cannot be listened on, or the files
            of token or certificate are missing or unfit.
        InvalidPrompt: a prefix leaves the model no room for a request.
    """
    require_closed(address)
    token = _token(address)
    engine = Engine(
        served.composition, words=served.requests.words, rows=bounds.rows, waiting=bounds.waiting,
        prefixes=served.beginnings(prefixes),
    )  # fmt: skip
    try:
        service = Service(served, engine, token=token, seconds=bounds.seconds)
        names = {address.host, *_LOOPBACK_NAMES} if address.is_loopback else None
        for logger in map(logging.getLogger, ("uvicorn", "uvicorn.error")):  # its tracebacks may tell of requests
            logger.addHandler(logging.NullHandler())
            logger.propagate = False
        config = uvicorn.Config(
            _in_time(service.app if names is None else _only_under(service.app, names)), host=address.host,
            port=address.port, http=_Hasty, ws="none", lifespan="off", log_config=None, log_level="error",
            access_log=False, server_header=False, timeout_keep_alive=15, timeout_graceful_shutdown=3,
            limit_concurrency=bounds.rows + bounds.waiting + _MORE, h11_max_incomplete_event_size=1 << 16,
        )  # fmt: skip
        if address.certificate is not None and address.key is not None:
            config.load()
            config.ssl = _tls(address.certificate, address.key)
        _Server(config, announce, engine).run()
    finally:
        engine.stop()
        served.forms.close()


def require_closed(address: Address) -> None:
    """Raises `ServiceRefused` if others than this machine could reach the service without TLS and a token."""
    if (address.certificate is None) != (address.key is None):
        raise ServiceRefused("a certificate needs its key, and a key its certificate: --certificate and --key")
    if address.is_loopback:
        return
    missing = [
        name
        for name, value in (("--certificate and --key", address.certificate), ("--token-file", address.token_file))
        if value is None
    ]
    if missing:
        raise ServiceRefused(
            f"{address.host} is reached by others than this machine: add {' and '.join(missing)}, or listen on "
            "127.0.0.1"
        )


class _Hasty(H11Protocol):
    """uvicorn's HTTP, that ends connections on which no whole head of a request comes."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
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
            self._late = self.loop.call_later(_HEAD_S, self._end_if_idle)

    def _end_if_idle(self) -> None:
        self._late = None
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, announce: Callable[[Listening], None], engine: Engine) -> None:
        super().__init__(config)
        self._announce, self._engine = announce, engine

    async def shutdown(self, sockets: "list[object] | None" = None) -> None:  # type: ignore[override]
        self._engine.end()  # whoever waits is told so, before connections are closed
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
            raise ServiceRefused(
                f"the service cannot listen on {self.config.host}:{self.config.port}; choose another --port"
            ) from None
        self._announce(Listening(self, self.servers[0].sockets[0].getsockname()[1]))


def _in_time(app: ASGIApp) -> ASGIApp:
    """Ends whoever does not take what is sent to them."""

    async def bounded(scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            async with asyncio.timeout(_SEND_S):
                await send(message)

        with suppress(TimeoutError):
            await app(scope, receive, sent)

    return bounded


def _only_under(app: ASGIApp, names: Collection[str]) -> ASGIApp:
    """Refuses requests under other names: a web page must not reach a loopback port under a name of its own."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "")
            name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
            if name.lower() not in names:
                await refused("the service has another name", "unknown_name")(scope, receive, send)
                return
        await app(scope, receive, send)

    return guarded


def _token(address: Address) -> str | None:
    if address.token_file is None:
        return None
    path = address.token_file
    try:
        if not path.exists():
            path.touch(mode=0o600, exist_ok=False)
            path.write_text(secrets.token_urlsafe(32) + "\n", encoding="ascii")
        elif path.stat().st_mode & 0o077:
            raise ServiceRefused(f"{path} can be read by others: chmod 600 {path}")
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as err:
        raise ServiceRefused(f"{path} cannot be used as a file with a token") from err
    if not _LEAST_TOKEN <= len(token) <= _MOST_TOKEN or not token.isprintable():
        raise ServiceRefused(f"{path} must hold one token of {_LEAST_TOKEN} printable letters or more")
    return token


def _tls(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as err:
        raise ServiceRefused(f"{certificate} and {key} are no certificate and its key") from err
    return context

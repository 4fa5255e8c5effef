"""Listens for the service: on this machine alone by default, else with TLS and a token."""

import ipaddress
import secrets
import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ..errors import ServiceRefused
from .app import Service
from .engine import Engine
from .served import Served

_LEAST_TOKEN, _MOST_TOKEN = 32, 1000  # characters
_MORE = 256  # connections beyond those that are served and wait: they are told to come again
_LOOPBACK_NAMES = ["localhost", "127.0.0.1", "[::1]"]


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
        """Takes no more requests, gives those in progress 3 seconds, and lets `run` return."""
        self._server.should_exit = True


def run(served: Served, address: Address, bounds: Bounds, announce: Callable[[Listening], None]) -> None:
    """Serves until the process is told to end (SIGINT, SIGTERM); texts that are being written are then cut.

    Args:
        announce: called once the port is open.

    Raises:
        ServiceRefused: the address is open to others without TLS and a token, cannot be listened on, or the files
            of token or certificate are missing or unfit.
    """
    token = _token(address)
    require_closed(address)
    engine = Engine(served.composition, words=served.requests.words, rows=bounds.rows, waiting=bounds.waiting)
    try:
        service = Service(served, engine, token=token, seconds=bounds.seconds)
        names = [address.host, *_LOOPBACK_NAMES] if address.is_loopback else ["*"]
        config = uvicorn.Config(
            # A web page must not reach a loopback port under a name of its own.
            TrustedHostMiddleware(service.app, allowed_hosts=names, www_redirect=False), host=address.host,
            port=address.port, http="h11", ws="none", lifespan="off", log_config=None, log_level="error",
            access_log=False, server_header=False, timeout_keep_alive=15, timeout_graceful_shutdown=3,
            limit_concurrency=bounds.rows + bounds.waiting + _MORE, h11_max_incomplete_event_size=1 << 16,
        )  # fmt: skip
        if address.certificate is not None and address.key is not None:
            config.load()
            config.ssl = _tls(address.certificate, address.key)
        _Server(config, announce).run()
    finally:
        engine.stop()


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


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, announce: Callable[[Listening], None]) -> None:
        super().__init__(config)
        self._announce = announce

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

"""Listens for the service: on this machine alone by default, else with TLS and a token."""

import secrets
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.types import ASGIApp

from ...listening import LOOPBACK_NAMES, Listening, PortTaken, is_loopback, listen, only_under, tls_context
from ..errors import ServiceRefused
from .app import Service, refused
from .engine import Engine
from .served import Served

_LEAST_TOKEN, _MOST_TOKEN = 32, 1000  # characters
_MORE = 256  # connections beyond those that are served and wait: they are told to come again


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
        return is_loopback(self.host)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """Bounds of what is done at once."""

    rows: int = 16  # texts that are written together
    waiting: int = 128  # requests that may wait
    seconds: float = 120.0  # after which a request is ended


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
        app: ASGIApp = service.app
        if address.is_loopback:
            app = only_under(
                app, {address.host, *LOOPBACK_NAMES}, refused("the service has another name", "unknown_name")
            )
        tls = None
        if address.certificate is not None and address.key is not None:
            tls = _tls(address.certificate, address.key)
        listen(
            app, address.host, address.port, announce, tls=tls, most=bounds.rows + bounds.waiting + _MORE,
            ending=engine.end,  # whoever waits is told so, before connections are closed
        )  # fmt: skip
    except PortTaken as err:
        raise ServiceRefused(f"the service cannot listen on {err}; choose another --port") from None
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
    try:
        return tls_context(certificate, key)
    except (OSError, ssl.SSLError) as err:
        raise ServiceRefused(f"{certificate} and {key} are no certificate and its key") from err

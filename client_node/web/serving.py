"""Serves a page: on this machine alone by default, else with TLS."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.types import ASGIApp

from ...listening import LOOPBACK_NAMES, Listening, PortTaken, is_loopback, listen, tls_context
from ..errors import PageUnavailable
from .framing import framed

MOST_CONNECTIONS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """The place where a page is served."""

    host: str = "127.0.0.1"
    port: int = 0
    certificate: Path | None = None  # PEM, with the chain
    key: Path | None = None

    @property
    def is_https(self) -> bool:
        """True if it is served with TLS."""
        return self.certificate is not None

    def address(self, port: int) -> str:
        """Writes the address to open in a browser."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.is_https else 'http'}://{host}:{port}"

    def require_closed(self) -> None:
        """Raises `PageUnavailable` if others than this machine could reach the page without TLS."""
        if (self.certificate is None) != (self.key is None):
            raise PageUnavailable("a certificate of the page needs its key, and a key its certificate")
        if self.certificate is None and not is_loopback(self.host):
            raise PageUnavailable(
                f"{self.host} is reached by others than this machine: the page needs a certificate and its key there; "
                "or serve it on 127.0.0.1"
            )


def serve_page(app: ASGIApp, place: Place, announce: Callable[[str, Listening], None]) -> None:
    """Serves an app within the frame until its process is told to end.

    Args:
        announce: called with the page's address once the port is open.

    Raises:
        PageUnavailable: the address cannot be listened on, is open to others without TLS, or the files of the
            certificate are missing or unfit.
    """
    place.require_closed()
    tls = None
    if place.certificate is not None and place.key is not None:
        try:
            tls = tls_context(place.certificate, place.key)
        except (OSError, ssl.SSLError) as err:
            raise PageUnavailable(f"{place.certificate} and {place.key} are no certificate and its key") from err
    names = {place.host.lower(), *LOOPBACK_NAMES} if is_loopback(place.host) else None
    try:
        listen(
            framed(app, names, is_https=place.is_https), place.host, place.port,
            lambda listening: announce(place.address(listening.port), listening), tls=tls, most=MOST_CONNECTIONS,
        )  # fmt: skip
    except PortTaken as err:
        raise PageUnavailable(
            f"the page cannot listen on {err}: another program does, or the name is not ours"
        ) from None

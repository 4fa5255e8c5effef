"""Serves the federation from a command, until it is stopped."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ...client_node.cli.application import LogForm, until_stopped

if TYPE_CHECKING:
    from ...client_node.web.child import WebChild
    from ...client_node.web.serving import Place

PAGE = "9449"  # of the operator's page: beside that of a site and all monitors on one machine
NO_PAGE = "none"
_PROCESS = "confide.coordinator.page.process"


def serve_federation(
    home: Path,
    *,
    monitor: int | None = None,
    form: LogForm | None = None,
    page: "Place | None" = None,
    stands_by: bool = False,
) -> None:
    """Runs the gate, Flower's SuperLink, the drivers of runs, and the operator's page, until SIGTERM or Ctrl-C.

    Args:
        stands_by: wait until no other server leads, and serve then.
    """
    from ...client_node.supervision import Supervisor
    from ..errors import AlreadyLed, StoreUnavailable
    from ..federation import Pki, load_settings
    from ..gateway import Seat, Service, stand_by

    load_settings(home)
    if stands_by:
        Pki.load(home)  # now, while somebody looks: sealed keys without a passphrase would keep it from taking over
    if page is not None:
        page.require_closed()
    stop, supervisor = until_stopped("httpx", "alembic", form=form), Supervisor()
    with Seat.at(home) as seat:
        while not stop.is_set():
            if stands_by:
                stand_by(home, seat, stop, supervisor, monitor=monitor)
                if stop.is_set():
                    return
            try:  # only now: keys and certificates may be others than when it began to stand by
                return Service(home, seat).serve(stop, monitor=monitor, supervisor=supervisor, page=_page(home, page))
            except (AlreadyLed, StoreUnavailable) as err:  # the latter before it served: a database at its failover
                if not stands_by:
                    raise
                logging.getLogger(__name__).warning("%s; stands by again", err)


def _page(home: Path, page: "Place | None") -> "WebChild | None":
    if page is None:
        return None
    from ...client_node.web.child import WebChild
    from ...client_node.web.process import command

    return WebChild(command(_PROCESS, home, page), home / "page.log", asked_for=page.port != int(PAGE))


def page_place(text: str, certificate: Path | None = None, key: Path | None = None) -> "Place | None":
    """Reads where the page shall be served: a port, ADDRESS:PORT, or `none`.

    Raises:
        typer.BadParameter: it is none of these.
    """
    from ...client_node.web.serving import Place

    if text == NO_PAGE:
        return None
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise typer.BadParameter(f"{text!r} is neither a port, nor ADDRESS:PORT, nor none", param_hint="--page")
    return Place(host=host.strip("[]") or "127.0.0.1", port=int(port), certificate=certificate, key=key)

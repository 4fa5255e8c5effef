"""Serves the federation from a command, until it is stopped."""

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from .application import LogForm, until_stopped

if TYPE_CHECKING:
    from ..web.child import WebChild


PAGE = 9448  # port of the site's page: beside the monitors of a site and an aggregator on one machine
NO_PAGE = "none"
_PROCESS = "confide.client_node.page.process"
_TRIES = 5  # in a minute and a half, of a page that nobody has asked for


def serve_node(
    home: Path, *, monitor: int | None = None, form: LogForm | None = None, page: str | None = None
) -> NoReturn:
    """Runs the daemon until SIGTERM or Ctrl-C, and ends the command with its exit code.

    Args:
        page: port of the site's page on this machine, or `none`; None for the usual port, if nothing else has it.
    """
    from ... import __version__
    from ..stopping import run_until
    from ..supervision import Supervisor
    from ..vitals import Notes, Vitals

    child = None if page == NO_PAGE else _page(home, page)
    stop = until_stopped("httpx", "httpx2", "httpcore", "flwr", form=form)
    supervisor, vitals = Supervisor(), Vitals()
    notes = Notes(home, __version__, vitals)

    def work() -> int:
        from .. import daemon  # seconds, on a slow machine; a stop is heeded meanwhile

        try:
            return daemon.run(home, stop, vitals=vitals, monitor=monitor)
        finally:
            supervisor.stopping()

    def live() -> None:
        if not vitals.pulse.stuck():
            supervisor.live()
        if vitals.has_begun:  # and so holds the home's lock
            supervisor.ready()
            notes.tick()
            if child is not None:
                child.tick()

    try:
        raise typer.Exit(run_until(stop, work, live))
    finally:
        if child is not None:
            child.stop(within_s=1.0)  # a stop is over within 5 s in all


def _page(home: Path, asked: str | None) -> "WebChild":
    """Prepares the process of the site's page.

    Raises:
        typer.BadParameter: what was asked for is neither a port nor `none`.
    """
    from ..daemon import PAGE_FILE
    from ..web.child import WebChild
    from ..web.process import command
    from ..web.serving import Place

    if asked is not None and not (asked.isascii() and asked.isdigit() and len(asked) <= 5 and int(asked) <= 65_535):
        raise typer.BadParameter(f"{asked!r} is neither a port nor {NO_PAGE}", param_hint="--page")
    place = Place(port=PAGE if asked is None else int(asked))
    return WebChild(
        command(_PROCESS, home, place), home / "page.log", asked_for=asked is not None,
        tries=_TRIES if asked is None else None, noted_in=home / PAGE_FILE,
    )  # fmt: skip

"""Serves the federation from a command, until it is stopped."""

from pathlib import Path
from typing import NoReturn

import typer

from .application import LogForm, until_stopped


def serve_node(home: Path, *, monitor: int | None = None, form: LogForm | None = None) -> NoReturn:
    """Runs the daemon until SIGTERM or Ctrl-C, and ends the command with its exit code."""
    from ..stopping import run_until
    from ..supervision import Supervisor
    from ..vitals import Vitals

    stop = until_stopped("httpx", "httpx2", "httpcore", "flwr", form=form)
    supervisor, vitals = Supervisor(), Vitals()

    def work() -> int:
        from .. import daemon  # seconds, on a slow machine; a stop is heeded meanwhile

        try:
            return daemon.run(home, stop, vitals=vitals, monitor=monitor)
        finally:
            supervisor.stopping()

    def live() -> None:
        if not vitals.pulse.stuck():
            supervisor.live()
        if vitals.has_begun:
            supervisor.ready()

    raise typer.Exit(run_until(stop, work, live))

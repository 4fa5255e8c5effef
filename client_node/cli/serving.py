"""Serves the federation from a command, until it is stopped."""

from pathlib import Path
from typing import NoReturn

import typer

from .application import until_stopped


def serve_node(home: Path) -> NoReturn:
    """Runs the daemon until SIGTERM or Ctrl-C, and ends the command with its exit code."""
    from ..stopping import run_until

    stop = until_stopped("httpx", "httpx2", "httpcore", "flwr")

    def work() -> int:
        from .. import daemon  # seconds, on a slow machine; a stop is heeded meanwhile

        return daemon.run(home, stop)

    raise typer.Exit(run_until(stop, work))

"""Serves the federation from a command, until it is stopped."""

from pathlib import Path
from typing import NoReturn

import typer

from .application import until_stopped


def serve_node(home: Path) -> NoReturn:
    """Runs the daemon until SIGTERM or Ctrl-C, and ends the command with its exit code."""
    from .. import daemon

    raise typer.Exit(daemon.run(home, until_stopped("httpx", "httpx2", "httpcore", "flwr")))

"""Serves the federation from a command, until it is stopped."""

from pathlib import Path

from ...client_node.cli.application import until_stopped


def serve_federation(home: Path) -> None:
    """Runs the gate, Flower's SuperLink and the drivers of runs until SIGTERM or Ctrl-C."""
    from ..gateway import Service

    stop = until_stopped("httpx", "alembic")
    Service(home).serve(stop)

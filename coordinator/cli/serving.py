"""Serves the federation from a command, until it is stopped."""

from pathlib import Path

from ...client_node.cli.application import LogForm, until_stopped


def serve_federation(home: Path, *, monitor: int | None = None, form: LogForm | None = None) -> None:
    """Runs the gate, Flower's SuperLink and the drivers of runs until SIGTERM or Ctrl-C."""
    from ...client_node.supervision import Supervisor
    from ..gateway import Service

    stop = until_stopped("httpx", "alembic", form=form)
    Service(home).serve(stop, monitor=monitor, supervisor=Supervisor())

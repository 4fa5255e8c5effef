"""The command `coordinator doctor`."""

import typer

from ...client_node.cli.application import FAILED, JsonOption
from ...client_node.cli.console import show_findings
from .options import DEFAULT_HOME, HomeOption


def doctor(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Check everything here that can be checked without a run, and say what to do. Changes nothing.

    Exit code 1: something has failed.
    """
    from ..doctor import examine_coordinator

    raise typer.Exit(0 if show_findings(examine_coordinator(home), as_json) else FAILED)

"""The command `client-node doctor`."""

import typer

from .application import FAILED, JsonOption
from .console import show_findings
from .options import DEFAULT_HOME, HomeOption


def doctor(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Check everything here that can be checked without a run, and say what to do. Decides nothing.

    What it counts is for you alone. Exit code 1: something has failed.
    """
    from ..doctor import examine_node

    raise typer.Exit(0 if show_findings(examine_node(home), as_json) else FAILED)

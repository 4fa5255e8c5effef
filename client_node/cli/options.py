"""Options and arguments that commands of `client-node` share."""

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_HOME = Path.home() / ".confide" / "client-node"

HomeOption = Annotated[
    Path, typer.Option("--home", envvar="CONFIDE_HOME", resolve_path=True, help="Folder of this node.")
]
StudyArgument = Annotated[str, typer.Argument(help="Name of a study, or the first 8 or more digits of its hash.")]
WholeHashArgument = Annotated[
    list[str], typer.Argument(metavar="HASH", help="The study's hash: all 64 digits, or its 24 words.")
]
ByOption = Annotated[str | None, typer.Option("--by", help="Who decides, for the log; by default the login name.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask; for scripts.")]


def last_day(text: str) -> dt.date:
    """Reads the date of `--until`; a wrong one is wrong usage."""
    try:
        return dt.date.fromisoformat(text)
    except ValueError as err:
        raise typer.BadParameter(f"{text!r} is no date; write it as 2026-12-31", param_hint="--until") from err

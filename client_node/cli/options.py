"""Options and arguments that commands of `client-node` share."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_HOME = Path.home() / ".confide" / "client-node"

HomeOption = Annotated[Path, typer.Option("--home", envvar="CONFIDE_HOME", help="Folder of this node.")]
StudyArgument = Annotated[str, typer.Argument(help="Name of a study, or the first 8 or more digits of its hash.")]
HashArgument = Annotated[str, typer.Argument(help="The study's hash, or its first 8 or more digits.")]

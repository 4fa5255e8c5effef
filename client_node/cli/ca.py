"""The commands `client-node ca`: the CAs by which this node knows its coordinator."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .application import JsonOption, epilog, group
from .console import agree, tell
from .options import DEFAULT_HOME, ByOption, HomeOption, YesOption
from .tables import show

if TYPE_CHECKING:
    from ..authority import Trust

app = group("The CAs by which this node knows its coordinator.", "client-node ca show")


@app.command("show", epilog=epilog("client-node ca show"))
def ca_show(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show which CAs this node trusts for its coordinator: one, or two while the first is to have a successor."""
    from .. import authority

    _show(authority.trusted(home), as_json)


@app.command("fetch", epilog=epilog("client-node ca fetch"))
def ca_fetch(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Take the coordinator's signed list of CAs now, as a running daemon does by itself within a minute."""
    from .. import authority

    _show(authority.fetch(home), as_json)


@app.command("accept", epilog=epilog("client-node ca accept authority.json"))
def ca_accept(
    file: Annotated[Path, typer.Argument(help="The signed list, as the operator sent it.")],
    home: HomeOption = DEFAULT_HOME,
    yes: YesOption = False,
    by: ByOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take the coordinator's signed list of CAs from a file, if this node was away when the CA changed."""
    from .. import authority
    from ..enrolment import Enrolment
    from ..policy import decisions

    statement = authority.read_file(home, file)
    listed, known = authority.Trust(statement.listed()).digests, Enrolment.load(home).coordinator
    told, key = ["The file lists:", *listed], None
    question = "Has the operator read the same to you, and shall this node trust these CAs and no others?"
    if statement.coordinator != known:
        key = statement.coordinator
        told += ["The coordinator signs with another key now:", key, "Before, it was:", known]
        question = "Has the operator read the same to you, and shall this node trust that key and these CAs alone?"
    tell("\n".join(told))
    agree(question, yes=yes)
    decisions.note_trusted(home, listed, key=key, by=by)
    _show(authority.accept(home, statement), as_json)


def _show(found: "Trust", as_json: bool) -> None:
    rows = [
        {"until": f"{ends:%Y-%m-%d}", "sha256": sha256} for ends, sha256 in zip(found.ends, found.digests, strict=True)
    ]
    show("CAs that this node trusts", rows, as_json)

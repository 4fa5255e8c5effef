"""The commands `coordinator site`: invite, list and revoke sites."""

from pathlib import Path
from typing import Annotated

import typer

from ...client_node.cli.application import JsonOption, group
from ...client_node.cli.console import out
from ..federation import members, opened_store
from .options import DEFAULT_HOME, HomeOption
from .tables import show_invitations, show_join_files, show_members

app = group("Who takes part.")


@app.command("invite")
def site_invite(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Lower-case letters, digits, _ and -.")],
    role: Annotated[list[str] | None, typer.Option(help="train or aggregate; may be given twice.")] = None,
    aggregator: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="One more, to aggregate only; may be repeated.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--out", help="Write NAME.join with code and next steps instead; a folder for several names."),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Print a one-time code with which NAME can enrol; it is shown once and kept nowhere."""
    with opened_store(home) as store:
        guests = [(name, role or ["train"]) for name in names] + [(name, ["aggregate"]) for name in aggregator or ()]
        invited = members.invite(store, home, guests)
    if file is not None:
        return show_join_files(members.write_invitations(invited, home, file), as_json)
    show_invitations(invited, as_json)


@app.command("list")
def site_list(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show every site, its roles and state."""
    with opened_store(home) as store:
        show_members(members.members(store), as_json)


@app.command("revoke")
def site_revoke(name: str, home: HomeOption = DEFAULT_HOME) -> None:
    """Turn a site out: its next request is refused."""
    with opened_store(home) as store:
        members.revoke(store, home, name)
        out.print(f"{name} is revoked; a running server refuses it from now on.")

"""The commands `coordinator site`: invite and list sites, let them leave, revoke them."""

from pathlib import Path
from typing import Annotated

import typer

from ...client_node.cli.application import JsonOption, epilog, group
from ...client_node.cli.console import agree, agree_by_name, show_change
from .options import DEFAULT_HOME, HomeOption, YesOption
from .tables import show_invitations, show_join_files, show_members, tell_voided

app = group("Who takes part.", "coordinator site invite svi")


@app.command(
    "invite",
    epilog=epilog(
        "coordinator site invite svi",
        "coordinator site invite agg-a --role aggregate",
        "coordinator site invite svi svhc --aggregator agg-a --out parcel",
    ),
)
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
    from ..federation import members, opened_store

    with opened_store(home) as store:
        guests = [(name, role or ["train"]) for name in names] + [(name, ["aggregate"]) for name in aggregator or ()]
        invited = members.invite(store, home, guests)
    if file is not None:
        tell_voided(invited)
        return show_join_files(members.write_invitations(invited, home, file), as_json)
    show_invitations(invited, as_json)


@app.command("list", epilog=epilog("coordinator site list"))
def site_list(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show every site, its roles and state."""
    from ..federation import members, opened_store

    with opened_store(home) as store:
        show_members(members.members(store), as_json)


@app.command("leave", epilog=epilog("coordinator site leave svi", "coordinator site leave svi --yes"))
def site_leave(name: str, home: HomeOption = DEFAULT_HOME, yes: YesOption = False, as_json: JsonOption = False) -> None:
    """Let a site leave: its next request is refused. It keeps its name and ledger, and `site invite NAME` lets it back.

    Only for keys that nobody has stolen: whoever shows the site's identity key with the new code is let back in.
    """
    from ..federation import members, opened_store

    with opened_store(home) as store:
        store.node(name)
        agree(f"Runs under way go on without {name}, and studies in which it aggregates stop. Let it leave?", yes=yes)
        members.leave(store, home, name)
        said = f"{name} has left; a running server refuses it until it comes back by: coordinator site invite {name}"
        show_change({"name": name, "state": "left"}, as_json, said)


@app.command("revoke", epilog=epilog("coordinator site revoke svi", "coordinator site revoke svi --yes"))
def site_revoke(
    name: str, home: HomeOption = DEFAULT_HOME, yes: YesOption = False, as_json: JsonOption = False
) -> None:
    """Turn a site out: its next request is refused. The name of a site that had enrolled is never used again.

    It asks first, unless the site has not enrolled yet: then only its invitation is withdrawn.
    """
    from ..federation import members, opened_store

    with opened_store(home) as store:
        if store.node(name).enrolled_at is not None:
            agree_by_name(f"{name} can never take part again, under this name or with its keys.", name, yes=yes)
        members.revoke(store, home, name)
        facts = {"name": name, "state": "revoked"}
        show_change(facts, as_json, f"{name} is revoked; a running server refuses it from now on.")

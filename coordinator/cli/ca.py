"""The commands `coordinator ca`: give the federation's CA a successor, without a new enrolment and while runs go on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...client_node.cli.application import JsonOption, epilog, group
from ...client_node.cli.console import agree, out, print_json, print_rows, show_change
from .options import DEFAULT_HOME, HomeOption, YesOption

if TYPE_CHECKING:
    from ..ca_rotation import Authority, Standing

app = group("The CA by which nodes know the gate, and its successor.", "coordinator ca status")


@app.command("rotate", epilog=epilog("coordinator ca rotate"))
def ca_rotate(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Make the CA that comes next; nodes are told to trust it too, and `ca status` shows which do. Runs go on."""
    from .. import ca_rotation
    from ..federation import opened_store

    with opened_store(home) as store:
        show_standing(ca_rotation.begin(store, home), as_json)


@app.command("status", epilog=epilog("coordinator ca status", "coordinator ca status --json"))
def ca_status(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show the CA, the one that comes next, and which nodes trust them."""
    from .. import ca_rotation
    from ..federation import opened_store

    with opened_store(home) as store:
        show_standing(ca_rotation.standing(store, home), as_json)


@app.command("finish", epilog=epilog("coordinator ca finish", "coordinator ca finish --without north"))
def ca_finish(
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Shut out until it takes a statement as a file; may be repeated."),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Let the next CA take over: the gate shows its certificate, and codes that name the present CA are void."""
    from .. import ca_rotation
    from ..federation import opened_store

    with opened_store(home) as store:
        found = ca_rotation.standing(store, home)
        told = [f"Invite again: {', '.join(found.invited)}, whose codes are void then."] if found.invited else []
        told += [f"Shut out until they take a statement as a file: {', '.join(without)}."] if without else []
        agree(" ".join([*told, "The present CA's key is deleted. Let the next one take over?"]), yes=yes)
        show_standing(ca_rotation.finish(store, home, without=without or ()), as_json)


@app.command("cancel", epilog=epilog("coordinator ca cancel"))
def ca_cancel(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Delete the CA that was to come next; nodes drop it again, and nothing else changes."""
    from .. import ca_rotation
    from ..federation import opened_store

    with opened_store(home) as store:
        show_standing(ca_rotation.cancel(store, home), as_json)


@app.command("statement", epilog=epilog("coordinator ca statement authority.json"))
def ca_statement(
    file: Annotated[Path, typer.Argument(help="File to write; `client-node ca accept` takes it.")],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Write the signed list of CAs for a node that was away. It is no secret; read its digests aloud to the site."""
    from .. import ca_rotation
    from ..federation import Pki

    said = ca_rotation.write_statement(Pki.load(home), file)
    facts = {"file": str(file), "cas": list(said)}
    told = [f"{file} is written. Its people take it by: client-node ca accept {file.name}", "Read to them:", *said]
    show_change(facts, as_json, "\n".join(told))


def show_standing(found: "Standing", as_json: bool) -> None:
    """Prints a federation's CA, the one that comes next, and which nodes trust them."""
    authorities = {"present": found.present, "next": found.next}
    if as_json:
        return print_json(
            {name: None if each is None else _facts(each) for name, each in authorities.items()}
            | {"nodes": {each.name: each.trusts for each in found.nodes}, "lacking": list(found.lacking)}
            | {"invited": list(found.invited)}
        )
    print_rows("CA", [{"": name} | _facts(each) for name, each in authorities.items() if each is not None])
    print_rows("Nodes", [{"node": each.name, "trusts": each.trusts} for each in found.nodes])
    out.print(found.next_step, highlight=False, markup=False, soft_wrap=True)


def _facts(authority: "Authority") -> dict[str, Any]:
    return {"until": f"{authority.ends:%Y-%m-%d}", "sha256": authority.sha256}

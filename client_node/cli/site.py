"""The commands `client-node site`: confirm, remove and list the sites whose updates this node may aggregate."""

from typing import Annotated

import typer

from .application import JsonOption, epilog, group
from .options import DEFAULT_HOME, ByOption, HomeOption
from .tables import show_confirmed

app = group("Whose updates this node adds up, if it aggregates.", "client-node site list")


@app.command("confirm", epilog=epilog("client-node site confirm svi=MOP6-DMYC-NPMD-MQCK-YRZ5-ZPG4-F5NB-A7EG"))
def site_confirm(
    sites: Annotated[list[str], typer.Argument(metavar="NAME=FINGERPRINT...", help="As the site's people told you.")],
    home: HomeOption = DEFAULT_HOME,
    by: ByOption = None,
    as_json: JsonOption = False,
) -> None:
    """Confirm sites' keys by the fingerprints that their people read to you, never by what the coordinator says."""
    from ..policy import decisions

    decisions.confirm_sites(home, spoken_fingerprints(sites), by=by)
    show_confirmed(decisions.load_decisions(home).sites, as_json)


@app.command("remove", epilog=epilog("client-node site remove svi"))
def site_remove(
    sites: Annotated[list[str], typer.Argument(metavar="NAME...", help="Sites whose keys hold no longer.")],
    home: HomeOption = DEFAULT_HOME,
    by: ByOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take confirmations back; studies with one of these sites are not added up here from their next message on."""
    from ..policy import decisions

    decisions.remove_sites(home, sites, by=by)
    show_confirmed(decisions.load_decisions(home).sites, as_json)


@app.command("list", epilog=epilog("client-node site list"))
def site_list(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show the sites that were confirmed here."""
    from ..policy import load_decisions

    show_confirmed(load_decisions(home).sites, as_json)


def spoken_fingerprints(sites: list[str]) -> dict[str, str]:
    """Parses NAME=FINGERPRINT texts, in small letters too."""
    pairs = [site.partition("=")[::2] for site in sites]
    return {name: spoken.strip().upper() for name, spoken in pairs}

"""The commands `client-node keys`: show this node's keys, and renew those by which others know it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .application import JsonOption, epilog, group
from .options import DEFAULT_HOME, ByOption, HomeOption
from .tables import show, show_facts

if TYPE_CHECKING:
    from ..identity_keys import OwnKey

app = group("This node's own keys.", "client-node keys show", "client-node keys rotate")


@app.command("rotate", epilog=epilog("client-node keys rotate", "client-node keys rotate --identity"))
def keys_rotate(
    identity: Annotated[
        bool, typer.Option("--identity", help="Renew the identity key, which studies and the ledger name.")
    ] = False,
    by: ByOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Make a new transport key, by which the coordinator knows this node from now on; the old one is refused.

    The daemon may run, and runs go on. With --identity the identity key is renewed instead: both keys sign that one
    follows the other, new studies name the new one, and the old one is kept while an approved study names it.
    """
    if identity:
        from .. import identity_keys

        identity_keys.rotate(home, by=by)
        return show("This node has a new identity key.", _rows(identity_keys.held(home)), as_json)
    from ..enrolment import protocol
    from ..succession import rotation

    rotation.complete(home)  # else the coordinator may not know the key that vouches for the new one
    keys = protocol.rotate(home)
    show_facts(
        "This node has a new transport key.", {"name": keys.name, "transport_key": keys.transport_fingerprint}, as_json
    )


@app.command("show", epilog=epilog("client-node keys show", "client-node keys show --json"))
def keys_show(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show this node's identity keys, and what each earlier one is kept for; revoke a study to have its key deleted."""
    from .. import identity_keys

    show("Identity keys", _rows(identity_keys.held(home)), as_json)


def _rows(keys: "Sequence[OwnKey]") -> list[dict[str, Any]]:
    return [
        {
            "fingerprint": key.fingerprint,
            "identity": key.public,
            "since": key.since,
            "state": "present" if key.is_present else "earlier",
            "kept for": list(key.holds),
        }
        for key in keys
    ]

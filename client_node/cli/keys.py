"""The command `client-node keys`: renews the key by which the coordinator knows this node."""

from .application import JsonOption, epilog, group
from .options import DEFAULT_HOME, HomeOption
from .tables import show_facts

app = group("This node's own keys.", "client-node keys rotate")


@app.command("rotate", epilog=epilog("client-node keys rotate"))
def keys_rotate(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Make a new transport key, by which the coordinator knows this node from now on; the old one is refused.

    The daemon may run, and runs go on. The identity key, which studies and the ledger name, stays.
    """
    from ..enrolment import protocol

    keys = protocol.rotate(home)
    show_facts(
        "This node has a new transport key.", {"name": keys.name, "transport_key": keys.transport_fingerprint}, as_json
    )

"""The command `coordinator certificate`: shows nodes a certificate of a CA that others keep."""

from pathlib import Path
from typing import Annotated

import typer

from ...client_node.cli.application import JsonOption, epilog, group
from .ca import show_standing
from .options import DEFAULT_HOME, HomeOption

app = group("The certificate that the gate shows.", "coordinator certificate use chain.pem key.pem")


@app.command(
    "use",
    epilog=epilog(
        "coordinator certificate use chain.pem key.pem",
        "coordinator certificate use chain.pem key.pem --ca hospital-ca.pem",
    ),
)
def certificate_use(
    certificate: Annotated[Path, typer.Argument(help="PEM: the gate's certificate, then those below the CA.")],
    key: Annotated[Path, typer.Argument(help="Its private key, PEM, without a passphrase.")],
    ca: Annotated[
        Path | None, typer.Option(help="PEM of its CA; left out, the hospital's that nodes trust already.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Take a certificate of the hospital's CA: shown at once, or, of another CA than so far, after `ca finish`."""
    from .. import ca_rotation
    from ..federation import opened_store

    with opened_store(home) as store:
        show_standing(ca_rotation.use(store, home, certificate, key, ca), as_json)

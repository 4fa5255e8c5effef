"""The commands `client-node keys`: show, renew, seal and unseal this node's keys."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .application import JsonOption, epilog, group
from .console import tell
from .options import DEFAULT_HOME, ByOption, HomeOption
from .tables import show, show_facts

if TYPE_CHECKING:
    from ..identity_keys import OwnKey
    from ..secret_files import Changed

KeysPassphraseOption = Annotated[
    Path | None,
    typer.Option(
        help="File with the passphrase, mode 0600, 12 bytes or more; left out, where CONFIDE_PASSPHRASE_FILE says."
    ),
]

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


@app.command("seal", epilog=epilog("client-node keys seal --passphrase-file passphrase"))
def keys_seal(
    passphrase_file: KeysPassphraseOption = None, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False
) -> None:
    """Encrypt the secret keys with a passphrase, those that are made later too; the daemon must not run.

    From then on the daemon, and each command that uses a key, takes the passphrase (docs/keys.md).
    """
    from .. import key_sealing

    show_sealing(key_sealing.seal(home, passphrase_file), home, as_json, is_sealed=True)


@app.command("unseal", epilog=epilog("client-node keys unseal --passphrase-file passphrase"))
def keys_unseal(
    passphrase_file: KeysPassphraseOption = None, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False
) -> None:
    """Write the secret keys without encryption again; the daemon must not run."""
    from .. import key_sealing

    show_sealing(key_sealing.unseal(home, passphrase_file), home, as_json, is_sealed=False)


@app.command(
    "token",
    epilog=epilog("client-node keys token 'pkcs11:token=site?module-path=/usr/lib/hsm.so'"),
)
def keys_token(
    uri: Annotated[str, typer.Argument(help="The token: pkcs11:token=LABEL?module-path=/PATH (RFC 7512), no PIN.")],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Make this node's two keys in a PKCS#11 token, before it enrols; they never leave it.

    The PIN is read from the file that CONFIDE_PIN_FILE names, now and at every start (docs/keys.md).
    """
    from ..enrolment import NodeIdentity

    keys = NodeIdentity.create_in_token(home, uri)
    facts = {"identity": keys.identity_hex, "transport_key": keys.transport_fingerprint}
    show_facts("The token holds this node's keys. Next: client-node enroll CODE", facts, as_json)


def show_sealing(done: "Changed", home: Path, as_json: bool, *, is_sealed: bool) -> None:
    """Prints which keys were sealed or unsealed, and what that means."""
    if is_sealed:
        tell(
            "Whoever loses the passphrase loses these keys. The service finds it by CONFIDE_PASSPHRASE_FILE or as the "
            "systemd credential confide-passphrase. Backups and disk blocks of before hold the keys as they were: "
            "docs/keys.md."
        )
    else:
        tell("THE KEYS ARE NOT ENCRYPTED NOW: whoever reads these files can act as this home.")
    facts = {"home": str(home), "keys": len(done.files), "changed": len(done.changed)}
    show_facts("Keys sealed" if is_sealed else "Keys unsealed", facts | {"files": ", ".join(done.files)}, as_json)

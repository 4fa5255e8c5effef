"""The commands `coordinator keys`: give the signing key a successor; seal and unseal the secret keys."""

from ...client_node.cli.application import JsonOption, epilog, group
from ...client_node.cli.console import agree, show_change
from ...client_node.cli.keys import KeysPassphraseOption, show_sealing
from .options import DEFAULT_HOME, HomeOption, YesOption

app = group("The federation's own keys.", "coordinator keys seal --passphrase-file passphrase")


@app.command("seal", epilog=epilog("coordinator keys seal --passphrase-file passphrase"))
def keys_seal(
    passphrase_file: KeysPassphraseOption = None, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False
) -> None:
    """Encrypt the secret keys with a passphrase, those that are made later too; the server must not run.

    From then on the server, and each command that signs or shows keys, takes the passphrase (docs/keys.md).
    """
    from .. import key_sealing

    show_sealing(key_sealing.seal(home, passphrase_file), home, as_json, is_sealed=True)


@app.command("unseal", epilog=epilog("coordinator keys unseal --passphrase-file passphrase"))
def keys_unseal(
    passphrase_file: KeysPassphraseOption = None, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False
) -> None:
    """Write the secret keys without encryption again; the server must not run."""
    from .. import key_sealing

    show_sealing(key_sealing.unseal(home, passphrase_file), home, as_json, is_sealed=False)


@app.command("rotate", epilog=epilog("coordinator keys rotate", "coordinator keys rotate --yes --json"))
def keys_rotate(home: HomeOption = DEFAULT_HOME, yes: YesOption = False, as_json: JsonOption = False) -> None:
    """Sign with a new key from now on, in runs under way too; nodes follow by themselves, and nobody enrols anew.

    Both keys sign the statement by which nodes know the new one; then the old one is deleted (docs/key-rotation.md).
    """
    from .. import key_rotation
    from ..federation import opened_store

    with opened_store(home) as store:
        agree(
            "Backups of this home that are older are of no use to nodes that have heard of the new key. Rotate the "
            "signing key?",
            yes=yes,
        )
        stated = key_rotation.rotate(store, home)
    show_change(
        {"old": stated.old, "new": stated.new, "time": stated.time},
        as_json,
        f"The coordinator signs with the key {stated.new} from now on; before, it was {stated.old[:16]}... "
        "Make a backup now: coordinator backup FILE",
    )

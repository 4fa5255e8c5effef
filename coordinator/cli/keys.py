"""The commands `coordinator keys`: seal and unseal the federation's secret keys."""

from ...client_node.cli.application import JsonOption, epilog, group
from ...client_node.cli.keys import KeysPassphraseOption, show_sealing
from .options import DEFAULT_HOME, HomeOption

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

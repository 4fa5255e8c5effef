"""The commands `coordinator keys`: give the signing key a successor; seal and unseal the secret keys."""

from ...client_node.cli.application import JsonOption, epilog, group
from ...client_node.cli.console import agree, out, print_json, print_rows, show_change
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


@app.command("status", epilog=epilog("coordinator keys status", "coordinator keys status --json"))
def keys_status(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show the signing key, those before it, and which nodes have heard of it, by each node's own last word."""
    from .. import key_rotation
    from ..federation import opened_store

    with opened_store(home) as store:
        found = key_rotation.standing(store, home)
    keys = [{"key": each.old, "until": each.time} for each in found.successions]
    since = found.successions[-1].time if found.successions else None
    if as_json:
        return print_json(
            {"key": found.key, "since": since, "earlier": keys, "cut_off": found.is_cut_off}
            | {"nodes": {each.name: {"knows": each.knows, "key": each.key} for each in found.nodes}}
            | {"lacking": list(found.lacking), "strange": list(found.strange)}
        )
    rows = [{"": "earlier", "until": each["until"], "key": each["key"]} for each in keys]
    print_rows("Signing key", [*rows, {"": "present", "until": "", "key": found.key}])
    print_rows("Nodes", [{"node": each.name, "knows": each.knows, "key": each.key or ""} for each in found.nodes])
    if found.is_cut_off:
        said = "A rotation was cut off, and no node knows its key yet: coordinator keys rotate"
        out.print(said, highlight=False, markup=False, soft_wrap=True)
    out.print(found.next_step, highlight=False, markup=False, soft_wrap=True)

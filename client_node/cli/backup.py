"""The commands `client-node backup` and `client-node restore`, and what `coordinator` has in common with them."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .application import JsonOption
from .console import tell
from .options import DEFAULT_HOME, HomeOption
from .tables import show_facts

if TYPE_CHECKING:
    from ..home_archive import Contents

PassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file", help="File with a passphrase that seals the backup; mode 0600, 12 bytes or more."
    ),
]
CheckOption = Annotated[bool, typer.Option("--check", help="Only read the backup and compare all its sums.")]


def backup(
    file: Annotated[Path, typer.Argument(help="File to write; must not exist.")],
    passphrase_file: PassphraseOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Write this node to one file, also while the daemon runs: keys, ledger, decisions; no states of records."""
    from ..backup import back_up

    made = back_up(home, file, passphrase_of(passphrase_file))
    tell_secret(made.contents)
    facts = {"file": str(file)} | facts_of(made.contents, made.left_out) | {"ledger entries": made.entries or 0}
    show_facts("Backup written", facts, as_json)


def restore(
    file: Annotated[Path, typer.Argument(help="What `backup` wrote.")],
    passphrase_file: PassphraseOption = None,
    check: CheckOption = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Make a node anew from its backup, in a new --home. For a node that is lost: never run two of one name."""
    from .. import backup

    passphrase = passphrase_of(passphrase_file)
    if check:
        return show_facts("Backup is whole", facts_of(backup.check(file, passphrase)), as_json)
    made = backup.restore(file, home, passphrase)
    tell(
        "Of what came after the backup this home knows nothing. If anything was charged since, import the newest "
        "ledger before the daemon runs (client-node budget import; the operator has it: coordinator budget export), "
        "or the node is refused. Approvals and caps that were taken back since are in force again: client-node study "
        "list, client-node budget show. An aggregator takes no part in runs that were on. Never run the old node and "
        "this one."
    )
    facts = {"home": str(home)} | facts_of(made.contents)
    facts |= {"ledger entries": made.entries or 0, "rounds that are not drawn again": made.open_rounds}
    show_facts("Node restored", facts, as_json)


def passphrase_of(file: Path | None) -> bytes | None:
    """Reads the passphrase of a backup, if one is named."""
    from ..home_archive import read_passphrase

    return None if file is None else read_passphrase(file)


def tell_secret(contents: "Contents") -> None:
    """Says what whoever has the backup can do with it."""
    if contents.is_sealed:
        tell(
            "The backup holds private keys, sealed with the passphrase, without which nobody restores it: keep both, "
            "apart."
        )
    else:
        tell(
            "THE BACKUP HOLDS PRIVATE KEYS, NOT ENCRYPTED: whoever reads it can act as this home. Keep it where nobody "
            "can, or seal it: --passphrase-file FILE."
        )


def facts_of(contents: "Contents", left_out: Sequence[str] = ()) -> dict[str, Any]:
    """Lists what is known of a backup."""
    return {
        "made": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(contents.head.made)),
        "version": contents.head.version,
        "files": len(contents.files),
        "bytes": contents.bytes,
        "sealed": contents.is_sealed,
    } | ({"left out, not known": ", ".join(left_out)} if left_out else {})

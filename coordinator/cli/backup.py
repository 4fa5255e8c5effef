"""The commands `coordinator backup` and `coordinator restore`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...client_node.cli.application import JsonOption
from ...client_node.cli.backup import CheckOption, PassphraseOption, facts_of, passphrase_of, tell_secret
from ...client_node.cli.console import tell
from ...client_node.cli.tables import show_facts
from .options import DEFAULT_HOME, DatabaseOption, HomeOption
from .tables import here

if TYPE_CHECKING:
    from ..federation.backup import FederationBackup


def backup(
    file: Annotated[Path, typer.Argument(help="File to write; must not exist.")],
    passphrase_file: PassphraseOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Write the whole federation to one file, also while it serves: keys, database, what runs need to go on."""
    from ..federation.backup import back_up

    made = back_up(home, file, passphrase_of(passphrase_file))
    tell_secret(made.contents)
    for name in made.missing:
        tell(f"{name} is not there, though the database names it: its run can neither go on nor be exported.")
    show_facts("Backup written", {"file": str(file)} | _facts(made), as_json)


def restore(
    file: Annotated[Path, typer.Argument(help="What `backup` wrote.")],
    passphrase_file: PassphraseOption = None,
    database: DatabaseOption = None,
    check: CheckOption = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Make a federation anew from its backup, in a new --home; its database may be another one than before."""
    from ..federation import backup

    passphrase = passphrase_of(passphrase_file)
    if check:
        return show_facts("Backup is whole", facts_of(backup.check(file, passphrase)), as_json)
    made = backup.restore(file, home, passphrase, database=database)
    tell(
        "Of what came after the backup this home knows nothing. Revoke again whom you have revoked since. Let one home "
        "serve, never the old one too. A run whose sites have settled later rounds cannot go on (RoundOver): start it "
        f"anew. Then: {here(home, 'doctor')}"
    )
    show_facts("Federation restored", {"home": str(home)} | _facts(made), as_json)


def _facts(made: "FederationBackup") -> dict[str, Any]:
    return facts_of(made.contents, made.left_out) | {"rows": sum(made.rows.values())}

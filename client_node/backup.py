"""Backup of a node's home as one file, also while its daemon runs, and its restoration to a new home.

The order in which files are taken keeps them true to each other. `keys/ledger.head` comes before the ledger, which so
holds its entry; the people known and the approvals used come after it, and so cover all that it charges. States of
records, sealed shares, keys of runs and all that is computed or fetched anew stay out. Of an aggregator's runs the
names are kept, each as one that has ended: no other key is made for it, since the journal of the backup may be older
than what was opened.

What a restored home cannot know is what its node did after the backup. So nothing is drawn again for a round that its
ledger has charged and not settled: the shares may be out already. A ledger that is older than what the coordinator or
an aggregator has seen is refused by them and by the site, as ever, until the missing entries are imported.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..privacy.errors import PrivacyError
from ..privacy.ledger import backup as ledger_file
from ..privacy.ledger.ledger import Ledger
from . import ledger_head, secret_files
from .approval import charges
from .data import kept_files, known_units
from .enrolment import Enrolment, NodeIdentity
from .enrolment.identity import KEYS
from .enrolment.sessions import only_one
from .errors import BackupInvalid, ClientNodeError, KeysSealed
from .files import locked
from .home_archive import (
    Contents,
    files_of,
    fits,
    hold,
    move_in,
    new_home,
    read_archive,
    staging,
    still_sealed,
    unknown_in,
    write_archive,
)
from .shares import Outbox, run_keys
from .succession import own_keys

_LEDGER, _PEOPLE, _PEOPLE_KEY = "ledger.jsonl", known_units.FILE, str(known_units.KEY_FILE)  # paths in the archive
_BEFORE = ("enrolment.json", "authority.json", "ca.crt", "site.toml", secret_files.FILE, "keys/*", "party/*")
_AFTER = (  # the head of a log before the log, which only grows
    "decisions.json", "decisions.head", "decisions.jsonl", "peers.json", "successions.json", "witness.json",
    "leases.json", "traffic.json", "aggregator/journal", "aggregator/positions",
)  # fmt: skip
_RECORDS = str(kept_files.KEY_FILE)  # opens states of records, which are no part of a backup
_LEFT_OUT = {  # in the home, as docs/site.md lists them
    "ledger.db", "ledger.db-wal", "ledger.db-shm", "units.db-wal", "units.db-shm", "aggregator", "spool", "holds.json",
    "batch-shapes.json", "answer-times.json", "kept-states", "outbox", "replay", "studies", "daemon.lock",
    "pending.json", "usage.json", "daemon.json", "decisions.told", "page.json", "page.log", "page.log.1", "page-links",
}  # fmt: skip


@dataclass(frozen=True)
class NodeBackup:
    """A backup of a node, made or restored."""

    contents: Contents
    entries: int | None  # of the ledger; None at a node that has none yet
    left_out: tuple[str, ...] = ()  # names in the home that no backup knows
    open_rounds: int = 0  # charged and not settled: nothing is drawn for them in the restored home


def back_up(home: Path, file: Path, passphrase: bytes | None = None) -> NodeBackup:
    """Writes the home of a node to a new file. It holds private keys, and only a passphrase seals them.

    Raises:
        BackupInvalid: the file exists, or something cannot be read or written; nothing is left.
        ClientNodeError, PrivacyError: a file of the home is damaged, and would be worth nothing in a backup.
    """
    NodeIdentity.load(home)
    Enrolment.load(home).ca_pem()
    # No new identity key comes between keys and ledger, and nobody seals or unseals them: some of either open nothing.
    with staging(home) as folder, locked(home / KEYS):
        for name, path in files_of(home, _BEFORE, but=(_RECORDS, _PEOPLE_KEY)):
            hold(path, folder / name)
        taken = files_of(folder, _BEFORE)
        entries = _ledger_to(home, folder / _LEDGER)
        if entries is not None:
            taken.append((_LEDGER, folder / _LEDGER))
        if known_units.KnownUnits(home).copy_to(folder / _PEOPLE):  # whose key is there before it
            taken += [(_PEOPLE, folder / _PEOPLE), (_PEOPLE_KEY, home / _PEOPLE_KEY)]
        taken += files_of(home, _AFTER)
        for run in run_keys.runs(home):  # after the journal, which names no run that has had no key before
            run_keys.end(folder, run)
        taken += files_of(folder, (run_keys.FILES,))
        contents = write_archive(file, "node", taken, passphrase)
    return NodeBackup(contents, entries, left_out=unknown_in(home, taken, _LEFT_OUT))


def check(file: Path, passphrase: bytes | None = None) -> Contents:
    """Reads the backup of a node and compares all sums in it; writes nothing. Raises `BackupInvalid`."""
    return read_archive(file, "node", _may_hold, passphrase=passphrase)


def restore(file: Path, home: Path, passphrase: bytes | None = None) -> NodeBackup:
    """Makes the home of a node anew from its backup: in a new or empty folder, all of it or nothing.

    Every entry of the ledger is verified. Rounds that it has charged and not settled are never drawn again.

    Raises:
        BackupInvalid: the backup is not whole, or does not hold a node; the folder holds files; nothing is left there.
    """
    with new_home(home) as making:
        contents = read_archive(file, "node", _may_hold, into=making, passphrase=passphrase)
        try:
            for run in run_keys.runs(making):  # whatever the backup holds of it
                run_keys.end(making, run)
            identity, enrolment = NodeIdentity.load(making), Enrolment.load(making)
            enrolment.ca_pem()
            entries, open_rounds = _ledger_from(making, identity, enrolment)
            standing = ledger_head.standing(making, *own_keys.OwnKeys(identity).all())
            if standing not in ("whole", "none yet"):
                raise BackupInvalid(standing)
            known_units.KnownUnits(making).accounts()
        except KeysSealed as err:
            raise still_sealed(file, making, err) from err
        except (ClientNodeError, PrivacyError, OSError) as err:
            said = str(err).replace(f"{making}/", "")
            raise BackupInvalid(f"{file} does not hold a whole node: {said}. Nothing was restored") from err
        move_in(making, last="enrolment.json")
    return NodeBackup(contents, entries, open_rounds=open_rounds)


def import_ledger(home: Path, file: Path) -> tuple[int, int]:
    """Imports a ledger from a file, with every entry verified; returns the number of added entries, and of all.

    Nothing is drawn any more for rounds that it has charged and not settled, and whose shares are not here: they may
    be out already. That is on disk before the ledger holds one of its charges, and no daemon runs meanwhile.

    Raises:
        AlreadyRunning: a daemon serves the home; nothing was imported.
        LedgerError: the file is no such ledger, or cannot be taken; none of its entries was imported.
    """
    identity, name = NodeIdentity.load(home), Enrolment.load(home).name
    with only_one(home):
        return Ledger.restore(
            home / charges.LEDGER_FILE,
            ledger_file.read(file),
            identity.signer,
            name,
            noting=lambda rounds: _lose(home, rounds),
            keyring=own_keys.OwnKeys(identity).find,
        )


def _lose(home: Path, rounds: Iterable[tuple[str, int]]) -> None:
    outbox = Outbox(home)
    for run, number in rounds:
        if outbox.get(run, number) is None:
            outbox.lose(run, number)


def _ledger_to(home: Path, file: Path) -> int | None:
    """Writes the ledger to a file, with every entry verified; returns how many there are, None without a ledger."""
    ledger = charges.ledger_if_begun(home)
    if ledger is None:
        return None
    with ledger:
        if not ledger.entries(limit=1):
            return None
        return ledger_file.write(file, ledger.walk(), ledger.public_key).seq + 1


def _ledger_from(making: Path, identity: NodeIdentity, enrolment: Enrolment) -> tuple[int | None, int]:
    file = making / _LEDGER
    if not file.exists():
        return None, 0
    path = making / charges.LEDGER_FILE
    lost: list[tuple[str, int]] = []

    def note(rounds: list[tuple[str, int]]) -> None:
        lost.extend(rounds)
        _lose(making, rounds)

    entries, _ = Ledger.restore(
        path, ledger_file.read(file), identity.signer, enrolment.name, noting=note,
        keyring=own_keys.OwnKeys(identity).find,
    )  # fmt: skip
    file.unlink()
    return entries, len(lost)


def _may_hold(name: str) -> bool:
    return fits(name, (*_BEFORE, *_AFTER, run_keys.FILES, _LEDGER, _PEOPLE)) and name != _RECORDS

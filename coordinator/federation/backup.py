"""Backup of the coordinator's home and database as one file, also while it serves, and restoration to a new home.

The database is seen as it is at one moment, and the files of runs are linked at once, before its rows are read. A
driver may have gone on in between and have dropped a file that the database of that moment still names; then both are
taken anew.

The database stands in the file in a form of its own (`store.dump`). So the backup of one database restores into the
other: that is how a federation moves from SQLite to PostgreSQL, and back.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import URL, Connection, select
from sqlalchemy.exc import SQLAlchemyError

from ...client_node import secret_files
from ...client_node.errors import BackupInvalid, ClientNodeError, KeysSealed
from ...client_node.files import locked
from ...client_node.home_archive import (
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
from ..errors import CoordinatorError, StateDamaged, StoreUnavailable
from ..store import Store, dump, place
from ..store.actions import plain
from ..store.run_folder import state_file, total_file
from ..store.states import RunState
from ..store.tables import Round, Run
from .home import load_settings
from .pki import Pki

_DATABASE, _SETTINGS = "database.jsonl", "settings.json"
_FILES = (_SETTINGS, secret_files.FILE, "pki/*", "studies/*.json")
_OF_RUNS = ("runs/*/secret", "runs/*/state-*", "runs/*/total-*")
_LEFT_OUT = {  # in the home, as docs/operator.md lists them
    place.FILE, "coordinator.db", "coordinator.db-wal", "coordinator.db-shm", "runs", "flower", "turns", "serve.lock",
    "serve.json", "page-links", "page-exports", "page.log", "page.log.1",
}  # fmt: skip
_TRIES = 5


@dataclass(frozen=True)
class FederationBackup:
    """A backup of a federation, made or restored."""

    contents: Contents
    rows: dict[str, int]  # of each table of the database
    left_out: tuple[str, ...] = ()  # names in the home that no backup knows
    missing: tuple[str, ...] = ()  # files that the database names and that are not there


def back_up(home: Path, file: Path, passphrase: bytes | None = None) -> FederationBackup:
    """Writes the federation at `home` to a new file. It holds its private keys, and only a passphrase seals them.

    The audit log says so before the file is there. A database of an earlier version is taken as it is, without that.

    Raises:
        BackupInvalid: the file exists, or something cannot be read or written; nothing is left.
        CoordinatorError: there is no federation, its database cannot be used, or a file that it needs is damaged.
    """
    load_settings(home)
    pki = Pki.load(home)
    store = Store.open(home)
    try:
        if store.is_current():
            with store.session() as session:
                store.log_action(session, "federation.backup", file=plain(file))
        with staging(home) as folder:
            rows, missing = _consistent(store, home, folder)
            # Nobody renews, rotates, seals or unseals meanwhile: all fit each other.
            with locked(home / "pki" / "server.crt"), pki.signing.held():
                for name, path in files_of(home, _FILES):
                    hold(path, folder / name)
            taken = [*files_of(folder, _FILES), (_DATABASE, folder / _DATABASE), *files_of(folder, _OF_RUNS)]
            contents = write_archive(file, "coordinator", taken, passphrase)
    finally:
        store.close()
    return FederationBackup(contents, rows, unknown_in(home, taken, _LEFT_OUT), missing)


def check(file: Path, passphrase: bytes | None = None) -> Contents:
    """Reads the backup of a federation and compares all sums in it; writes nothing. Raises `BackupInvalid`."""
    return read_archive(file, "coordinator", _may_hold, passphrase=passphrase)


def restore(
    file: Path, home: Path, passphrase: bytes | None = None, *, database: str | None = None
) -> FederationBackup:
    """Makes a federation anew from its backup: in a new or empty folder and database, all of it or nothing.

    Args:
        database: the URL of an empty PostgreSQL database; None for SQLite in the home. It need not be what it was.

    Raises:
        BackupInvalid: the backup is not whole or does not hold a federation; the folder holds files; nothing is left.
        Conflict: the database cannot be used, or a later version made the backup; nothing was changed.
        StoreUnavailable: the database cannot be used just now; nothing was changed, or the text says that PostgreSQL's
            may be filled though the home is not there.
    """
    url = None if database is None else place.parse_database(database)
    with new_home(home) as making:
        contents = read_archive(file, "coordinator", _may_hold, into=making, passphrase=passphrase)
        try:
            load_settings(making)
            Pki.load(making)
        except KeysSealed as err:
            raise still_sealed(file, making, err) from err
        except (CoordinatorError, ClientNodeError, OSError) as err:
            said = str(err).replace(f"{making}/", "")
            raise BackupInvalid(f"{file} does not hold a whole federation: {said}. Nothing was restored") from err
        rows = _fill(file, making, url)
    return FederationBackup(contents, rows)


def _consistent(store: Store, home: Path, folder: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    """Writes the database to `folder`, and links the files of runs there, both as they were at one moment.

    Returns:
        How many rows each table has, and which files are missing, though looked for several times.
    """
    store.require_tables()
    for number in range(_TRIES):
        with store.moment() as connection:
            needed = _needed(connection)  # the first read: from here on the connection sees this moment
            shutil.rmtree(folder / "runs", ignore_errors=True)
            for name, path in files_of(home, _OF_RUNS):
                hold(path, folder / name)
            missing = tuple(sorted(name for name in needed if not (folder / name).exists()))
            if missing and number + 1 < _TRIES:
                continue
            with _new(folder / _DATABASE) as out:
                rows = dump.write_dump(connection, out)
        break
    return rows, missing


def _new(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def _needed(connection: Connection) -> set[str]:
    """Names the files that runs cannot go on, or be exported, without."""
    last: dict[str, tuple[int, str]] = {}
    found = set()
    rounds = select(Round.run, Round.number, Round.state_hash, Run.state).join(Run, Run.id == Round.run)
    for run, number, state_hash, state in connection.execute(rounds.order_by(Round.run, Round.number)):
        last[run] = number, state_hash
        if not RunState(state).is_settled:  # a run that is over has dropped them
            found.add(f"runs/{run}/{total_file(number)}")
    return found | {f"runs/{run}/{state_file(*newest)}" for run, newest in last.items()}


def _fill(file: Path, making: Path, url: URL | None) -> dict[str, int]:
    """Fills the database, and then moves the home to its place: a home that is there has a whole database."""
    if url is not None:
        place.note_database(making, url)
    store, is_ready = Store.open(making), False
    try:
        store.require_empty()
        with store.filling() as connection:
            with (making / _DATABASE).open("rb") as lines:
                rows = dump.load_dump(connection, lines)
            (making / _DATABASE).unlink()
            is_ready = url is not None
        store.close()
        move_in(making, last=_SETTINGS)
        return rows
    except (StateDamaged, SQLAlchemyError, OSError, BackupInvalid, StoreUnavailable) as err:
        if is_ready:  # and it may be committed, which nothing undoes
            is_moving = isinstance(err, BackupInvalid)
            why = "the home cannot take its place" if is_moving else "the answer to its commit did not come"
            raise StoreUnavailable(
                f"{store.name} may hold the whole federation now, and there is no home: {why}. Drop that database, "
                "make it anew, empty, and repeat the command"
            ) from err
        if isinstance(err, BackupInvalid | StoreUnavailable):
            raise
        said = str(err) if isinstance(err, StateDamaged) else type(err).__name__
        raise BackupInvalid(f"{file} does not hold a whole database: {said}. Nothing was restored") from err
    finally:
        store.close()


def _may_hold(name: str) -> bool:
    return fits(name, (*_FILES, *_OF_RUNS, _DATABASE))

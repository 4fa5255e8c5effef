"""A ledger's entries on disk: one SQLite file with one table that only grows.

WAL with synchronous=FULL: what was committed survives kill -9 and loss of power. Writers of all processes take turns
by SQLite's write lock, taken before anything is read, so that nobody adds between another's look and write.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ..errors import LedgerBroken, LedgerUnavailable
from . import canonical
from .chain import Entry

WAIT_S = 30  # how long to wait for another process's write

_metadata = sa.MetaData()
_entries = sa.Table(
    "entries",
    _metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    *(sa.Column(name, sa.Text, nullable=False) for name in ("time", "kind", "body", "previous", "hash", "signature")),
)
_APPEND_ONLY = [  # against accidents; against intent there is the chain
    f"CREATE TRIGGER IF NOT EXISTS no_{action} BEFORE {action} ON entries BEGIN SELECT RAISE(ABORT, 'append only'); END"
    for action in ("update", "delete")
]


class EntryStore:
    """The file. Says nothing about what entries mean or whether their chain holds.

    Raises, here and in every method:
        LedgerUnavailable: the file cannot be opened, locked or written.
        LedgerBroken: the file is not a sound SQLite database, or a row is not an entry.
    """

    def __init__(self, path: Path, *, is_new: bool = True) -> None:
        """Opens the file at `path`; a missing one is made only if it may be new."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | (os.O_CREAT if is_new else 0), 0o600))
        except OSError as err:
            raise LedgerUnavailable(f"cannot open the ledger {path}: {err.strerror}") from err
        self._engine = _engine(path)
        with self.write() as connection:
            _metadata.create_all(connection)
            for statement in _APPEND_ONLY:
                connection.exec_driver_sql(statement)

    @classmethod
    def peek(cls, path: Path, seq: int) -> Entry | None:
        """Reads one entry of the file at `path`, and never writes to it; None if it holds none of that number.

        SQLite may leave its own two files, empty of entries, beside a file that nobody else has open.
        """
        engine = _engine(path, reads_only=True)
        try:
            with _translated(path), engine.connect() as connection:
                reading = connection.execution_options(isolation_level="AUTOCOMMIT")
                return next(cls.load(reading, seq, 1), None) if sa.inspect(reading).has_table(_entries.name) else None
        finally:
            engine.dispose()

    def close(self) -> None:
        """Closes the file."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection to read with; waits for nobody."""
        with _translated(self._path), self._engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that holds the write lock; on leaving it is durable, or undone if an error passes through."""
        with _translated(self._path), self._engine.begin() as connection:
            yield connection

    def require_writable(self) -> None:
        """Takes the write lock and lets go of it; nothing is written."""
        if not os.access(self._path, os.W_OK):
            raise LedgerUnavailable(f"the ledger {self._path} cannot be written: its folder or disk is read-only")
        with self.write():
            pass

    @staticmethod
    def load(connection: sa.Connection, since: int, limit: int | None = None) -> Iterator[Entry]:
        """The entries from number `since` on, at most `limit`, read one after the other."""
        query = sa.select(_entries).where(_entries.c.seq >= since).order_by(_entries.c.seq).limit(limit)
        for row in connection.execute(query).mappings():
            yield _entry(row)

    @staticmethod
    def add(connection: sa.Connection, entry: Entry) -> None:
        """Adds one entry to the transaction of `connection`."""
        row = entry.model_dump() | {"body": canonical.encode(entry.body).decode()}
        connection.execute(_entries.insert(), row)


def _entry(row: sa.RowMapping) -> Entry:
    try:
        body = canonical.decode(row["body"])
        is_canonical = canonical.encode(body).decode() == row["body"]
    except (ValueError, TypeError) as err:
        raise LedgerBroken(f"entry {row['seq']}: the body is not JSON") from err
    if not is_canonical:
        raise LedgerBroken(f"entry {row['seq']}: the body is not in canonical form")
    return Entry.parse(dict(row) | {"body": body})


def _engine(path: Path, *, reads_only: bool = False) -> sa.Engine:
    url = sa.URL.create("sqlite", database=str(path))
    if reads_only:
        url = sa.URL.create("sqlite", database=path.absolute().as_uri(), query={"mode": "ro", "uri": "true"})
    engine = sa.create_engine(url, connect_args={"timeout": WAIT_S, "check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def _set_up(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin where we say, not at sqlite3's first INSERT
        for pragma in ("trusted_schema=OFF", *(() if reads_only else ("journal_mode=WAL", "synchronous=FULL"))):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sa.exc.OperationalError as err:
        raise LedgerUnavailable(f"the ledger {path} cannot be used: {err.orig}") from err
    except sa.exc.DatabaseError as err:
        raise LedgerBroken(f"the ledger {path} is damaged: {err.orig}") from err

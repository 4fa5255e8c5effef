"""Whose records an account of the ledger has paid for: a keyed mark of every unit, which never leaves the site.

A budget belongs to people. Under another name of the data set, or another word for the unit, the same people would have
a second one. So before a table is charged for the first time, and again when it has changed, the marks of its units and
of its rows are noted under their account; and a table whose units or rows are noted under another account is refused.

A mark is the first 16 bytes of HMAC-SHA256 under a random key of this site. Of a row there are two: one covers all
cells but the unit's, so that people with new ids are known by their rows; the other covers all cells, so that the same
table is known when another column is named as the unit's. Their order in the row does not matter. Two tables that
number their people 1 to n share marks without sharing people: then a person says so, by `data.distinct_from` in
site.toml.

A file that has not changed costs a look at its stamp. A database gives none, so the answer of a query is known by a
digest of its rows in any order. It is read when a run is prepared and once by every process that trains; what is
trained on must have the digest that was noted, see `training.warm_model`.

The file and its key begin together, and from then on both must be there: a file that was lost or emptied is never begun
anew by itself. Neither of them means that nobody was noted yet.
"""

import hmac
import json
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ...models.rounding import rounded_up
from ...privacy.errors import LedgerUnavailable
from ...privacy.ledger.ledger import Ledger
from ..errors import DiskFull, FileDamaged, UnitsKnown
from ..files import damaged, has_room, is_full, locked, move_durably, write_private
from ..policy import SitePolicy
from ..policy.site_policy import Account
from ..policy.sources import Source, SqlQuery, key_of
from ..secret_files import read_secret, write_secret
from .tables import Problems, RowsDigest, open_table, stamp

FILE = "units.db"
NEW_FILE = ".units.db.new"  # until its key is on disk
KEY_FILE = Path("keys") / "units.key"
MARK_BYTES, KEY_BYTES = 16, 32
WAIT_S = 600  # for another process that reads a large table
_REMEDY = (
    "With keys/units.key it knows whom accounts have paid for, and nothing is charged without it: restore both from "
    "one backup. Without one, delete both, and nobody is known any more. If client-node budget show lists a charge, "
    "count every budget as spent then: client-node budget recover"
)

KEY, UNIT, ROW, WHOLE = 0, 1, 2, 3  # kinds of marks; one of the key itself, so that another one is noticed
SCHEME = 3  # of marks; a table that was noted under an earlier one is read again

_metadata = sa.MetaData()
_accounts = sa.Table(
    "accounts",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("dataset", sa.Text, nullable=False),
    sa.Column("unit", sa.Text, nullable=False),
    sa.UniqueConstraint("dataset", "unit"),
)
_marks = sa.Table(
    "marks",
    _metadata,
    sa.Column("kind", sa.Integer, primary_key=True),
    sa.Column("mark", sa.LargeBinary, primary_key=True),
    sa.Column("account", sa.Integer, sa.ForeignKey("accounts.id"), primary_key=True),
    sqlite_with_rowid=False,
)
_tables = sa.Table(  # as they were when their marks were noted
    "tables",
    _metadata,
    sa.Column("account", sa.Integer, sa.ForeignKey("accounts.id"), primary_key=True),
    sa.Column("path", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, nullable=False),
)
_STAGED = "CREATE TEMP TABLE IF NOT EXISTS staged (kind INTEGER, mark BLOB, PRIMARY KEY (kind, mark)) WITHOUT ROWID"


@dataclass(frozen=True, slots=True)
class Overlap:
    """The part of a table that is known under another account. It counts records, so it is for the site alone."""

    account: Account
    units: int
    rows: int
    of_units: int  # of the table, each counted once
    of_rows: int

    def __str__(self) -> str:
        return (
            f"{self.units:,} of {self.of_units:,} units and {self.rows:,} of {self.of_rows:,} rows are known under "
            f"{self.account}"
        )


class KnownUnits:
    """The marks of one site, in `units.db` under the node's home; safe for several processes.

    Every method raises FileDamaged if the file or its key is lost or cannot be used, DiskFull if the disk has no room
    for it, LedgerUnavailable while another process holds it, and DataInvalid if a table cannot be read.
    """

    def __init__(self, home: Path, ledger: Ledger | None = None) -> None:
        """Names the files of the marks under `home`. From `ledger` messages say what an account has spent."""
        self._path, self._new_path, self._key_path = home / FILE, home / NEW_FILE, home / KEY_FILE
        self._ledger = ledger
        self._answers: set[str] = set()  # keys of queries whose answers were noted by this object, see `look_again`

    def cover(self, policy: SitePolicy, source: Source | None = None) -> None:
        """Notes the units and rows of the policy's tables, or of one of them, under its account, durably.

        Call it before a charge. A file that has not changed since costs a look at its stamp, and a query that this
        object has read costs nothing until `look_again`.

        Raises:
            UnitsKnown: some are known under other accounts, and the policy does not say that these are other people.
        """
        with self._opened() as (connection, key):
            account = _account_id(connection, policy.account)
            for table in _sources(policy, source):
                if self._is_noted(_noted(connection, account, table), table, policy):
                    continue
                seen, digest = stamp(table), _digest(key)
                overlaps = _overlaps(connection, key, table, policy, digest)
                if overlaps:
                    raise UnitsKnown(self._refusal(policy, table, overlaps))
                connection.execute(
                    sa.text("INSERT OR IGNORE INTO marks SELECT kind, mark, :account FROM staged"), {"account": account}
                )
                version = _version(digest.hex() if seen is None else seen, policy)
                noted = {"account": account, "path": key_of(table), "version": version}
                connection.execute(sa.insert(_tables).prefix_with("OR REPLACE"), noted)
        self._answers |= {table.key for table in _sources(policy, source) if isinstance(table, SqlQuery)}

    def is_covered(self, policy: SitePolicy, source: Source | None = None) -> bool:
        """True if `cover` would read no table."""
        if not self._is_begun():
            return False
        noted = self._versions(policy, source)
        return all(self._is_noted(version, table, policy) for table, version in noted.items())

    def look_again(self) -> None:
        """Makes the next `cover` read every query again: a database does not say that its rows have changed."""
        self._answers.clear()

    def digest(self) -> RowsDigest:
        """Returns an empty digest of rows under this site's key."""
        with self._opened() as (_, key):
            return _digest(key)

    def has_noted(self, policy: SitePolicy, state: object) -> bool:
        """True if the policy's source was noted last in this state: the stamp of its files, or its rows' digest."""
        return self._versions(policy, policy.data.source) == {policy.data.source: _version(state, policy)}

    def _versions(self, policy: SitePolicy, source: Source | None) -> dict[Source, str | None]:
        """The noted version of each table of the policy, or of one; None for one that was not noted."""
        tables = _sources(policy, source)
        with self._opened() as (connection, _):
            named = {"dataset": policy.account.dataset, "unit": policy.account.unit}
            account = connection.execute(sa.select(_accounts.c.id).filter_by(**named)).scalar_one_or_none()
            return {table: None if account is None else _noted(connection, account, table) for table in tables}

    def _is_noted(self, version: str | None, table: Source, policy: SitePolicy) -> bool:
        """True if a table need not be read again: a query if this object has, and it is read as it was then."""
        if version is None:
            return False
        if not isinstance(table, SqlQuery):
            return version == _version(stamp(table), policy)
        _, digest, *_ = json.loads(version)
        return table.key in self._answers and version == _version(digest, policy)

    def objections(self, policy: SitePolicy, source: Source | None = None) -> list[str]:
        """Says for which of the policy's tables, or one of them, `cover` would raise, and why; notes nothing."""
        if not self._is_begun():
            return []
        with self._opened() as (connection, key):
            found = [(table, _overlaps(connection, key, table, policy)) for table in _sources(policy, source)]
        return [self._refusal(policy, table, overlaps) for table, overlaps in found if overlaps]

    def accounts(self) -> list[Account]:
        """Lists the accounts under which people were noted."""
        if not self._is_begun():
            return []
        with self._opened() as (connection, _):
            noted = sa.select(_tables.c.account)
            wanted = sa.select(_accounts.c.dataset, _accounts.c.unit).where(_accounts.c.id.in_(noted))
            rows = connection.execute(wanted.order_by(_accounts.c.id))
            return [Account(dataset, unit) for dataset, unit in rows]

    def _refusal(self, policy: SitePolicy, source: Source, overlaps: Sequence[Overlap]) -> str:
        """Says what is known elsewhere, and the ways on."""
        known = "; ".join(f"{each}{self._spent(each.account)}" for each in overlaps)
        first = overlaps[0].account
        back = f"go back to data.name = '{first.dataset}' and data.unit = '{first.unit}'"
        if first.unit == policy.data.unit:
            back = (
                f"go back to data.name = '{first.dataset}', or set data.continues = '{first.dataset}': its budget pays"
            )
        return (
            f"{source}: {known}. A budget belongs to people. In site.toml {back}. Only if these are other people, who "
            f"happen to have the same ids: data.distinct_from = ['{first}']"
        )

    def _spent(self, account: Account) -> str:
        budget = self._ledger.budget(account.dataset, account.unit) if self._ledger else None
        if self._ledger is None or budget is None:
            return ""
        spent = self._ledger.spent(account.dataset, account.unit, budget.collusion, budget.delta)
        return f", where epsilon {rounded_up(spent.guaranteed)} is guaranteed, under a cap of {budget.epsilon:g}"

    def _is_begun(self) -> bool:
        """False if nobody was noted here yet."""
        if self._path.exists() or not self._key_path.exists():
            return self._path.exists()
        with locked(self._key_path):  # another process may just begin
            if not self._path.exists() and not self._new_path.exists():
                raise self._lost()
            return self._path.exists()

    def _begin(self) -> None:
        """Makes the file and its key, if there are none. What a crash leaves of them, the next call completes."""
        with locked(self._key_path):
            if self._path.exists():
                return
            if not self._key_path.exists():
                key = secrets.token_bytes(KEY_BYTES)
                _make_database(self._new_path, key)
                write_secret(self._key_path, key)
            elif not self._new_path.exists():
                raise self._lost()
            move_durably(self._new_path, self._path)

    def copy_to(self, path: Path) -> bool:
        """Copies the marks as they are at one moment to a new file; False if nobody was ever noted."""
        if not self._path.exists() and not self._key_path.exists():
            return False
        with self._opened():  # whole, and of this key
            pass
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            with closing(sqlite3.connect(self._path, timeout=WAIT_S)) as ours, closing(sqlite3.connect(path)) as copy:
                ours.backup(copy)
        except (sqlite3.Error, OSError) as err:
            if is_full(err):
                raise DiskFull(f"no room for a copy of {FILE}; nothing was changed") from err
            raise damaged(self._path, f"cannot be copied: {err}", remedy=_REMEDY) from err
        return True

    def _lost(self) -> Exception:
        return damaged(self._path, f"is gone, and {KEY_FILE} is there", remedy=_REMEDY)

    @contextmanager
    def _opened(self) -> Iterator[tuple[sa.Connection, bytes]]:
        """A transaction with the write lock, durable when it is left; all of it is undone by an error."""
        try:
            self._begin()
            key = self._key()
            if self._path.stat().st_size == 0:
                raise damaged(self._path, "is empty", remedy=_REMEDY)
            os.close(os.open(self._path, os.O_RDWR))  # what the system says of a file that SQLite cannot open
            engine = _engine(self._path)
            try:
                with engine.begin() as connection:
                    self._require_key(connection, key)
                    connection.exec_driver_sql(_STAGED)
                    yield connection, key
            finally:
                engine.dispose()
        except (sa.exc.SQLAlchemyError, OSError) as err:
            raise self._fault(err) from err

    def _fault(self, err: sa.exc.SQLAlchemyError | OSError) -> Exception:
        """What a failure of the file or its disk means."""
        if is_full(err) or (isinstance(err, sa.exc.OperationalError) and not has_room(self._path.parent)):
            return DiskFull(f"no room for {FILE}, where people are noted before a charge; nothing was charged")
        if _is_busy(err):
            return LedgerUnavailable(f"{self._path} cannot be used just now: another process holds it")
        reason = getattr(err, "orig", None) or getattr(err, "strerror", None) or type(err).__name__
        return damaged(self._path, f"cannot be used: {reason}", remedy=_REMEDY)

    def _key(self) -> bytes:
        key = read_secret(self._key_path, remedy=_REMEDY, max_bytes=KEY_BYTES)
        if key is None:
            raise damaged(self._key_path, f"is missing, and {FILE} is there", remedy=_REMEDY)
        if len(key) != KEY_BYTES:
            raise damaged(self._key_path, f"does not hold {KEY_BYTES} bytes", remedy=_REMEDY)
        return key

    def _require_key(self, connection: sa.Connection, key: bytes) -> None:
        """Raises FileDamaged if the marks were made with another key, or were emptied: nobody would be known."""
        if not sa.inspect(connection).has_table(_marks.name):
            raise damaged(self._path, "was emptied", remedy=_REMEDY)
        stated = connection.execute(sa.select(_marks.c.mark).filter_by(kind=KEY)).scalar_one_or_none()
        if stated is None:
            raise damaged(self._path, "was emptied", remedy=_REMEDY)
        if bytes(stated) != _mark(key, b"key", ()):
            raise FileDamaged(f"{FILE} was made with another key than the one in {KEY_FILE}. {_REMEDY}")


def _sources(policy: SitePolicy, source: Source | None) -> tuple[Source, ...]:
    """One source, or all of the policy's, as far as they are there: a file that is not cannot be read either."""
    named = (policy.data.source, policy.data.heldout_source) if source is None else (source,)
    return tuple(each for each in named if each is not None and (not isinstance(each, Path) or each.exists()))


def _version(state: object, policy: SitePolicy) -> str:
    """Writes a table's state, which is the stamp of its files or the digest of its rows, with how it is read."""
    data = policy.data
    plain = json.loads(json.dumps(state))  # a list where a stamp has tuples
    return json.dumps([SCHEME, plain, data.format, data.separator, data.unit_column, sorted(data.distinct_from)])


def _digest(key: bytes) -> RowsDigest:
    return RowsDigest(hmac.digest(key, b"digest of rows", "sha256"))


def _make_database(path: Path, key: bytes) -> None:
    """Makes a database that knows nobody, with the mark of its key."""
    engine = sa.create_engine("sqlite://")
    try:
        with engine.connect() as connection:
            _metadata.create_all(connection)
            connection.execute(sa.insert(_marks), {"kind": KEY, "mark": _mark(key, b"key", ()), "account": 0})
            connection.commit()
            made: sqlite3.Connection = connection.connection.dbapi_connection  # type: ignore[assignment]
            write_private(path, made.serialize())
    finally:
        engine.dispose()
    on_disk = _engine(path)
    try:
        on_disk.connect().close()  # into WAL mode while nobody else has it: later one process would fail, not wait
    finally:
        on_disk.dispose()


def _is_busy(err: BaseException) -> bool:
    code = getattr(getattr(err, "orig", None), "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)  # without what extends it


def _account_id(connection: sa.Connection, account: Account) -> int:
    values = {"dataset": account.dataset, "unit": account.unit}
    connection.execute(sa.insert(_accounts).prefix_with("OR IGNORE"), values)
    return int(connection.execute(sa.select(_accounts.c.id).filter_by(**values)).scalar_one())


def _noted(connection: sa.Connection, account: int, source: Source) -> str | None:
    wanted = sa.select(_tables.c.version).filter_by(account=account, path=key_of(source))
    return connection.execute(wanted).scalar_one_or_none()


def _overlaps(
    connection: sa.Connection, key: bytes, source: Source, policy: SitePolicy, digest: RowsDigest | None = None
) -> list[Overlap]:
    """Puts the marks of a table into `staged`, and finds those of other accounts than the policy's."""
    connection.exec_driver_sql("DELETE FROM staged")
    for kind, marks in _marks_of(key, source, policy, digest):
        if marks:
            connection.exec_driver_sql("INSERT OR IGNORE INTO staged VALUES (?, ?)", [(kind, mark) for mark in marks])
    counts = connection.exec_driver_sql("SELECT kind, count(*) FROM staged GROUP BY kind")
    totals = {int(kind): int(count) for kind, count in counts}
    known = connection.exec_driver_sql(
        "SELECT a.dataset, a.unit, sum(m.kind = 1), max(sum(m.kind = 2), sum(m.kind = 3)) FROM staged AS s "
        "JOIN marks AS m ON m.kind = s.kind AND m.mark = s.mark JOIN accounts AS a ON a.id = m.account "
        "GROUP BY a.id ORDER BY count(*) DESC"
    )
    passed = {str(policy.account), *policy.data.distinct_from}
    found = [
        Overlap(Account(name, unit), units, rows, totals.get(UNIT, 0), max(totals.get(ROW, 0), totals.get(WHOLE, 0)))
        for name, unit, units, rows in known
    ]
    return [each for each in found if str(each.account) not in passed]


def _marks_of(
    key: bytes, source: Source, policy: SitePolicy, digest: RowsDigest | None
) -> Iterator[tuple[int, list[bytes]]]:
    """The marks of a table's units and rows, batch by batch; blank ones are left out."""
    data = policy.data
    table = open_table(source, format=data.format, separator=data.separator, ids=data.unit_column)
    names = [name for name in table.names if name]
    for batch in table.batches(names, Problems(), digest):
        columns = {name: column.to_pylist() for name, column in batch.items()}
        whole = _rows(columns)
        units = columns.pop(data.unit_column, [])
        yield UNIT, [_mark(key, b"unit", (unit,)) for unit in set(units) if unit]
        yield ROW, [_mark(key, b"row", row) for row in _rows(columns)]
        yield WHOLE, [_mark(key, b"whole row", row) for row in whole]


def _rows(columns: Mapping[str, list[str]]) -> set[tuple[str, ...]]:
    """The cells of each row that has any, sorted."""
    return {tuple(sorted(row)) for row in zip(*columns.values(), strict=True) if any(row)} if columns else set()


def _mark(key: bytes, kind: bytes, cells: Iterable[str]) -> bytes:
    raw = [kind, *(cell.encode() for cell in cells)]
    framed = b"".join(len(part).to_bytes(4, "big") + part for part in raw)
    return hmac.digest(key, framed, "sha256")[:MARK_BYTES]


def _engine(path: Path) -> sa.Engine:
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)), connect_args={"timeout": WAIT_S, "check_same_thread": False}
    )

    @sa.event.listens_for(engine, "connect")
    def _set_up(connection: Any, _: object) -> None:
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "trusted_schema=OFF"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine

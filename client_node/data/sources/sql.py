"""Reads the answer of one query, streamed through a server-side cursor in one read-only snapshot of the database.

The database itself refuses whatever is no query. SQLite opens the file read-only, and its authorizer allows nothing
but to select, to read and to call functions. PostgreSQL gets the query as one statement of the extended protocol, which
takes no second one, as the query of a cursor, which takes no statement that writes, in a transaction that is READ ONLY
and REPEATABLE READ. No text of a driver is passed on: it may quote a cell, the query or a name.
"""

import math
import os
import re
import sqlite3
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from types import NoneType
from typing import Any, Protocol
from urllib.parse import quote
from uuid import UUID

import pyarrow as pa
import sqlalchemy as sa

from ...policy.sources import SqlQuery
from ..problems import Problems, unreadable
from . import plain
from .digest import RowsDigest

BATCH_ROWS = 10_000
_MOST_PASSWORD = 4096  # bytes
_STEPS = 20_000  # of SQLite's machine, between two looks at the clock
_NAMED = "confide_rows"
_VARIABLE = re.compile(r"PG[A-Z]+")  # of libpq, its manual's section 34.15
_HARMLESS = ("PGPASSFILE", "PGDATA")
_ALLOWED = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
_SQLITE = {
    "SQLITE_AUTH": "a statement that does something else than select, which the database refused",
    "SQLITE_READONLY": "a statement that writes, which the database refused",
    "SQLITE_CANTOPEN": "no file of a database that can be opened",
    "SQLITE_NOTADB": "a file that is no database",
    "SQLITE_CORRUPT": "a damaged database",
    "SQLITE_BUSY": "a database that another program holds locked",
    "SQLITE_INTERRUPT": "an answer that takes longer than data.sql.timeout_s",
    "SQLITE_ERROR": "a query that the database does not understand",
}
# Of what PostgreSQL reports (its manual, Appendix A), by the first two letters or all five.
_STATES = {
    "08": "a connection that failed",
    "22": "a cell that the query cannot convert",
    "28": "a user or password that the database refuses",
    "25006": "a statement that writes, which the database refused",
    "3D": "no database of this name",
    "40": "a conflict with another transaction; try again",
    "42501": "no right to read a table that it names",
    "42601": "a statement that is not one SELECT",
    "42": "a table, column or function that is not there, or is used wrongly",
    "53": "a database without room or free connections",
    "57014": "an answer that takes longer than data.sql.timeout_s",
    "57": "a database that is shutting down",
}


class _Cursor(Protocol):
    """The part of a driver's cursor that is used here."""

    @property
    def description(self) -> Sequence[Sequence[Any]] | None: ...

    def fetchmany(self, size: int) -> Sequence[tuple[Any, ...]]: ...


@dataclass(frozen=True, slots=True)
class SqlRows:
    """The rows of a query's answer, in no order that means anything."""

    source: SqlQuery
    names: tuple[str, ...]
    ids: str = ""  # the column of units' ids
    whole: str = "answer"

    def batches(self, wanted: Sequence[str], problems: Problems, digest: RowsDigest | None) -> Iterator[list[pa.Array]]:
        """See `Rows`. All batches of one call are of one snapshot."""
        del problems
        places = [self.names.index(name) for name in wanted]
        with _running(self.source) as cursor:
            if _names(cursor) != self.names:
                raise unreadable(self.source, "the columns that it had when it was opened", "others")
            while rows := cursor.fetchmany(BATCH_ROWS):
                if digest is not None:
                    digest.add(rows)
                columns = list(zip(*rows, strict=True))
                yield [as_texts(columns[place], are_ids=self.names[place] == self.ids) for place in places]

    def lines(self, rows: set[int]) -> dict[int, int]:
        """See `Rows`: an answer has no lines."""
        del rows
        return {}


def open_query(source: SqlQuery, ids: str = "") -> SqlRows:
    """Asks the database for the columns of the query's answer.

    Args:
        ids: the column of units' ids.

    Raises:
        DataInvalid: the database cannot be reached, refuses the query, or the password cannot be read.
    """
    with _running(source) as cursor:
        return SqlRows(source, _names(cursor), ids)


def as_texts(cells: Sequence[Any], *, are_ids: bool = False) -> pa.Array:
    """Writes a column of Python's values as text; what a cell becomes depends on itself alone.

    Nothing is "", and bytes, lists and other things that are no plain value become text that fits nothing. A whole
    number is written as an integer; with `are_ids`, one that is not whole or not exact fits nothing.
    """
    kinds = {*map(type, cells)} - {NoneType}
    if kinds <= {str}:
        try:
            return pa.array(cells, pa.string())
        except (pa.ArrowInvalid, UnicodeEncodeError):  # half of a letter, which no database in UTF-8 holds
            return pa.array([plain.NO_CELL if cell else "" for cell in cells], pa.string())
    if kinds <= {float}:
        return plain.floats(pa.array(cells, pa.float64()), are_ids=are_ids)
    return pa.array([_text(cell, is_id=are_ids) for cell in cells], pa.string())


def _text(cell: Any, *, is_id: bool) -> str:
    match cell:
        case None:
            return ""
        case str():
            return str(as_texts([cell])[0])
        case bool():
            return "true" if cell else "false"
        case float():
            return str(as_texts([cell], are_ids=is_id)[0])
        case int():
            return str(cell)
        case Decimal():
            return plain.decimal(cell, is_id=is_id)
        case datetime():
            return cell.isoformat(" ")
        case date():
            return cell.isoformat()
        case UUID():
            return str(cell)
    return plain.NO_CELL


def _names(cursor: _Cursor) -> tuple[str, ...]:
    return tuple(str(column[0]).strip() for column in cursor.description or ())


@contextmanager
def _running(source: SqlQuery) -> Iterator[_Cursor]:
    """Runs the query in a snapshot of its own, for one reading of its answer."""
    url = sa.make_url(source.url)
    with _told(source), _sqlite(source, url) if url.drivername == "sqlite" else _postgresql(source, url) as cursor:
        if cursor.description is None:
            raise unreadable(source, "one SELECT", "a statement without an answer")
        yield cursor


@contextmanager
def _told(source: SqlQuery) -> Iterator[None]:
    """Turns errors of SQLAlchemy and of the drivers into ours, without their text."""
    try:
        yield
    except (sa.exc.SQLAlchemyError, sqlite3.Error) as err:
        found = _kind(getattr(err, "orig", None) or err)
    except UnicodeDecodeError:
        found = "text that is not UTF-8"
    except Exception as err:
        if not type(err).__module__.startswith("psycopg"):
            raise
        found = _kind(err)
    else:
        return
    raise unreadable(source, "an answer", found) from None  # a driver's text may quote a cell


def _kind(err: BaseException) -> str:
    """Names the kind of an error of a database by its code alone."""
    if isinstance(err, sqlite3.Error):
        name = str(getattr(err, "sqlite_errorname", "") or "")
        if isinstance(err, sqlite3.ProgrammingError) and not name:
            return "more than one statement, or none"
        return _SQLITE.get(name, f"an error of the database ({name or 'of its driver'})")
    state = str(getattr(err, "sqlstate", None) or "")
    if not state:
        return "no database that can be reached with this user and password"
    found = next((_STATES[part] for part in (state, state[:2]) if part in _STATES), "an error of the database")
    return f"{found} ({state})"


@contextmanager
def _sqlite(source: SqlQuery, url: sa.URL) -> Iterator[_Cursor]:
    end = time.monotonic() + source.timeout_s
    file = f"file:{quote(url.database or '')}?mode=ro"
    engine = sa.create_engine(
        "sqlite://", creator=lambda: sqlite3.connect(file, uri=True, timeout=30, isolation_level=None),
        poolclass=sa.NullPool, hide_parameters=True,
    )  # fmt: skip
    try:
        with engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            driver.set_authorizer(_authorize)
            driver.set_progress_handler(lambda: time.monotonic() > end, _STEPS)
            cursor = driver.cursor()
            cursor.execute(source.query)  # one SELECT is one transaction, so all of it is one snapshot
            try:
                yield cursor
            finally:
                cursor.close()
    finally:
        engine.dispose()


def _authorize(action: int, first: str | None, second: str | None, *_: object) -> int:
    is_loading = action == sqlite3.SQLITE_FUNCTION and "load_extension" in (first, second)
    return sqlite3.SQLITE_OK if action in _ALLOWED and not is_loading else sqlite3.SQLITE_DENY


@contextmanager
def _postgresql(source: SqlQuery, url: sa.URL) -> Iterator[_Cursor]:
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise unreadable(source, "psycopg beside confide: pip install 'confide[postgresql]'", "none") from None
    _require_own_place(source)
    password = _password(source)
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg", password=password),
        poolclass=sa.NullPool,
        hide_parameters=True,
        isolation_level="REPEATABLE READ",
    )
    limit = int(source.timeout_s * 1000)
    try:
        with engine.connect() as connection:
            connection = connection.execution_options(postgresql_readonly=True)
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = {limit}")
            connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {limit}")
            driver: Any = connection.connection.driver_connection
            with driver.cursor(name=_NAMED) as cursor:
                cursor.itersize = BATCH_ROWS
                cursor.execute(source.query)
                yield _Timed(cursor, time.monotonic() + source.timeout_s, source)
            connection.rollback()
    finally:
        engine.dispose()


def _require_own_place(source: SqlQuery) -> None:
    """Refuses variables by which the driver would reach another server, or another way, than the URL says.

    Raises:
        DataInvalid: one of libpq's variables is set; its name is told, and not what it says.
    """
    passed = {*_HARMLESS, source.password_env}
    told = sorted(name for name in os.environ if _VARIABLE.fullmatch(name) and name not in passed)
    if told:
        expected = "a database that data.sql.url alone names; unset these variables for the node"
        raise unreadable(source, expected, ", ".join(told))


@dataclass(frozen=True, slots=True)
class _Timed:
    """A cursor whose parts together have one limit of time: the server's is for each of them.

    It is set anew before each part, since a query may call set_config.
    """

    cursor: Any
    end: float
    source: SqlQuery

    @property
    def description(self) -> Sequence[Sequence[Any]] | None:
        found: Sequence[Sequence[Any]] | None = self.cursor.description
        return found

    def fetchmany(self, size: int) -> Sequence[tuple[Any, ...]]:
        left = self.end - time.monotonic()
        if left <= 0:
            raise unreadable(self.source, "an answer", "one that takes longer than data.sql.timeout_s")
        self.cursor.connection.execute(f"SET LOCAL statement_timeout = {math.ceil(left * 1000)}")
        found: Sequence[tuple[Any, ...]] = self.cursor.fetchmany(size)
        return found


def _password(source: SqlQuery) -> str | None:
    """Reads the password from its file or variable; a message names the place alone."""
    if source.password_env is not None:
        if not (password := os.environ.get(source.password_env)):
            raise unreadable(source, f"a password in the variable {source.password_env}", "none")
        return password
    if source.password_file is None:
        return None
    return _password_in(source, source.password_file)


def _password_in(source: SqlQuery, path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) or stat.S_IMODE(mode) & 0o077:
                raise unreadable(
                    source, f"a password file of mode 0600, {path}", "one that others can read, or no file"
                )
            text = file.read(_MOST_PASSWORD + 1).decode("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError):
        raise unreadable(source, f"a password in {path}", "no file that can be read, or no UTF-8 text") from None
    if not text or len(text) > _MOST_PASSWORD or "\0" in text:
        raise unreadable(source, f"a password in {path}", "none, or a longer text")
    return text

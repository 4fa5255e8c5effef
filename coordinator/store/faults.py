"""Turns errors of the databases' drivers into ours: damage, which needs a backup, or what may soon be over."""

import sqlite3
from pathlib import Path

from sqlalchemy import URL, ExceptionContext

from ...client_node.files import has_room
from ..errors import CoordinatorError, StateDamaged, StoreUnavailable
from .place import name_of

_LOST = "It holds all sites, studies, runs and rounds: stop `coordinator serve`, "

_HELD = "another process has held it for 20 s; is a backup or a second server at work?"
_PASSING = {  # SQLite's primary result codes for what may be over when it is tried again
    sqlite3.SQLITE_FULL: "the disk is full; make room",
    sqlite3.SQLITE_BUSY: _HELD,
    sqlite3.SQLITE_LOCKED: _HELD,
    sqlite3.SQLITE_IOERR: "the disk fails to read or write; look at the machine's log",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened; is its folder there, and ours to write in?",
    sqlite3.SQLITE_READONLY: "the file or its disk is read-only",
    sqlite3.SQLITE_PERM: "the file is not ours to open",
    sqlite3.SQLITE_NOMEM: "there is no memory left",
}


_PASSING_AT_A_SERVER = {  # SQLSTATE of PostgreSQL, or how it begins
    "08": "the connection to its server is lost",
    "25006": "its server takes no changes now; is it a standby?",
    "28": "its server does not let this account in",
    "3D000": "its server has no such database",
    "40": "it was in each other's way with another process",
    "42501": "this account may not use its tables",
    "53100": "the disk of its server is full; make room",
    "53": "its server has no connection or memory left",
    "55P03": _HELD,
    "57": "its server stops or starts just now",
    "58": "its server fails to read or write; look at its log",
    "25P03": "this process stood still in the middle of a change, which was taken back",
}
_DAMAGE_AT_A_SERVER = ("42P01", "42703", "XX001", "XX002")  # a table or column that is gone, pages or indexes damaged


def remedy(url: URL) -> str:
    """Says what is lost with a database, and what to do."""
    if url.get_backend_name() == "sqlite":
        return (
            f"{_LOST}put the file back from a backup, the newest one, and delete the -wal and -shm beside it, or make "
            "a new home of a backup: coordinator restore"
        )
    return f"{_LOST}and restore the newest backup to a new home and an empty database: coordinator restore"


def turn_into_ours(context: ExceptionContext) -> None:
    """Handles SQLAlchemy's event `handle_error`: raises an error of ours for every use of an engine."""
    if context.engine is None or context.is_pre_ping:  # a connection that is gone is then replaced
        return
    if (ours := _error_of(context.original_exception, context.engine.url)) is not None:
        raise ours from context.original_exception


def _error_of(err: BaseException, url: URL) -> CoordinatorError | None:
    """Makes the error that people are told; None for one that its caller has to answer for, as a name taken twice."""
    if url.get_backend_name() == "sqlite":
        return _error_of_sqlite(err, url)
    return _error_of_postgresql(err, url)


def _error_of_postgresql(err: BaseException, url: URL) -> CoordinatorError | None:
    names = {kind.__name__ for kind in type(err).__mro__ if kind.__module__.partition(".")[0] == "psycopg"}
    state = getattr(err, "sqlstate", None) or ""
    said = " ".join(str(err).split())[:200]
    if state in _DAMAGE_AT_A_SERVER:
        return StateDamaged(f"{name_of(url)} is damaged: {said}. {remedy(url)}")
    reason = next((why for code, why in _PASSING_AT_A_SERVER.items() if state.startswith(code)), None)
    if reason is None and names & {"OperationalError", "InterfaceError"}:  # libpq gives no code for a lost connection
        reason = _PASSING_AT_A_SERVER["08"]
    if reason is None:
        return None
    return StoreUnavailable(f"{name_of(url)} cannot be used just now: {reason}. What is committed stays ({said})")


def _error_of_sqlite(err: BaseException, url: URL) -> CoordinatorError | None:
    name = name_of(url)
    if isinstance(err, sqlite3.OperationalError):
        code = getattr(err, "sqlite_errorcode", None)  # none if the library itself did not fail
        if code is not None and (reason := _PASSING.get(code & 0xFF)):
            if code & 0xFF == sqlite3.SQLITE_IOERR and not has_room(Path(name).parent):
                reason = _PASSING[sqlite3.SQLITE_FULL]
            return StoreUnavailable(f"{name} cannot be used just now: {reason}. What is committed stays ({err})")
    elif type(err) is not sqlite3.DatabaseError:  # the class of a file that is none, or that does not hang together
        return None
    return StateDamaged(f"{name} is damaged: {str(err)[:200]}. {remedy(url)}")

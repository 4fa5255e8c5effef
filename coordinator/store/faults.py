"""Turns errors of the database's driver into ours: damage, which needs a backup, or what may soon be over."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import ExceptionContext, make_url
from sqlalchemy.exc import DBAPIError

from ...client_node.files import has_room
from ..errors import CoordinatorError, StateDamaged, StoreUnavailable

REMEDY = (
    "It holds all sites, studies, runs and rounds: stop `coordinator serve`, put the file back from a backup, the "
    "newest one, and delete the -wal and -shm beside it"
)

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


def turn_into_ours(context: ExceptionContext) -> None:
    """Handles SQLAlchemy's event `handle_error`: raises an error of ours for every use of an engine."""
    name = None if context.engine is None else context.engine.url.database
    if (ours := _error_of(context.original_exception, name)) is not None:
        raise ours from context.original_exception


@contextmanager
def faults_of(url: str) -> Iterator[None]:
    """Raises an error of ours for whoever opens the database at `url` by other means than `Store`."""
    try:
        yield
    except DBAPIError as err:
        if (ours := _error_of(err.orig, make_url(url).database)) is None:
            raise
        raise ours from err


def _error_of(err: BaseException | None, name: str | None) -> CoordinatorError | None:
    """Makes the error that people are told; None for one that its caller has to answer for, as a name taken twice."""
    if isinstance(err, sqlite3.OperationalError):
        code = getattr(err, "sqlite_errorcode", None)  # none if the library itself did not fail
        if code is not None and (reason := _PASSING.get(code & 0xFF)):
            if code & 0xFF == sqlite3.SQLITE_IOERR and name and not has_room(Path(name).parent):
                reason = _PASSING[sqlite3.SQLITE_FULL]
            return StoreUnavailable(f"{name} cannot be used just now: {reason}. What is committed stays ({err})")
    elif type(err) is not sqlite3.DatabaseError:  # the class of a file that is none, or that does not hang together
        return None
    return StateDamaged(f"{name} is damaged: {str(err)[:200]}. {REMEDY}")

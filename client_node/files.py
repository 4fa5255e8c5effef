"""Writes and reads files that a node must neither lose nor show: whole, flushed, readable by their owner alone.

Every state file is read here, the coordinator's too. So whatever is wrong with one (empty, cut short, changed, closed
to us, a folder in its place) is one error, which names the file and says what is lost and what to do.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from .errors import FileDamaged

MOST_BYTES = 1 << 30  # of a file, unless its reader says less
_LEAST_FREE = 2**17  # bytes

T = TypeVar("T")


def write_private(path: Path, data: bytes | memoryview) -> None:
    """Writes `data` with mode 0600; after a crash the file is either the new one, whole, or the old one.

    Raises:
        OSError: the disk did not take it; the old file is as it was, and the error names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        move_durably(beside, path)
    except OSError as err:  # a write does not say to which file, and what came of it would fill the disk
        beside.unlink(missing_ok=True)
        raise OSError(err.errno, err.strerror, str(path)) from err


def move_durably(source: Path, target: Path) -> None:
    """Renames a file or folder that is on disk; a crash cannot undo the new name."""
    source.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock for whoever changes the file at `path`, across processes; it lies beside the file."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_full(err: BaseException | None) -> bool:
    """True if an error, or what it came from, says that the disk has no room: by the system, or through SQLite."""
    while err is not None:
        if isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(err, sqlite3.Error) and getattr(err, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return True
        err = err.__cause__ or err.__context__
    return False


def has_room(folder: Path) -> bool:
    """False if the disk of `folder` has no room for the files beside a database; SQLite then says "disk I/O error"."""
    return not folder.exists() or shutil.disk_usage(folder).free >= _LEAST_FREE


def file_digest(path: Path) -> str:
    """Computes the SHA-256 of a file in hex; the file is never whole in memory."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Reads what tells that the file at `path` is another one than before, or was changed; None if it cannot be read.

    Inode, time of the last change in ns, and size in bytes. `write_private` makes a new file each time.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def read_private(path: Path, *, max_bytes: int = MOST_BYTES) -> bytes:
    """Reads a file of this node's own, at most `max_bytes` of it."""
    with path.open("rb") as source:
        return source.read(max_bytes)


def read_own(
    path: Path,
    *,
    remedy: str,
    error: Callable[[str], Exception] = FileDamaged,
    max_bytes: int = MOST_BYTES,
    is_secret: bool = False,
) -> bytes | None:
    """Reads a state file; None if there is none.

    Args:
        remedy: sentences that say what is lost with the file and what to do.
        error: what to raise, with one text.
        max_bytes: a longer file is not ours.
        is_secret: True for a file that nobody but its owner may read.

    Raises:
        FileDamaged: as `error`: the file is empty, too long, not a file, or cannot be read; or others can read it.
    """
    try:
        if is_secret and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise error(f"{path} can be read by others; check who did, then: chmod 600 {path}")
        data = read_private(path, max_bytes=max_bytes + 1)
    except FileNotFoundError:
        return None
    except IsADirectoryError as err:
        raise damaged(path, "is a folder, where a file belongs", remedy=remedy, error=error) from err
    except OSError as err:
        raise damaged(path, f"cannot be read: {err.strerror}", remedy=remedy, error=error) from err
    if not data or len(data) > max_bytes:
        problem = "is empty" if not data else f"has more than {max_bytes} bytes"
        raise damaged(path, problem, remedy=remedy, error=error)
    return data


def read_json(
    path: Path,
    kind: TypeAdapter[T],
    *,
    remedy: str,
    error: Callable[[str], Exception] = FileDamaged,
    max_bytes: int = MOST_BYTES,
    is_secret: bool = False,
) -> T | None:
    """Reads a state file in JSON, strictly; None if there is none. Arguments are those of `read_own`.

    Raises:
        FileDamaged: as `error`: for every reason of `read_own`, or because the file does not hold a `kind`. The message
            shows nothing of what it holds.
    """
    data = read_own(path, remedy=remedy, error=error, max_bytes=max_bytes, is_secret=is_secret)
    return None if data is None else parse_json(path, data, kind, remedy=remedy, error=error)


def parse_json(
    path: Path, data: bytes, kind: TypeAdapter[T], *, remedy: str, error: Callable[[str], Exception] = FileDamaged
) -> T:
    """Reads what the state file at `path` holds, in JSON, strictly.

    Raises:
        FileDamaged: as `error`: it is no `kind`. The message shows nothing of it.
    """
    try:
        return kind.validate_json(data, strict=True)
    except ValidationError as err:
        first = err.errors(include_input=False, include_url=False)[0]
        if first["type"] == "json_invalid":
            problem = "is not JSON: it was cut short or changed"
        else:
            place = ".".join(str(part) for part in first["loc"])
            problem = f"does not hold what belongs there{f' ({place})' if place else ''}: {first['msg']}"
    raise damaged(path, problem, remedy=remedy, error=error)


def damaged(path: Path, problem: str, *, remedy: str, error: Callable[[str], Exception] = FileDamaged) -> Exception:
    """Makes the error for a state file of ours that cannot be used: it names the file, and says what to do."""
    return error(f"{path} {problem}. {remedy}")

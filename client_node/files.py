"""Writes and reads files that a node must neither lose nor show: whole, flushed, readable by their owner alone."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_private(path: Path, data: bytes) -> None:
    """Writes `data` with mode 0600; after a crash the file is either the new one, whole, or the old one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    move_durably(beside, path)


def move_durably(source: Path, target: Path) -> None:
    """Renames a file that is on disk within its folder; a crash cannot undo the new name."""
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


def file_digest(path: Path) -> str:
    """Computes the SHA-256 of a file in hex; the file is never whole in memory."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def read_private(path: Path, *, max_bytes: int = 1 << 30) -> bytes:
    """Reads a file of this node's own, at most `max_bytes` of it."""
    with path.open("rb") as source:
        return source.read(max_bytes)

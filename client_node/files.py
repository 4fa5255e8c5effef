"""Files that a node must neither lose nor show: written whole, flushed, readable by their owner alone."""

import hashlib
import os
from pathlib import Path


def write_private(path: Path, data: bytes) -> None:
    """Writes `data` with mode 0600 so that after a crash the file is whole or the old one."""
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
    """Gives a file that is on disk another name in its folder, so that a crash does not take it back."""
    source.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hex; it is never whole in memory."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def read_private(path: Path, *, max_bytes: int = 1 << 30) -> bytes:
    """The bytes of a file of this node's own, at most `max_bytes` of them."""
    with path.open("rb") as source:
        return source.read(max_bytes)

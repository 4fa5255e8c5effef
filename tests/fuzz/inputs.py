"""Decoders of bytes, made of those that read a text, a file or a folder; files are in memory where that can be."""

import atexit
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

_IN_MEMORY = Path("/dev/shm")


@cache
def scratch(name: str) -> Path:
    """A private folder for one target's files, deleted at the end of this process."""
    folder = tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-", dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None)
    atexit.register(folder.cleanup)
    return Path(folder.name)


def as_json(*values: Any) -> Callable[[], list[bytes]]:
    """Makes inputs of values, one each."""
    return lambda: [json.dumps(value).encode() for value in values]


def from_text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    """Makes a decoder of bytes of one that reads a text."""
    return lambda data: read(data.decode("utf-8", "replace"))


def in_folder(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Makes a decoder of bytes of one that reads a folder, in which they are the file of this name."""

    def read_bytes(data: bytes) -> object:
        folder = scratch(f"of-{name.replace('/', '-')}")
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o600)
        return read(folder)

    return read_bytes


def from_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Makes a decoder of bytes of one that reads a file, all of it."""

    def read_file(folder: Path) -> object:
        found = read(folder / name)
        return list(found) if isinstance(found, Iterator) else found

    return in_folder(name, read_file)

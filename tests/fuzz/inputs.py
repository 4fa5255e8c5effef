"""Scratch files for decoders that read a path, in memory where the machine has a folder for that."""

import atexit
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

_IN_MEMORY = Path("/dev/shm")


@cache
def scratch(name: str) -> Path:
    """A private folder for one target's files, deleted at the end of this process."""
    folder = tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-", dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None)
    atexit.register(folder.cleanup)
    return Path(folder.name)


def from_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Makes a decoder of bytes of one that reads a file."""

    def read_bytes(data: bytes) -> object:
        path = scratch(name.replace("/", "-")) / Path(name).name
        path.write_bytes(data)
        path.chmod(0o600)
        found = read(path)
        return list(found) if isinstance(found, Iterator) else found

    return read_bytes

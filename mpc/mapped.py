"""Reading a large file without holding it in memory."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Octets = bytes | mmap.mmap  # what can be measured, sliced into bytes and hashed


@contextmanager
def mapped(path: Path) -> Iterator[Octets]:
    """The contents of a file that nobody shortens meanwhile; its pages are read when they are looked at.

    Raises:
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        if file.seek(0, 2) == 0:  # nothing cannot be mapped
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents:
            yield contents

"""Reading a large file without holding it in memory."""

import mmap
from pathlib import Path


def mapped(path: Path) -> memoryview:
    """The contents of a file that nobody shortens meanwhile; its pages are read when they are looked at.

    The file stays mapped for as long as this view or one into it lives.

    Raises:
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        if file.seek(0, 2) == 0:  # nothing cannot be mapped
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

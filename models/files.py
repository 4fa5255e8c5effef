"""Reads files that somebody else has written."""

import os
import stat
from pathlib import Path


def read_at_most(path: Path, most: int) -> bytes | None:
    """Reads a file, of one that is longer its first `most` bytes; None if it is no file, such as a pipe.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would keep the reader for ever
    with os.fdopen(descriptor, "rb") as file:
        return file.read(most) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None

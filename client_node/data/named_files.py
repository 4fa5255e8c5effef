"""Reads files that a table names, such as pictures and sounds, below the one folder that site.toml allows.

Names are checked before (`models.records.cells.file_names`). Here no part of a way is followed if it leads upwards or
is a link, so that nothing else on the machine can be read through the folder either. Bytes are taken as they are; only
who trains decodes them.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ...models.errors import InvalidFile
from ...models.structure.pictures import MOST_BYTES


def files_below(
    folder: Path, names: np.ndarray, misfit: np.ndarray, keep: Callable[[bytes], bytes]
) -> tuple[np.ndarray, dict[int, str]]:
    """Reads the files of names [rows]; returns what is kept of each, objects [rows], and by row what is wrong.

    What is wrong is told in words that say nothing of the name or the file. A file that is named again is kept once.

    Args:
        misfit: bool [rows], cells that are no names.
        keep: says what of a file's bytes is kept, or raises InvalidFile if it is none that fits.
    """
    known: dict[str, bytes | str] = {}
    for name, is_bad in zip(names, misfit, strict=True):
        if not is_bad and name not in known:
            known[name] = _kept(folder, name, keep)
    found = ["no name of a file" if bad else known[name] for name, bad in zip(names, misfit, strict=True)]
    kept = [each if isinstance(each, bytes) else b"" for each in found]
    wrong = {row: each for row, each in enumerate(found) if isinstance(each, str)}
    return np.fromiter(kept, dtype=object, count=len(kept)), wrong


def _kept(folder: Path, name: str, keep: Callable[[bytes], bytes]) -> bytes | str:
    file = read_below(folder, name)
    if file is None:
        return "no file that may be read"
    try:
        return keep(file)
    except InvalidFile as err:
        return f"a file that {err}"


def read_below(folder: Path, name: str) -> bytes | None:
    """Reads the file of this name below `folder`; None if there is none that may be read.

    Args:
        name: parts joined by `/`; where one begins with a point, there is none.
    """
    *folders, last = parts = name.split("/")
    if any(part.startswith(".") for part in parts):
        return None
    opened: list[int] = []
    try:
        opened.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
        for part in folders:
            opened.append(os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=opened[-1]))
        # Without O_NONBLOCK a pipe of that name would keep the reader for ever.
        opened.append(os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=opened[-1]))
        if not stat.S_ISREG(os.fstat(opened[-1]).st_mode):
            return None
        with os.fdopen(opened.pop(), "rb") as file:
            found = file.read(MOST_BYTES + 1)
    except (OSError, ValueError):  # the latter of names that no system takes
        return None
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return found if len(found) <= MOST_BYTES else None

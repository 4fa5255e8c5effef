"""A file of JSON lines that only grows, each on disk before anything follows from it; one process at a time."""

import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InvalidField, JournalBroken

_LOCK_WAIT_S = 5.0  # a predecessor that was just killed lets go within this


class LineFile:
    """The file, held under an exclusive lock from opening to `close`.

    Raises:
        JournalBroken: in use by another process, not readable, or damaged anywhere but in a last line that was never
            finished: nothing has followed from that one.
    """

    def __init__(self, path: Path, take: Callable[[Any], bool]) -> None:
        """Opens the file and gives `take` each record in it, which returns False for one that contradicts another."""
        self._path = path
        self._failed = False
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise JournalBroken(f"cannot open the journal {path}: {err.strerror}") from err
        try:
            self._lock()
            _sync_directory(path.parent)
            self._load(take)
        except BaseException:
            os.close(self._file)
            raise

    def append(self, record: dict[str, Any]) -> None:
        """Appends a line; on return it is on disk.

        Raises:
            JournalBroken: the disk did not take it; the file must then be opened anew.
        """
        if self._failed:
            raise JournalBroken(f"the journal {self._path} failed before")
        line = json.dumps(record, separators=(",", ":"), sort_keys=True).encode() + b"\n"
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(0, "the disk is full")
            os.fsync(self._file)
        except OSError as err:
            self._failed = True
            raise JournalBroken(f"cannot write the journal {self._path}: {err.strerror}") from err

    def close(self) -> None:
        """Lets another process open it."""
        os.close(self._file)

    def _lock(self) -> None:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as err:
                if time.monotonic() > deadline:
                    raise JournalBroken(f"another process uses the journal {self._path}") from err
            time.sleep(0.05)

    def _load(self, take: Callable[[Any], bool]) -> None:
        data = self._path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            os.ftruncate(self._file, end)
            os.fsync(self._file)
        for number, line in enumerate(data[:end].splitlines(), start=1):
            try:
                is_consistent = take(json.loads(line))
            except (ValueError, TypeError, AttributeError, RecursionError, InvalidField) as err:
                raise JournalBroken(f"line {number} of the journal {self._path} is damaged") from err
            if not is_consistent:
                raise JournalBroken(f"line {number} of the journal {self._path} contradicts an earlier one")


def _sync_directory(path: Path) -> None:
    """Makes the file's name survive a power cut as well as its bytes."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

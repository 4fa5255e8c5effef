"""A whole ledger as one file, to keep beside a backup of the keys or to give a site its ledger back.

JSON lines in canonical form: the format, then every entry in order, then how many there are and the last one's hash, so
that a file cut short shows. Nothing in it is secret to whoever may see a budget report, and nothing is believed on
reading: `Ledger.restore` checks hashes, signatures and meaning of every entry.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import LedgerBroken, LedgerFileInvalid
from . import canonical
from .chain import MAX_BODY, START, Entry, Head, follow

FORMAT = "confide-ledger-file-1"
MAX_LINE = 2 * MAX_BODY  # bytes
MAX_ENTRIES = 10_000_000


def write(path: Path, entries: Iterable[Entry], public_key: str) -> Head:
    """Writes a whole ledger to a new file at `path`, checking chain and signatures on the way; returns its head.

    Raises:
        LedgerFileInvalid: there is a file at `path` already, or it cannot be written.
        LedgerBroken: an entry does not follow the one before under `public_key`, which signs entry 0.

    Whatever is raised, nothing is left at `path` that was not there before.
    """
    _require_new(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.unlink(missing_ok=True)  # what a process of that number left when it was killed
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            head = write_to(file, entries, public_key)
            file.flush()
            os.fsync(file.fileno())
        _require_new(path)
        beside.rename(path)
    except OSError as err:
        raise LedgerFileInvalid(f"cannot write {path}: {err.strerror}") from err
    finally:
        beside.unlink(missing_ok=True)
    return head


def write_to(file: BinaryIO, entries: Iterable[Entry], public_key: str) -> Head:
    """Writes a whole ledger to an open file as `write` does; raises `LedgerBroken` in the middle of it."""
    head, key = START, public_key
    _write_line(file, {"format": FORMAT})
    for entry in entries:
        head, key = follow(head, [entry], key)
        _write_line(file, entry.model_dump())
    _write_line(file, {"entries": head.seq + 1, "head": head.hash})
    return head


def read(path: Path) -> Iterator[Entry]:
    """The entries of the file at `path`, one after the other, with types and sizes checked and nothing else.

    Raises:
        LedgerFileInvalid: it is no such file, is cut short, or is too large; names the line. A reader that has not
            come to the end knows nothing yet.
    """
    try:
        with path.open("rb") as file:
            if _line(file, path, 1) != {"format": FORMAT}:
                raise LedgerFileInvalid(f"{path}: line 1 does not say {FORMAT}: this is no ledger file")
            head = START
            for number in range(2, MAX_ENTRIES + 3):
                value = _line(file, path, number)
                if set(value) == {"entries", "head"}:
                    if value != {"entries": head.seq + 1, "head": head.hash} or file.read(1):
                        raise LedgerFileInvalid(f"{path}: line {number} does not end the entries before it")
                    return
                try:
                    entry = Entry.parse(value)
                except LedgerBroken as err:
                    raise LedgerFileInvalid(f"{path}: line {number}: {err}") from err
                yield entry
                head = Head(entry.seq, entry.hash)
            raise LedgerFileInvalid(f"{path} holds more than {MAX_ENTRIES:,} entries")
    except OSError as err:
        raise LedgerFileInvalid(f"cannot read {path}: {err.strerror}") from err


def _require_new(path: Path) -> None:
    if os.path.lexists(path):
        raise LedgerFileInvalid(f"{path} exists already; name a new file, so that no older ledger is lost")


def _write_line(file: BinaryIO, value: dict[str, Any]) -> None:
    file.write(canonical.encode(value) + b"\n")


def _line(file: BinaryIO, path: Path, number: int) -> dict[str, Any]:
    line = file.readline(MAX_LINE + 1)
    if len(line) > MAX_LINE:
        raise LedgerFileInvalid(f"{path}: line {number} is longer than {MAX_LINE} bytes")
    if not line.endswith(b"\n"):
        raise LedgerFileInvalid(f"{path} ends within or before line {number}: it was cut short; copy it again")
    try:
        value = canonical.decode(line)
        is_canonical = isinstance(value, dict) and canonical.encode(value) == line[:-1]
    except ValueError as err:
        raise LedgerFileInvalid(f"{path}: line {number} is not JSON") from err
    if not is_canonical:
        raise LedgerFileInvalid(f"{path}: line {number} is no object in canonical JSON")
    assert isinstance(value, dict)
    return value

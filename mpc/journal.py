"""The durable record of which set of sites a round was released for.

Two totals of one round over two sets differ by single updates, so a round that was, or may have been, released for a
set is bound to it for ever. One JSON line a binding, on disk before anything is released. Whoever deletes the file
takes this protection away.
"""

import fcntl
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from .errors import InvalidField, JournalBroken, SetConflict
from .fields import MAX_ROUND, text, whole

_LOCK_WAIT_S = 5.0  # a predecessor that was just killed lets go within this


class RoundId(NamedTuple):
    """Which release a binding is about."""

    study: str
    run: str
    round: int


class Binding(NamedTuple):
    """The set that a round is bound to."""

    set_digest: bytes  # 32 bytes, over names and sealed bytes
    sites: tuple[str, ...]


class Journal:
    """Bindings of one party, held under an exclusive lock from opening to `close`.

    Raises:
        JournalBroken: in use by another process, not readable, or damaged anywhere but in a last line that was never
            finished (its round was not released: the line comes first).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failed = False
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise JournalBroken(f"cannot open the journal {path}: {err.strerror}") from err
        try:
            self._lock()
            _sync_directory(path.parent)
            self._bindings = self._load()
        except BaseException:
            os.close(self._file)
            raise

    def bound(self, round_id: RoundId) -> Binding | None:
        """What the round is bound to, if it is."""
        return self._bindings.get(round_id)

    def bind(self, round_id: RoundId, binding: Binding) -> None:
        """Binds the round for ever; on return the binding is on disk. The same set again is no change.

        Raises:
            SetConflict: the round is bound to another set.
            JournalBroken: the disk did not take it; this journal must then be opened anew.
        """
        known = self._bindings.get(round_id)
        if known is not None:
            if known.set_digest != binding.set_digest:
                raise SetConflict(f"round {round_id.round} is bound to another set of sites", known.sites)
            return
        if self._failed:
            raise JournalBroken(f"the journal {self._path} failed before")
        try:
            self._append(_line(round_id, binding))
        except OSError as err:
            self._failed = True
            raise JournalBroken(f"cannot write the journal {self._path}: {err.strerror}") from err
        self._bindings[round_id] = binding

    def close(self) -> None:
        """Lets another process open it."""
        os.close(self._file)

    def _append(self, line: bytes) -> None:
        if os.write(self._file, line) != len(line):
            raise OSError(0, "the disk is full")
        os.fsync(self._file)

    def _lock(self) -> None:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as err:
                if time.monotonic() > deadline:
                    raise JournalBroken(f"another process uses the journal {self._path}") from err
            time.sleep(0.05)

    def _load(self) -> dict[RoundId, Binding]:
        data = self._path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            os.ftruncate(self._file, end)
            os.fsync(self._file)
        bindings: dict[RoundId, Binding] = {}
        for number, line in enumerate(data[:end].splitlines(), start=1):
            try:
                round_id, binding = _parse(line)
            except (ValueError, TypeError, InvalidField) as err:
                raise JournalBroken(f"line {number} of the journal {self._path} is damaged") from err
            if bindings.setdefault(round_id, binding) != binding:
                raise JournalBroken(f"line {number} of the journal {self._path} contradicts an earlier one")
        return bindings


def _line(round_id: RoundId, binding: Binding) -> bytes:
    record = {**round_id._asdict(), "set": binding.set_digest.hex(), "sites": binding.sites}
    return json.dumps(record, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def _parse(line: bytes) -> tuple[RoundId, Binding]:
    record = json.loads(line)
    if not isinstance(record, dict) or record.keys() != {"study", "run", "round", "set", "sites"}:
        raise ValueError("not a binding")
    digest = bytes.fromhex(record["set"])
    if len(digest) != 32 or not isinstance(record["sites"], list):
        raise ValueError("not a set")
    round_id = RoundId(
        text("study", record["study"]), text("run", record["run"]), whole("round", record["round"], 0, MAX_ROUND)
    )
    return round_id, Binding(digest, tuple(text("site", name) for name in record["sites"]))


def _sync_directory(path: Path) -> None:
    """Makes the file's name survive a power cut as well as its bytes."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

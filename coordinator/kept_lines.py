"""Keeps what was computed: a line of JSON each, in a file that is added to and never rewritten."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from ..models.strict import StrictModel
from .errors import StateDamaged

L = TypeVar("L", bound=StrictModel)


class KeptLines(Generic[L]):
    """The lines of a file, those of earlier invocations first."""

    def __init__(self, path: Path, model: type[L], what: str) -> None:
        """Reads what is there; a line that a crash cut short is dropped.

        Args:
            what: says what a line is, as "cell of a comparison".

        Raises:
            StateDamaged: a line is none; the message names it.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.lines = list(_read(path, model, what)) if path.exists() else []

    def add(self, line: L) -> None:
        """Appends a line in one write, and waits until it is on disk."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.model_dump_json().encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.lines.append(line)


def _read(path: Path, model: type[L], what: str) -> Iterable[L]:
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):  # the end of a write that never came to its end
        os.truncate(path, whole)
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            yield model.model_validate_json(line)
        except ValidationError as err:
            problem = f"{path}, line {number}, is no {what}: it was changed, or is of another version"
            raise StateDamaged(f"{problem}. Restore it, or name another folder with --out") from err

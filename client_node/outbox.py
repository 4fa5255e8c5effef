"""Sealed shares that a site has made, kept until their round is settled.

A round asked for twice is answered with these bytes and never with a fresh draw: two draws under one charge would be
two releases. So the bytes are on disk before they are on the wire.
"""

import shutil
from pathlib import Path

from .files import read_private, write_private

Envelopes = tuple[bytes, bytes, bytes]


class Outbox:
    """One folder per run and round under the node's home."""

    def __init__(self, home: Path) -> None:
        self._path = home / "outbox"

    def get(self, run: str, round_number: int) -> Envelopes | None:
        """The stored envelopes of a round, by aggregator, or None if the round was never finished here."""
        folder = self._folder(run, round_number)
        if not (folder / "complete").exists():
            return None
        first, second, third = (read_private(folder / f"envelope-{i}") for i in range(3))
        return first, second, third

    def put(self, run: str, round_number: int, envelopes: Envelopes) -> None:
        """Stores a round's envelopes durably."""
        folder = self._folder(run, round_number)
        for index, envelope in enumerate(envelopes):
            write_private(folder / f"envelope-{index}", envelope)
        write_private(folder / "complete", b"")

    def drop(self, run: str, round_number: int) -> None:
        """Forgets a settled round; its end is marked first, so that half a deletion is no half round."""
        (self._folder(run, round_number) / "complete").unlink(missing_ok=True)
        shutil.rmtree(self._folder(run, round_number), ignore_errors=True)

    def _folder(self, run: str, round_number: int) -> Path:
        return self._path / run / str(round_number)

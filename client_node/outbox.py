"""Sealed shares that a site has made, kept until their round is settled.

A round asked for twice is answered with these bytes and never with a fresh draw: two draws under one charge would be
two releases. So the bytes are on disk before they are on the wire.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..mpc.shares import set_name
from .files import read_private, write_private

Envelopes = tuple[bytes, bytes, bytes]


class Outbox:
    """One folder per run and round under the node's home."""

    def __init__(self, home: Path) -> None:
        self._path = home / "outbox"

    def get(self, run: str, round_number: int) -> Envelopes | None:
        """The stored envelopes of a round, by aggregator, or None if the round was never finished here."""
        return _read(self._folder(run, round_number))

    def put(self, run: str, round_number: int, envelopes: Envelopes) -> None:
        """Stores a round's envelopes durably."""
        _write(self._folder(run, round_number), envelopes)

    def topped_set(self, run: str, round_number: int) -> tuple[str, ...] | None:
        """The sites for whose sum the newest top-up of a round was given; None if there was none."""
        path = self._folder(run, round_number) / "topped.json"
        return tuple(json.loads(read_private(path))) if path.exists() else None

    def topup(self, run: str, round_number: int, sites: Sequence[str]) -> Envelopes | None:
        """The stored top-up of a round for a sum over just these sites."""
        return _read(self._topup(run, round_number, sites))

    def put_topup(self, run: str, round_number: int, sites: Sequence[str], envelopes: Envelopes) -> None:
        """Stores a top-up durably, then its set as the one that the round is fixed to."""
        if self.topup(run, round_number, sites) is None:
            _write(self._topup(run, round_number, sites), envelopes)
        write_private(self._folder(run, round_number) / "topped.json", json.dumps(tuple(sites)).encode())

    def drop(self, run: str, round_number: int) -> None:
        """Forgets a settled round; its end is marked first, so that half a deletion is no half round."""
        (self._folder(run, round_number) / "complete").unlink(missing_ok=True)
        shutil.rmtree(self._folder(run, round_number), ignore_errors=True)

    def _topup(self, run: str, round_number: int, sites: Sequence[str]) -> Path:
        return self._folder(run, round_number) / f"topup-{set_name(sites)}"

    def _folder(self, run: str, round_number: int) -> Path:
        return self._path / run / str(round_number)


def _read(folder: Path) -> Envelopes | None:
    if not (folder / "complete").exists():
        return None
    first, second, third = (read_private(folder / f"envelope-{i}") for i in range(3))
    return first, second, third


def _write(folder: Path, envelopes: Envelopes) -> None:
    for index, envelope in enumerate(envelopes):
        write_private(folder / f"envelope-{index}", envelope)
    write_private(folder / "complete", b"")

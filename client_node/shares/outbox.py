"""Stores the sealed shares that a site has made, until their round is settled.

A round asked for twice is answered with these bytes and never with a fresh draw: two draws under one charge would be
two releases. So the bytes are on disk before they are sent.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from ...mpc.sharing.shares import set_name
from ..files import file_digest, read_private, write_private
from ..wire.messages import Sealed, Three, fitting

Envelopes = tuple[bytes, bytes, bytes]
Files = tuple[Path, Path, Path]  # of envelopes, by aggregator


class Outbox:
    """The outbox of a site: one folder for each run and round under the node's home."""

    def __init__(self, home: Path) -> None:
        self._path = home / "outbox"

    def get(self, run: str, round_number: int) -> Files | None:
        """Finds the stored envelopes of a round, by aggregator; None if they were never completely stored."""
        return _find(self._folder(run, round_number))

    def put(self, run: str, round_number: int, envelopes: Envelopes) -> Files:
        """Stores a round's envelopes durably."""
        return _write(self._folder(run, round_number), envelopes)

    def topped_set(self, run: str, round_number: int) -> tuple[str, ...] | None:
        """Names the sites of the set for which the newest top-up of a round was given; None if there was none."""
        path = self._folder(run, round_number) / "topped.json"
        return tuple(json.loads(read_private(path))) if path.exists() else None

    def topup(self, run: str, round_number: int, topup_for: str) -> Files | None:
        """Finds the stored top-up of a round for exactly the set with this `set_name`; None if there is none."""
        return _find(self._topup(run, round_number, topup_for))

    def put_topup(self, run: str, round_number: int, summed: Sequence[str], envelopes: Envelopes) -> Files:
        """Stores a top-up durably, unless there is one for `summed`, then calls `fix` for that set."""
        name = set_name(summed)
        files = self.topup(run, round_number, name) or _write(self._topup(run, round_number, name), envelopes)
        self.fix(run, round_number, summed)
        return files

    def fix(self, run: str, round_number: int, summed: Sequence[str]) -> None:
        """Stores durably that the newest top-up was given for the set `summed`."""
        write_private(self._folder(run, round_number) / "topped.json", json.dumps(tuple(summed)).encode())

    def drop(self, run: str, round_number: int) -> None:
        """Deletes a settled round; `complete` goes first, so that an interrupted deletion leaves no half round."""
        (self._folder(run, round_number) / "complete").unlink(missing_ok=True)
        shutil.rmtree(self._folder(run, round_number), ignore_errors=True)

    def _topup(self, run: str, round_number: int, topup_for: str) -> Path:
        return self._folder(run, round_number) / f"topup-{topup_for}"

    def _folder(self, run: str, round_number: int) -> Path:
        return self._path / run / str(round_number)


def described(files: Files, room: int) -> tuple[Three, dict[str, bytes]]:
    """Describes sealed shares by size and digest, and returns as blobs those that fit in `room` bytes together."""
    sizes = {f"envelope-{index}": path.stat().st_size for index, path in enumerate(files)}
    chosen = fitting(sizes, room)
    blobs = {name: read_private(path) for name, path in zip(sizes, files, strict=True) if name in chosen}
    first, second, third = (Sealed(size=path.stat().st_size, digest=file_digest(path)) for path in files)
    return (first, second, third), blobs


def _find(folder: Path) -> Files | None:
    return _files(folder) if (folder / "complete").exists() else None


def _write(folder: Path, envelopes: Envelopes) -> Files:
    files = _files(folder)
    for path, envelope in zip(files, envelopes, strict=True):
        write_private(path, envelope)
    write_private(folder / "complete", b"")
    return files


def _files(folder: Path) -> Files:
    return folder / "envelope-0", folder / "envelope-1", folder / "envelope-2"

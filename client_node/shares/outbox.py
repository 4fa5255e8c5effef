"""Stores the sealed shares that a site has made, until their round is settled.

A round asked for twice is answered with these bytes and never with a fresh draw: two draws under one charge would be
two releases. So the bytes are on disk before they are sent.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from ...mpc.fields import Bytes
from ...mpc.sharing.shares import set_name
from ..files import damaged, file_digest, read_json, read_private, write_private
from ..wire.messages import Sealed, Three, fitting

_SET_FORM, _DIGESTS_FORM = TypeAdapter(tuple[str, ...]), TypeAdapter(tuple[str, str, str])
_SET_REMEDY = (
    "It says for which sites this one has added noise. Stop the daemon and restore it from a backup; without one, stop "
    "the run, and start another"
)
_SHARE_REMEDY = (
    "What is sealed is never made anew under the same charge. Restore it from a backup, or let the round go on without "
    "this site; its charge stands"
)

Envelopes = tuple[Bytes, Bytes, Bytes]
Files = tuple[Path, Path, Path]  # of envelopes, by aggregator

_LOST = "lost"  # the mark of a round that may have been sealed where this home came from
_COMPLETE = "complete"  # the mark of a round whose files are all there; their digests
_TOPPED = "topped.json"


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
        """Names the sites of the set for which the newest top-up of a round was begun; None if there was none.

        Raises:
            FileDamaged: the file that says it is damaged, or is gone where there is a top-up.
        """
        path = self._folder(run, round_number) / _TOPPED
        topped = read_json(path, _SET_FORM, remedy=_SET_REMEDY)
        if topped is None and any(path.parent.glob(f"topup-*/{_COMPLETE}")):
            raise damaged(path, "is missing", remedy=_SET_REMEDY)
        return topped

    def has_topped(self, run: str, round_number: int, summed: Sequence[str]) -> bool:
        """True if the newest top-up of a round was given, whole, for the set `summed`."""
        is_newest = self.topped_set(run, round_number) == tuple(summed)
        return is_newest and self.topup(run, round_number, set_name(summed)) is not None

    def topup(self, run: str, round_number: int, topup_for: str) -> Files | None:
        """Finds the stored top-up of a round for exactly the set with this `set_name`; None if there is none."""
        return _find(self._topup(run, round_number, topup_for))

    def put_topup(self, run: str, round_number: int, summed: Sequence[str], envelopes: Envelopes) -> Files:
        """Calls `fix` for the set `summed`, then stores a top-up for it durably, unless there is one."""
        self.fix(run, round_number, summed)
        name = set_name(summed)
        return self.topup(run, round_number, name) or _write(self._topup(run, round_number, name), envelopes)

    def fix(self, run: str, round_number: int, summed: Sequence[str]) -> None:
        """Stores durably that the newest top-up is for the set `summed`: from now on none is given for other sites."""
        write_private(self._folder(run, round_number) / _TOPPED, json.dumps(tuple(summed)).encode())

    def lose(self, run: str, round_number: int) -> None:
        """Marks a round, durably, as one whose sealed shares may be out in the world and are not here."""
        write_private(self._folder(run, round_number) / _LOST, b"lost\n")

    def is_lost(self, run: str, round_number: int) -> bool:
        """True if nothing may be drawn for the round any more: what was sealed for it is lost, and not here."""
        return (self._folder(run, round_number) / _LOST).exists() and self.get(run, round_number) is None

    def drop(self, run: str, round_number: int) -> None:
        """Deletes a settled round; `complete` goes first, so that an interrupted deletion leaves no half round."""
        (self._folder(run, round_number) / _COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(self._folder(run, round_number), ignore_errors=True)

    def _topup(self, run: str, round_number: int, topup_for: str) -> Path:
        return self._folder(run, round_number) / f"topup-{topup_for}"

    def _folder(self, run: str, round_number: int) -> Path:
        return self._path / run / str(round_number)


def described(files: Files, room: int) -> tuple[Three, dict[str, bytes]]:
    """Describes sealed shares by size and digest, and returns as blobs those that fit in `room` bytes together.

    Raises:
        FileDamaged: one of the files is not what was sealed; it is never sent.
    """
    first, second, third = sealed = tuple(map(_described, files, _digests(files[0].parent)))
    chosen = fitting({f"envelope-{index}": each.size for index, each in enumerate(sealed)}, room)
    blobs = {f"envelope-{index}": path for index, path in enumerate(files)}
    return (first, second, third), {name: read_private(path) for name, path in blobs.items() if name in chosen}


def _find(folder: Path) -> Files | None:
    return _files(folder) if (folder / _COMPLETE).exists() else None


def _write(folder: Path, envelopes: Envelopes) -> Files:
    files = _files(folder)
    for path, envelope in zip(files, envelopes, strict=True):
        write_private(path, envelope)
    digests = [hashlib.sha256(envelope).hexdigest() for envelope in envelopes]
    write_private(folder / _COMPLETE, json.dumps(digests).encode())
    return files


def _digests(folder: Path) -> tuple[str, ...]:
    """Reads the SHA-256 of each envelope. The mark of an earlier version is empty: what it sealed is refused."""
    mark = folder / _COMPLETE
    digests = read_json(mark, _DIGESTS_FORM, remedy=_SHARE_REMEDY)
    if digests is None:
        raise damaged(mark, "is missing", remedy=_SHARE_REMEDY)
    return digests


def _described(path: Path, sealed: str) -> Sealed:
    try:
        found = Sealed(size=path.stat().st_size, digest=file_digest(path))
    except (OSError, ValueError) as err:
        raise damaged(path, "cannot be read", remedy=_SHARE_REMEDY) from err
    if found.digest != sealed:
        raise damaged(path, "is not what was sealed", remedy=_SHARE_REMEDY)
    return found


def _files(folder: Path) -> Files:
    return folder / "envelope-0", folder / "envelope-1", folder / "envelope-2"

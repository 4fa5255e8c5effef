"""Stores the sealed shares that the coordinator relays to an aggregator, as files until their round is over.

Small shares come with the order that names them, large ones in parts before it. A round is over here when a later one
of its run begins or the run ends; no share is accepted for it then. A place (a site's update in a round, or its top-up
for one set) takes one file: the first message about it fixes which.
"""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..errors import DiskFull, MessageInvalid, RoundOver
from ..wire.chunks import Incoming

MAX_BYTES = 64 << 30  # of all runs together
SPARE_BYTES = 1 << 30  # left free for the rest of the machine


@dataclass(frozen=True, slots=True)
class Place:
    """The place of one sealed share: its round, its site, and the sum that a top-up is for."""

    run: str
    round: int
    site: str
    topup_for: str | None  # `set_name` of the sites to be summed; None for the update itself


class Spool:
    """The spool of an aggregator: a folder for each run, round and place; message schemas have checked all names."""

    def __init__(self, home: Path) -> None:
        self._path = home / "spool"

    def begin(self, run: str, round_number: int) -> None:
        """Begins a round of a run, and deletes the shares of all earlier rounds.

        Raises:
            RoundOver: a later round of the run has begun here.
        """
        for path in self._rounds(run):
            if int(path.name) > round_number:
                raise RoundOver(f"round {round_number} of run {run} is over here: round {path.name} has begun")
            if int(path.name) < round_number:
                shutil.rmtree(path)
        self._round(run, round_number).mkdir(parents=True, exist_ok=True, mode=0o700)

    def add(self, place: Place, *, size: int, digest: str, offset: int, data: bytes) -> int:
        """Adds a part of the file of `place`, see `Incoming.add`; returns the number of leading bytes stored so far.

        Raises:
            RoundOver: a later round of the run has begun here.
            MessageInvalid: another file was announced for this place, or `Incoming.add` raises it.
            DiskFull: there is no room for the file.
        """
        self.begin(place.run, place.round)
        incoming = Incoming(self._folder(place) / digest, size, digest)
        here = list(self._folder(place).iterdir()) if self._folder(place).exists() else []
        if not here:
            self._require_room(place, size)
            self._keep_one_set(place)
        elif any(path.name.partition(".")[0] != digest for path in here):
            raise MessageInvalid(f"round {place.round}: other sealed bytes were announced for {place.site} before")
        return incoming.add(offset, data)

    def put(self, place: Place, data: bytes) -> Path:
        """Stores a share that came with an order. Not flushed to disk: after a crash the order is sent again."""
        self.begin(place.run, place.round)
        self._keep_one_set(place)
        folder = self._folder(place)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        digest = hashlib.sha256(data).hexdigest()
        for other in folder.iterdir():
            if other.name.partition(".")[0] != digest:
                other.unlink()
        path = folder / f"{digest}.inline"  # `find` and `add` never look for this name
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            out.write(data)
        return path

    def find(self, place: Place, digest: str) -> Path | None:
        """Finds the complete file of `place` with this digest; None if it is not here."""
        path = self._folder(place) / digest
        return path if path.exists() else None

    def clear(self, run: str) -> None:
        """Deletes the shares of the newest round, and keeps its number."""
        for path in self._rounds(run):
            shutil.rmtree(path)
            path.mkdir(mode=0o700)

    def drop(self, run: str) -> None:
        """Deletes all of a run."""
        shutil.rmtree(self._path / run, ignore_errors=True)

    def _keep_one_set(self, place: Place) -> None:
        """Deletes top-ups for any other set: a set to be summed only shrinks, so they are of no use any more."""
        if place.topup_for is not None:
            for path in self._round(place.run, place.round).glob("topup-*"):
                if path.name != f"topup-{place.topup_for}":
                    shutil.rmtree(path)

    def _require_room(self, place: Place, size: int) -> None:
        held = sum(path.stat().st_size for path in self._path.rglob("*") if path.is_file())
        free = shutil.disk_usage(self._path).free
        if held + size > MAX_BYTES or free - size < SPARE_BYTES:
            raise DiskFull(
                f"round {place.round}: no room for the {size} bytes of {place.site}: {held} bytes of sealed shares are "
                f"here, {free} are free; what came is kept, make room and it goes on"
            )

    def _rounds(self, run: str) -> list[Path]:
        folder = self._path / run
        return list(folder.iterdir()) if folder.exists() else []

    def _round(self, run: str, round_number: int) -> Path:
        return self._path / run / str(round_number)

    def _folder(self, place: Place) -> Path:
        kind = "update" if place.topup_for is None else f"topup-{place.topup_for}"
        return self._round(place.run, place.round) / kind / place.site

"""A file that comes in parts: what is here survives a restart, and only the whole that was announced counts."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import MessageInvalid
from ..files import file_digest, move_durably

PART_BYTES = 8 << 20  # the most that one message carries of a file


@dataclass(frozen=True, slots=True)
class Incoming:
    """A file of `size` bytes with the SHA-256 `digest` (hex), which lies at `path` once all of it has come.

    Until then its leading bytes lie beside that, readable by their owner alone. Parts come in order; one that is here
    may come again. Other bytes than those that are here mean that one of the two is wrong, and a whole with
    another digest that something is: then nothing is kept, and the file begins anew.
    """

    path: Path
    size: int
    digest: str

    @property
    def held(self) -> int:
        """How many leading bytes are here."""
        if self.path.exists():
            return self.size
        return self._part.stat().st_size if self._part.exists() else 0

    @property
    def is_whole(self) -> bool:
        """Whether all of it is here, and what was announced."""
        return self.path.exists()

    def add(self, offset: int, data: bytes) -> int:
        """Adds `data`, whose first byte is number `offset`; how many leading bytes are here then.

        Nothing is written behind a gap.

        Raises:
            MessageInvalid: the file ends before `data` does, or these or the bytes here are not those announced.
        """
        if offset + len(data) > self.size:
            raise MessageInvalid(f"{self.path.parent.name}: {self.size} bytes were announced, more came")
        held = self.held
        if self.is_whole or offset > held:
            return held
        self._part.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            known = min(held - offset, len(data))
            file.seek(offset)
            is_same = file.read(known) == data[:known]
            file.seek(offset + known)
            file.write(data[known:])
        held = max(held, offset + len(data))
        if not is_same or (held == self.size and not self._finish()):
            self.drop()
            raise MessageInvalid(
                f"{self.path.parent.name}: what came are not the bytes that were announced; none of them is kept"
            )
        return held

    def drop(self) -> None:
        """Forgets what is here of a file that is not whole."""
        self._part.unlink(missing_ok=True)

    def _finish(self) -> bool:
        if file_digest(self._part) != self.digest:
            return False
        with self._part.open("rb") as file:
            os.fsync(file.fileno())
        move_durably(self._part, self.path)
        return True

    @property
    def _part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")


def read_part(path: Path, offset: int) -> bytes:
    """The bytes of a file from `offset` on, as many as a message carries; none at its end."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(PART_BYTES)

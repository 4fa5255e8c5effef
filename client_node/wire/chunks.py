"""Receives a file in parts: stored parts survive a restart, and only the complete announced file is accepted."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import MessageInvalid
from ..files import file_digest, move_durably

PART_BYTES = 8 << 20  # most bytes of a file in one message


@dataclass(frozen=True, slots=True)
class Incoming:
    """An incoming file of `size` bytes with the SHA-256 `digest` (hex); it lies at `path` once it is complete.

    Until then its leading bytes lie in a file beside `path`, readable by their owner alone. Parts come in order; a part
    that is stored already may come again. If it differs from the stored bytes, or if the complete file has another
    digest, some part is wrong: all bytes are deleted, and the transfer begins anew.
    """

    path: Path
    size: int
    digest: str

    @property
    def held(self) -> int:
        """Number of leading bytes that are stored."""
        if self.path.exists():
            return self.size
        return self._part.stat().st_size if self._part.exists() else 0

    @property
    def is_whole(self) -> bool:
        """True if the file is complete and has the announced size and digest."""
        return self.path.exists()

    def add(self, offset: int, data: bytes) -> int:
        """Appends `data`, which begins at byte `offset`; returns the number of leading bytes that are then stored.

        A part that would leave a gap is not written.

        Raises:
            MessageInvalid: `data` reaches past the end of the file, differs from the stored bytes, or completes a file
                with another digest.
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
        """Deletes the stored bytes of a file that is not complete."""
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
    """Reads the bytes of a file from `offset` on, at most as many as one message carries; none at its end."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(PART_BYTES)

"""Files of one run: the trained vector after each round, the rounds' totals, and sealed envelopes until their commit.

A file is written beside its final name, flushed to disk and renamed, so a name never stands for half a file.
"""

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...client_node.errors import CheckpointDamaged
from ...client_node.files import write_private
from ...client_node.replay import Checkpoint
from ...client_node.wire.chunks import Incoming, read_part
from ...mpc.sharing.shares import set_name
from ..errors import StateDamaged

_COMPLETE = "complete"

Sealed = tuple[Incoming, Incoming, Incoming]  # one site's sealed shares, by aggregator
Envelopes = dict[str, Sealed]  # site -> its complete and checked shares


class RunFolder:
    """The folder of one run under the coordinator's home."""

    def __init__(self, home: Path, run_id: str) -> None:
        self.path = home / "runs" / run_id
        self.path.mkdir(parents=True, exist_ok=True)

    def save(self, checkpoint: Checkpoint) -> str:
        """Writes a checkpoint under its SHA-256, so that no driver overwrites another's, and returns the SHA-256."""
        data = checkpoint.to_bytes()
        state_hash = hashlib.sha256(data).hexdigest()
        write_private(self._checkpoint(checkpoint.round, state_hash), data)
        return state_hash

    def save_total(self, round_number: int, total: bytes) -> None:
        """Writes the ring elements of a round's total; sites that are away will need them, so they stay to the end."""
        write_private(self._total(round_number), total)

    def total_part(self, round_number: int, offset: int) -> bytes:
        """Reads a part of a round's total, as much as a message carries. Raises `StateDamaged` if it is gone."""
        path = self._total(round_number)
        try:
            return read_part(path, offset)
        except FileNotFoundError as err:
            raise StateDamaged(f"{path} is missing; restore it from a backup, or start a new run") from err

    def drop_totals(self) -> None:
        """Deletes the totals of a run that has ended."""
        for path in self.path.glob("total-*"):
            path.unlink(missing_ok=True)

    def prune(self, committed_round: int) -> None:
        """Deletes the files that no restart needs once `committed_round` is committed."""
        for path in self.path.iterdir():
            kind, _, rest = path.name.partition("-")
            number = rest.partition("-")[0]
            if kind in ("envelopes", "topups") and int(number) <= committed_round:
                shutil.rmtree(path, ignore_errors=True)
            if kind == "state" and int(number) <= committed_round - 2:
                path.unlink(missing_ok=True)

    def load(self, round_number: int, state_hash: str) -> Checkpoint:
        """Loads the checkpoint of a committed round. Raises `StateDamaged` if the file is not the committed one."""
        path = self._checkpoint(round_number, state_hash)
        try:
            data = path.read_bytes()
            checkpoint = Checkpoint.from_bytes(round_number, data)
        except (OSError, CheckpointDamaged) as err:
            raise StateDamaged(f"{path} of round {round_number} cannot be read; restore it from a backup") from err
        if hashlib.sha256(data).hexdigest() != state_hash:
            raise StateDamaged(f"{path} is not the file that round {round_number} committed; restore it from a backup")
        return checkpoint

    def secret(self) -> bytes:
        """Reads the run's secret of 32 random bytes, made at the first call; no aggregator is told it."""
        path = self.path / "secret"
        if not path.exists():
            write_private(path, secrets.token_bytes(32))
        return path.read_bytes()

    def envelopes(self, round_number: int) -> "Inbox":
        """The inbox of a round's updates, kept so that a retried round can sum exactly the same set."""
        return Inbox(self.path / f"envelopes-{round_number}")

    def fix_set(self, round_number: int, summed: Sequence[str]) -> None:
        """Stores the set that a round must sum, before any of its sites is asked to add noise for it."""
        write_private(self._topups(round_number) / "fixed.json", json.dumps(tuple(summed)).encode())

    def fixed_set(self, round_number: int) -> tuple[str, ...] | None:
        """Reads the set that `fix_set` stored last; None if there is none."""
        path = self._topups(round_number) / "fixed.json"
        return tuple(json.loads(path.read_bytes())) if path.exists() else None

    def topups(self, round_number: int, summed: Sequence[str]) -> "Inbox":
        """The inbox of the top-ups for a sum over exactly `summed`."""
        return Inbox(self._topups(round_number) / set_name(summed))

    def _checkpoint(self, round_number: int, state_hash: str) -> Path:
        return self.path / f"state-{round_number}-{state_hash[:16]}.safetensors"

    def _total(self, round_number: int) -> Path:
        return self.path / f"total-{round_number}"

    def _topups(self, round_number: int) -> Path:
        return self.path / f"topups-{round_number}"


class Inbox:
    """Sealed shares of many sites for one purpose; a site's folder counts once all three files are complete."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def expect(self, site: str, files: Iterable[tuple[int, str]]) -> Sealed:
        """Opens three incoming files of a site, each of a size and SHA-256; deletes parts of any other."""
        sealed = self._incoming(site, files)
        wanted = {incoming.digest for incoming in sealed}
        folder = self._path / site
        for path in folder.iterdir() if folder.exists() else ():
            if path.name.partition(".")[0] not in wanted:
                path.unlink()
        return sealed

    def accept(self, site: str, sealed: Sealed) -> None:
        """Stores durably that a site's three files are complete and checked."""
        described = [(incoming.size, incoming.digest) for incoming in sealed]
        write_private(self._path / site / _COMPLETE, json.dumps(described).encode())

    def refuse(self, site: str) -> None:
        """Deletes all that a site has sent."""
        shutil.rmtree(self._path / site, ignore_errors=True)

    def read(self) -> Envelopes:
        """Reads the accepted shares, by site."""
        marks = sorted(self._path.glob(f"*/{_COMPLETE}"))
        return {mark.parent.name: self._incoming(mark.parent.name, json.loads(mark.read_bytes())) for mark in marks}

    def _incoming(self, site: str, files: Iterable[tuple[int, str]]) -> Sealed:
        first, second, third = (Incoming(self._path / site / digest, size, digest) for size, digest in files)
        return first, second, third

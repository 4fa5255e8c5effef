"""Files of one run: the trained vector after each round, the rounds' totals, and sealed envelopes until their commit.

A file is written beside its final name, flushed to disk and renamed, so a name never stands for half a file.
"""

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from ...client_node.errors import CheckpointDamaged
from ...client_node.files import damaged, file_digest, read_json, write_private
from ...client_node.replay import Checkpoint
from ...client_node.secret_files import read_secret, write_secret
from ...client_node.wire.chunks import Incoming, read_part
from ...models.strict import Digest, Name
from ...mpc.sharing.shares import set_name
from ..errors import StateDamaged

_Share = tuple[Annotated[int, Field(gt=0)], Digest]  # size in bytes, SHA-256

_COMPLETE = "complete"
_SECRET_BYTES = 32
# What is lost with a file, and what to do.
_OF_TOTAL = "Sites that were away need it to follow the run: restore it from a backup, or start a new run"
_OF_STATE = "It is the model after that round: restore it from a backup"
_OF_TAGS = "The keys of the round's tags are made of it: restore it from a backup, or start a new run"
_OF_SET = "It says for which sites others have added noise: restore it from a backup, or start a new run"

_SET_FORM = TypeAdapter(tuple[Name, ...])
_MARK_FORM = TypeAdapter(tuple[_Share, _Share, _Share])


Sealed = tuple[Incoming, Incoming, Incoming]  # one site's sealed shares, by aggregator
Envelopes = dict[str, Sealed]  # site -> its complete and checked shares


def state_file(round_number: int, state_hash: str) -> str:
    """Names the file, in a run's folder, of the checkpoint of a committed round."""
    return f"state-{round_number}-{state_hash[:16]}.safetensors"


def total_file(round_number: int) -> str:
    """Names the file, in a run's folder, of the total of a round."""
    return f"total-{round_number}"


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

    def total_part(self, round_number: int, offset: int, digest: str) -> bytes:
        """Reads a part of a round's total, as much as a message carries.

        Args:
            digest: SHA-256 of the whole total, as the aggregators signed it; it is compared once, at offset 0.

        Raises:
            StateDamaged: the file is gone, cannot be read, or is not that total.
        """
        path = self._total(round_number)
        try:
            is_whole = offset > 0 or file_digest(path) == digest
            part = read_part(path, offset)
        except OSError as err:
            problem = "is missing" if isinstance(err, FileNotFoundError) else f"cannot be read: {err.strerror}"
            raise damaged(path, problem, remedy=_OF_TOTAL, error=StateDamaged) from err
        if not is_whole:
            raise damaged(path, "is not the total that was opened", remedy=_OF_TOTAL, error=StateDamaged)
        return part

    def total(self, round_number: int, digest: str) -> bytes:
        """Reads a round's total whole; raises as `total_part`."""
        parts, offset = list[bytes](), 0
        while part := self.total_part(round_number, offset, digest):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def drop_totals(self) -> None:
        """Deletes the totals of a run that has ended."""
        for path in self.path.glob("total-*"):
            path.unlink(missing_ok=True)

    def prune(self, committed_round: int, *, updates: int) -> None:
        """Deletes the files that no restart needs once `committed_round` is committed, of a run of so many updates.

        Rounds after the last update leave no state.
        """
        for path in self.path.iterdir():
            kind, _, rest = path.name.partition("-")
            number = rest.partition("-")[0]
            if kind in ("envelopes", "topups") and int(number) <= committed_round:
                shutil.rmtree(path, ignore_errors=True)
            if kind == "state" and int(number) <= min(committed_round, updates) - 2:
                path.unlink(missing_ok=True)

    def load(self, round_number: int, state_hash: str) -> Checkpoint:
        """Loads the checkpoint of a committed round. Raises `StateDamaged` if the file is not the committed one."""
        path = self._checkpoint(round_number, state_hash)
        try:
            data = path.read_bytes()
            checkpoint = Checkpoint.from_bytes(round_number, data)
        except (OSError, CheckpointDamaged) as err:
            raise damaged(
                path, f"of round {round_number} cannot be read", remedy=_OF_STATE, error=StateDamaged
            ) from err
        if hashlib.sha256(data).hexdigest() != state_hash:
            problem = f"is not the file that round {round_number} committed"
            raise damaged(path, problem, remedy=_OF_STATE, error=StateDamaged)
        return checkpoint

    def secret(self) -> bytes:
        """Reads the run's secret of 32 random bytes, made at the first call; no aggregator is told it.

        Raises:
            StateDamaged: the file is damaged, or others can read it.
        """
        path = self.path / "secret"
        if not path.exists():
            write_secret(path, secrets.token_bytes(_SECRET_BYTES))
        secret = read_secret(path, remedy=_OF_TAGS, error=StateDamaged, max_bytes=_SECRET_BYTES)
        if secret is None or len(secret) != _SECRET_BYTES:
            raise damaged(path, f"does not hold {_SECRET_BYTES} bytes", remedy=_OF_TAGS, error=StateDamaged)
        return secret

    def envelopes(self, round_number: int) -> "Inbox":
        """The inbox of a round's updates, kept so that a retried round can sum exactly the same set."""
        return Inbox(self.path / f"envelopes-{round_number}")

    def fix_set(self, round_number: int, summed: Sequence[str]) -> None:
        """Stores the set that a round must sum, before any of its sites is asked to add noise for it."""
        write_private(self._topups(round_number) / "fixed.json", json.dumps(tuple(summed)).encode())

    def fixed_set(self, round_number: int) -> tuple[str, ...] | None:
        """Reads the set that `fix_set` stored last; None if there is none. Raises `StateDamaged`."""
        path = self._topups(round_number) / "fixed.json"
        return read_json(path, _SET_FORM, remedy=_OF_SET, error=StateDamaged)

    def topups(self, round_number: int, summed: Sequence[str]) -> "Inbox":
        """The inbox of the top-ups for a sum over exactly `summed`."""
        return Inbox(self._topups(round_number) / set_name(summed))

    def _checkpoint(self, round_number: int, state_hash: str) -> Path:
        return self.path / state_file(round_number, state_hash)

    def _total(self, round_number: int) -> Path:
        return self.path / total_file(round_number)

    def _topups(self, round_number: int) -> Path:
        return self.path / f"topups-{round_number}"


def require_unchanged(envelopes: Envelopes) -> None:
    """Compares accepted shares with their digests, which reads all of them.

    Raises:
        StateDamaged: one is not what its site has sent: the disk has changed it.
    """
    for sealed in envelopes.values():
        for incoming in sealed:
            if file_digest(incoming.path) != incoming.digest:
                remedy = _remedy_of_shares(incoming.path.parent)
                raise damaged(incoming.path, "is not the share that was accepted", remedy=remedy, error=StateDamaged)


def _remedy_of_shares(folder: Path) -> str:
    return (
        f"Its site keeps the shares until their round is settled: delete {folder} and resume the run, and it is asked "
        "again; once others have added noise, the round goes on without it"
    )


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
        """Reads the accepted shares, by site.

        Raises:
            StateDamaged: a mark is damaged, or a share is gone or of another length.
        """
        return {mark.parent.name: self._accepted(mark) for mark in sorted(self._path.glob(f"*/{_COMPLETE}"))}

    def _accepted(self, mark: Path) -> Sealed:
        remedy = _remedy_of_shares(mark.parent)
        described = read_json(mark, _MARK_FORM, remedy=remedy, error=StateDamaged)
        if described is None:
            raise damaged(mark, "is missing", remedy=remedy, error=StateDamaged)
        sealed = self._incoming(mark.parent.name, described)
        for incoming in sealed:
            if not incoming.path.is_file() or incoming.path.stat().st_size != incoming.size:
                raise damaged(incoming.path, "is not the share that was accepted", remedy=remedy, error=StateDamaged)
        return sealed

    def _incoming(self, site: str, files: Iterable[tuple[int, str]]) -> Sealed:
        first, second, third = (Incoming(self._path / site / digest, size, digest) for size, digest in files)
        return first, second, third

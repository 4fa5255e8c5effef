"""Keeps, for each run that a site takes part in, the state that the site itself has computed.

One file a run holds the checkpoint after the last total that was taken, with its SHA-256 in the name; a file that is
damaged is given up, and the run is followed anew from its start. Totals come in parts, and lie beside it until the step
is taken. All of it can be computed again from the study and the totals, and nothing of it depends on the site's records
other than through them.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import CheckpointDamaged, StateRefused
from ..files import write_private
from ..study import Study
from ..wire.chunks import Incoming
from ..wire.evidence import signed_total
from ..wire.messages import Replay, start_hash
from . import bounds
from .checkpoint import Checkpoint
from .following import beginning, follow, round_start, total_bytes

logger = logging.getLogger(__name__)

FOLDER = "replay"
Start = Callable[[], np.ndarray]  # makes a run's start from the study's seed


@dataclass(frozen=True, slots=True)
class Standing:
    """The place at which a site stands in a run."""

    round: int  # of its checkpoint
    held: int  # bytes of the next round's total that it has


class FollowedRuns:
    """The runs that a site follows, under the node's home."""

    def __init__(self, home: Path) -> None:
        self._path = home / FOLDER

    def checkpoint(self, study: Study, run: str, start: Start) -> Checkpoint:
        """Returns the checkpoint after the last total that was taken; round 0 before the first.

        Raises:
            StateRefused: `start` makes another start than the study states.
        """
        return self._newest(run) or beginning(study, start())

    def take(self, study: Study, message: Replay, part: bytes, start: Start) -> Standing:
        """Takes a part of a round's total; with the last part, the server step. Returns where the site then stands.

        A total of another round than the next one changes nothing: the coordinator is told what it should send.

        Raises:
            MessageInvalid: the three aggregators did not sign the outcome, or what came are not the bytes they signed.
            StateRefused: the total is not of updates that started from this site's state, or it cannot be a total of
                the study.
        """
        outcome, before = message.outcome, self.checkpoint(study, message.run, start)
        if outcome.round != before.round + 1 or outcome.round > study.draft.rounds.rounds:
            return Standing(before.round, 0)
        signed, begun = signed_total(study, message.run, outcome), round_start(study, before)
        if signed.start != start_hash(begun.digest, message.tag_key):
            raise StateRefused(
                f"the total of round {outcome.round} is not of updates that started from the state that follows from "
                "the study and its totals"
            )
        digest = signed.total_digest
        path = self._path / message.run / f"total-{outcome.round}-{digest}"
        incoming = Incoming(path, total_bytes(begun.planned), digest)
        held = incoming.add(message.offset, part)
        if not incoming.is_whole:
            return Standing(before.round, held)
        total = _whole(path, digest)
        if total is None:  # it was right when it came, before the node was last started
            logger.error("%s is not what was written; it is asked for again", path)
            _remove(path)
            return Standing(before.round, 0)
        after = follow(study, before, total, kept=len(outcome.sites))
        bounds.require_reach(study, start(), after.state)
        self._save(message.run, after)
        return Standing(after.round, 0)

    def end(self, run: str) -> None:
        """Deletes what is kept of a run that is over."""
        shutil.rmtree(self._path / run, ignore_errors=True)

    def keep(self, runs: Collection[str]) -> None:
        """Deletes what is kept of all other runs; a run that is resumed after that is followed anew from its start."""
        for folder in self._path.iterdir() if self._path.exists() else ():
            if folder.name not in runs:
                shutil.rmtree(folder, ignore_errors=True)

    def _newest(self, run: str) -> Checkpoint | None:
        files = sorted((self._path / run).glob("state-*.safetensors"), key=_round_of)
        if not files:
            return None
        try:
            data = _whole(files[-1], files[-1].stem.rpartition("-")[2])
            if data is None:
                raise CheckpointDamaged(f"{files[-1]} is not what was written")
            return Checkpoint.from_bytes(_round_of(files[-1]), data)
        except CheckpointDamaged as err:
            logger.error("%s; run %s is followed anew from its start", err, run)
            self.end(run)
            return None

    def _save(self, run: str, checkpoint: Checkpoint) -> None:
        """Stores a checkpoint durably, then deletes what it was made from."""
        data = checkpoint.to_bytes()
        path = self._path / run / f"state-{checkpoint.round}-{hashlib.sha256(data).hexdigest()}.safetensors"
        write_private(path, data)
        for other in path.parent.iterdir():
            if other != path:
                _remove(other)


def _whole(path: Path, digest: str) -> bytes | None:
    """Reads a file that has the digest; None for any other, and for one that cannot be read."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == digest else None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _round_of(path: Path) -> int:
    return int(path.name.split("-")[1])

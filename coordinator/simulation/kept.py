"""Keeps what a simulation has done: each round's outcome, and the checkpoint of the last one."""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from ...client_node.errors import CheckpointDamaged
from ...client_node.files import damaged, read_json, write_private
from ...client_node.replay import Checkpoint
from ...models.strict import Digest, StrictModel
from ..errors import Conflict, StateDamaged, StudyRefused
from ..store.run_folder import state_file
from .outcome import RoundOutcome, Simulation
from .run_page import render_html

FILE, OUTCOME, PAGE = "rounds.json", "simulation.json", "simulation.html"
_LOCK = ".lock"
_MOST_BYTES = 2**28
_REMEDY = "Name another folder with --out, or delete this one and simulate from the start"


class _Kept(StrictModel):
    format: Literal[1] = 1
    inputs: Digest
    state: Digest | None = None
    rounds: Annotated[tuple[RoundOutcome, ...], Field(max_length=100_000)] = ()


_FORM = TypeAdapter(_Kept)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a folder for one process: two would delete each other's checkpoints, or judge a trial twice.

    Raises:
        Conflict: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            raise Conflict(f"another process simulates into {folder}: wait for it, or name another --out") from err
        yield


class Kept:
    """The folder of one simulation."""

    def __init__(self, folder: Path, inputs: str, found: _Kept) -> None:
        self.folder, self._inputs = folder, inputs
        self.rounds = list(found.rounds)
        self.state = found.state  # SHA-256 of the checkpoint after them

    @classmethod
    def of(cls, folder: Path, inputs: str) -> "Kept":
        """Reads what is there of a simulation with these inputs.

        Raises:
            StateDamaged: it cannot be read.
            StudyRefused: it is of other inputs.
        """
        found = read_json(folder / FILE, _FORM, remedy=_REMEDY, error=StateDamaged, max_bytes=_MOST_BYTES)
        if found is not None and found.inputs != inputs:
            raise StudyRefused(
                f"{folder} holds a simulation of other terms, records or options: go on with those, or name another "
                "folder with --out"
            )
        return cls(folder, inputs, found or _Kept(inputs=inputs))

    def checkpoint(self) -> Checkpoint | None:
        """Loads the checkpoint after the rounds that are done; None before the first. Raises `StateDamaged`."""
        if self.state is None:
            return None
        number = len(self.rounds)
        path = self.folder / state_file(number, self.state)
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != self.state:
                raise CheckpointDamaged(f"{path} is not what was written")
            return Checkpoint.from_bytes(number, data)
        except (OSError, CheckpointDamaged) as err:
            raise damaged(path, "cannot be read", remedy=_REMEDY, error=StateDamaged) from err

    def add(self, done: RoundOutcome, checkpoint: Checkpoint) -> None:
        """Stores a round durably: its checkpoint first, which counts once the round is listed."""
        data = checkpoint.to_bytes()
        self.state = hashlib.sha256(data).hexdigest()
        path = self.folder / state_file(checkpoint.round, self.state)
        write_private(path, data)
        self.rounds.append(done)
        kept = _Kept(inputs=self._inputs, state=self.state, rounds=tuple(self.rounds))
        write_private(self.folder / FILE, kept.model_dump_json().encode())
        for other in self.folder.glob("state-*"):
            if other != path:
                other.unlink()

    def tell(self, outcome: Simulation) -> None:
        """Writes what there is to tell, for programs and as a page."""
        write_private(self.folder / OUTCOME, json.dumps(outcome.to_dict(), indent=1).encode())
        write_private(self.folder / PAGE, render_html(outcome).encode())

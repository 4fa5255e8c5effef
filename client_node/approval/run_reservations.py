"""Stores the active runs of a node, and so reserves budget for their coming rounds, which other runs cannot spend.

Without this, two runs prepared one after the other could each fit in what is left of a budget, and both would stop half
done with all of it spent. A reservation only helps a study to finish and is no part of the guarantee: the ledger keeps
the cap, round by round, with or without reservations. So it expires when a run sends no message for long; a resumed run
is prepared again and must fit again. An aggregator, whose budget pays for nothing, stores its active runs too: its
people are told of them when they approve or revoke a study.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from ...models.strict import NO_ENTRIES, Digest, Frozen, StrictModel
from ..files import read_json, write_private

FILE = "holds.json"
LAPSE_S = 86_400.0  # a run without a message for so long reserves nothing
MAX_RUNS = 1000
_MAX_BYTES = 2**20
_REMEDY = (
    "It says which runs have begun here. Stop the daemon, restore the file from a backup or delete it: that gives up "
    "the budget that runs hold, until their next message, and costs no privacy"
)

_RunName = Annotated[str, Field(max_length=256)]


class RunReservation(StrictModel):
    """The reservation of one active run."""

    study: Digest
    heard: float  # of its last message, Unix time


class _File(StrictModel):
    runs: Annotated[Mapping[_RunName, RunReservation], Field(max_length=MAX_RUNS), *Frozen] = NO_ENTRIES


_FORM = TypeAdapter(_File)


class RunReservations:
    """The active runs of a node, stored in `holds.json` under its home."""

    def __init__(self, home: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = home / FILE, clock

    def runs(self) -> dict[str, str]:
        """Lists the active runs, each with the hash of its study.

        Raises:
            FileDamaged: the file is damaged; deleting it gives up all reservations, which costs no privacy.
        """
        return {run: reserved.study for run, reserved in self._live().items()}

    def of_study(self, study_hash: str) -> tuple[str, ...]:
        """Lists the active runs of one study, by name; raises as `runs`."""
        return tuple(sorted(run for run, study in self.runs().items() if study == study_hash))

    def note(self, run: str, study_hash: str) -> None:
        """Stores that `run` has begun or is still active."""
        live, now = self._live(), self._clock()
        if run in live and now - live[run].heard < LAPSE_S / 24:
            return  # written a short time ago
        live[run] = RunReservation(study=study_hash, heard=now)
        newest = sorted(live.items(), key=lambda item: -item[1].heard)
        self._write(dict(newest[:MAX_RUNS]))

    def end(self, run: str) -> None:
        """Removes the reservation of `run`, which has ended."""
        live = self._live()
        if live.pop(run, None) is not None:
            self._write(live)

    def _live(self) -> dict[str, RunReservation]:
        found, now = read_json(self._path, _FORM, remedy=_REMEDY, max_bytes=_MAX_BYTES), self._clock()
        if found is None:
            return {}
        return {run: reserved for run, reserved in found.runs.items() if abs(now - reserved.heard) < LAPSE_S}

    def _write(self, runs: Mapping[str, RunReservation]) -> None:
        write_private(self._path, _File(runs=runs).model_dump_json().encode())

"""Keeps what a sweep has tried, as `comparison.tried` keeps cells: a line of JSON for each run of a trial that is done.

It counts every look at held-out records that a sweep into this folder has cost.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, JsonValue

from ...models.strict import Digest, StrictModel
from ..kept_lines import KeptLines

FORMAT = 1
FILE = "tried.jsonl"


class TrialRun(StrictModel):
    """One simulated run of one trial, judged on all held-out records after its last round."""

    format: int = Field(ge=FORMAT, le=FORMAT)
    held_out: Digest  # of the held-out files
    inputs: Digest  # of all that decides the result but the seed: terms, plan, records, backbone
    settings: Mapping[str, JsonValue]  # that were tried
    seed: int
    epsilon: float | None = Field(ge=0)  # of all rounds; None: no bound
    epsilon_planned: float | None = Field(ge=0)  # of a whole real run; None: no bound
    noise_multiplier: float = Field(ge=0)
    metric: str
    value: float
    low: float  # 95 % interval over records
    high: float
    worst_tenth: float | None  # mean of the worst served tenth of the sites; None where no site can be judged
    sites: int = Field(ge=1)
    records: int = Field(ge=1)  # held out
    seconds: float = Field(ge=0)


@dataclass(frozen=True, slots=True)
class Count:
    """The number of looks at some held-out records, in all invocations that wrote to one folder."""

    runs: int
    settings: int  # different terms, plans, training records or backbones
    seeds: int

    def __str__(self) -> str:
        return f"{self.runs} runs of {self.settings} settings, {self.seeds} seeds"


class Trials:
    """The runs in a folder, those of earlier invocations first."""

    def __init__(self, folder: Path) -> None:
        """Reads what is there; a line that a crash cut short is dropped.

        Raises:
            StateDamaged: a line is no run of a trial; the message names it.
        """
        self._kept = KeptLines(folder / FILE, TrialRun, "run of a trial")
        self._found = {(run.inputs, run.seed): run for run in self._kept.lines}

    def find(self, inputs: str, seed: int) -> TrialRun | None:
        """Finds the run that was computed from these inputs."""
        return self._found.get((inputs, seed))

    def add(self, run: TrialRun) -> None:
        """Appends a run, and waits until it is on disk."""
        self._kept.add(run)
        self._found[run.inputs, run.seed] = run

    def count(self, held_out: str) -> Count:
        """Counts all that was tried on these held-out records."""
        runs = [run for run in self._kept.lines if run.held_out == held_out]
        return Count(len(runs), len({run.inputs for run in runs}), len({run.seed for run in runs}))

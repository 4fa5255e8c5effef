"""Keeps what a comparison has tried: a line of JSON for each finished cell, so that nothing is computed or told twice.

The file is added to and never rewritten, so it counts every look at held-out records that went through it: a figure
picked from many is worth less than one that was the only one.
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from ...models.strict import Digest, StrictModel
from ..kept_lines import KeptLines

FORMAT = 1
FILE = "tried.jsonl"


class Cell(StrictModel):
    """One run of one rung: trained with one noise and seed, judged on all held-out records."""

    format: int = Field(ge=FORMAT, le=FORMAT)
    held_out: Digest  # of the held-out files
    inputs: Digest  # of all that decides the result but the seed: terms, noise, records, backbone
    rung: str
    site: str | None  # whose records alone were trained on
    asked: str  # "study", "none", or an epsilon as it was asked for
    epsilon: float | None = Field(ge=0)  # of a whole run; None: no bound
    noise_multiplier: float = Field(ge=0)
    seed: int
    metric: str
    value: float
    low: float  # 95 % interval over records
    high: float
    records: int = Field(ge=1)  # held out
    seconds: float = Field(ge=0)


@dataclass(frozen=True, slots=True)
class Count:
    """The number of looks at some held-out records, in all invocations that wrote to one folder."""

    runs: int
    rungs: int
    settings: int  # different terms, noises, training records or backbones
    seeds: int

    def __str__(self) -> str:
        return f"{self.runs} runs: {self.rungs} rungs under {self.settings} settings in all, {self.seeds} seeds"


class Tried:
    """The cells in a folder, those of earlier invocations first."""

    def __init__(self, folder: Path) -> None:
        """Reads what is there; a line that a crash cut short is dropped.

        Raises:
            StateDamaged: a line is no cell; the message names it.
        """
        self._kept = KeptLines(folder / FILE, Cell, "cell of a comparison")

    @property
    def cells(self) -> list[Cell]:
        """Those that are kept, oldest first."""
        return self._kept.lines

    def find(self, inputs: str, rung: str, site: str | None, seed: int) -> Cell | None:
        """Finds the cell that was computed from these inputs."""
        wanted = (inputs, rung, site, seed)
        return next((cell for cell in self.cells if (cell.inputs, cell.rung, cell.site, cell.seed) == wanted), None)

    def add(self, cell: Cell) -> None:
        """Appends a cell, and waits until it is on disk."""
        self._kept.add(cell)

    def count(self, held_out: str) -> Count:
        """Counts all that was tried on these held-out records."""
        cells = [cell for cell in self.cells if cell.held_out == held_out]
        return Count(
            runs=len(cells),
            rungs=len({cell.rung for cell in cells}),
            settings=len({cell.inputs for cell in cells}),
            seeds=len({cell.seed for cell in cells}),
        )

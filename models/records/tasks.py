"""Several tasks of a study, which its head learns of a record at once: one trunk, a part of the head for each.

A record need not tell every task: where a cell is empty, or a site has no such column, the record says nothing about
that task, and its loss is that of the others.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field

from ..strict import FieldName, Frozen, Label, Name, SparseModel, Unique
from .kind import Column, Judged
from .outcomes import MOST_CLASSES, NumberTerms, Outcome

if TYPE_CHECKING:
    import pyarrow as pa

    from ..heads.objectives import SeveralTasks
    from .cells import Cells

MOST_TASKS, MOST_BITS = 16, 62
_DRAW = b"confide/task/1|"
_STEPS = 2**16  # of a scale, as in `heads.objectives`


class TaskTerms(SparseModel):
    """Terms of one task of several: exactly one of label and number; an empty cell says nothing."""

    label: FieldName | None = Field(
        default=None, examples=['"sepsis"'], description="column of 0 and 1, or with classes of these words"
    )
    classes: Annotated[tuple[Label, ...], Unique] | None = Field(
        default=None, min_length=2, max_length=MOST_CLASSES, examples=['["mild", "moderate", "severe"]'],
        description="values of the label, spelt exactly so",
    )  # fmt: skip
    number: NumberTerms | None = Field(
        default=None, examples=["{ column = \"days\", low = 0.0, high = 30.0, within = 3.0 }"],
        description="instead of label: a column of numbers",
    )  # fmt: skip
    weight: float = Field(
        default=1.0, gt=0, le=1000, description="of its loss beside those of the other tasks; public, as all of this"
    )
    sites: Annotated[tuple[Name, ...], Unique] | None = Field(
        default=None, min_length=1, max_length=1000, examples=['["svi", "svhc"]'],
        description="sites whose tables have the column; left out, all",
    )  # fmt: skip

    @property
    def outcome(self) -> Outcome:
        """The task as if a study learned it alone."""
        return Outcome(label=self.label, classes=self.classes, number=self.number)

    @property
    def column(self) -> str:
        """Name of the column that is learned."""
        (name,) = self.outcome.outcome_columns
        return name

    @property
    def digits(self) -> int:
        """Number of different targets: that of its objective."""
        if self.number is not None:
            return _STEPS + 1
        return 2 if self.classes is None else len(self.classes)

    def learned_column(self) -> Column:
        """Returns the column that is learned; its cells may be empty."""
        from . import cells

        kind, expected, read = "label", "0 or 1", _label_or_nothing
        if self.number is not None:
            kind, expected, read = "number", "a number", cells.numbers
        elif self.classes is not None:
            kind, expected = "class", f"one of the study's {len(self.classes)} classes"
            read = partial(cells.categories, published=self.classes)
        return Column(self.column, kind, f"{expected}, or nothing", read, is_task=True, sites=self.sites)

    @property
    def reach(self) -> float:
        """Largest distance of a right answer on a scale from -1 to 1, its rounding included; 0 without a number."""
        if self.number is None:
            return 0.0
        return 2 * self.number.within / (self.number.high - self.number.low) * (1 + 1e-6) + 1 / _STEPS

    def right(self, outputs: np.ndarray, targets: np.ndarray) -> npt.NDArray[np.bool_]:
        """bool [rows], which answers are right, of the head's outputs [rows] or [rows, K] and targets [rows]."""
        found: npt.NDArray[np.bool_]
        if self.number is not None:
            found = np.abs(outputs.astype(np.float64).clip(-1, 1) - targets.astype(np.float64)) <= self.reach
        elif self.classes is not None:
            found = outputs.argmax(1) == targets
        else:
            found = (outputs > 0) == (targets > 0)
        return found


def _by_name(tasks: Mapping[str, TaskTerms]) -> Mapping[str, TaskTerms]:
    """Sorts the tasks as a study's canonical form does: their order is that of the head's outputs."""
    return dict(sorted(tasks.items()))


class OutcomeTerms(Outcome):
    """Terms of what is learned of a record: one thing, or several tasks at once."""

    tasks: Annotated[Mapping[Name, TaskTerms], AfterValidator(_by_name), *Frozen] | None = Field(
        default=None, min_length=1, max_length=MOST_TASKS,
        examples=['{ sepsis = { label = "sepsis" } }'],
        description="instead of label: several outcomes at once, each a table; see Several tasks",
    )  # fmt: skip

    @property
    def outcome_columns(self) -> tuple[str, ...]:
        """Names of the columns that are learned."""
        return super().outcome_columns if self.tasks is None else self._several.columns

    @property
    def counted(self) -> Judged:
        """Kind of what an evaluation counts; of several tasks, for each record, whether one of them is right."""
        return super().counted if self.tasks is None else "tasks"

    def outcome_problems(self, place: str, read: Sequence[str]) -> list[str]:
        """Lists what is missing or too much, and learned columns that are also read or learned twice."""
        if self.tasks is None:
            return super().outcome_problems(place, read)
        own = [name for name in ("label", "classes", "labels", "number") if getattr(self, name) is not None]
        problems = [f"{place}.{name} stands beside {place}.tasks; make it a task of its own" for name in own]
        for name, task in self.tasks.items():
            problems += task.outcome.outcome_problems(f"{place}.tasks.{name}", read)
        if problems:
            return problems
        columns = self._several.columns
        problems = [
            f"{place}.tasks: column {name!r} is learned by two tasks; keep one"
            for name in sorted({name for name in columns if columns.count(name) > 1})
        ]
        return problems or self._several.problems(place)

    def objective(self) -> Any:
        """Returns what the head learns."""
        return super().objective() if self.tasks is None else self._several.objective()

    def learned_columns(self) -> tuple[Column, ...]:
        """Returns the columns that are learned; of one outcome none of the cells may be empty."""
        return super().learned_columns() if self.tasks is None else self._several.learned_columns()

    def outcome_facts(self) -> dict[str, Any]:
        """Describes for people what is learned."""
        return super().outcome_facts() if self.tasks is None else self._several.facts()

    def targets(self, columns: Mapping[str, np.ndarray], labels: np.ndarray | None) -> npt.NDArray[np.generic]:
        """[rows], one target a record, as `objective` learns it."""
        return super().targets(columns, labels) if self.tasks is None else self._several.targets(columns)

    def judge(self, outputs: Any, target: Any, record: bytes = b"") -> tuple[float, float]:
        """Judges the head's outputs for one record: (label, score), the score as a logit.

        Of several tasks, one that the record tells is drawn by the SHA-256 of the record, and the label is 1 if it is
        right; so the share of ones estimates the mean share of tasks that are right. NaN if the record tells none.
        """
        return super().judge(outputs, target) if self.tasks is None else self._several.judge(outputs, target, record)

    def tells(self, columns: Mapping[str, np.ndarray], rows: int) -> npt.NDArray[np.bool_]:
        """bool [rows], which records tell anything that is learned."""
        return np.ones(rows, dtype=np.bool_) if self.tasks is None else self._several.tells(columns)

    def shares(self, found: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Computes the share of its tasks that is right, for every record that tells any; of several tasks alone."""
        return self._several.shares(found, targets)

    def measured(self, found: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """Computes metrics with intervals; of several tasks also METRIC_TASK of each, on the records that tell it."""
        return super().measured(found, targets) if self.tasks is None else self._several.measured(found, targets)

    @property
    def _several(self) -> "_Several":
        return _Several(self.tasks or {})


@dataclass(frozen=True, slots=True)
class _Several:
    """What several tasks together make of a record."""

    tasks: Mapping[str, TaskTerms]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(task.column for task in self.tasks.values())

    def problems(self, place: str) -> list[str]:
        """Lists what `objectives.SeveralTasks` would refuse; studies are read without loading it."""
        classes = sum(len(task.classes or ()) for task in self.tasks.values())
        if classes > MOST_CLASSES:
            return [f"{place}.tasks name {classes:,} classes in all, and at most {MOST_CLASSES:,} may be"]
        bits = math.log2(math.prod(1 + task.digits for task in self.tasks.values()))
        if bits <= MOST_BITS:
            return []
        return [
            f"{place}.tasks tell {bits:.1f} bits of a record, and at most {MOST_BITS} fit: a number takes 16, a label "
            "less than 2, classes as many as their count needs"
        ]

    def objective(self) -> "SeveralTasks":
        from ..heads.objectives import SeveralTasks, Task

        return SeveralTasks(
            tuple(Task(name, task.outcome.objective(), task.weight) for name, task in self.tasks.items())
        )

    def learned_columns(self) -> tuple[Column, ...]:
        return tuple(task.learned_column() for task in self.tasks.values())

    def facts(self) -> dict[str, Any]:
        said = {}
        for name, task in self.tasks.items():
            ((kind, what),) = task.outcome.outcome_facts().items()
            where = "all sites" if task.sites is None else ", ".join(task.sites)
            said[f"task {name}"] = f"weight {task.weight:g}, at {where}: {kind} {what}"
        return said

    def tells(self, columns: Mapping[str, np.ndarray]) -> npt.NDArray[np.bool_]:
        told: npt.NDArray[np.bool_] = np.any([is_told(columns[name]) for name in self.columns], axis=0)
        return told

    def targets(self, columns: Mapping[str, np.ndarray]) -> npt.NDArray[np.int64]:
        told, found = [], []
        for task in self.tasks.values():
            cells = columns[task.column]
            here = is_told(cells)
            target = np.zeros(len(cells), dtype=np.float64)
            target[here] = task.outcome.targets({task.column: cells[here]}, cells[here])
            told.append(here)
            found.append(target)
        return self.objective().joined(found, told)

    def judge(self, outputs: Any, target: Any, record: bytes) -> tuple[float, float]:
        found, told = outputs.detach().cpu().numpy(), np.asarray(target).reshape(1)
        is_right = [
            bool(task.right(own, answers)[0]) for task, own, answers, is_told in self._apart(found, told) if is_told[0]
        ]
        if not is_right:
            return math.nan, 0.0
        drawn = int.from_bytes(hashlib.sha256(_DRAW + record).digest()[:8], "big")
        return float(is_right[drawn % len(is_right)]), 0.0

    def shares(self, found: np.ndarray, targets: np.ndarray) -> np.ndarray:
        right, told = np.zeros(len(found)), np.zeros(len(found))
        for task, outputs, answers, is_told in self._apart(found, targets):
            right[is_told] += task.right(outputs, answers)
            told += is_told
        tells = told > 0
        return np.asarray(right[tells] / told[tells])

    def measured(self, found: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        from ..evaluation import metrics

        measured: dict[str, Any] = {"accuracy": asdict(metrics.mean_share(self.shares(found, targets)))}
        for name, (task, outputs, answers, is_told) in zip(self.tasks, self._apart(found, targets), strict=True):
            if not is_told.any():
                continue
            own = {"accuracy": asdict(metrics.exact_match(task.right(outputs, answers).tolist()))}
            if task.outcome.counted != "labels":
                own |= task.outcome.details(outputs, answers)
            elif len(np.unique(answers)) > 1:
                own |= task.outcome.measured(outputs, answers)
            measured |= {f"{metric}_{name}": value for metric, value in own.items()}
        return measured

    def _apart(self, found: np.ndarray, targets: np.ndarray) -> Iterator[tuple[TaskTerms, Any, Any, Any]]:
        """Yields each task with its outputs and targets of the records that tell it, and which these are [rows]."""
        import torch

        objective = self.objective()
        parts, apart = objective.parts(torch.from_numpy(found)), objective.apart(torch.from_numpy(targets))
        for task, part, (target, told) in zip(self.tasks.values(), parts, apart, strict=True):
            yield task, part[told].numpy(), target[told].numpy(), told.numpy()


def _label_or_nothing(text: "pa.Array") -> "Cells":
    """Parses labels that may be missing: int64, 0, 1, or -1 where there is none."""
    from . import cells

    read = cells.labels(text)
    return replace(read, values=np.where(read.missing, -1, read.values), misfit=read.misfit & ~read.missing)


def is_told(cells: np.ndarray) -> npt.NDArray[np.bool_]:
    """[rows], which cells tell something: not NaN, None or -1."""
    if cells.dtype == object:
        return np.array([cell is not None for cell in cells], dtype=np.bool_)
    return ~np.isnan(cells) if cells.dtype.kind == "f" else cells >= 0

"""Several tasks of a study, which its head learns of a record at once: one trunk, a part of the head for each.

A record need not tell every task: where a cell is empty, or a site has no such column, the record says nothing about
that task, and its loss is that of the others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..strict import FieldName, Frozen, Label, Name, SparseModel, Unique
from .kind import Column, Judged
from .outcomes import MOST_CLASSES, NumberTerms, Outcome, rows_of

if TYPE_CHECKING:
    import pyarrow as pa

    from ..heads.objectives import SeveralTasks
    from .cells import Cells

MOST_TASKS = 16


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


class OutcomeTerms(Outcome):
    """Terms of what is learned of a record: one thing, or several tasks at once."""

    tasks: Annotated[Mapping[Name, TaskTerms], *Frozen] | None = Field(
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
        """Kind of what an evaluation counts; of several tasks the records of which all that is told is right."""
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

    def judge(self, outputs: Any, target: Any) -> tuple[float, float]:
        """Judges the head's outputs for one record: (label, score), the score as a logit.

        Of several tasks the label is 1 if the record tells any, and all that it tells is answered right.
        """
        return super().judge(outputs, target) if self.tasks is None else self._several.judge(outputs, target)

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
        from ..errors import InvalidAdapter

        try:
            self.objective()
        except InvalidAdapter as err:
            return [f"{place}.tasks: {err}"]
        return []

    def objective(self) -> "SeveralTasks":
        from ..heads.objectives import SeveralTasks, Task

        return SeveralTasks(
            tuple(Task(name, task.outcome.objective(), task.weight) for name, task in self.tasks.items())
        )

    def learned_columns(self) -> tuple[Column, ...]:
        from . import cells

        found = []
        for task in self.tasks.values():
            (column,) = task.outcome.learned_columns()
            read: Callable[[pa.Array], Cells] = cells.numbers
            if task.classes is not None:
                read = partial(cells.categories, published=task.classes)
            elif task.number is None:
                read = _label_or_nothing
            expected = column.expected.removesuffix(", and not nothing") + ", or nothing"
            found.append(replace(column, read=read, expected=expected, is_label=False, sites=task.sites))
        return tuple(found)

    def facts(self) -> dict[str, Any]:
        said = {}
        for name, task in self.tasks.items():
            ((kind, what),) = task.outcome.outcome_facts().items()
            where = "" if task.sites is None else f"; at {', '.join(task.sites)}"
            said[name] = f"{kind} {what}; weight {task.weight:g}{where}"
        return {"tasks": said}

    def targets(self, columns: Mapping[str, np.ndarray]) -> npt.NDArray[np.int64]:
        told, found = [], []
        for task in self.tasks.values():
            cells = columns[task.column]
            is_told = _is_told(cells)
            target = np.zeros(len(cells), dtype=np.float64)
            target[is_told] = task.outcome.targets({task.column: cells[is_told]}, cells[is_told])
            told.append(is_told)
            found.append(target)
        return self.objective().joined(found, told)

    def judge(self, outputs: Any, target: Any) -> tuple[float, float]:
        import torch

        objective = self.objective()
        apart = objective.apart(torch.as_tensor(target).reshape(1))
        judged = [
            self._right(task, part, own) > 0
            for task, part, (own, told) in zip(self.tasks.values(), objective.parts(outputs), apart, strict=True)
            if bool(told)
        ]
        return float(bool(judged) and all(judged)), 0.0

    def measured(self, found: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        import torch

        from ..evaluation import metrics

        objective = self.objective()
        apart = objective.apart(torch.from_numpy(targets))
        parts = objective.parts(torch.from_numpy(found))
        is_right = [bool(self.judge(row, target)[0]) for row, target in rows_of(found, targets)]
        measured: dict[str, Any] = {"accuracy": asdict(metrics.exact_match(is_right))}
        for (name, task), part, (own, told) in zip(self.tasks.items(), parts, apart, strict=True):
            outputs, answers = part[told].numpy(), own[told].numpy()
            if len(answers):
                own_metrics = task.outcome.measured(outputs, answers)
                measured |= {f"{metric}_{name}": value for metric, value in own_metrics.items()}
        return measured

    def _right(self, task: TaskTerms, part: Any, target: Any) -> float:
        """1 if the outputs for one record answer a task right."""
        if task.outcome.counted == "labels":
            return float((float(part) > 0) == bool(target))
        return task.outcome.judge(part, target)[0]


def _label_or_nothing(text: "pa.Array") -> "Cells":
    """Parses labels that may be missing: int64, 0, 1, or -1 where there is none."""
    from . import cells

    read = cells.labels(text)
    return replace(read, values=np.where(read.missing, -1, read.values), misfit=read.misfit & ~read.missing)


def _is_told(cells: np.ndarray) -> npt.NDArray[np.bool_]:
    """[rows], which cells tell something: not NaN, None or -1."""
    if cells.dtype == object:
        return np.array([cell is not None for cell in cells], dtype=np.bool_)
    return ~np.isnan(cells) if cells.dtype.kind == "f" else cells >= 0

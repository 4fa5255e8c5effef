"""Several tasks of a study, which its head learns of a record at once: one trunk, a part of the head for each.

A record need not tell every task: where a cell is empty, or a site has no such column, the record says nothing about
that task, and its loss is that of the others.

One of the tasks of a document may be a text. The head has no part in it: the model writes it behind the document.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field

from ..errors import DeploymentRefused, InvalidPrompt
from ..strict import FIELD_NAME, FIELD_NAME_RULE, FieldName, Frozen, Label, Name, SparseModel, StrictModel, Unique
from .kind import Column, Judged
from .outcomes import MOST_CLASSES, NumberTerms, Outcome
from .templates import columns_of, said
from .text import Template

if TYPE_CHECKING:
    import pyarrow as pa

    from ..heads.objectives import SeveralTasks
    from .cells import Cells
    from .requests import Answered

MOST_TASKS, MOST_BITS = 16, 62
_DRAW = b"confide/task/1|"
_STEPS = 2**16  # of a scale, as in `heads.objectives`


class WrittenTerms(StrictModel):
    """Terms of a text that is written behind a document: what asks for it, and the column that says it."""

    prompt: Template = Field(examples=['"\\nIn short:"'], description="what stands between the document and the text")
    completion: Template = Field(
        examples=['" {summary}"'], description="what the model learns to write; a name in braces is the column"
    )
    longest: int = Field(
        ge=2, le=2**16, examples=["64"],
        description="tokens that are kept for both of max_tokens; a longer text is cut, and the document has the rest",
    )  # fmt: skip

    @property
    def column(self) -> str:
        """Name of the column that is learned."""
        (name,) = columns_of(self.completion, "completion")
        return name

    def problems(self, place: str, read: Sequence[str]) -> list[str]:
        """Lists texts that are no templates, and a column that cannot be one or is also read."""
        try:
            asked, learned = columns_of(self.prompt, "prompt"), columns_of(self.completion, "completion")
        except InvalidPrompt as err:
            return [f"{place}: {err}"]
        if asked:
            return [f"{place}.prompt holds {asked[0]!r} in braces; say it in the document's own text"]
        if len(learned) != 1:
            return [f"{place}.completion must hold one column's name in braces, such as {{summary}}"]
        (name,) = learned
        if not re.fullmatch(FIELD_NAME, name):
            return [f"{place}.completion names a column {name!r}; it must be {FIELD_NAME_RULE}"]
        if name in read:
            return [f"{place}.completion holds {name!r}, also a column of the record; a model would just copy it"]
        return []


class TaskTerms(SparseModel):
    """Terms of one task of several: exactly one of label, number and text; an empty cell says nothing."""

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
    text: WrittenTerms | None = Field(
        default=None, examples=['{ prompt = "\\nIn short:", completion = " {summary}", longest = 64 }'],
        description="instead of label, of documents alone: a text that the model writes",
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
        (name,) = self.outcome.outcome_columns if self.text is None else (self.text.column,)
        return name

    def problems(self, place: str, read: Sequence[str]) -> list[str]:
        """Lists what is missing or too much, and a learned column that is also read."""
        if self.text is None:
            return self.outcome.outcome_problems(place, read)
        own = [name for name in ("label", "classes", "number") if getattr(self, name) is not None]
        problems = [f"{place}.{name} stands beside {place}.text; make it a task of its own" for name in own]
        return problems or self.text.problems(f"{place}.text", read)

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
        if self.text is not None:
            kind, expected, read = "text to learn", f"text of at most {cells.MAX_TEXT:,} characters", _text_or_nothing
        elif self.number is not None:
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

    can_write: ClassVar[bool] = False  # True of records behind which a text can stand

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

    @property
    def head_tasks(self) -> Mapping[str, TaskTerms]:
        """Tasks of which the head computes outputs, in the order of these; none where one thing is learned."""
        return self._several.of_head

    @property
    def text_task(self) -> str | None:
        """Name of the task that is a text; None if there is none."""
        return next((name for name, task in (self.tasks or {}).items() if task.text is not None), None)

    @property
    def written(self) -> WrittenTerms | None:
        """Terms of the task that is a text; None if there is none."""
        return None if self.tasks is None or self.text_task is None else self.tasks[self.text_task].text

    def outcome_problems(self, place: str, read: Sequence[str]) -> list[str]:
        """Lists what is missing or too much, and learned columns that are also read or learned twice."""
        if self.tasks is None:
            return super().outcome_problems(place, read)
        own = [name for name in ("label", "classes", "labels", "number") if getattr(self, name) is not None]
        problems = [f"{place}.{name} stands beside {place}.tasks; make it a task of its own" for name in own]
        for name, task in self.tasks.items():
            problems += task.problems(f"{place}.tasks.{name}", read)
        texts = [name for name, task in self.tasks.items() if task.text is not None]
        if texts and not self.can_write:
            problems.append(
                f"{place}.tasks.{texts[0]}.text: a backbone of records writes none; show them as text, in a table "
                "[data.document]"
            )
        elif len(texts) > 1:
            problems.append(
                f"{place}.tasks.{texts[1]}.text beside that of {texts[0]}; keep one text: give others rows of their "
                "own, in a study of [data.text]"
            )
        elif texts and len(self.tasks) == 1:
            problems.append(f"{place}.tasks.{texts[0]}.text is the only task; a study of one text is [data.text]")
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

    def all_answered(self) -> "tuple[Answered, ...]":
        """Says what the outputs of the head answer, task by task.

        Raises:
            DeploymentRefused: one of the tasks is a text, which no head answers.
        """
        if self.tasks is None:
            return (self.answered(),)
        if self.written is not None:
            raise DeploymentRefused(
                f"task {self.text_task} is a text behind a document, which is not written outside of confide; serve "
                "the adapter"
            )
        return tuple(task.outcome.answered(name) for name, task in self.head_tasks.items())

    def targets(self, columns: Mapping[str, np.ndarray], labels: np.ndarray | None) -> npt.NDArray[np.generic]:
        """[rows], one target a record, as `objective` learns it; what is to be written has no part in it."""
        return super().targets(columns, labels) if self.tasks is None else self._several.targets(columns)

    def judge(
        self, outputs: Any, target: Any, record: bytes = b"", *, is_written: bool | None = None
    ) -> tuple[float, float]:
        """Judges the head's outputs for one record: (label, score), the score as a logit.

        Of several tasks, one that the record tells is drawn by the SHA-256 of the record, the label is 1 if it is
        right, and the score is the task's place; so the share of ones estimates the mean share of tasks that are right,
        and that at a place the share of times that this task is. NaN if the record tells none.

        Args:
            is_written: whether the text that the record tells is written word for word; None: it tells none.
        """
        if self.tasks is None:
            return super().judge(outputs, target)
        return self._several.judge(outputs, target, record, is_written)

    def tells(self, columns: Mapping[str, np.ndarray], rows: int, *, of_head: bool = False) -> npt.NDArray[np.bool_]:
        """bool [rows], which records tell anything that is learned, or that the head learns."""
        return np.ones(rows, dtype=np.bool_) if self.tasks is None else self._several.tells(columns, of_head=of_head)

    def shares(self, found: np.ndarray, targets: np.ndarray, written: np.ndarray | None = None) -> np.ndarray:
        """Computes the share of its tasks that is right, for every record that tells any; of several tasks alone.

        Args:
            written: [rows], 1 or 0: whether the text is written word for word; NaN where a record tells none.
        """
        return self._several.shares(found, targets, written)

    def measured(self, found: np.ndarray, targets: np.ndarray, written: np.ndarray | None = None) -> dict[str, Any]:
        """Computes metrics with intervals; of several tasks also METRIC_TASK of each, on the records that tell it.

        Args:
            written: as in `shares`.
        """
        if self.tasks is None:
            return super().measured(found, targets)
        return self._several.measured(found, targets, written)

    @property
    def _several(self) -> "_Several":
        return _Several(self.tasks or {})


@dataclass(frozen=True, slots=True)
class _Several:
    """What several tasks together make of a record."""

    tasks: Mapping[str, TaskTerms]

    @property
    def of_head(self) -> dict[str, TaskTerms]:
        """Tasks of which the head computes outputs, in the order of these."""
        return {name: task for name, task in self.tasks.items() if task.text is None}

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(task.column for task in self.tasks.values())

    def problems(self, place: str) -> list[str]:
        """Lists what `objectives.SeveralTasks` would refuse; studies are read without loading it."""
        classes = sum(len(task.classes or ()) for task in self.tasks.values())
        if classes > MOST_CLASSES:
            return [f"{place}.tasks name {classes:,} classes in all, and at most {MOST_CLASSES:,} may be"]
        bits = math.log2(math.prod(1 + task.digits for task in self.of_head.values()))
        if bits <= MOST_BITS:
            return []
        return [
            f"{place}.tasks tell {bits:.1f} bits of a record, and at most {MOST_BITS} fit: a number takes 16, a label "
            "less than 2, classes as many as their count needs"
        ]

    def objective(self) -> "SeveralTasks":
        from ..heads.objectives import SeveralTasks, Task, TextTask

        texts = [
            TextTask(name, said(task.text.prompt), task.weight)
            for name, task in self.tasks.items()
            if task.text is not None
        ]
        return SeveralTasks(
            tuple(Task(name, task.outcome.objective(), task.weight) for name, task in self.of_head.items()),
            text=texts[0] if texts else None,
        )

    def learned_columns(self) -> tuple[Column, ...]:
        return tuple(task.learned_column() for task in self.tasks.values())

    def facts(self) -> dict[str, Any]:
        found = {}
        for name, task in self.tasks.items():
            if task.text is not None:
                kind, what = "text", f"{task.text.completion!r} after {said(task.text.prompt)!r}"
            else:
                ((kind, what),) = task.outcome.outcome_facts().items()
            where = "all sites" if task.sites is None else ", ".join(task.sites)
            found[f"task {name}"] = f"weight {task.weight:g}, at {where}: {kind} {what}"
        return found

    def tells(self, columns: Mapping[str, np.ndarray], *, of_head: bool) -> npt.NDArray[np.bool_]:
        names = [task.column for task in (self.of_head if of_head else self.tasks).values()]
        told: npt.NDArray[np.bool_] = np.any([is_told(columns[name]) for name in names], axis=0)
        return told

    def targets(self, columns: Mapping[str, np.ndarray]) -> npt.NDArray[np.int64]:
        told, found = [], []
        for task in self.of_head.values():
            cells = columns[task.column]
            here = is_told(cells)
            target = np.zeros(len(cells), dtype=np.float64)
            target[here] = task.outcome.targets({task.column: cells[here]}, cells[here])
            told.append(here)
            found.append(target)
        return self.objective().joined(found, told)

    def judge(self, outputs: Any, target: Any, record: bytes, is_written: bool | None) -> tuple[float, float]:
        found, told = outputs.detach().cpu().numpy(), np.asarray(target).reshape(1)
        is_right = {
            name: bool(task.right(own, answers)[0])
            for name, (task, own, answers, is_told) in zip(self.of_head, self._apart(found, told), strict=True)
            if is_told[0]
        }
        is_right |= {name: is_written for name in self.tasks if name not in self.of_head and is_written is not None}
        if not is_right:
            return math.nan, 0.0
        drawn = int.from_bytes(hashlib.sha256(_DRAW + record).digest()[:8], "big") % len(is_right)
        name = [*is_right][drawn]
        return float(is_right[name]), float([*self.tasks].index(name))

    def shares(self, found: np.ndarray, targets: np.ndarray, written: np.ndarray | None) -> np.ndarray:
        right, told = np.zeros(len(found)), np.zeros(len(found))
        if written is not None:
            told += ~np.isnan(written)
            right += np.nan_to_num(written)
        for task, outputs, answers, is_told in self._apart(found, targets):
            right[is_told] += task.right(outputs, answers)
            told += is_told
        tells = told > 0
        return np.asarray(right[tells] / told[tells])

    def measured(self, found: np.ndarray, targets: np.ndarray, written: np.ndarray | None) -> dict[str, Any]:
        from ..evaluation import metrics

        measured: dict[str, Any] = {"accuracy": asdict(metrics.mean_share(self.shares(found, targets, written)))}
        for name, (task, outputs, answers, is_told) in zip(self.of_head, self._apart(found, targets), strict=True):
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
        for task, part, (target, told) in zip(self.of_head.values(), parts, apart, strict=True):
            yield task, part[told].numpy(), target[told].numpy(), told.numpy()


def _label_or_nothing(text: "pa.Array") -> "Cells":
    """Parses labels that may be missing: int64, 0, 1, or -1 where there is none."""
    from . import cells

    read = cells.labels(text)
    return replace(read, values=np.where(read.missing, -1, read.values), misfit=read.misfit & ~read.missing)


def _text_or_nothing(text: "pa.Array") -> "Cells":
    """Parses text that may be missing: objects, strings, or None where there is none."""
    from . import cells

    read = cells.free_text(text, may_be_missing=True)
    values = read.values.copy()
    values[read.missing] = None
    return replace(read, values=values)


def is_told(cells: np.ndarray) -> npt.NDArray[np.bool_]:
    """[rows], which cells tell something: not NaN, None or -1."""
    if cells.dtype == object:
        return np.array([cell is not None for cell in cells], dtype=np.bool_)
    return ~np.isnan(cells) if cells.dtype.kind == "f" else cells >= 0

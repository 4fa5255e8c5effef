"""An outcome that a study's head learns of a record: a label, one of several classes, several labels, or a number.

A study names the columns that say it; they are read, checked and made one target a record here, the same way for every
kind of record that a head reads. Several outcomes at once are `tasks`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from ..strict import FieldName, Label, StrictModel, Unique, contradictions
from .kind import Column, Examples, Judged, RecordKind

if TYPE_CHECKING:
    from ..heads.objectives import Objective
    from .requests import Answered

MOST_CLASSES = 1000
_ROWS = 1024  # records scored at a time


class NumberTerms(StrictModel):
    """Terms of a number that is learned: its column and the public ends of its scale."""

    column: FieldName = Field(examples=['"days"'], description="column of numbers, a cell in each row")
    low: float = Field(
        ge=-1e15, le=1e15, examples=["0.0"], description="end of the scale; what lies below counts as it"
    )
    high: float = Field(ge=-1e15, le=1e15, examples=["30.0"], description="other end of the scale")
    within: float = Field(
        gt=0, le=1e15, examples=["3.0"], description="an answer counts as right if it is as near to the number"
    )

    @model_validator(mode="after")
    def _has_a_length(self) -> "NumberTerms":
        if not self.low < self.high:
            raise contradictions([f"high is {self.high!r}; it must be above low, {self.low!r}"])
        return self


class Outcome(StrictModel):
    """Terms of one thing that is learned of a record: exactly one of these."""

    label: FieldName | None = Field(
        default=None, examples=['"diagnosis"'], description="column of 0 and 1; never one of the columns that are read"
    )
    classes: Annotated[tuple[Label, ...], Unique] | None = Field(
        default=None, min_length=2, max_length=MOST_CLASSES, examples=['["mild", "moderate", "severe"]'],
        description="with it, the label is one of these words, spelt exactly so, instead of 0 and 1",
    )  # fmt: skip
    labels: Annotated[tuple[FieldName, ...], Unique] | None = Field(
        default=None, min_length=1, max_length=62, examples=['["sepsis", "shock"]'],
        description="instead of label: several columns of 0 and 1 that are learned at once",
    )  # fmt: skip
    number: NumberTerms | None = Field(
        default=None, examples=["{ column = \"days\", low = 0.0, high = 30.0, within = 3.0 }"],
        description="instead of label: a column of numbers",
    )  # fmt: skip

    @property
    def outcome_columns(self) -> tuple[str, ...]:
        """Names of the columns that are learned."""
        if self.number is not None:
            return (self.number.column,)
        return self.labels or (() if self.label is None else (self.label,))

    @property
    def counted(self) -> Judged:
        """Kind of what an evaluation counts: scores by label, right answers, or numbers that are near enough."""
        if self.number is not None:
            return "numbers"
        return "labels" if self.label is not None and self.classes is None else "answers"

    def outcome_problems(self, place: str, read: Sequence[str]) -> list[str]:
        """Lists what is missing or too much, and learned columns that are also read.

        Args:
            place: of these terms in study.toml.
            read: names of the columns that a record is read from.
        """
        said = [name for name in ("label", "labels", "number") if getattr(self, name) is not None]
        if not said:
            return [f'{place}.label is missing; add it: label = "diagnosis" (a column of 0 and 1)']
        problems = []
        if len(said) > 1:
            problems.append(f"{place} has {' and '.join(said)}; keep one: a study learns one thing")
        if self.classes is not None and self.label is None:
            problems.append(f"{place}.classes without {place}.label; name the column that holds them")
        problems += [
            f"{place}.{said[0]} is {name!r}, also a column of the record; a model would just read it off"
            for name in self.outcome_columns
            if name in read
        ]
        return problems

    def objective(self) -> "Objective":
        """Returns what the head learns."""
        from ..heads import objectives

        if self.number is not None:
            return objectives.PointOnScale(self.number.low, self.number.high)
        if self.labels is not None:
            return objectives.SeveralLabels(self.labels)
        return objectives.BinaryLabel() if self.classes is None else objectives.OneClass(self.classes)

    def learned_columns(self) -> tuple[Column, ...]:
        """Returns the columns that are learned; none of their cells may be empty."""
        from . import cells

        if self.number is not None:
            return (Column(self.number.column, "number", "a number, and not nothing", needed(cells.numbers)),)
        if self.labels is not None:
            return tuple(Column(name, "label", "0 or 1", cells.labels) for name in self.labels)
        assert self.label is not None, "terms without an outcome passed their checks"
        if self.classes is None:
            return (Column(self.label, "label", "0 or 1", cells.labels, is_label=True),)
        read = needed(partial(cells.categories, published=self.classes))
        return (Column(self.label, "class", f"one of the study's {len(self.classes)} classes", read),)

    def outcome_facts(self) -> dict[str, Any]:
        """Describes for people what is learned."""
        if self.number is not None:
            number = self.number
            return {
                "number": f"{number.column}, from {number.low:g} to {number.high:g}, right within {number.within:g}"
            }
        if self.labels is not None:
            return {"labels": ", ".join(self.labels)}
        return {"label": self.label if self.classes is None else f"{self.label}, one of: {', '.join(self.classes)}"}

    def answered(self, name: str | None = None) -> "Answered":
        """Says what the outputs of the head answer.

        Args:
            name: of the answer; None: that of its column.
        """
        from .requests import Answered

        if self.number is not None:
            return Answered(name or self.number.column, "number", low=self.number.low, high=self.number.high)
        if self.labels is not None:
            return Answered(name or "labels", "labels", self.labels)
        assert self.label is not None, "terms without an outcome passed their checks"
        if self.classes is None:
            return Answered(name or self.label, "label")
        return Answered(name or self.label, "class", self.classes)

    def targets(self, columns: Mapping[str, np.ndarray], labels: np.ndarray | None) -> npt.NDArray[np.generic]:
        """[rows], one target a record, as `objective` learns it."""
        if self.number is not None:
            number = self.number
            points = (columns[number.column].astype(np.float64) - number.low) / (number.high - number.low)
            return (2 * points.clip(0, 1) - 1).astype(np.float32)
        if self.labels is not None:
            bits = [columns[name].astype(np.int64) << place for place, name in enumerate(self.labels)]
            return np.asarray(sum(bits), dtype=np.int64)
        if self.classes is not None and self.label is not None:
            place = {name: number for number, name in enumerate(self.classes)}
            return np.array([place[name] for name in columns[self.label]], dtype=np.int64)
        assert labels is not None, "a study of a label has labels"
        return labels

    def judge(self, outputs: Any, target: Any, record: bytes = b"") -> tuple[float, float]:
        """Judges the head's outputs for one record, [1] or [1, K]: (label, score), the score as a logit.

        Of a label, these are the record's label and its logit. Else the label is 1 if the answer is right, and the
        score the logit of the chance that the head gives it; a number has no such chance, and its score is 0.

        Args:
            record: what is read of it, for outcomes that draw by it.
        """
        import torch

        from ..heads.objectives import SeveralLabels

        if self.number is not None:
            scale = (self.number.high - self.number.low) / 2
            error = abs(float(outputs[0].double().clamp(-1, 1)) - float(target)) * scale
            return float(error <= self.number.within * (1 + 1e-6)), 0.0  # a target is rounded to float32
        if self.labels is not None:
            bits = SeveralLabels(self.labels).labels_of(torch.as_tensor(target).reshape(1))
            chance = -torch.nn.functional.softplus(-outputs.double().abs()).sum()  # logarithm, of all that is answered
            is_right = bool(((outputs > 0) == bits.to(outputs.device).bool()).all())
            return float(is_right), float(chance - torch.log(-torch.expm1(chance)))
        if self.classes is None:
            return float(target), float(outputs)
        logits = outputs[0].double()
        answer = int(logits.argmax())
        others = torch.cat([logits[:answer], logits[answer + 1 :]]).logsumexp(0)
        return float(answer == int(target)), float(logits[answer] - others)

    def metrics(self, adapted: Any, tables: Sequence[Examples]) -> dict[str, Any]:
        """Computes metrics with intervals over all records of the tables, which are the operator's own."""
        found, targets = self.scored(adapted, tables)
        return {"records": len(targets)} | self.measured(found, targets)

    def measured(self, found: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """Computes metrics with intervals of the head's outputs, [rows] or [rows, K], beside targets [rows]."""
        from ..evaluation import metrics

        if self.counted == "labels":
            by_name = {
                "auc": metrics.auc, "accuracy": metrics.accuracy, "brier_score": metrics.brier_score,
                "calibration_error": metrics.calibration_error,
            }  # fmt: skip
            return {name: asdict(metric(found, targets)) for name, metric in by_name.items()}
        is_right = [bool(self.judge(row, target)[0]) for row, target in _rows(found, targets)]
        return {"accuracy": asdict(metrics.exact_match(is_right)), **self.details(found, targets)}

    def scored(self, adapted: Any, tables: Sequence[Examples]) -> tuple[np.ndarray, np.ndarray]:
        """Computes the head's outputs for all records, [rows] or [rows, K], beside their targets [rows]."""
        found = np.concatenate([scores(adapted, examples) for examples in tables])
        targets = [each.targets if each.targets.ndim == 1 else each.targets[:, 0] for each in tables]
        return found, np.concatenate(targets)

    def details(self, found: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """Computes each label's AUC, if it has both values, or the mean absolute error of a number."""
        from ..evaluation import metrics

        if self.number is not None:
            scale = (self.number.high - self.number.low) / 2
            return {"mean_absolute_error": asdict(metrics.mean_absolute_error(scale * (found.clip(-1, 1) - targets)))}
        by_label = {}
        for place, name in enumerate(self.labels or ()):
            of_label = targets >> place & 1
            if 0 < of_label.sum() < len(of_label):
                by_label[f"auc_{name}"] = asdict(metrics.auc(found[:, place], of_label))
        return by_label


class ReadByHead(RecordKind):
    """The common part of all kinds that a head reads: its objective, its judge and its metrics."""

    head = "pooled"

    def objective(self, terms: Outcome) -> "Objective":
        """Returns what the head learns."""
        return terms.objective()

    def judged(self, terms: Outcome) -> Judged:
        """Returns what is counted, see `kind.Judged`."""
        return terms.counted

    def judge(self, terms: Outcome, reader: Any, adapted: Any, ids: np.ndarray, target: Any) -> tuple[float, float]:
        """Judges what the head gives for the record at its own length, see `Outcome.judge`."""
        record, outputs = self.read_by_head(adapted, ids)
        return terms.judge(outputs, target, record)

    def read_by_head(self, adapted: Any, ids: np.ndarray) -> tuple[bytes, Any]:
        """Returns the bytes of a record's tokens without padding, and the head's outputs for it, [1] or [1, K]."""
        import torch

        length = max(1, int(np.flatnonzero(ids).max(initial=-1)) + 1)  # padding is on the right
        device = next(iter(adapted.trained.values())).device
        own = ids[:length]
        return own.tobytes(), adapted.classify(torch.from_numpy(own[None]).to(device))

    def evaluate(self, terms: Outcome, reader: Any, adapted: Any, tables: Sequence[Examples]) -> dict[str, Any]:
        """Computes the metrics that go with the outcome, see `Outcome.metrics`."""
        return terms.metrics(adapted, tables)


def scores(adapted: Any, examples: Examples) -> np.ndarray:
    """Computes the head's outputs for records, [rows] or [rows, K]."""
    import torch

    from ..heads.written import documents

    with torch.no_grad():
        parts = torch.split(torch.from_numpy(documents(examples.ids, examples.targets)), _ROWS)
        found: np.ndarray = torch.cat([adapted.classify(part) for part in parts]).numpy()
    return found


def _rows(found: np.ndarray, targets: np.ndarray) -> Any:
    """Pairs each record's outputs, a tensor [1] or [1, K], with its target."""
    import torch

    return zip(torch.split(torch.from_numpy(found), 1), targets, strict=True)


def needed(read: Any) -> Any:
    """Returns a reader for which a missing cell is a misfit, as such a record cannot be used for training."""

    def read_all(text: Any) -> Any:
        found = read(text)
        return replace(found, misfit=found.misfit | found.missing)

    return read_all

"""Objectives of a head: a record's label, one of several classes, several labels at once, a number, or several tasks.

An objective says how many numbers a head computes, what they cost beside a record's target, and what they answer. A
target is one number a record, whatever the objective: a label, the place of a class, labels as bits, a point of a
scale, or the targets of several tasks as digits. Each loss is a function of one record alone.

Legend: `R` rows (records), `K` numbers that a head computes of a record.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidAdapter
from .losses import REGISTERS, record_losses

MOST_LABELS = 62  # bits of a target
_STEPS = 2**16  # of a scale, where a number is one task of several: an error of less than 1e-5 of its length


class Objective(Protocol):
    """Thing that a head learns of a record."""

    @property
    def outputs(self) -> int | None:
        """K, or None for one number [R] that is no vector of length one."""

    @property
    def meaning(self) -> str:
        """Meaning of the outputs, for people who hold the head alone."""

    @property
    def digits(self) -> int:
        """Number of different targets, where the targets of several objectives share one number."""

    def digit_of(self, targets: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
        """[R], each target as one of 0 to `digits` - 1."""

    def target_of(self, digits_R: Tensor) -> Tensor:
        """[R], the targets that `digit_of` made these of."""

    def made_up(self, rows: int) -> Tensor:
        """[R] targets of nobody, two in turn, for probes; the first one depends on all outputs."""

    def losses(self, outputs: Tensor, targets_R: Tensor) -> Tensor:
        """[R], what each record adds to the loss, of outputs [R] or [R, K]."""

    def unlikely(self, outputs: Tensor) -> Tensor:
        """[R], for each record a target that the head finds unlikely: its gradient is large."""


class _InTurn:
    """The common part of objectives of which 0 and 1 are targets."""

    __slots__ = ()

    def made_up(self, rows: int) -> Tensor:
        """[R], 0 and 1 in turn."""
        return torch.arange(rows) % 2


class _WholeNumber(_InTurn):
    """The common part of objectives whose targets are whole numbers from 0 on: they are digits as they stand."""

    __slots__ = ()

    def digit_of(self, targets: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
        """[R], the targets themselves."""
        return targets.astype(np.int64)

    def target_of(self, digits_R: Tensor) -> Tensor:
        """[R], the digits themselves."""
        return digits_R


@dataclass(frozen=True, slots=True)
class BinaryLabel(_WholeNumber):
    """A label, 0 or 1, by its logit: binary cross-entropy."""

    @property
    def outputs(self) -> None:
        """None: one logit a record."""

    @property
    def meaning(self) -> str:
        """The logit of the label's chance."""
        return "It gives the logit of label 1."

    @property
    def digits(self) -> int:
        """Two: 0 and 1."""
        return 2

    def losses(self, outputs: Tensor, targets_R: Tensor) -> Tensor:
        """[R] cross-entropy of logits [R] and labels."""
        return record_losses(outputs, targets_R)

    def unlikely(self, outputs: Tensor) -> Tensor:
        """[R], the label of less than even chance."""
        return (outputs < 0).long()


@dataclass(frozen=True, slots=True)
class OneClass(_WholeNumber):
    """One of K classes, by a logit each: softmax cross-entropy. A target is the place of the class, from 0."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise InvalidAdapter(f"need 2 classes or more to tell apart, got {len(self.names)}")

    @property
    def outputs(self) -> int:
        """The number of classes."""
        return len(self.names)

    @property
    def meaning(self) -> str:
        """The classes, in the order of their logits."""
        return f"It gives a logit for each class, in this order: {_listed(self.names)}."

    @property
    def digits(self) -> int:
        """The number of classes."""
        return len(self.names)

    def losses(self, outputs: Tensor, targets_R: Tensor) -> Tensor:
        """[R] cross-entropy of logits [R, K] and classes."""
        logits_RK = _filled_up(outputs)
        classes_R = F.pad(targets_R.long(), (0, len(logits_RK) - len(targets_R)))
        shifted_RK = logits_RK - logits_RK.detach().amax(1, keepdim=True)
        # By its parts: each is one loop over whole registers, so no record's place in the batch shows.
        losses_R = shifted_RK.exp().sum(1).log() - shifted_RK.gather(1, classes_R[:, None])[:, 0]
        return losses_R[: len(targets_R)]

    def unlikely(self, outputs: Tensor) -> Tensor:
        """[R], the class of least chance."""
        return outputs.argmin(1)


@dataclass(frozen=True, slots=True)
class SeveralLabels(_WholeNumber):
    """K labels of 0 or 1 that do not exclude each other: the sum of their binary cross-entropies.

    A target holds label k as bit k.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= MOST_LABELS:
            raise InvalidAdapter(f"need 1 to {MOST_LABELS} labels, got {len(self.names)}")

    @property
    def outputs(self) -> int:
        """The number of labels."""
        return len(self.names)

    @property
    def meaning(self) -> str:
        """The labels, in the order of their logits."""
        return f"It gives the logit of each label, in this order: {_listed(self.names)}."

    @property
    def digits(self) -> int:
        """The number of ways in which the labels can be set."""
        return 1 << len(self.names)

    def losses(self, outputs: Tensor, targets_R: Tensor) -> Tensor:
        """[R] summed cross-entropies of logits [R, K] and labels."""
        logits_RK = _filled_up(outputs)
        labels_RK = F.pad(self.labels_of(targets_R), (0, 0, 0, len(logits_RK) - len(targets_R)))
        by_label = F.binary_cross_entropy_with_logits(logits_RK, labels_RK.to(logits_RK), reduction="none")
        return by_label.sum(1)[: len(targets_R)]

    def unlikely(self, outputs: Tensor) -> Tensor:
        """[R], of every label the value of less than even chance."""
        return ((outputs < 0).long() << torch.arange(self.outputs, device=outputs.device)).sum(1)

    def labels_of(self, targets_R: Tensor) -> Tensor:
        """[R, K] labels of 0 and 1."""
        return (targets_R.long()[:, None] >> torch.arange(self.outputs, device=targets_R.device)) & 1


@dataclass(frozen=True, slots=True)
class PointOnScale(_InTurn):
    """A number between two public ends, as a point of [-1, 1]: half the squared error."""

    low: float
    high: float

    @property
    def outputs(self) -> None:
        """None: one number a record."""

    @property
    def meaning(self) -> str:
        """The ends of the scale."""
        return f"It gives a number: -1 and below stand for {self.low!r}, 1 and above for {self.high!r}."

    @property
    def digits(self) -> int:
        """The number of points that are told apart, both ends among them."""
        return _STEPS + 1

    def digit_of(self, targets: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
        """[R], the nearest of the points, counted from the low end."""
        return np.rint((targets.astype(np.float64) + 1) / 2 * _STEPS).astype(np.int64)

    def target_of(self, digits_R: Tensor) -> Tensor:
        """[R] float32, points of [-1, 1]."""
        return (2 * digits_R.double() / _STEPS - 1).float()

    def losses(self, outputs: Tensor, targets_R: Tensor) -> Tensor:
        """[R] half squared errors of outputs [R]."""
        spare = -len(outputs) % REGISTERS
        errors = F.pad(outputs, (0, spare)) - F.pad(targets_R.to(outputs), (0, spare))
        return (errors.square() / 2)[: len(outputs)]

    def unlikely(self, outputs: Tensor) -> Tensor:
        """[R], the end that is farther away."""
        return torch.where(outputs < 0, 1.0, -1.0)


@dataclass(frozen=True, slots=True)
class Task:
    """One of several things that are learned of a record at once."""

    name: str
    objective: Objective
    weight: float = 1.0  # of its loss; public, and the same for every record

    @property
    def width(self) -> int:
        """Number of its outputs."""
        return self.objective.outputs or 1


@dataclass(frozen=True, slots=True)
class TextTask:
    """A text that is written behind a record, beside what a head learns of it."""

    name: str
    asked: str  # what stands before the text, for people
    weight: float = 1.0  # of its loss, the mean over its tokens


@dataclass(frozen=True, slots=True)
class SeveralTasks(_WholeNumber):
    """Several tasks with a part of the outputs each: the weighted sum of the losses of those that a record tells.

    A target holds a digit for each task, the first one lowest: 0 where the record does not tell, else 1 plus the task's
    own. Nothing is divided by how many tasks a record tells, or how many records of a batch tell one: a unit's gradient
    is a function of its own records. A joint head with one loss a task is that of Caruana (1997), Multitask Learning.

    Beside them a text may be written behind the record, see `written`: by the model's own output matrix, so that the
    head has no outputs for it, and its loss, that of a completion, is added by whoever holds the model.
    """

    tasks: tuple[Task, ...]
    text: TextTask | None = None

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks] + ([] if self.text is None else [self.text.name])
        if not self.tasks or len(set(names)) < len(names):
            raise InvalidAdapter("need one or more tasks for the head, each with a name of its own")
        if self.digits > 2**MOST_LABELS:
            raise InvalidAdapter(
                f"the tasks together tell {math.log2(self.digits):.1f} bits of a record, and at most {MOST_LABELS} "
                "fit: a number takes 16, a label 2, classes as many as their count needs"
            )

    @property
    def outputs(self) -> int:
        """The number of outputs of all tasks."""
        return sum(task.width for task in self.tasks)

    @property
    def meaning(self) -> str:
        """The tasks, in the order of their outputs."""
        parts = [
            f"Task {_listed((task.name,))[1:-1]}, {task.width} of them: {task.objective.meaning}" for task in self.tasks
        ]
        if self.text is not None:
            parts.append(
                f"Task {_listed((self.text.name,))[1:-1]} is a text, which the model writes behind the record and "
                f"{_listed((self.text.asked,))[1:-1]}."
            )
        return f"It gives {self.outputs} numbers, those of its tasks one after another. {' '.join(parts)}"

    @property
    def digits(self) -> int:
        """The number of ways in which the tasks can be told or not."""
        return math.prod(1 + task.objective.digits for task in self.tasks)

    def joined(
        self, targets: Sequence[npt.NDArray[np.generic]], is_told: Sequence[npt.NDArray[np.bool_]]
    ) -> npt.NDArray[np.int64]:
        """[R], one target a record, of the targets [R] of each task; those that are not told may be anything."""
        digits = [np.zeros(len(own), dtype=np.int64) for own in targets]
        for task, digit, own, told in zip(self.tasks, digits, targets, is_told, strict=True):
            digit[told] = 1 + task.objective.digit_of(own[told])
        found: npt.NDArray[np.int64] = self._packed(digits)
        return found

    def apart(self, targets_R: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Returns (targets [R], is_told bool [R]) of each task; a target that is not told is any valid one."""
        found, rest_R = [], targets_R.long()
        for task in self.tasks:
            base = 1 + task.objective.digits
            digit_R, rest_R = rest_R % base, rest_R // base
            found.append((task.objective.target_of((digit_R - 1).clamp_min(0)), digit_R > 0))
        return found

    def parts(self, outputs_RK: Tensor) -> list[Tensor]:
        """Returns each task's own outputs, [R] or [R, K], as its objective takes them."""
        parts = torch.split(outputs_RK, [task.width for task in self.tasks], dim=1)
        # Contiguous: torch's loops over strided numbers round the last few of them in another way.
        return [
            (part[:, 0] if task.objective.outputs is None else part).contiguous()
            for task, part in zip(self.tasks, parts, strict=True)
        ]

    def made_up(self, rows: int) -> Tensor:
        """[R], in turn a target that tells every task, and one that tells the first alone."""
        tells_all, tells_first = self._packed([1] * len(self.tasks)), 2
        return torch.where(torch.arange(rows) % 2 == 0, tells_all, tells_first)

    def losses(self, outputs: Tensor, targets_R: Tensor) -> Tensor:
        """[R] weighted sums of the losses of the tasks that each record tells, of outputs [R, K]."""
        total_R = outputs.new_zeros(len(outputs))
        for task, part, (target_R, told_R) in zip(self.tasks, self.parts(outputs), self.apart(targets_R), strict=True):
            total_R = total_R + task.weight * torch.where(told_R, task.objective.losses(part, target_R), 0.0)
        return total_R

    def unlikely(self, outputs: Tensor) -> Tensor:
        """[R], of every task a target that is unlikely."""
        unlikely = [
            task.objective.unlikely(part).cpu().numpy()
            for task, part in zip(self.tasks, self.parts(outputs), strict=True)
        ]
        is_told = [np.ones(len(outputs), dtype=np.bool_)] * len(self.tasks)
        return torch.from_numpy(self.joined(unlikely, is_told)).to(outputs.device)

    def _packed(self, digits: Sequence[Any]) -> Any:
        """Puts the digits of all tasks, numbers or arrays, into one: 0 where a task is not told."""
        found, base = 0, 1
        for task, digit in zip(self.tasks, digits, strict=True):
            found, base = found + base * digit, base * (1 + task.objective.digits)
        return found


def _listed(names: tuple[str, ...]) -> str:
    """Writes names so that no two lists of them look alike, in one line."""
    return json.dumps(names, ensure_ascii=False)


def _filled_up(outputs_RK: Tensor) -> Tensor:
    """Adds rows of zeros up to whole vector registers, see `record_losses`."""
    return F.pad(outputs_RK, (0, 0, 0, -len(outputs_RK) % REGISTERS))

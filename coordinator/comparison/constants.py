"""Finds the one answer that is right for most records: what any model has to beat."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ...models.heads.objectives import Objective, OneClass, PointOnScale, SeveralLabels, Task
from ...models.records.outcomes import Outcome
from ...models.records.tasks import OutcomeTerms, TaskTerms

ROUNDING = 1e-7  # more than float32 moves a point on a scale from -1 to 1
_STARTS = 50  # of a search for the answers of several tasks


def best(objective: Objective, told: np.ndarray, within: float = 0.0) -> np.ndarray:
    """Returns the outputs, one number or [K], of the answer that is right for most records.

    Args:
        told: [rows], targets of the objective; -1 is a value that no answer has.
        within: of a point on a scale from -1 to 1: it is right if it is as near.
    """
    match objective:
        case PointOnScale():
            lowest, reach = np.sort(told.astype(np.float64)), within + ROUNDING
            count = np.searchsorted(lowest, lowest + 2 * reach, "right") - np.arange(len(lowest))  # near enough
            return np.asarray(min(1.0, lowest[count.argmax()] + reach))
        case SeveralLabels():
            patterns, count = np.unique(told, return_counts=True)
            return np.asarray(2.0 * (patterns[count.argmax()] >> np.arange(objective.outputs) & 1) - 1)
    count = np.bincount(told[told >= 0].astype(np.int64), minlength=objective.outputs or 2)
    chosen = (count == count.max()).astype(np.float64)
    return chosen if objective.outputs else np.asarray(chosen[1] - chosen[0])


def within(terms: Outcome) -> float:
    """Returns how near a point on a scale from -1 to 1 must be; 0 of other outcomes."""
    number = terms.number
    return 0.0 if number is None else 2 * number.within / (number.high - number.low)


def best_of_tasks(terms: OutcomeTerms, told: np.ndarray) -> np.ndarray:
    """Returns the outputs [K] of the answers with which most records have all right that they tell of several tasks.

    Searched task by task, each answer the best beside those of the others, until none is better: from the best answer
    of each task by itself, and from what the commonest records say. More than is found here may be possible.

    Args:
        told: [rows], targets of the tasks' objective.
    """
    objective = terms.objective()
    parts = objective.apart(torch.from_numpy(told))
    tasks = [
        _OneTask(task, own, target.numpy(), is_told.numpy())
        for task, own, (target, is_told) in zip(objective.tasks, (terms.tasks or {}).values(), parts, strict=True)
    ]
    return np.concatenate(max((_climbed(tasks, start) for start in _starts(tasks)), key=lambda one: _count(tasks, one)))


@dataclass(frozen=True, slots=True)
class _OneTask:
    """A task of several, with what records tell of it."""

    task: Task
    terms: TaskTerms
    target: np.ndarray  # [rows]
    is_told: np.ndarray  # bool [rows]

    def is_wrong(self, answer: np.ndarray) -> np.ndarray:
        """bool [rows], which records tell something else than an answer [K]."""
        outputs = np.tile(answer, (len(self.target), 1))
        outputs = outputs if self.task.objective.outputs else outputs[:, 0]
        wrong: np.ndarray = self.is_told & ~self.terms.right(outputs, self.target)
        return wrong

    def best_for(self, rows: np.ndarray, old: np.ndarray) -> np.ndarray:
        """[K], the answer that is right for most of some records, bool [rows]; `old` if none of them tells the task."""
        told = self.target[rows & self.is_told]
        if not len(told):
            return old
        reach = self.terms.reach - 2 * ROUNDING  # so that both ends of what is covered count as right
        return best(self.task.objective, told, reach).reshape(-1)

    def answer(self, row: int, old: np.ndarray) -> np.ndarray:
        """[K], what a record tells; `old` if it does not tell the task."""
        if not self.is_told[row]:
            return old
        match self.task.objective:
            case OneClass(names):
                return np.asarray(np.eye(len(names))[int(self.target[row])])
            case PointOnScale():
                return np.array([float(self.target[row])])
        return np.array([2.0 * self.target[row] - 1])


def _starts(tasks: list[_OneTask]) -> Iterator[list[np.ndarray]]:
    everybody = np.ones(len(tasks[0].target), dtype=np.bool_)
    alone = [one.best_for(everybody, np.zeros(one.task.width)) for one in tasks]
    yield alone
    said = [np.where(one.is_told, one.target, -1) for one in tasks if not isinstance(one.task.objective, PointOnScale)]
    if said:
        _, first, count = np.unique(np.stack(said), axis=1, return_index=True, return_counts=True)
        for row in first[np.argsort(-count)[:_STARTS]]:
            yield [one.answer(row, old) for one, old in zip(tasks, alone, strict=True)]


def _climbed(tasks: list[_OneTask], answers: list[np.ndarray]) -> list[np.ndarray]:
    """Improves answers in turn until no more records have all right."""
    right = -1
    while (found := _count(tasks, answers)) > right:
        right, before = found, answers
        for place, one in enumerate(tasks):
            others = [each.is_wrong(answer) for each, answer in zip(tasks, answers, strict=True) if each is not one]
            rows = ~np.any([np.zeros(len(one.target), dtype=np.bool_), *others], axis=0)
            answers = [*answers[:place], one.best_for(rows, answers[place]), *answers[place + 1 :]]
    return before


def _count(tasks: list[_OneTask], answers: list[np.ndarray]) -> int:
    """Counts the records that tell something, and have all right that they tell."""
    is_wrong = np.any([one.is_wrong(answer) for one, answer in zip(tasks, answers, strict=True)], axis=0)
    return int((~is_wrong & np.any([one.is_told for one in tasks], axis=0)).sum())

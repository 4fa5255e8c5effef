"""Finds the one answer that is right for most records: what any model has to beat."""

import numpy as np
import torch

from ...models.heads.objectives import Objective, PointOnScale, SeveralLabels
from ...models.records.outcomes import Outcome
from ...models.records.tasks import OutcomeTerms

ROUNDING = 1e-7  # more than float32 moves a point on a scale from -1 to 1


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
    """Returns the outputs [K] of the answer to each task that is right for most records that tell it.

    Args:
        told: [rows], targets of the tasks' objective.
    """
    objective, answers = terms.objective(), []
    parts = objective.apart(torch.from_numpy(told))
    for task, own, (target, is_told) in zip(objective.tasks, terms.head_tasks.values(), parts, strict=True):
        of_task = target[is_told].numpy()
        reach = own.reach - 2 * ROUNDING  # so that both ends of what is covered count as right
        answers.append(best(task.objective, of_task, reach).reshape(-1) if len(of_task) else np.zeros(task.width))
    return np.concatenate(answers)

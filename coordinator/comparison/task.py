"""Reads what a comparison is about: a study's records of all sites in one place, and what is to be told of them.

The layout is that of the examples' `prepare.py`: a folder a site with `train.csv` and `heldout.csv`, or `.parquet`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...client_node.data import Records, read
from ...client_node.files import file_digest
from ...client_node.study import StudyDraft
from ...client_node.study.cost import provisional
from ...models.evaluation.metrics import Estimate, auc, exact_match
from ...models.heads.objectives import BinaryLabel, Objective, OneClass, PointOnScale, SeveralLabels, SeveralTasks
from ...models.records.tasks import OutcomeTerms, TaskTerms
from ..errors import StudyRefused
from ..results.export import held_out_policy

MOST_VALUES = 100  # of a completion that linear models foretell as a class
_PARTS = ("train", "heldout")
_FORMATS = (".csv", ".parquet")
_ROUNDING = 1e-7  # more than float32 moves a point on a scale from -1 to 1


@dataclass(frozen=True, slots=True)
class Target:
    """An outcome that is to be told of each record from the rest of it."""

    metric: str  # "AUC" of a label, "accuracy" of other outcomes, "exact match" of a completion's values
    objective: Objective  # which learns it
    train: Mapping[str, np.ndarray]  # site -> [rows], as the objective takes them
    held_out: np.ndarray  # [rows] of all sites; -1 is a value of a completion that no training record has
    within: float = 0.0  # of a point on a scale from -1 to 1: an answer is right if it is as near
    tasks: tuple["TaskTarget", ...] = ()  # of several: what is told of each

    def judge(self, outputs: np.ndarray) -> Estimate:
        """Measures the outputs for all held-out records: [rows] or [rows, K].

        The interval is over records: DeLong's of an AUC, Wilson's of a share. Of several labels all must be right.
        """
        if self.metric == "AUC":
            return auc(outputs, self.held_out)
        return exact_match(self._is_right(outputs).tolist())

    def best_constant(self) -> np.ndarray:
        """Returns outputs, the same for every held-out record, of the one answer that is right for most of them."""
        told = self.held_out
        match self.objective:
            case PointOnScale():
                lowest, reach = np.sort(told.astype(np.float64)), self.within + _ROUNDING
                count = np.searchsorted(lowest, lowest + 2 * reach, "right") - np.arange(len(lowest))  # near enough
                return np.full(len(told), min(1.0, lowest[count.argmax()] + reach))
            case SeveralTasks():
                return np.concatenate([each.best_constant(len(told)) for each in self.tasks], axis=1)
            case SeveralLabels():
                patterns, count = np.unique(told, return_counts=True)
                bits = patterns[count.argmax()] >> np.arange(self.objective.outputs) & 1
                return np.tile(2.0 * bits - 1, (len(told), 1))
        count = np.bincount(told[told >= 0], minlength=self.objective.outputs or 2)
        scores = np.tile((count == count.max()).astype(np.float64), (len(told), 1))
        return scores if self.objective.outputs else scores[:, 1] - scores[:, 0]

    def _is_right(self, outputs: np.ndarray) -> np.ndarray:
        match self.objective:
            case PointOnScale():
                errors: np.ndarray = np.abs(outputs.clip(-1, 1) - self.held_out.astype(np.float64))
                return errors <= self.within + 2 * _ROUNDING
            case SeveralTasks():
                return self._all_right(outputs)
            case SeveralLabels():
                chosen = ((outputs > 0).astype(np.int64) << np.arange(self.objective.outputs)).sum(1)
            case OneClass():
                chosen = outputs.argmax(1)
            case _:
                chosen = (outputs > 0).astype(np.int64)
        found: np.ndarray = chosen == self.held_out
        return found

    def _all_right(self, outputs: np.ndarray) -> np.ndarray:
        """bool [rows], whether a record tells any task, and all that it tells is right."""
        assert isinstance(self.objective, SeveralTasks)
        parts = self.objective.parts(torch.from_numpy(outputs))
        is_right, tells = np.ones(len(outputs), dtype=np.bool_), np.zeros(len(outputs), dtype=np.bool_)
        for each, part in zip(self.tasks, parts, strict=True):
            is_right[each.is_told] &= each.target._is_right(part.numpy()[each.is_told])
            tells |= each.is_told
        return is_right & tells


@dataclass(frozen=True, slots=True)
class TaskTarget:
    """One task of several."""

    target: Target  # of the held-out records that tell it
    is_told: np.ndarray  # bool [rows] of all held-out records

    def best_constant(self, rows: int) -> np.ndarray:
        """[rows, K] outputs of the one answer that is right for most records that tell the task; zeros if none does."""
        if not self.is_told.any():
            return np.zeros((rows, self.target.objective.outputs or 1))
        one = self.target.best_constant()[:1]
        return np.tile(one.reshape(1, -1), (rows, 1))


@dataclass(frozen=True, slots=True)
class Task:
    """A study with the records of its sites, which must be public or synthetic."""

    draft: StudyDraft
    train: Mapping[str, Records]  # site -> its records
    held_out: Mapping[str, Records]
    target: Target | None  # None: completions of many values, of which linear models have nothing to tell
    train_digest: str  # SHA-256 over the files
    held_out_digest: str

    @property
    def held_out_records(self) -> int:
        """Number of held-out records of all sites."""
        return sum(len(records.units) for records in self.held_out.values())


def read_task(draft: StudyDraft, folder: Path, *, unit_column: str | None = None) -> Task:
    """Reads the records of every site of the study below `folder`.

    Args:
        unit_column: that names the unit; by default the study's unit and `_id`, as in the examples.

    Raises:
        DataInvalid: a cell does not fit.
        StudyRefused: a site has no table there.
    """
    study = provisional(draft, dim=1)  # for its columns alone
    column = unit_column or f"{draft.data.unit}_id"
    files = {part: site_files(folder, draft.participants.sites, part) for part in _PARTS}
    train, held_out = (
        {site: read(held_out_policy(path, study, column), study, site=site) for site, path in files[part].items()}
        for part in _PARTS
    )
    return Task(
        draft=draft,
        train=train,
        held_out=held_out,
        target=_target(draft, train, held_out),
        train_digest=_digest(files["train"]),
        held_out_digest=_digest(files["heldout"]),
    )


def site_files(folder: Path, sites: Sequence[str], part: str) -> dict[str, Path]:
    """Finds the table of each site, `part` being train or heldout.

    Raises:
        StudyRefused: some have none.
    """
    found, missing = {}, []
    for site in sites:
        paths = [folder / site / f"{part}{ending}" for ending in _FORMATS]
        there = [path for path in paths if path.is_file()]
        if there:
            found[site] = there[0]
        else:
            missing.append(str(paths[0]))
    if missing:
        raise StudyRefused(
            f"no table {', '.join(missing)} (nor .parquet); records lie in a folder for each site of the study with "
            "train.csv and heldout.csv, as examples/*/prepare.py write them"
        )
    return found


def shown_texts(draft: StudyDraft, records: Records) -> list[str]:
    """Joins the cells of a text record that a model is shown; an empty cell is nothing."""
    names = _shown_columns(draft)
    rows = zip(*(records.columns[name] for name in names), strict=True)
    return [" ".join(str(cell) for cell in row if cell is not None) for row in rows]


def _shown_columns(draft: StudyDraft) -> list[str]:
    learned = _learned_columns(draft)
    return [column.name for column in draft.data.kind.columns(draft.data.terms) if column.name not in learned]


def _learned_columns(draft: StudyDraft) -> set[str]:
    """Columns of what is learned: of an outcome, or of the completions of free text."""
    terms = draft.data.terms
    if isinstance(terms, OutcomeTerms):
        return set(terms.outcome_columns)
    templates = draft.data.text.templates() if draft.data.text else ()
    return {name for each in templates for name in each.completion_columns}


def _target(draft: StudyDraft, train: Mapping[str, Records], held_out: Mapping[str, Records]) -> Target | None:
    terms = draft.data.terms
    if isinstance(terms, OutcomeTerms):
        return _of_outcome(terms, train, held_out)
    learned = _learned_columns(draft)
    if len(learned) != 1:
        return None
    (column,) = learned
    values = {site: records.columns[column] for site, records in train.items()}
    return _of_values(values, np.concatenate([records.columns[column] for records in held_out.values()]))


def _of_outcome(terms: OutcomeTerms, train: Mapping[str, Records], held_out: Mapping[str, Records]) -> Target:
    """Returns the target of a head."""

    def targets(records: Records) -> np.ndarray:
        return np.asarray(terms.targets(records.columns, records.labels))

    told = np.concatenate([targets(records) for records in held_out.values()])
    objective = terms.objective()
    return Target(
        metric="AUC" if terms.counted == "labels" else "accuracy",
        objective=objective,
        train={site: targets(records) for site, records in train.items()},
        held_out=told,
        within=_within(terms),
        tasks=_task_targets(terms.tasks, objective, told) if terms.tasks else (),
    )


def _task_targets(terms: Mapping[str, TaskTerms], objective: SeveralTasks, told: np.ndarray) -> tuple[TaskTarget, ...]:
    found = []
    for own, task, (target, is_told) in zip(
        terms.values(), objective.tasks, objective.apart(torch.from_numpy(told)), strict=True
    ):
        of_task = target.numpy()[is_told.numpy()]
        found.append(TaskTarget(Target("accuracy", task.objective, {}, of_task, _within(own)), is_told.numpy()))
    return tuple(found)


def _within(terms: OutcomeTerms | TaskTerms) -> float:
    """Returns how near a point on a scale from -1 to 1 must be; 0 of other outcomes."""
    number = terms.number
    return 0.0 if number is None else 2 * number.within / (number.high - number.low)


def _of_values(train: Mapping[str, np.ndarray], held_out: np.ndarray) -> Target | None:
    values = sorted({str(value) for cells in train.values() for value in cells})
    if not 2 <= len(values) <= MOST_VALUES:
        return None
    number = {value: place for place, value in enumerate(values)}

    def numbers(cells: np.ndarray) -> np.ndarray:
        return np.array([number.get(str(cell), -1) for cell in cells], dtype=np.int64)

    coded = {site: numbers(cells) for site, cells in train.items()}
    objective = BinaryLabel() if len(values) == 2 else OneClass(tuple(values))
    return Target("exact match", objective, coded, numbers(held_out))


def _digest(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for site, path in sorted(files.items()):
        digest.update(f"{site}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()

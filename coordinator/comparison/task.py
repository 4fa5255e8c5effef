"""Reads what a comparison is about: a study's records of all sites in one place, and what is to be told of them.

The layout is that of the examples' `prepare.py`: a folder a site with `train.csv` and `heldout.csv`, or `.parquet`, or
with `records.toml`, which holds the `[data]` of a site.toml, for records that are no table in a file.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...client_node.data import Records, read, tables
from ...client_node.files import file_digest
from ...client_node.policy import SitePolicy
from ...client_node.study import Study, StudyDraft
from ...client_node.study.cost import provisional
from ...models.evaluation.metrics import Estimate, auc, exact_match, mean_share
from ...models.heads.objectives import BinaryLabel, Objective, OneClass, PointOnScale, SeveralLabels
from ...models.records.tasks import OutcomeTerms, is_told
from ..errors import StudyRefused
from ..studies.held_out import RECORDS, described_policies, held_out_policy
from . import best_constant

MOST_VALUES = 100  # of a completion that linear models foretell as a class
_PARTS = ("train", "heldout")
_FORMATS = (".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Target:
    """An outcome that is to be told of each record from the rest of it."""

    metric: str  # "AUC" of a label, "accuracy" of other outcomes, "exact match" of a completion's values
    objective: Objective  # which learns it
    train: Mapping[str, np.ndarray]  # site -> [rows], as the objective takes them
    held_out: np.ndarray  # [rows] of all sites; -1 is a value of a completion that no training record has
    within: float = 0.0  # of a point on a scale from -1 to 1: an answer is right if it is as near
    tasks: OutcomeTerms | None = None  # of several: their terms
    written: np.ndarray | None = None  # [rows] of a text: 1 if it is the most frequent one, 0 if not, NaN for none

    def judge(self, outputs: np.ndarray) -> Estimate:
        """Measures the outputs for all held-out records: [rows] or [rows, K].

        The interval is over records: DeLong's of an AUC, Wilson's of a share. Of several labels all must be right; of
        several tasks it is the mean share of a record's that is right. None of these models writes: where a text is a
        task, it is answered with the most frequent one.
        """
        if self.metric == "AUC":
            return auc(outputs, self.held_out)
        if self.tasks is not None:
            return mean_share(self.tasks.shares(outputs, self.held_out, self.written))
        return exact_match(self._is_right(outputs).tolist())

    def best_constant(self) -> np.ndarray:
        """Returns outputs, the same for every held-out record, of the one answer that is right for most of them."""
        if self.tasks is not None:
            one = best_constant.best_of_tasks(self.tasks, self.held_out)
        else:
            one = best_constant.best(self.objective, self.held_out, self.within)
        return np.tile(one, (len(self.held_out), 1)) if self.objective.outputs else np.full(len(self.held_out), one)

    def _is_right(self, outputs: np.ndarray) -> np.ndarray:
        match self.objective:
            case PointOnScale():
                errors: np.ndarray = np.abs(outputs.clip(-1, 1) - self.held_out.astype(np.float64))
                return errors <= self.within + 2 * best_constant.ROUNDING
            case SeveralLabels():
                chosen = ((outputs > 0).astype(np.int64) << np.arange(self.objective.outputs)).sum(1)
            case OneClass():
                chosen = outputs.argmax(1)
            case _:
                chosen = (outputs > 0).astype(np.int64)
        found: np.ndarray = chosen == self.held_out
        return found


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
        PolicyInvalid: the description of a site's records is none.
        StudyRefused: a site has no table there, or a query.
    """
    study = provisional(draft, dim=1)  # for its columns alone
    return task_of(study, *policies(study, folder, draft.participants.sites, unit_column))


def task_of(study: Study, train: Mapping[str, SitePolicy], held_out: Mapping[str, SitePolicy]) -> Task:
    """Reads the records that each site's policies name: those in training, and those held out.

    Raises:
        DataInvalid: a cell does not fit.
    """
    trained_on, tested_on = (
        {site: read(policy, study, site=site) for site, policy in policies.items()} for policies in (train, held_out)
    )
    return Task(
        draft=study.draft,
        train=trained_on,
        held_out=tested_on,
        target=_target(study.draft, trained_on, tested_on),
        train_digest=digest_of(train),
        held_out_digest=digest_of(held_out),
    )


def policies(
    study: Study, folder: Path, sites: Sequence[str], unit_column: str | None = None
) -> tuple[dict[str, SitePolicy], dict[str, SitePolicy]]:
    """Makes the policies of each site's folder below `folder`: for records in training, and for those held out.

    Args:
        unit_column: as for `read_task`.

    Raises:
        PolicyInvalid: the description of a site's records is none.
        StudyRefused: a site has no table there, or a query.
    """
    unit_column = unit_column or f"{study.draft.data.unit}_id"
    described = {site: folder / site / RECORDS for site in sites if (folder / site / RECORDS).is_file()}
    in_tables = [site for site in sites if site not in described]
    files = [site_files(folder, in_tables, part) for part in _PARTS]
    pairs = {site: described_policies(path) for site, path in described.items()} | {
        site: (held_out_policy(files[0][site], study, unit_column), held_out_policy(files[1][site], study, unit_column))
        for site in in_tables
    }
    if queries := [str(described[site]) for site in described if pairs[site][0].data.sql is not None]:
        raise StudyRefused(f"{', '.join(queries)} names a query; write its answer into train.parquet, heldout.parquet")
    return {site: pairs[site][0] for site in sites}, {site: pairs[site][1] for site in sites}


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
    return [
        column.name
        for column in draft.data.kind.columns(draft.data.terms)
        if column.name not in learned and column.opens is None and column.sites != ()
    ]


def _learned_columns(draft: StudyDraft) -> set[str]:
    """Columns of what is learned: of an outcome, or of the completions of free text."""
    terms = draft.data.terms
    if isinstance(terms, OutcomeTerms):
        return set(terms.outcome_columns)
    if draft.data.kind.files:
        return {column.name for column in draft.data.kind.columns(terms) if column.kind == "text to learn"}
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
    return Target(
        metric="AUC" if terms.counted == "labels" else "accuracy",
        objective=terms.objective(),
        train={site: targets(records) for site, records in train.items()},
        held_out=told,
        within=best_constant.within(terms),
        tasks=terms if terms.tasks else None,
        written=None if terms.written is None else _most_frequent(terms.written.column, held_out),
    )


def _most_frequent(column: str, held_out: Mapping[str, Records]) -> np.ndarray:
    """[rows], whether a text is the one that most records tell; NaN where a record tells none."""
    cells = np.concatenate([records.columns[column] for records in held_out.values()])
    found = np.full(len(cells), np.nan)
    told = is_told(cells)
    if told.any():
        texts, count = np.unique(cells[told].astype(str), return_counts=True)
        found[told] = cells[told].astype(str) == texts[count.argmax()]
    return found


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


def digest_of(policies: Mapping[str, SitePolicy]) -> str:
    """Digests the files of all sites, and the columns that are made of an export."""
    digest = hashlib.sha256()
    for site, policy in sorted(policies.items()):
        for path in tables.files_of(policy.data.source):
            digest.update(f"{site}\0{file_digest(path)}\n".encode())
        if policy.data.fhir is not None:
            columns = {name: column.model_dump(mode="json") for name, column in policy.data.fhir.columns.items()}
            spelling = {name: dict(words) for name, words in policy.data.values.items()}
            digest.update(json.dumps([site, columns, spelling], sort_keys=True).encode())
    return digest.hexdigest()

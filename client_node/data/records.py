"""Reads a site's records by the columns of a study, and reports problems in them without a single value."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...models.records import cells
from ...models.records.kind import Column
from ...models.records.tasks import OutcomeTerms, is_told
from ..errors import DataInvalid
from ..policy import SitePolicy
from ..policy.sources import FhirExport, Source
from ..study import Study, StudyDraft
from ..study.terms import DataTerms
from .named_files import files_below
from .tables import Problem, Problems, RowsDigest, Table, open_table


@dataclass(frozen=True, slots=True)
class Records:
    """The columns, units and labels of records, ready for training. Its repr is empty."""

    # By the study's name: [rows] of float64, bool, int64, str|None, lists of these where several rows are a record, or
    # bytes of the files that cells name.
    columns: Mapping[str, np.ndarray] = field(repr=False)
    units: np.ndarray = field(repr=False)  # int64 [rows]: whose record it is, numbered in the order of ids
    labels: np.ndarray | None = field(repr=False)  # int64 [rows], 0 or 1; None of free text

    @property
    def num_units(self) -> int:
        """Number of units that the records are about."""
        return int(self.units.max(initial=-1)) + 1


@dataclass(frozen=True, slots=True)
class ColumnReport:
    """The results of a check for one column."""

    name: str  # in the study
    own: str  # in the site's file
    kind: str
    missing: int
    misfits: int  # cells that do not fit the study


@dataclass(frozen=True, slots=True)
class DataReport:
    """The results of a check for a file. They count records, so they are for the site alone."""

    path: str
    rows: int
    units: int
    rows_per_unit: tuple[int, float, int] | None  # least, median, most
    columns: tuple[ColumnReport, ...]
    labels: tuple[int, int] | None  # records of 0 and of 1; None without a label, or with cells in it that are neither
    problems: tuple[Problem, ...]  # the first 20
    problem_count: int
    objections: tuple[str, ...] = ()  # people who are known under another account, see `known_units`

    @property
    def is_fit(self) -> bool:
        """True if the file can be used for training."""
        return self.problem_count == 0 and not self.objections

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A column to read: the site's own name for it, and the site's own words in it."""

    column: Column
    own: str
    spelling: Mapping[str, str] = field(default_factory=dict)
    has_commas: bool = False  # numbers are written with a decimal comma
    need: Literal["needed", "optional", "unread"] = "needed"  # where it is not read, its cells are empty

    @property
    def name(self) -> str:
        return self.column.name

    def is_read_from(self, table: Table) -> bool:
        return self.need != "unread" and self.own in table.names


@dataclass(slots=True)
class _Scan:
    """One pass over a whole file."""

    pieces: dict[str, list[np.ndarray]]
    missing: dict[str, int]
    misfits: dict[str, int]  # cells that do not fit
    problems: Problems
    folder: Path | None = None  # below which files are that cells name
    file_bytes: int = 0  # of these
    rows: int = 0
    ids: list[pa.Array] = field(default_factory=list)  # of units, as text
    commas: dict[str, list[int]] = field(default_factory=dict)  # own name -> rows with a decimal comma, not told yet

    def values(self, name: str) -> np.ndarray:
        """Joins the pieces of a column; they are held once after it, not twice."""
        if len(self.pieces[name]) > 1:
            self.pieces[name] = [np.concatenate(self.pieces[name])]
        return self.pieces[name][0] if self.pieces[name] else np.zeros(0)

    def taken(self, name: str) -> np.ndarray:
        """Returns a column, and holds it no more."""
        values = self.values(name)
        del self.pieces[name]
        return values

    def units(self) -> np.ndarray:
        """Numbers the units in the order of their ids, int64 [rows]: the same in whatever order rows were read."""
        if not self.rows:
            return np.zeros(0, dtype=np.int64)
        ranks = pc.rank(pa.chunked_array(self.ids, pa.string()), tiebreaker="dense")
        return np.asarray(ranks.to_numpy()).astype(np.int64) - 1


_MOST_FILE_BYTES = 2**33  # of all files that a table names, or of what records take by them if that is more
_UNIT, _LABEL = "(unit)", "(label)"  # no column of a study can have such a name


def read(
    policy: SitePolicy,
    study: Study | StudyDraft,
    *,
    site: str | None,
    in_order: bool = False,
    digest: RowsDigest | None = None,
) -> Records:
    """Reads the site's records for a study, all of one state of their source.

    Args:
        site: whose records they are, as the study names it, for columns that some sites alone have; None: anybody's,
            who have or have not such columns. A site must name itself, or it would train on a column that is not its.
        in_order: True to put records in an order of their own, by unit and then by what they say, so that the order of
            rows in the source decides nothing: neither who is drawn, nor which of a unit's records, nor in which order
            floats are added. False leaves rows as they came, but for those that make one record. Units are numbered in
            the order of ids in any case.
        digest: takes the rows that were read, where the source has no stamp by which a change would be seen.

    Raises:
        DataInvalid: a cell does not fit; a table with problems is not used at all.
    """
    data = policy.data
    table = open_table(data.source, format=data.format, separator=data.separator, ids=data.unit_column)
    wanted = _wanted(policy, _terms(study), site)
    scan = _scan(table, wanted, policy.data.files, digest)
    if scan.problems.count:
        raise DataInvalid(str(table.source), scan.problems.located(table.lines), scan.problems.count)
    units = scan.units()
    scan.ids.clear()
    names = [column.name for column in wanted if column.name != _UNIT]
    columns = {name: scan.taken(name) for name in names}
    if in_order or _terms(study).kind.joins_rows:
        order = _order(columns, units, _terms(study))
        for name in names:  # one by one, so that only one column is there twice
            columns[name] = columns[name][order]
        units = units[order]
    labels = columns.pop(_LABEL, None)
    records = Records(columns, units, labels=None if labels is None else labels.astype(np.int64, copy=False))
    return _gathered(records, _terms(study))


def _order(columns: Mapping[str, np.ndarray], units: np.ndarray, data: DataTerms) -> np.ndarray:
    """Orders rows by unit, and those of one unit by what they say; equal ones are alike in whichever order.

    Only the study's own columns count: what it does not read cannot decide anything. What is learned counts last: where
    rows make a record, the place of a visit must not tell it.
    """
    learned = {_LABEL, *_outcomes(data)}
    order = np.argsort(units, kind="stable")
    several = np.flatnonzero((np.bincount(units) > 1)[units[order]])  # places of rows that are not alone in their unit
    if len(several):
        rows = order[several]
        # From the last key to the first, one at a time by stable sorts: all at once are a second table.
        for name in sorted(columns, key=lambda name: (name in learned, name), reverse=True):
            rows = rows[np.argsort(_comparable(columns[name][rows]), kind="stable")]
        order[several] = rows[np.argsort(units[rows], kind="stable")]
    return order


def _comparable(values: np.ndarray) -> np.ndarray:
    """Returns numbers in the order of the values: themselves, or the places of objects among all that differ."""
    if values.dtype != object:
        return values
    found = sorted({value for value in values if value is not None})
    places = {value: place for place, value in enumerate(found, 1)}
    return np.fromiter((0 if value is None else places[value] for value in values), np.int64, count=len(values))


def _gathered(table: Records, data: DataTerms) -> Records:
    """Makes one record of the rows that are one: lists of their cells, and outcomes as the last of them says."""
    if not data.kind.joins_rows:
        return table
    rows = data.kind.rows_of_records(data.terms, table.columns, table.units)
    last, outcomes = np.array([own[-1] for own in rows], dtype=np.int64), _outcomes(data)
    return Records(
        columns={
            name: column[last] if name in outcomes else _lists(column, rows) for name, column in table.columns.items()
        },
        units=table.units[last],
        labels=None if table.labels is None else table.labels[last],
    )


def _outcomes(data: DataTerms) -> tuple[str, ...]:
    return data.terms.outcome_columns if isinstance(data.terms, OutcomeTerms) else ()


def _lists(column: np.ndarray, rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.fromiter((column[own].tolist() for own in rows), dtype=object, count=len(rows))


def check(
    source: Source,
    policy: SitePolicy,
    study: Study | StudyDraft | None = None,
    *,
    site: str | None = None,
    both_classes: bool = True,
) -> DataReport:
    """Checks a source, such as the file at a path, as the policy says to read it.

    With a study, checks all columns of the study. Without one, checks only that the file, its unit column and its label
    column are usable, and counts missing cells.

    Args:
        site: see `read`.
        both_classes: True if a table whose labels are all equal is a problem.
    """
    try:
        is_own = source == policy.data.source
        data = policy.data
        own_format = data.format if is_own else None
        table = open_table(source, format=own_format, separator=data.separator, ids=data.unit_column)
        wanted = _seen(policy, table) if study is None else _wanted(policy, _terms(study), site)
        scan = _scan(table, wanted, policy.data.files)
    except DataInvalid as err:
        return DataReport(str(source), 0, 0, None, (), None, _problems_of(err), err.count)
    units = scan.units()
    telling = None if study is None or scan.problems.count else _telling_rows(scan, units, _terms(study))
    labels = _label_counts(scan, telling)
    _add_emptiness(scan, wanted, labels if both_classes else None, telling)
    per_unit = np.bincount(units)
    return DataReport(
        path=str(source),
        rows=scan.rows,
        units=len(per_unit),
        rows_per_unit=(int(per_unit.min()), float(np.median(per_unit)), int(per_unit.max())) if len(units) else None,
        columns=tuple(
            ColumnReport(
                column.name.strip("()"),
                column.own,
                column.column.kind,
                scan.missing[column.name],
                scan.misfits[column.name],
            )
            for column in wanted
            if column.is_read_from(table)
        ),
        labels=labels,
        problems=scan.problems.located(table.lines),
        problem_count=scan.problems.count,
    )


def _telling_rows(scan: _Scan, units: np.ndarray, data: DataTerms) -> np.ndarray | None:
    """The rows that say what is learned, where several rows make a record: the last of each; None for all."""
    if not data.kind.joins_rows:
        return None
    columns = {name: scan.values(name) for name in scan.pieces if name != _UNIT}
    order = _order(columns, units, data)
    rows = data.kind.rows_of_records(
        data.terms, {name: column[order] for name, column in columns.items()}, units[order]
    )
    return order[np.array([own[-1] for own in rows], dtype=np.int64)]


def _label_counts(scan: _Scan, telling: np.ndarray | None) -> tuple[int, int] | None:
    """Counts the records of both labels; None without a label, or with cells that are no label and read as 0."""
    if _LABEL not in scan.pieces or scan.misfits[_LABEL]:
        return None
    labels = scan.values(_LABEL) if telling is None else scan.values(_LABEL)[telling]
    ones = int(labels.sum())
    return len(labels) - ones, ones


def _add_emptiness(
    scan: _Scan, wanted: list[_Wanted], labels: tuple[int, int] | None, telling: np.ndarray | None
) -> None:
    """Adds what is wrong with a table whose cells all fit: nothing is in it, or nothing to tell apart."""
    if scan.problems.count:
        return
    if not scan.rows:
        scan.problems.add(Problem(None, "", "rows below the header", "none"))
        return
    for column in wanted:
        if not (column.column.is_task and column.need == "needed"):
            continue
        cells_told = is_told(scan.values(column.name))
        if not (cells_told if telling is None else cells_told[telling]).any():
            scan.problems.add(Problem(None, column.own, f"cells that say something of {column.name}", "none"))
    if labels is not None and 0 in labels:
        own = next(column.own for column in wanted if column.name == _LABEL)
        only = labels.index(max(labels))
        scan.problems.add(Problem(None, own, "rows of both labels, 0 and 1", f"{only} in all; is it the right column?"))


def _add_commas(scan: _Scan, wanted: list[_Wanted]) -> None:
    """Adds decimal commas: one problem for a column that is full of them, else one for each cell."""
    for column in wanted:
        rows = scan.commas.get(column.own, [])
        if 2 * len(rows) > scan.rows - scan.missing[column.name]:
            found = f'{len(rows):,} with decimal commas; set decimal = "," in [data] of site.toml'
            scan.problems.add(Problem(None, column.own, "numbers with decimal points", found))
        else:
            scan.problems.add_rows(np.array(rows), column.own, column.column.expected, ["text"] * len(rows))


def _problems_of(err: DataInvalid) -> tuple[Problem, ...]:
    return tuple(problem for problem in err.problems if isinstance(problem, Problem))


def _terms(study: Study | StudyDraft) -> DataTerms:
    return study.draft.data if isinstance(study, Study) else study.data


def _wanted(policy: SitePolicy, terms: DataTerms, site: str | None) -> list[_Wanted]:
    """Columns to read for a study: the unit, and every column of the study under the site's own name."""
    own, spelling = policy.data.columns, policy.data.values
    wanted = [_unit_column(policy)]
    for column in terms.kind.columns(terms.terms):
        name = own.get(column.name, column.name)
        if column.is_label:
            spelt = spelling.get(column.name, {})
            wanted.append(_Wanted(replace(column, name=_LABEL), policy.data.label_column or name, spelt))
        else:
            has_commas = policy.data.decimal == "," and column.kind == "number"
            wanted.append(_Wanted(column, name, spelling.get(column.name, {}), has_commas, _need(column.sites, site)))
    return wanted


def _need(sites: tuple[str, ...] | None, site: str | None) -> Literal["needed", "optional", "unread"]:
    if sites is None:
        return "needed"
    if site is None:
        return "optional"
    return "needed" if site in sites else "unread"


def _unit_column(policy: SitePolicy) -> _Wanted:
    column = Column(_UNIT, "unit id", "an id of at most 256 printable characters", cells.unit_ids)
    return _Wanted(column, policy.data.unit_column)


def _seen(policy: SitePolicy, table: Table) -> list[_Wanted]:
    """Columns to check without a study: the unit and the label; of all others only missing cells are counted."""
    label = policy.data.label_column
    known = [_unit_column(policy)]
    if label:
        column = Column(_LABEL, "label", "0 or 1", cells.labels, is_label=True)
        known.append(_Wanted(column, label, policy.data.values.get(label, {})))
    named = {wanted.own for wanted in known}
    return known + [
        _Wanted(Column(name, "not read", "", cells.anything), name)
        for name in table.names
        if name and name not in named
    ]


def _scan(table: Table, wanted: list[_Wanted], folder: Path | None, digest: RowsDigest | None = None) -> _Scan:
    counts = dict.fromkeys((column.name for column in wanted), 0)
    scan = _Scan({name: [] for name in counts}, {**counts}, {**counts}, Problems(), folder)
    present = [column for column in wanted if column.is_read_from(table)]
    named = next((each for each in present if each.column.opens is not None), None)
    if folder is None and named is not None:
        expected = "a folder of the files that it names: data.files in site.toml"
        scan.problems.add(Problem(None, named.own, expected, "none"))
        return scan
    if named is not None and folder is not None and not folder.is_dir():
        scan.problems.add(Problem(None, named.own, f"a folder {folder}, of the files that it names", "none"))
        return scan
    for column in wanted:
        if column.need == "needed" and column not in present:
            scan.problems.add(Problem(None, column.own, *_absent(column, table)))
    if not present:
        return scan
    for batch in table.batches([column.own for column in present], scan.problems, digest):
        for column in present:
            text = cells.respell(batch[column.own], column.spelling)
            _take(scan, column, cells.with_points(text) if column.has_commas else text)
        scan.rows += len(next(iter(batch.values()), ()))
    _add_commas(scan, present)
    for column in wanted:
        if column.need != "needed" and column not in present:
            _take(scan, column, pa.array([""] * scan.rows, pa.string()))
    return scan


def _take(scan: _Scan, wanted: _Wanted, text: pa.Array) -> None:
    read = wanted.column.read(text)
    if wanted.column.opens is not None:
        return _take_files(scan, wanted, read, wanted.column.opens)
    misfit = read.misfit
    scan.misfits[wanted.name] += int(misfit.sum())
    if wanted.name == _UNIT:
        scan.ids.append(text)
    else:
        scan.pieces[wanted.name].append(read.values)
    scan.missing[wanted.name] += int(read.missing.sum())
    if wanted.column.kind == "number" and misfit.any():
        commas = misfit & cells.has_decimal_comma(text)
        scan.commas.setdefault(wanted.own, []).extend((np.flatnonzero(commas) + scan.rows).tolist())
        misfit = misfit & ~commas
    rows = np.flatnonzero(misfit)
    if len(rows):
        scan.problems.add_rows(rows + scan.rows, wanted.own, wanted.column.expected, cells.kinds(text, rows))


def _take_files(scan: _Scan, wanted: _Wanted, read: cells.Cells, keep: Callable[[bytes], bytes]) -> None:
    assert scan.folder is not None, "columns of files are read below a folder"
    files, wrong = files_below(scan.folder, read.values, read.misfit, keep)
    scan.pieces[wanted.name].append(files)
    scan.missing[wanted.name] += int(read.missing.sum())
    scan.file_bytes += sum(max(len(file), wanted.column.taken) for file in files)
    if scan.file_bytes > _MOST_FILE_BYTES:
        most = f"at most {_MOST_FILE_BYTES >> 30} GiB of the files that it names, as records take them in memory"
        raise DataInvalid(str(scan.folder), (Problem(None, wanted.own, most, "more"),))
    if wrong:
        scan.misfits[wanted.name] += len(wrong)
        rows = np.array([*wrong]) + scan.rows
        told = ["nothing" if read.missing[row] else what for row, what in wrong.items()]
        scan.problems.add_rows(rows, wanted.own, wanted.column.expected, told)


def _absent(wanted: _Wanted, table: Table) -> tuple[str, str]:
    near = difflib.get_close_matches(wanted.own.lower(), [name.lower() for name in table.names], n=1)
    match = next((name for name in table.names if near and name.lower() == near[0]), None)
    place = {_UNIT: "data.unit_column", _LABEL: "data.label_column"}.get(wanted.name, f"data.columns.{wanted.name}")
    if isinstance(table.source, FhirExport) and wanted.name != _UNIT:  # a name is not what is missing
        match, place = None, f"data.fhir.columns.{wanted.own}, with what it is made of"
    hint = f"did you mean {match}? Name it in site.toml under {place}" if match else f"name it in site.toml: {place}"
    return f"a column of this name for the study's {wanted.name.strip('()')}", f"none; {hint}"

"""Makes a table of a FHIR R4 Bulk Data export: a row for each patient, columns as site.toml declares them.

Files are NDJSON, a resource a line, perhaps compressed by gzip, and read line by line; a line and a file have a limit.
Of a resource only the elements that a column needs are looked at, and those strictly. Lines that are not what their
file's name says are counted, and never shown. What is kept in memory is a number or two for each patient and column.
"""

import datetime as dt
import gzip
import json
import math
import os
import re
import stat
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from ...policy.sources import FhirColumn, FhirExport
from ..problems import MAX_ROWS, Problem, Problems, unreadable
from .digest import RowsDigest
from .rows import BATCH_ROWS

ID = "patient"  # column of the patients' ids
MOST_LINE = 4 * 2**20  # bytes
MOST_FILE = 64 * 2**30  # bytes, decompressed
_FILE = re.compile(r"(Patient|Observation|Condition|MedicationRequest)([._-][A-Za-z0-9._-]{0,200})?\.ndjson(\.gz)?")
_ID = re.compile(r"[A-Za-z0-9.\-]{1,64}")
_REFERENCE = re.compile(
    r"(https?://[^\s]{1,500}/)?(Patient|Group|Device|Location)/([A-Za-z0-9.\-]{1,64})"
    r"(?:/_history/[A-Za-z0-9.\-]{1,64})?"
)
_MOST_BASES = 100  # that are told apart
_DAY = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")
_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})?(Z|[+-]\d{2}:\d{2})")
_RESOURCES = {"patient": "Patient", "observation": "Observation", "condition": "Condition",
              "medication": "MedicationRequest"}  # fmt: skip
# R4's closed lists of codes. What has a code that is False here was never said, or was taken back.
_OBSERVED = {
    "registered": False, "preliminary": True, "final": True, "amended": True, "corrected": True, "cancelled": False,
    "entered-in-error": False, "unknown": True,
}  # fmt: skip
_REQUESTED = {
    "active": True, "on-hold": True, "cancelled": False, "completed": True, "entered-in-error": False, "stopped": True,
    "draft": False, "unknown": True,
}  # fmt: skip
_INTENDED = {
    "proposal": False, "plan": False, "order": True, "original-order": True, "reflex-order": True,
    "filler-order": True, "instance-order": True, "option": False,
}  # fmt: skip
_VERIFIED = {
    "unconfirmed": True, "provisional": True, "differential": True, "confirmed": True, "refuted": False,
    "entered-in-error": False,
}  # fmt: skip
_VERIFICATION = "http://terminology.hl7.org/CodeSystem/condition-ver-status"
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NEVER = -math.inf  # time of what has none


class _Bad(Exception):
    """A line that is not what it should be; it says nothing."""


@dataclass(frozen=True, slots=True)
class FhirRows:
    """The patients of an export."""

    source: FhirExport
    names: tuple[str, ...]
    whole: str = "FHIR export"

    def batches(self, wanted: Sequence[str], problems: Problems, digest: RowsDigest | None) -> Iterator[list[pa.Array]]:
        """See `Rows`. All files are read before the first batch."""
        del digest
        reading = _Reading(self.source, {name: self.source.columns[name] for name in wanted if name != ID}, problems)
        reading.read()
        for start in range(0, len(reading.index), BATCH_ROWS):
            stop = min(start + BATCH_ROWS, len(reading.index))
            yield [reading.cells(name, start, stop) for name in wanted]

    def lines(self, rows: set[int]) -> dict[int, int]:
        """See `Rows`: a patient is many lines."""
        del rows
        return {}


def open_export(source: FhirExport) -> FhirRows:
    """Looks for the files of an export.

    Raises:
        DataInvalid: there is no file of patients, a column has the name of the patients' ids, or a file is none.
    """
    if ID in source.columns:
        raise unreadable(source, f"no column {ID} in data.fhir.columns: that is the patients' ids", "one")
    if not files_of(source.folder)["Patient"]:
        raise unreadable(source, "a file Patient.ndjson or Patient.ndjson.gz", "none")
    return FhirRows(source, (ID, *source.columns))


def files_of(folder: Path) -> dict[str, list[Path]]:
    """Lists the files of each kind of resource by name; other files of the folder are not looked at.

    Raises:
        DataInvalid: the folder cannot be read, such a file is a link or no file, or a part is there twice.
    """
    found: dict[str, list[Path]] = {kind: [] for kind in _RESOURCES.values()}
    try:
        for name in sorted(os.listdir(folder)):
            if (matched := _FILE.fullmatch(name)) is not None:
                if not stat.S_ISREG((folder / name).lstat().st_mode):
                    raise unreadable(folder, "files of an export", "a link, a folder or a device among them")
                found[matched[1]].append(folder / name)
    except OSError as err:
        raise unreadable(folder, "the folder of an export", f"none that can be read ({err.strerror})") from None
    names = {path.name for paths in found.values() for path in paths}
    if any(f"{name}.gz" in names for name in names):
        raise unreadable(folder, "each part of an export once", "a part as .ndjson and as .ndjson.gz")
    return found


def resources(path: Path, kind: str, *, every: int = 1) -> Iterator[dict[str, Any] | None]:
    """Yields the resources of one file, and None for a line that is no resource of that kind.

    Args:
        every: 1 for all lines, n for one of n.

    Raises:
        DataInvalid: a line or the file is too long, or the file is damaged.
    """
    size = lines = 0
    try:
        with _opened(path) as file:
            while line := file.readline(MOST_LINE + 1):
                size, lines = size + len(line), lines + 1
                if len(line) > MOST_LINE or size > MOST_FILE:
                    raise unreadable(
                        path, f"lines of at most {MOST_LINE >> 20} MiB, {MOST_FILE >> 30} GiB in all", "more"
                    )
                if (lines - 1) % every == 0 and not line.isspace():
                    yield _resource(line, kind)
    except (OSError, EOFError, zlib.error):
        raise unreadable(path, "a whole file", "damage, or none that can be read") from None


def patient_of(resource: Mapping[str, Any]) -> str | None:
    """Returns the id of the patient that a resource is about, however the reference is written; None if of nobody."""
    named = _subject(resource)
    return named[3] if named is not None and named[2] == "Patient" else None


def stamps_of_export(source: FhirExport) -> list[object]:
    """Returns the times, sizes and numbers of all files, and the columns that are made of them; see `tables.stamp`."""
    stats = [(path.name, path.stat()) for paths in files_of(source.folder).values() for path in paths]
    columns = {name: column.model_dump(exclude_none=True) for name, column in source.columns.items()}
    return [[name, found.st_mtime_ns, found.st_size, found.st_ino] for name, found in stats] + [columns]


@dataclass(slots=True)
class _Column:
    """What is kept of one column, by the patient's place."""

    stated: FhirColumn
    times: "array[float]" = field(default_factory=lambda: array("d"))
    values: "array[float]" = field(default_factory=lambda: array("d"))
    texts: list[str | None] = field(default_factory=list)
    several: dict[int, list[float]] = field(default_factory=dict)  # of a mean
    units: set[str] = field(default_factory=set)
    since: float = -math.inf
    before: float = math.inf

    def is_in_time(self, moment: float) -> bool:
        """True if what happened at a moment counts; what has no time counts only where no limit is set."""
        if moment == _NEVER:
            return self.since == -math.inf and self.before == math.inf
        return self.since <= moment < self.before

    def take(self, place: int, moment: float, value: float) -> None:
        """Takes an observation; of two at one time the larger, so that the order of lines decides nothing."""
        known, at = self.values[place], self.times[place]
        match self.stated.take:
            case "count":
                self.values[place] = 1.0 if math.isnan(known) else known + 1.0
            case "mean":
                self.several.setdefault(place, []).append(value)
            case "least":
                self.values[place] = value if math.isnan(known) else min(known, value)
            case "most":
                self.values[place] = value if math.isnan(known) else max(known, value)
            case "first":
                early = (math.inf if moment == _NEVER else moment, -value)
                if math.isnan(known) or early < (math.inf if at == _NEVER else at, -known):
                    self.times[place], self.values[place] = moment, value
            case "last":
                if math.isnan(known) or (moment, value) > (at, known):
                    self.times[place], self.values[place] = moment, value


class _Reading:
    """One reading of an export."""

    def __init__(self, source: FhirExport, columns: Mapping[str, FhirColumn], problems: Problems) -> None:
        self.index: dict[str, int] = {}
        self._source, self._problems = source, problems
        self._columns = {name: _column(stated) for name, stated in columns.items()}
        self._by_code: dict[str, dict[tuple[str, str], list[_Column]]] = {kind: {} for kind in _RESOURCES.values()}
        for column in self._columns.values():
            for code in _codes(column.stated):
                self._by_code[_kind(column.stated)].setdefault(code, []).append(column)
        self._ids: list[str] | None = None
        self._strangers: Counter[str] = Counter()  # by kind, about patients who are not in the export
        self._bases: set[str] = set()  # URLs of servers whose patients are named
        self._counted: set[str] = set()  # ids of observations that a count or a mean took

    def read(self) -> None:
        """Reads the files that the columns need: those of patients first."""
        takers: dict[str, Callable[[dict[str, Any]], None]] = {
            "Patient": self._patient, "Observation": self._observation, "Condition": self._condition,
            "MedicationRequest": self._medication,
        }  # fmt: skip
        files = files_of(self._source.folder)
        for kind, take in takers.items():
            if kind != "Patient" and not self._by_code[kind]:
                continue
            for path in files[kind]:
                bad = self._read(path, kind, take)
                if bad:
                    self._problems.count += bad - 1
                    expected = f"{kind} resources of FHIR R4 in {path.name}, a line each"
                    self._problems.add(Problem(None, "", expected, f"{bad:,} that are none, or are broken"))
        for kind, count in self._strangers.items():
            self._problems.count += count - 1
            told = f"{count:,} about patients who are not in it"
            self._problems.add(Problem(None, "", f"a whole export, each {kind} of a patient in it", told))
        if len(self._bases) > 1:
            expected = "references to patients of one server"
            self._problems.add(Problem(None, "", expected, f"those of {len(self._bases)}"))
        for name, column in self._columns.items():
            if len(column.units) > 1:
                expected = "observations in one unit; name it in data.fhir.columns"
                self._problems.add(Problem(None, name, expected, f"{len(column.units)} units"))

    def cells(self, name: str, start: int, stop: int) -> pa.Array:
        """Returns a column's cells of some patients."""
        if name == ID:
            self._ids = list(self.index) if self._ids is None else self._ids
            return pa.array(self._ids[start:stop], pa.string())
        column = self._columns[name]
        if column.texts:
            return pa.array(column.texts[start:stop], pa.string())
        if column.stated.take == "mean" and column.stated.observation:
            means = (column.several.get(place) for place in range(start, stop))
            return pa.array([None if each is None else math.fsum(each) / len(each) for each in means], pa.float64())
        found = column.values[start:stop]
        if column.stated.take == "count":
            return pa.array([0 if math.isnan(value) else int(value) for value in found], pa.int64())
        if column.stated.condition or column.stated.medication:
            return pa.array([value == 1.0 for value in found], pa.bool_())
        return pa.array([None if math.isnan(value) else value for value in found], pa.float64())

    def _named(self, kind: str, concept: Any) -> list[_Column]:
        """The columns that one of a CodeableConcept's codings is for, each once."""
        by_code = self._by_code[kind]
        found = [column for code in _codings(concept) for column in by_code.get(code, ())]
        return list({id(column): column for column in found}.values())

    def _read(self, path: Path, kind: str, take: Callable[[dict[str, Any]], None]) -> int:
        """Reads one file; returns how many lines are bad."""
        bad = 0
        for resource in resources(path, kind):
            try:
                take(_object(resource))
            except _Bad:
                bad += 1
        return bad

    def _patient(self, resource: dict[str, Any]) -> None:
        own = resource.get("id")
        columns = [each for each in self._columns.values() if each.stated.patient is not None]
        if not isinstance(own, str) or not _ID.fullmatch(own) or own in self.index:
            raise _Bad
        _require_plain(resource)
        cells = [_of_patient(resource, each.stated) for each in columns]  # before anything is kept
        if len(self.index) >= MAX_ROWS:
            raise unreadable(self._source, f"at most {MAX_ROWS} patients", "more")
        self.index[own] = len(self.index)
        for column, cell in zip(columns, cells, strict=True):
            column.texts.append(cell)
        for column in self._columns.values():
            if column.stated.patient is None:
                column.times.append(_NEVER)
                column.values.append(math.nan)

    def _place(self, resource: dict[str, Any], kind: str) -> int | None:
        """The place of the patient that a resource is about; None if it is about none, or one who is not here."""
        if (named := _subject(resource)) is None:
            raise _Bad
        base, subject, own = named.groups()
        if subject != "Patient":
            return None
        if base is not None and len(self._bases) < _MOST_BASES:
            self._bases.add(base)
        place = self.index.get(own)
        if place is None:
            self._strangers[kind] += 1
        return place

    def _observation(self, resource: dict[str, Any]) -> None:
        parts = [resource, *map(_object, _list(resource.get("component")))]
        matched = [(column, part) for part in parts for column in self._named("Observation", part.get("code"))]
        if not matched or not _counts(resource, "status", _OBSERVED):
            return
        for part in (resource, *(part for _, part in matched)):
            _require_plain(part)
        moment = _time(resource, "effectiveDateTime", "effectiveInstant", "effectivePeriod", "issued")
        in_time = [(column, part) for column, part in matched if column.is_in_time(moment)]
        found = [(column, value) for column, part in in_time if (value := _value(part, column)) is not None]
        place = self._place(resource, "Observation") if found else None
        if place is not None:
            if any(column.stated.take in ("count", "mean") for column, _ in found):
                self._require_new(resource)
            for column, value in found:
                column.take(place, moment, value)

    def _condition(self, resource: dict[str, Any]) -> None:
        columns = self._named("Condition", resource.get("code"))
        if columns and _is_so(resource.get("verificationStatus")):
            self._flag(resource, "Condition", columns, _time(resource, "onsetDateTime", "onsetPeriod", "recordedDate"))

    def _medication(self, resource: dict[str, Any]) -> None:
        columns = self._named("MedicationRequest", resource.get("medicationCodeableConcept"))
        if not columns:
            return
        is_request, is_order = _counts(resource, "status", _REQUESTED), _counts(resource, "intent", _INTENDED)
        is_forbidden = resource.get("doNotPerform", False)
        if not isinstance(is_forbidden, bool):
            raise _Bad
        if is_request and is_order and not is_forbidden:
            self._flag(resource, "MedicationRequest", columns, _time(resource, "authoredOn"))

    def _flag(self, resource: dict[str, Any], kind: str, columns: list[_Column], moment: float) -> None:
        _require_plain(resource)
        in_time = [each for each in columns if each.is_in_time(moment)]
        place = self._place(resource, kind) if in_time else None
        if place is not None:
            for column in in_time:
                column.values[place] = 1.0

    def _require_new(self, resource: dict[str, Any]) -> None:
        """Raises _Bad for an observation that was counted already, or has no id by which one could know."""
        own = resource.get("id")
        if not isinstance(own, str) or not _ID.fullmatch(own) or own in self._counted:
            raise _Bad
        self._counted.add(own)


def _column(stated: FhirColumn) -> _Column:
    since = -math.inf if stated.since is None else _seconds(stated.since)
    return _Column(stated, since=since, before=math.inf if stated.before is None else _seconds(stated.before))


def _codes(stated: FhirColumn) -> list[tuple[str, str]]:
    named = stated.observation or stated.condition or stated.medication or ()
    parts = [each.rpartition("|") for each in ((named,) if isinstance(named, str) else named)]
    return [(system, code) for system, _, code in parts]


def _kind(stated: FhirColumn) -> str:
    return next(kind for name, kind in _RESOURCES.items() if getattr(stated, name) is not None)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file, decompressed; no link and no pipe, also if it was put there meanwhile."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as raw:
        if not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
            raise OSError
        if path.suffix == ".gz":
            with BufferedReader(cast(Any, gzip.GzipFile(fileobj=raw)), 2**18) as file:
                yield file
        else:
            yield raw


def _never(_: str) -> float:
    raise _Bad


def _resource(line: bytes, kind: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line.decode("utf-8"), parse_constant=_never)
    except (_Bad, ValueError, RecursionError):  # of UTF-8, of JSON, of a number with too many digits
        return None
    return found if isinstance(found, dict) and found.get("resourceType") == kind else None


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Bad
    return value


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _Bad
    return value


def _subject(resource: Mapping[str, Any]) -> re.Match[str] | None:
    """Matches server, kind and id of whom a resource is about; None of a contained patient, whom nobody knows, too."""
    subject = resource.get("subject")
    reference = subject.get("reference") if isinstance(subject, dict) else None
    return _REFERENCE.fullmatch(reference) if isinstance(reference, str) else None


def _word(resource: dict[str, Any], name: str) -> str | None:
    value = resource.get(name)
    if value is not None and not isinstance(value, str):
        raise _Bad
    return value


def _codings(concept: Any) -> set[tuple[str, str]]:
    """The codings of a CodeableConcept that have a system and a code."""
    if concept is None:
        return set()
    found = set()
    for coding in map(_object, _list(_object(concept).get("coding"))):
        system, code = _word(coding, "system"), _word(coding, "code")
        if system is not None and code is not None:
            found.add((system, code))
    return found


def _counts(resource: dict[str, Any], name: str, known: Mapping[str, bool]) -> bool:
    """True if what has this code counts; the element must be there, with a code of R4."""
    code = _word(resource, name)
    if code is None or code not in known:
        raise _Bad
    return known[code]


def _is_so(verification: Any) -> bool:
    """False of a condition that was refuted or entered in error.

    What is stated must have a code of R4, whose system may be left out; codes of other systems may stand beside it.
    """
    if verification is None:
        return True
    stated = map(_object, _list(_object(verification).get("coding")))
    codings = [(_word(each, "system"), _word(each, "code")) for each in stated]
    own = [code for system, code in codings if system is None or system == _VERIFICATION]
    if not own or any(code is None or code not in _VERIFIED for code in own):
        raise _Bad
    return all(_VERIFIED.get(code or "", True) for _, code in codings)


def _require_plain(part: dict[str, Any]) -> None:
    """Raises _Bad if an extension changes what the part means, perhaps to its opposite."""
    if _list(part.get("modifierExtension")):
        raise _Bad


def _value(part: dict[str, Any], column: _Column) -> float | None:
    """The number of an observation; None if it has none, or only a bound (`<`)."""
    if "valueQuantity" in part:
        quantity = _object(part["valueQuantity"])
        number, unit = quantity.get("value"), _word(quantity, "code") or _word(quantity, "unit")
        if _word(quantity, "comparator") is not None or number is None:
            return None
    elif "valueInteger" in part:
        number, unit = part["valueInteger"], None
    else:
        return None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise _Bad
    try:
        value = float(number)
    except OverflowError:
        raise _Bad from None
    if not math.isfinite(value):
        raise _Bad
    if column.stated.unit is not None and unit != column.stated.unit:
        raise _Bad
    if len(column.units) < 100:
        column.units.add(unit or "")
    return value


def _time(resource: dict[str, Any], *names: str) -> float:
    """Seconds since 1970 of the first of the elements that is there, UTC; `_NEVER` if none is."""
    for name in names:
        stated = resource.get(name)
        if name.endswith("Period") and stated is not None:
            stated = _object(stated).get("start")
        if stated is not None:
            return _seconds(stated)
    return _NEVER


def _seconds(stated: Any) -> float:
    """Seconds since 1970 of a FHIR dateTime; of a year, a month or a day when it begins, in UTC."""
    if not isinstance(stated, str):
        raise _Bad
    try:
        if _DAY.fullmatch(stated):
            year, month, day = (*map(int, stated.split("-")), 1, 1)[:3]
            found = dt.datetime(year, month, day, tzinfo=dt.UTC)
        elif _MOMENT.fullmatch(stated):
            found = dt.datetime.fromisoformat(stated)
        else:
            raise _Bad
    except ValueError:
        raise _Bad from None
    return (found - _EPOCH).total_seconds()


def _of_patient(resource: dict[str, Any], stated: FhirColumn) -> str | None:
    """The cell of a column that a Patient says."""
    if stated.patient == "gender":
        gender = _word(resource, "gender")
        if gender is not None and not gender.isprintable():  # half of a letter too, which no text can hold
            raise _Bad
        return gender
    if stated.patient == "deceased":
        flag = resource.get("deceasedBoolean")
        if flag is not None and not isinstance(flag, bool):
            raise _Bad
        return "true" if flag or resource.get("deceasedDateTime") is not None else "false"
    born = _word(resource, "birthDate")
    if born is None:
        return None
    if not _DAY.fullmatch(born):
        raise _Bad
    _seconds(born)  # a day of the calendar
    if stated.patient == "birth_year":
        return born[:4]
    assert stated.at is not None, "an age is counted at a day"
    years = int(stated.at[:4]) - int(born[:4]) - (stated.at[5:] < born[5:])  # of a year alone: as if at its beginning
    return str(years) if years >= 0 else None

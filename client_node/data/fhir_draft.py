"""Proposes the columns that a FHIR export could be made into: by its codes, for the columns of a study.

Of a large export some lines are looked at, spread over its files. A code, its name or a unit is told, to the site's own
people, if at least ten patients have it there; values of observations never are.
"""

import datetime as dt
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from ...models.records.kind import Column
from ..policy.sources import FhirExport
from .sources.fhir import files_of, open_export, patient_of, resources

FEWEST = 10  # patients who must have a code
_BYTES = 100 * 2**20  # of each kind of resource that are looked at, some
_PACKED = 10  # times as large is what gzip made small
_MOST_CODES = 20  # of a flag
_MOST_SEEN, _MOST_NAMES = 100_000, 1000  # different codes that are followed, and names of one
_MOST_SHOWN = 30  # of each kind
_MOST_TEXT = 100  # characters of a name
_CODE = re.compile(r"[!-{}~]{1,200}\|[!-{}~]{1,100}")  # printable ASCII without |, as site.toml may state it
Kind = Literal["observation", "condition", "medication"]
_KINDS: dict[str, tuple[Kind, str]] = {
    "Observation": ("observation", "code"),
    "Condition": ("condition", "code"),
    "MedicationRequest": ("medication", "medicationCodeableConcept"),
}
_OF_PATIENT = {
    "age": "age", "sex": "gender", "gender": "gender", "birthyear": "birth_year", "yearofbirth": "birth_year",
    "deceased": "deceased", "died": "deceased", "dead": "deceased",
}  # fmt: skip
_GENDERS = ("female", "male", "other", "unknown")  # all codes of R4
_SPELT = {  # as studies write them
    "female": ("F", "f", "Female", "FEMALE", "woman", "w", "W"),
    "male": ("M", "m", "Male", "MALE", "man"),
    "other": ("O", "o", "Other", "OTHER"),
    "unknown": ("U", "u", "Unknown", "UNKNOWN"),
}
_NOTHING = "none"  # a missing cell
# Short names of the trade, beside the words of the names that codes have.
_SHORT = {
    "tsh": "thyrotropin", "hba1c": "hemoglobin a1c", "a1c": "hemoglobin a1c", "hb": "hemoglobin", "hgb": "hemoglobin",
    "bmi": "body mass index", "sbp": "systolic blood pressure", "dbp": "diastolic blood pressure",
    "crp": "c reactive protein", "wbc": "leukocytes", "alt": "alanine aminotransferase",
    "ast": "aspartate aminotransferase", "bun": "urea nitrogen", "spo2": "oxygen saturation", "weight": "body weight",
    "height": "body height", "temperature": "body temperature", "pulse": "heart rate", "haemoglobin": "hemoglobin",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Code:
    """A code that an export has for at least ten patients."""

    kind: Kind
    code: str  # SYSTEM|CODE
    name: str  # that the export gives it; "" if it gives none, or none that ten patients have
    patients: int  # in the lines looked at; for the site's own people
    units: tuple[str, ...] = ()  # of numbers


@dataclass(frozen=True, slots=True)
class ExportSketch:
    """An export as it looks from its codes, for the site's own people."""

    codes: tuple[Code, ...]  # those of most patients first
    few: int  # codes that fewer patients have, which are not told

    @property
    def shown(self) -> list[Code]:
        """The codes of most patients, of each kind at most thirty."""
        kinds = [kind for kind, _ in _KINDS.values()]
        return [code for kind in kinds for code in [each for each in self.codes if each.kind == kind][:_MOST_SHOWN]]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A column of an export, as data.fhir.columns of site.toml states it."""

    stated: Mapping[str, str | tuple[str, ...]]
    spelling: Mapping[str, str]  # FHIR's own words -> the study's
    note: str

    @property
    def toml(self) -> str:
        """The column as an inline table."""
        return "{ " + ", ".join(f"{name} = {_toml(value)}" for name, value in self.stated.items()) + " }"


def is_export(path: Path) -> bool:
    """True of a folder that holds a file of an export."""
    return path.is_dir() and any(files_of(path).values())


def look(folder: Path) -> ExportSketch:
    """Looks at the codes in an export's files: in all lines, or in one of n, since one code's may stand together.

    Raises:
        DataInvalid: the folder or a file cannot be read, there are no patients, or a line is too long.
    """
    open_export(FhirExport(folder, {}))
    seen: dict[tuple[Kind, str], _Seen] = defaultdict(_Seen)
    for resource_type, (kind, place) in _KINDS.items():
        files = files_of(folder)[resource_type]
        every = 1 + sum(path.stat().st_size * (_PACKED if path.suffix == ".gz" else 1) for path in files) // _BYTES
        for resource in (each for path in files for each in resources(path, resource_type, every=every)):
            if resource is None or (patient := patient_of(resource)) is None:
                continue
            for part in (resource, *_list(resource.get("component"))):
                unit = _unit(_dict(part)) if kind == "observation" else ""
                for code, name in () if unit is None else _codings(_dict(part).get(place)):
                    if (kind, code) in seen or len(seen) < _MOST_SEEN:
                        seen[kind, code].add(patient, name, unit or "")
    told = [each.told(kind, code) for (kind, code), each in seen.items() if len(each.patients) >= FEWEST]
    return ExportSketch(tuple(sorted(told, key=lambda code: (-code.patients, code.code))), len(seen) - len(told))


def propose(export: ExportSketch, column: Column, *, day: dt.date) -> Proposal | None:
    """Proposes how a study's column is made of the export; None if nothing is like it.

    Args:
        day: whose year begins on the day at which an age is counted.
    """
    if (asked := _OF_PATIENT.get(re.sub(r"[^a-z]", "", column.name.lower()))) is not None:
        return _of_patient(asked, column, day)
    found = [code for code in export.codes if _is_like(column.name, code.name)]
    if column.kind == "number":
        numbers = [code for code in found if code.kind == "observation"]
        return _of_observation(numbers[0], len(numbers)) if numbers else None
    for kind in ("condition", "medication") if column.kind in ("flag", "label") else ():
        if named := [code for code in found if code.kind == kind][:_MOST_CODES]:
            codes = tuple(code.code for code in named)
            return Proposal({kind: codes if len(codes) > 1 else codes[0]}, {}, "; ".join(code.name for code in named))
    return None


def toml_lines(
    folder: Path, export: ExportSketch, columns: Sequence[Column] | None, *, day: dt.date
) -> tuple[list[str], dict[str, str | None]]:
    """Writes `[data.fhir]` of a site.toml, and how own words are spelt in the study.

    Args:
        columns: of a study; None writes what every export has, and the codes for people to choose from.

    Returns:
        The lines; and for each column of the study the code or element that it was given, or None.
    """
    head = [
        "[data.fhir]",
        f"folder = {_toml(str(folder))}",
        '# heldout_folder = "held-out" # a second export, of other patients, for studies that evaluate',
        "",
        "[data.fhir.columns] # guesses: look at each of them; since, before and take are in docs/records.md",
    ]
    usual = [f'age = {{ patient = "age", at = "{day.year}-01-01" }}', 'sex = { patient = "gender" }', *_choices(export)]
    if columns is None:
        return [*head, *usual, ""], {}
    guesses: dict[str, str | None] = {}
    lines, spellings = [], []
    for column in columns:
        found = propose(export, column, day=day)
        guesses[column.name] = None if found is None else _said(found)
        if found is None:
            lines.append(f"# {_key(column.name)} = ... # nothing like it")
            continue
        lines.append(f"{_key(column.name)} = {found.toml} # {found.note}")
        if found.spelling:
            spellings += [f"[data.values.{_key(column.name)}] # FHIR's word = the study's"]
            spellings += [f"{own} = {_toml(word)}" for own, word in found.spelling.items()] + [""]
    if not any(guesses.values()):  # there must be a column
        lines += usual
    return [*head, *lines, "", *spellings], guesses


@dataclass(slots=True)
class _Seen:
    """What was seen of one code, by the patients' ids."""

    patients: set[str] = field(default_factory=set)
    names: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    units: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def add(self, patient: str, name: str, unit: str) -> None:
        self.patients.add(patient)
        for text, kept in ((name, self.names), (unit, self.units)):
            if text and text.isprintable() and len(text) <= _MOST_TEXT and (text in kept or len(kept) < _MOST_NAMES):
                kept[text].add(patient)

    def told(self, kind: Kind, code: str) -> Code:
        names, units = (
            Counter({text: len(who) for text, who in kept.items() if len(who) >= FEWEST})
            for kept in (self.names, self.units)
        )
        name = min(names, key=lambda text: (-names[text], text), default="")
        return Code(kind, code, name, len(self.patients), tuple(sorted(units)))


def _of_patient(asked: str, column: Column, day: dt.date) -> Proposal | None:
    is_number = asked in ("age", "birth_year")
    if is_number != (column.kind == "number"):
        return None
    at = {"at": f"{day.year}-01-01"} if asked == "age" else {}
    note = "the day on which an age is counted" if at else "of Patient"
    return Proposal({"patient": asked, **at}, _genders(column) if asked == "gender" else {}, note)


def _genders(column: Column) -> dict[str, str]:
    """Pairs FHIR's words for a gender with the study's; a word that the study has not becomes a missing cell."""
    known = {own: next((word for word in (own, *_SPELT[own]) if _is_read(column, word)), _NOTHING) for own in _GENDERS}
    return {own: word for own, word in known.items() if own != word}


def _is_read(column: Column, word: str) -> bool:
    return not column.read(pa.array([word], pa.string())).misfit.any()


def _of_observation(code: Code, alike: int) -> Proposal:
    unit = {"unit": code.units[0]} if len(code.units) == 1 else {}
    several = f"; in several units, of which it takes one: {', '.join(code.units)}" if len(code.units) > 1 else ""
    others = f"; {alike - 1} more codes are like it" if alike > 1 else ""
    return Proposal({"observation": code.code, **unit}, {}, code.name + several + others)


def _is_like(column: str, name: str) -> bool:
    """True if all words of a column's name are in a code's name; short names of the trade stand for what they mean."""
    words = _words(column)
    wanted = _words(" ".join(_SHORT.get(word, word) for word in words))
    return bool(wanted) and wanted <= _words(name)


def _words(text: str) -> set[str]:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    return set(re.findall(r"[a-z0-9]+", apart.lower()))


def _choices(export: ExportSketch) -> Iterator[str]:
    """Yields the codes as lines to choose from."""
    for place, code in enumerate(export.shown, 1):
        name = "_".join(re.findall(r"[a-z0-9]+", code.name.lower())[:4]) or f"column_{place}"
        unit = f", unit = {_toml(code.units[0])}" if len(code.units) == 1 else ""
        yield f"# {name} = {{ {code.kind} = {_toml(code.code)}{unit} }}"


def _said(found: Proposal) -> str:
    return ", ".join(value if isinstance(value, str) else " ".join(value) for value in found.stated.values())


def _codings(concept: Any) -> set[tuple[str, str]]:
    """The codes of a CodeableConcept with their names, that site.toml can state."""
    found = set()
    for coding in map(_dict, _list(_dict(concept).get("coding"))):
        system, code, name = (coding.get(key) for key in ("system", "code", "display"))
        if isinstance(system, str) and isinstance(code, str) and _CODE.fullmatch(f"{system}|{code}"):
            found.add((f"{system}|{code}", name if isinstance(name, str) else ""))
    return found


def _unit(part: Mapping[str, Any]) -> str | None:
    """The unit of an observation's number; None if it has no number."""
    if isinstance(part.get("valueInteger"), int):
        return ""
    quantity = _dict(part.get("valueQuantity"))
    if not isinstance(quantity.get("value"), int | float):
        return None
    unit = quantity.get("code") or quantity.get("unit")
    return unit if isinstance(unit, str) else ""


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: str | tuple[str, ...]) -> str:
    return json.dumps(value, ensure_ascii=False)

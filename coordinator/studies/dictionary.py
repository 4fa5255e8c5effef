"""Reads a data dictionary: the names and published values of a table's columns, from CSV, TOML or JSON.

A dictionary describes a table and is no table: it holds names, ranges, cut points and code lists that are public
anyway. Whatever else somebody keeps in such a file (a column of examples, say) is refused as an unknown key.
"""

import csv
import io
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ...client_node.errors import DictionaryInvalid
from ...client_node.study.toml import MAX_BYTES, parse_json, read_toml
from ...models.records.fields import Cuts, Values
from ...models.records.tasks import MOST_TASKS
from ...models.strict import FieldName, Label, StrictModel, Text, contradictions

Kind = Literal["number", "category", "flag", "text", "label", "order"]

BINS = 10  # of a number with a range
_LISTS = ("cuts", "values")  # in CSV parted by |
_NUMBERS = ("low", "high")
_OF_KIND: dict[str, tuple[str, ...]] = {
    "number": ("cuts", "low", "high"),
    "category": ("values",),
    "label": ("values", "low", "high"),
}


class ColumnEntry(StrictModel):
    """One column of a table, as a dictionary describes it."""

    name: FieldName = Field(examples=['"age"'], description="the study's name for it; a site's own may differ")
    kind: Kind = Field(
        examples=['"number"'],
        description="number, category, flag, text; label: what is learned; order: of a person's rows",
    )
    cuts: Cuts | None = None  # of a number: inner cut points
    low: float | None = None  # or its range, which is cut into ten bins of one width; of a label, a scale to learn
    high: float | None = None
    values: Values | None = None  # of a category, and of a label that is no 0 or 1: every value that may occur
    measured_in: Label | None = None  # for people
    description: Text = ""  # for people

    @model_validator(mode="after")
    def _describes_its_kind(self) -> Self:
        keys = dict.fromkeys(key for keys in _OF_KIND.values() for key in keys)
        stated = [key for key in keys if getattr(self, key) is not None]
        problems = [
            f"{self.name}: {key} with kind {self.kind!r}; remove it"
            for key in stated
            if key not in _OF_KIND.get(self.kind, ())
        ]
        if self.kind == "category" and self.values is None:
            problems.append(f"{self.name}: values is missing; add every value that may occur, as a code list has them")
        if self.kind == "label" and self.values is not None and len(self.values) < 2:
            problems.append(f"{self.name}: values of a label are two classes or more, or 0 and 1")
        if self.kind == "label" and (self.low is not None or self.high is not None):
            problems += self._scale_problems()
        if self.kind == "number":
            problems += self._range_problems()
        if problems:
            raise contradictions(problems)
        return self

    @property
    def is_written(self) -> bool:
        """True if the label of a text has no values and no scale: a model writes it."""
        return self.kind == "label" and self.values is None and self.low is None

    def _scale_problems(self) -> list[str]:
        if self.values is not None:
            return [f"{self.name}: values and a range; keep one: a label is one of several classes, or a number"]
        if self.low is None or self.high is None or not self.low < self.high:
            return [f"{self.name}: a number that is learned has low and high, low below high"]
        return []

    def _range_problems(self) -> list[str]:
        if self.cuts is not None and (self.low is not None or self.high is not None):
            return [f"{self.name}: cuts and a range; keep one"]
        if self.cuts is None and (self.low is None or self.high is None):
            return [f"{self.name}: cuts, or low and high, are missing; add published reference values"]
        if self.low is not None and self.high is not None and len({*self.bin_edges()}) < BINS - 1:
            return [f"{self.name}: low is {self.low:g} and high is {self.high:g}; high must be well above low"]
        return []

    def bin_edges(self) -> tuple[float, ...]:
        """Inner cut points of a number: as stated, or of ten bins of one width over its range."""
        if self.cuts is not None:
            return self.cuts
        assert self.low is not None, "a number has cut points or a range"
        assert self.high is not None, "a number has cut points or a range"
        width = (self.high - self.low) / BINS
        edges = tuple(float(f"{self.low + i * width:.6g}") for i in range(1, BINS))
        return edges if all(low < high for low, high in itertools.pairwise(edges)) else ()


class Dictionary(StrictModel):
    """A table's columns: those of a record, and what is learned."""

    columns: Annotated[tuple[ColumnEntry, ...], Field(max_length=2048)]

    @model_validator(mode="after")
    def _makes_a_record(self) -> Self:
        names = [column.name for column in self.columns]
        problems = [f"{name} stands there more than once" for name in sorted({n for n in names if names.count(n) > 1})]
        labels = [column.name for column in self.columns if column.kind == "label"]
        if not labels:
            problems.append("one column or more must have kind 'label', what is learned; found none")
        if len(labels) > MOST_TASKS:
            problems.append(
                f"{len(labels)} columns have kind 'label'; a study learns at most {MOST_TASKS} things at once"
            )
        order = [column.name for column in self.columns if column.kind == "order"]
        if len(order) > 1:
            problems.append(
                f"one column may have kind 'order', by which a person's rows are sorted; found {', '.join(order)}"
            )
        if len(labels) + len(order) == len(names):
            problems.append("there is no column to learn from")
        kinds = {column.kind for column in self.columns} - {"label", "order"}
        written = [column.name for column in self.labels if column.is_written]
        if "text" in kinds and written and len(labels) > 1:
            problems.append(
                f"{', '.join(written)} would be written, and others told by a head; give it values, or keep one label"
            )
        if order and "text" in kinds:
            problems.append("an order with text; remove it: histories are of published values")
        if "text" in kinds and kinds != {"text"}:
            problems.append("text beside other kinds; a study's records are free text or published values, not both")
        if problems:
            raise contradictions(problems)
        return self

    @property
    def labels(self) -> tuple[ColumnEntry, ...]:
        """The columns that are learned."""
        return self.of_kind("label")

    @property
    def order(self) -> ColumnEntry | None:
        """The column by which a person's rows are sorted, if all of them make one record."""
        return next(iter(self.of_kind("order")), None)

    @property
    def is_text(self) -> bool:
        """True if records are free text."""
        return any(column.kind == "text" for column in self.columns)

    @property
    def is_written(self) -> bool:
        """True if a model writes the label of free text; a label with values is told by a head."""
        return self.is_text and self.labels[0].is_written

    def of_kind(self, kind: Kind) -> tuple[ColumnEntry, ...]:
        """Columns of a kind, in the dictionary's order."""
        return tuple(column for column in self.columns if column.kind == kind)


def read_dictionary(path: Path) -> Dictionary:
    """Reads the dictionary in the file at `path`: CSV, or by its suffix TOML or JSON.

    Raises:
        DictionaryInvalid: all problems, each with the column's name.
    """
    suffix = path.suffix.lower()
    if suffix == ".toml":
        return read_toml(path, Dictionary, error=DictionaryInvalid)
    text = _text(path)
    if suffix == ".json":
        return parse_json(text, Dictionary, error=DictionaryInvalid, source=str(path))
    rows = _rows(path, text)
    try:
        return parse_json(json.dumps({"columns": rows}), Dictionary, error=DictionaryInvalid, source=str(path))
    except DictionaryInvalid as err:
        raise DictionaryInvalid(str(path), tuple(_with_name(problem, rows) for problem in err.problems)) from None


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DictionaryInvalid(str(path), (f"the file is larger than {MAX_BYTES} bytes; is it the table itself?",))
        return path.read_text(encoding="utf-8-sig")
    except OSError as err:
        raise DictionaryInvalid(str(path), (f"the file cannot be read: {err.strerror}",)) from err
    except UnicodeDecodeError as err:
        raise DictionaryInvalid(str(path), ("the file is not UTF-8 text; save it as UTF-8",)) from err


def _rows(path: Path, text: str) -> list[dict[str, Any]]:
    header = text.partition("\n")[0]
    separator = next((each for each in ",;\t" if each in header), ",")
    try:
        return _read_rows(path, csv.DictReader(io.StringIO(text), delimiter=separator))
    except csv.Error as err:  # a cell longer than 128 KiB
        raise DictionaryInvalid(str(path), (f"the file is no CSV ({err}); is it the table itself?",)) from err


def _read_rows(path: Path, reader: "csv.DictReader[str]") -> list[dict[str, Any]]:
    names = [(name or "").strip() for name in reader.fieldnames or ()]
    if not {"name", "kind"} <= {*names}:
        raise DictionaryInvalid(
            str(path),
            ("the first line must name the columns name and kind, and may name cuts, low, high, values, measured_in "
             "and description",),
        )  # fmt: skip
    reader.fieldnames = names
    return [_row(row) for row in reader]


def _row(cells: Mapping[Any, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, cell in cells.items():
        if key is None:
            row["(cells beyond the header)"] = cell
        elif cell is not None and (text := cell.strip()):
            row[key] = _value(key, text)
    return row


def _value(key: str, text: str) -> Any:
    if key not in _LISTS:
        return _number(text) if key in _NUMBERS else text
    parts = [part.strip() for part in text.split("|")]
    return [_number(part) for part in parts] if key == "cuts" else parts


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # the schema says that it is none


def _with_name(problem: str, rows: list[dict[str, Any]]) -> str:
    """Says which column of the table a problem is about: `columns.3.kind` is no name to look for."""
    found = re.match(r"columns\.(\d+)\.", problem)
    if found is None or int(found[1]) >= len(rows):
        return problem
    number = int(found[1])
    return f"row {number + 1} ({rows[number].get('name', 'without a name')}): {problem[found.end() :]}"

"""Records of published fields: their values are rendered as one line of text and encoded as token ids.

The vocabulary comes from the schema alone, never from records, so it may be published and used for pretraining.
Therefore a schema's cut points and categories must be public knowledge too: quantiles of private rows are not.
"""

import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field

from ..errors import BackboneMismatch, InvalidSchema, ModelError, UnknownValue
from ..strict import FieldName, Frozen, Label, Unique, rule
from .kind import Column
from .outcomes import ReadByHead
from .requests import FieldsShown, FieldWords, Request
from .tasks import OutcomeTerms

PAD, EOS = "<pad>", "<eos>"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,63}")


@dataclass(frozen=True, slots=True)
class NumericField:
    """A numeric field; a value is read as the interval between published cut points that contains it.

    With n cuts there are n + 1 bins; bin i contains cuts[i-1] <= x < cuts[i], the outer two are open.
    """

    name: str
    cuts: tuple[float, ...]  # strictly increasing, finite, in the unit of the column

    def __post_init__(self) -> None:
        object.__setattr__(self, "cuts", tuple(_as_float(cut) for cut in self.cuts))
        _check_name(self.name)
        if not self.cuts or not np.isfinite(self.cuts).all():
            raise InvalidSchema(f"{self.name}: cuts must be one or more finite numbers, got {list(self.cuts)}")
        if any(low >= high for low, high in itertools.pairwise(self.cuts)):
            raise InvalidSchema(f"{self.name}: cuts must be strictly increasing, got {list(self.cuts)}")

    def words(self) -> tuple[str, ...]:
        """Words of the field: `TSH=na`, then one word a bin, lowest first."""
        return (f"{self.name}=na", *(f"{self.name}=b{i:02d}" for i in range(len(self.cuts) + 1)))

    def codes(self, column: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Position in `words()` of every entry; a missing one (None, NaN) is 0."""
        try:
            values = np.asarray(column, dtype=np.float64)
        except (TypeError, ValueError):
            raise UnknownValue(f"{self.name}: an entry is not a number") from None  # the cause would quote the entry
        return np.where(np.isnan(values), 0, 1 + np.searchsorted(self.cuts, values, side="right"))


@dataclass(frozen=True, slots=True)
class FlagField:
    """A yes/no field; its word is its name and is in the line only if set. A missing entry counts as not set."""

    name: str

    def __post_init__(self) -> None:
        _check_name(self.name)

    def words(self) -> tuple[str, ...]:
        """Words of the field: its name alone."""
        return (self.name,)

    def codes(self, column: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Code of every entry: 0 if the flag is set, else -1 (no word)."""
        return np.array([-1 if self._is_unset(entry) else 0 for entry in column], dtype=np.int64)

    def _is_unset(self, entry: Any) -> bool:
        if _is_missing(entry):
            return True
        if not isinstance(entry, (bool, int, float, np.bool_, np.number)) or entry not in (0, 1):
            raise UnknownValue(f"{self.name}: an entry is not a flag (true/false, 1/0)")
        return not entry


@dataclass(frozen=True, slots=True)
class CategoricalField:
    """A categorical field with a published list of values; a blank inside a value is written `_` in its word."""

    name: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        _check_name(self.name)
        words = self.words()
        if len(words) == 1 or any(not value.strip() for value in self.values):
            raise InvalidSchema(f"{self.name}: values must be a list of one or more non-empty strings")
        if len(set(words)) < len(words):
            raise InvalidSchema(f"{self.name}: two values give the same word, or one is the reserved 'na'")

    def words(self) -> tuple[str, ...]:
        """Words of the field: `sex=na`, then one word a value in the published order."""
        return (f"{self.name}=na", *(f"{self.name}={'_'.join(value.split())}" for value in self.values))

    def codes(self, column: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Position in `words()` of every entry; a missing one (None, NaN, empty) is 0."""
        index = {value: i for i, value in enumerate(self.values, start=1)}
        codes = [0 if _is_missing(entry) or entry == "" else index.get(str(entry), -1) for entry in column]
        if -1 in codes:
            raise UnknownValue(f"{self.name}: an entry is not in the published list of {len(self.values)} values")
        return np.array(codes, dtype=np.int64)


AnyField = NumericField | FlagField | CategoricalField
_KINDS: dict[type, str] = {NumericField: "a number", FlagField: "a flag", CategoricalField: "a category"}


@dataclass(frozen=True, slots=True)
class RecordSchema:
    """The public description of a record.

    Fields are kept sorted by name within their kind, so that the same fields give the same vocabulary in any order of a
    configuration file; the values of a category keep their order.
    """

    numeric: tuple[NumericField, ...] = ()
    flags: tuple[FlagField, ...] = ()
    categorical: tuple[CategoricalField, ...] = ()
    visits: int = 1  # most lines that make a record; if they may be several, `<eos>` is behind each

    def __post_init__(self) -> None:
        if self.visits < 1:
            raise InvalidSchema(f"a record has one visit or more, got {self.visits}")
        for kind in ("numeric", "flags", "categorical"):
            object.__setattr__(self, kind, tuple(sorted(getattr(self, kind), key=lambda field: field.name)))
        names = [field.name for field in self.fields()]
        if not names:
            raise InvalidSchema("a schema needs at least one field")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InvalidSchema(f"field names must differ; more than once: {', '.join(twice)}")

    def fields(self) -> tuple[AnyField, ...]:
        """All fields in the order of their words in a line: numbers, categories, flags."""
        return (*self.numeric, *self.categorical, *self.flags)

    def words(self) -> tuple[str, ...]:
        """The vocabulary; a word's position is its token id. 0 is padding, 1 the end of a record."""
        return (PAD, EOS, *(word for field in self.fields() for word in field.words()))

    def render(self, columns: Mapping[str, Sequence[Any] | np.ndarray]) -> list[str]:
        """Renders each record as one line, e.g. `TSH=b07 age=b03 sex=F sick`.

        Raises:
            UnknownValue: a column is missing, columns differ in length, or an entry fits no word. The message names the
                field and never shows the entry.
        """
        fields = self.fields()
        if absent := [field.name for field in fields if field.name not in columns]:
            raise UnknownValue(f"no column for {', '.join(absent)}")
        if len({len(columns[field.name]) for field in fields}) > 1:
            raise UnknownValue("columns differ in length")
        # The code -1 of an unset flag selects the empty word at the end.
        parts = [np.array([*field.words(), ""], dtype=object)[field.codes(columns[field.name])] for field in fields]
        return [" ".join(filter(None, row)) for row in zip(*parts, strict=True)]

    def encode(self, lines: Iterable[str]) -> np.ndarray:
        """Encodes rendered lines as token ids, int64 [rows, longest line], padded with 0; an empty line is `<eos>`.

        Raises:
            UnknownValue: a word is not in the vocabulary; the message names the field, if the schema has it.
        """
        index = {word: i for i, word in enumerate(self.words())}
        rows = [[self._token(word, index) for word in line.split()] or [index[EOS]] for line in lines]
        ids = np.zeros((len(rows), max(map(len, rows), default=0)), dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        return ids

    def _token(self, word: str, index: Mapping[str, int]) -> int:
        token = index.get(word, 0)  # padding is no word of a line
        if token == 0:
            name = word.partition("=")[0]
            known = name in {field.name for field in self.fields()}
            raise UnknownValue(f"{name}: a word is not in the vocabulary" if known else "a word belongs to no field")
        return token

    def misfits(self, whole: "RecordSchema") -> list[str]:
        """Says why records of this schema are none of a larger one; nothing if they are.

        They are if every field is in the larger one and equal there. Its records may have more visits, if both have
        several: a record of one visit has no `<eos>` behind it.
        """
        theirs = {field.name: field for field in whole.fields()}
        absent = [field.name for field in self.fields() if field.name not in theirs]
        others = [field.name for field in self.fields() if theirs.get(field.name, field) != field]
        found = [f"it has no {_some(absent)}"] if absent else []
        found += [f"it has another description of {_some(others)}"] if others else []
        if self.visits != whole.visits and not 1 < self.visits < whole.visits:
            found.append(f"its records have {whole.visits} visits at most, not {self.visits}")
        return found

    def only(self, names: Collection[str]) -> "RecordSchema":
        """Returns the schema of some of the fields."""
        return RecordSchema(
            numeric=tuple(field for field in self.numeric if field.name in names),
            flags=tuple(field for field in self.flags if field.name in names),
            categorical=tuple(field for field in self.categorical if field.name in names),
            visits=self.visits,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values; equal schemas give equal dictionaries."""
        return {
            "numeric": [{"name": field.name, "cuts": list(field.cuts)} for field in self.numeric],
            "flags": [field.name for field in self.flags],
            "categorical": [{"name": field.name, "values": list(field.values)} for field in self.categorical],
            **({"visits": self.visits} if self.visits > 1 else {}),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "RecordSchema":
        """Reads what `to_dict` returned.

        Raises:
            InvalidSchema: a key or value is missing, unknown or of the wrong type.
        """
        return cls(
            numeric=tuple(NumericField(n, tuple(cuts)) for n, cuts in _pairs(plain, "numeric", "cuts", (int, float))),
            flags=tuple(FlagField(name) for name in _strings(plain, "flags")),
            categorical=tuple(CategoricalField(n, tuple(v)) for n, v in _pairs(plain, "categorical", "values", (str,))),
            visits=_visits(plain),
        )


def united(schemas: Iterable[RecordSchema]) -> RecordSchema:
    """Returns the schema with all fields of several: each of them is a part of it, and one alone is it.

    Raises:
        InvalidSchema: there are none, two describe a field differently, or only some have records of several visits.
    """
    schemas = tuple(schemas)
    found: dict[str, AnyField] = {}
    for field in itertools.chain.from_iterable(schema.fields() for schema in schemas):
        other = found.setdefault(field.name, field)
        if type(other) is not type(field):
            kinds = sorted(_KINDS[type(one)] for one in (field, other))
            raise InvalidSchema(f"{field.name}: one study reads {kinds[0]} there, another {kinds[1]}")
        if other != field:
            raise InvalidSchema(f"{field.name}: two studies describe it differently; give both the same cuts or values")
    visits = max((schema.visits for schema in schemas), default=1)
    if visits > 1 and any(schema.visits == 1 for schema in schemas):
        raise InvalidSchema("some studies read one visit a record, others several: they need a backbone each")
    return RecordSchema(
        numeric=tuple(field for field in found.values() if isinstance(field, NumericField)),
        flags=tuple(field for field in found.values() if isinstance(field, FlagField)),
        categorical=tuple(field for field in found.values() if isinstance(field, CategoricalField)),
        visits=visits,
    )


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # a whole number above 1.8e308 is none of the finite ones
        return math.inf if number > 0 else -math.inf


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidSchema("a field name must be a letter or _, then up to 63 letters, digits, '_', '.' or '-'")


def _is_missing(entry: Any) -> bool:
    return entry is None or bool(entry != entry)  # NaN is the only thing that differs from itself


def _strings(plain: Mapping[str, Any], kind: str) -> list[str]:
    if not isinstance(plain, Mapping) or set(plain) - {"visits"} != {"numeric", "flags", "categorical"}:
        raise InvalidSchema("a schema has the parts numeric, flags and categorical, and visits where they are several")
    if not isinstance(plain[kind], list) or not all(isinstance(name, str) for name in plain[kind]):
        raise InvalidSchema(f"{kind} must be a list of names")
    return list(plain[kind])


def _visits(plain: Mapping[str, Any]) -> int:
    visits = plain.get("visits", 1)
    if type(visits) is not int or ("visits" in plain and visits < 2):
        raise InvalidSchema("visits must be a whole number above 1")
    return visits


def _pairs(plain: Mapping[str, Any], kind: str, part: str, types: tuple[type, ...]) -> Iterator[tuple[str, list[Any]]]:
    entries = plain.get(kind) if isinstance(plain, Mapping) else None
    if not isinstance(entries, list):
        raise InvalidSchema(f"{kind} must be a list")
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) != {"name", part} or not isinstance(entry[part], list):
            raise InvalidSchema(f"an entry of {kind} has exactly a name and a list of {part}")
        if not all(isinstance(value, types) and not isinstance(value, bool) for value in entry[part]):
            raise InvalidSchema(f"{kind}: a list of {part} holds a value of another type")
        yield entry["name"], entry[part]


def _is_increasing(cuts: tuple[float, ...]) -> tuple[float, ...]:
    if any(low >= high for low, high in itertools.pairwise(cuts)):
        raise rule("strictly increasing")
    return cuts


Cuts = Annotated[tuple[float, ...], Field(min_length=1, max_length=98), AfterValidator(_is_increasing)]
Values = Annotated[tuple[Label, ...], Field(min_length=1, max_length=4096), Unique]


class FieldTerms(OutcomeTerms):
    """Terms of records of fields in a study: published cut points and category lists, never taken from records."""

    flags: Annotated[tuple[FieldName, ...], Unique] = Field(
        default=(), max_length=1024, examples=['["sick", "pregnant"]'], description="columns of true and false"
    )
    numeric: Annotated[Mapping[FieldName, Cuts], *Frozen] = Field(
        default_factory=dict, validate_default=True, max_length=1024,
        examples=["{ age = [10, 20, 30, 40, 50, 60, 70, 80], TSH = [0.4, 1.0, 2.5, 4.0, 10.0, 20.0] }"],
        description="columns of numbers with their inner cut points, strictly increasing, at most 98",
    )  # fmt: skip
    categorical: Annotated[Mapping[FieldName, Values], *Frozen] = Field(
        default_factory=dict, validate_default=True, max_length=1024, examples=['{ sex = ["F", "M"] }'],
        description="columns of words with every value that may occur, spelt exactly so",
    )  # fmt: skip

    def fields(self) -> tuple[str, ...]:
        """Names of all columns of published values; the label is not one of them."""
        return (*self.numeric, *self.categorical, *self.flags)

    def field_problems(self, place: str) -> list[str]:
        """Lists columns of two kinds or none, and an outcome that is missing or also a column.

        Args:
            place: of these terms in study.toml.
        """
        names = self.fields()
        problems = [
            f"{place}: {name} is a column of two kinds; keep one of numeric, categorical, flags"
            for name in sorted({name for name in names if names.count(name) > 1})
        ]
        problems += self.outcome_problems(place, names)
        if not problems:
            try:
                self.record_schema()
            except ModelError as err:
                problems.append(f"{place}: {err}")
        return problems

    def record_schema(self) -> RecordSchema:
        """The same description as a `RecordSchema`."""
        return RecordSchema(
            numeric=tuple(NumericField(name, cuts) for name, cuts in self.numeric.items()),
            flags=tuple(FlagField(name) for name in self.flags),
            categorical=tuple(CategoricalField(name, values) for name, values in self.categorical.items()),
        )


def words_of_fields(schema: RecordSchema, vocabulary: RecordSchema) -> tuple[FieldWords, ...]:
    """Lists the fields of a schema in the order of their words, with the token ids that a larger one gives them."""
    index = {word: number for number, word in enumerate(vocabulary.words())}
    found = []
    for field in schema.fields():
        ids = tuple(index[word] for word in field.words())
        if isinstance(field, NumericField):
            found.append(FieldWords(field.name, "number", ids, cuts=field.cuts))
        elif isinstance(field, CategoricalField):
            found.append(FieldWords(field.name, "category", ids, values=field.values))
        else:
            found.append(FieldWords(field.name, "flag", ids))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class FieldReader:
    """Encodes columns of values as words of a backbone's schema, of which the study's is a part."""

    schema: RecordSchema  # the study's
    outcome: OutcomeTerms
    vocabulary: RecordSchema  # the backbone's

    @property
    def words(self) -> int:
        """Size of the vocabulary: one more than the largest id."""
        return len(self.vocabulary.words())

    def examples(
        self, columns: Mapping[str, np.ndarray], labels: np.ndarray | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.generic]]:
        """Returns ids [rows, longest] and what is learned, [rows]."""
        return self.vocabulary.encode(self.schema.render(columns)), self.outcome.targets(columns, labels)


class Fields(ReadByHead):
    """Records of numbers, categories and flags, read by a pooled head."""

    name = "fields"
    terms = FieldTerms
    whole = ""
    reads = "records"

    def problems(self, terms: FieldTerms, *, max_tokens: int) -> list[str]:
        """Lists columns of two kinds, an outcome that is missing or also a column, and records that would be cut."""
        problems, words = terms.field_problems("data"), len(terms.fields())
        if words > max_tokens:
            problems.append(
                f"data.max_tokens is {max_tokens}; a record can hold {words} words, so it must be at least that"
            )
        return problems

    def columns(self, terms: FieldTerms) -> tuple[Column, ...]:
        """Returns what is learned, then numbers, categories and flags."""
        from . import cells

        return (
            *terms.learned_columns(),
            *(Column(name, "number", "a number", cells.numbers) for name in terms.numeric),
            *(
                Column(
                    name, "category", f"one of the study's {len(values)} values",
                    partial(cells.categories, published=values),
                )
                for name, values in terms.categorical.items()
            ),
            *(Column(name, "flag", "true or false (t/f, yes/no, 1/0)", cells.flags) for name in terms.flags),
        )  # fmt: skip

    def facts(self, terms: FieldTerms) -> dict[str, Any]:
        """Describes what is learned, and each column with its bins or values."""
        kinds = [f"{name} (number, {len(cuts) + 1} bins)" for name, cuts in terms.numeric.items()]
        kinds += [f"{name} (one of {len(values)})" for name, values in terms.categorical.items()]
        kinds += [f"{name} (flag)" for name in terms.flags]
        return {**terms.outcome_facts(), "columns": kinds}

    def schema(self, terms: FieldTerms) -> RecordSchema:
        """Returns the schema of the study's columns."""
        return terms.record_schema()

    def reader(self, terms: FieldTerms, vocabulary: Any, *, max_tokens: int) -> FieldReader:
        """Returns the reader of the study's schema, which must be the backbone's or a part of it.

        Raises:
            BackboneMismatch: a column of the study is not in the backbone's schema, or is described otherwise there.
        """
        schema = self.schema(terms)
        if misfits := schema.misfits(vocabulary):
            raise BackboneMismatch(f"reads records of another schema than [data] describes: {'; '.join(misfits)}")
        return FieldReader(schema, terms, vocabulary)

    def request(self, terms: FieldTerms, reader: FieldReader) -> Request:
        """Says which token each value of a record is."""
        shown = FieldsShown(words_of_fields(reader.schema, reader.vocabulary), reader.vocabulary.words().index(EOS))
        return Request(shown, terms.all_answered())

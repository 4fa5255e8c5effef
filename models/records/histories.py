"""Histories: all visits of a person, in order, as one record that a head reads.

A table has a row for each visit, and rows of one unit make a record: sorted by a column of order, the last so many of
them. Each visit is rendered as a record of fields with `<eos>` behind it, and a head reads the last one, whose states
have seen the others (`heads.pooling`). What is learned is what the last visit's row says. A person is one record, so
nothing is lost to sampling records, and clipping bounds the whole person.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..errors import BackboneMismatch
from ..strict import FieldName, SparseModel
from .fields import EOS, FieldReader, Fields, FieldTerms, RecordSchema, words_of_fields
from .kind import Column
from .outcomes import ReadByHead, needed
from .requests import FieldsShown, Request

if TYPE_CHECKING:
    from .cells import Cells

MOST_VISITS = 4096
_VISIT = Fields()
_LARGEST = 2.0**53  # from which on whole numbers are rounded


def _places(text: Any) -> "Cells":
    """Parses numbers of which none is rounded to its neighbour, so that no two places become one."""
    from . import cells

    found = cells.numbers(text)
    return replace(found, misfit=found.misfit | (np.abs(np.nan_to_num(found.values)) >= _LARGEST))


class HistoryTerms(FieldTerms, SparseModel):
    """Terms of histories in a study: the columns of a visit, their order, and what is learned of the last one."""

    order: FieldName = Field(
        examples=['"day"'], description="column of numbers by which a person's rows are sorted, such as a day or a year"
    )
    visits: int = Field(
        ge=1, le=MOST_VISITS, examples=["16"], description="most visits of a person that are read: the last ones"
    )

    def record_schema(self) -> RecordSchema:
        """The description of a visit, and how many make a record."""
        return replace(super().record_schema(), visits=self.visits)


@dataclass(frozen=True, slots=True)
class HistoryReader(FieldReader):
    """Encodes the visits of each record, one after another, as words of a backbone's schema."""

    def examples(
        self, columns: Mapping[str, np.ndarray], labels: np.ndarray | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.generic]]:
        """Returns ids [rows, longest] and what is learned, [rows]; a cell of a field is the list of its visits'."""
        names = [field.name for field in self.schema.fields()]
        lengths = [len(visits) for visits in columns[names[0]]]
        lines = iter(self.schema.render({name: [cell for cells in columns[name] for cell in cells] for name in names}))
        end = f" {EOS} " if self.schema.visits > 1 else ""
        records = ["".join(next(lines) + end for _ in range(length)) for length in lengths]
        return self.vocabulary.encode(records), self.outcome.targets(columns, labels)


class Histories(ReadByHead):
    """Records of a person's visits in order, read by a pooled head."""

    name = "history"
    terms = HistoryTerms
    whole = "a history has its own columns, and all rows of a person are one record"
    reads = "records"
    joins_rows = True

    def problems(self, terms: HistoryTerms, *, max_tokens: int) -> list[str]:
        """Lists what is wrong with the columns, the order, and histories that would be cut."""
        names = terms.fields()
        problems = terms.field_problems("data.history")
        if terms.order in (*names, *terms.outcome_columns):
            problems.append(
                f"data.history.order is {terms.order!r}, which is also read or learned; "
                "give the order a column of its own"
            )
        longest = terms.visits * (len(names) + 1)
        if longest > max_tokens:
            problems.append(
                f"data.max_tokens is {max_tokens}; {terms.visits} visits can hold {longest} words, so it must be at "
                "least that, or data.history.visits less"
            )
        return problems

    def columns(self, terms: HistoryTerms) -> tuple[Column, ...]:
        """Returns the order, what is learned, then the columns of a visit."""
        order = Column(terms.order, "number", "a number below 2⁵³, and not nothing", needed(_places))
        return (order, *_VISIT.columns(terms))

    def facts(self, terms: HistoryTerms) -> dict[str, Any]:
        """Describes what is learned, what makes a record, and each column."""
        record = f"the last {terms.visits} rows of each unit, in the order of {terms.order}"
        return {"record": record, **_VISIT.facts(terms)}

    def rows_of_records(
        self, terms: HistoryTerms, columns: Mapping[str, np.ndarray], units: np.ndarray
    ) -> list[npt.NDArray[np.int64]]:
        """Returns each unit's last rows, in their order; rows of one place in it stay as they are given."""
        rows = np.lexsort((columns[terms.order], units))  # stable
        ends = np.flatnonzero(np.diff(units[rows], append=-1))
        starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
        return [rows[max(start, end + 1 - terms.visits) : end + 1] for start, end in zip(starts, ends, strict=True)]

    def schema(self, terms: HistoryTerms) -> RecordSchema:
        """Returns the schema of a visit's columns, with how many visits make a record."""
        return terms.record_schema()

    def reader(self, terms: HistoryTerms, vocabulary: Any, *, max_tokens: int) -> HistoryReader:
        """Returns the reader of the study's schema, which must be the backbone's or a part of it.

        Raises:
            BackboneMismatch: a column of the study is not in the backbone's schema, or is described otherwise there;
                or the backbone was built for fewer visits, or for one and not for several.
        """
        schema = self.schema(terms)
        if misfits := schema.misfits(vocabulary):
            raise BackboneMismatch(
                f"reads records of another schema than [data.history] describes: {'; '.join(misfits)}"
            )
        return HistoryReader(schema, terms, vocabulary)

    def request(self, terms: HistoryTerms, reader: HistoryReader) -> Request:
        """Says which token each value of a visit is, and which visits make a record."""
        words = words_of_fields(reader.schema, reader.vocabulary)
        end = reader.vocabulary.words().index(EOS)
        return Request(FieldsShown(words, end, terms.visits, terms.order), terms.all_answered())

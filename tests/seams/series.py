"""A third kind of record, in one file: a series of numbers in one cell, "36.6; 37.9; 38.4", and a label."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field

from confide.models.errors import BackboneMismatch
from confide.models.heads.objectives import BinaryLabel
from confide.models.records import RecordSchema
from confide.models.records.fields import Cuts, NumericField
from confide.models.records.kind import Column, Examples, RecordKind
from confide.models.records.outcomes import scores
from confide.models.strict import FieldName, StrictModel


class SeriesTerms(StrictModel):
    """What a study says of a series."""

    column: FieldName = Field(description="column that holds the series", examples=['column = "temperature"'])
    cuts: Cuts = Field(description="inner cut points of its values", examples=["cuts = [36.0, 38.0]"])
    outcome: FieldName = Field(description="column of 0 and 1", examples=['outcome = "died"'])

    def record_schema(self) -> RecordSchema:
        return RecordSchema(numeric=(NumericField(self.column, self.cuts),))


def numbers(cell: str) -> list[float]:
    return [float(part) for part in cell.split(";")]


@dataclass(frozen=True, slots=True)
class SeriesReader:
    schema: RecordSchema
    max_tokens: int

    @property
    def words(self) -> int:
        return len(self.schema.words())

    def examples(self, columns: Mapping[str, np.ndarray], labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        (field,) = self.schema.numeric
        rows = [2 + field.codes(numbers(cell))[: self.max_tokens] for cell in columns[field.name]]
        ids = np.zeros((len(rows), max(map(len, rows), default=0)), dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        return ids, labels


class Series(RecordKind):
    """A series of numbers, classified by a pooled head."""

    name = "series"
    terms = SeriesTerms
    whole = "a series is one column"
    head = "pooled"
    reads = "records"

    def problems(self, terms: SeriesTerms, *, max_tokens: int) -> list[str]:
        return ["data.series.outcome is its column, too"] if terms.outcome == terms.column else []

    def columns(self, terms: SeriesTerms) -> tuple[Column, ...]:
        import pyarrow as pa

        from confide.models.records import cells

        def read(text: pa.Array) -> cells.Cells:
            values = text.to_numpy(zero_copy_only=False).astype(object)
            misfit = np.zeros(len(text), dtype=bool)
            for row, cell in enumerate(text.to_pylist()):
                try:
                    numbers(cell)
                except ValueError:
                    values[row], misfit[row] = "0", True
            return cells.Cells(values, np.zeros(len(text), dtype=bool), misfit)

        return (
            Column(terms.outcome, "label", "0 or 1", cells.labels, is_label=True),
            Column(terms.column, "series", "numbers, semicolons between them", read),
        )

    def facts(self, terms: SeriesTerms) -> dict[str, Any]:
        return {"label": terms.outcome, "columns": [f"{terms.column} (series)"]}

    def schema(self, terms: SeriesTerms) -> RecordSchema:
        return terms.record_schema()

    def reader(self, terms: SeriesTerms, vocabulary: Any, *, max_tokens: int) -> SeriesReader:
        if vocabulary != terms.record_schema():
            raise BackboneMismatch("reads another series")
        return SeriesReader(vocabulary, max_tokens)

    def objective(self, terms: SeriesTerms) -> BinaryLabel:
        return BinaryLabel()

    def judged(self, terms: SeriesTerms) -> str:
        return "labels"

    def judge(self, terms: SeriesTerms, reader: Any, adapted: Any, ids: np.ndarray, target: Any) -> tuple[float, float]:
        return float(target), float(adapted.classify(torch.from_numpy(ids[None, : int((ids > 0).sum())])))

    def evaluate(self, terms: SeriesTerms, reader: Any, adapted: Any, tables: Sequence[Examples]) -> dict[str, Any]:
        return {"scores": np.concatenate([scores(adapted, examples) for examples in tables]).tolist()}

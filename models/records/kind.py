"""The seam behind which a kind of record hides: how a study declares it, how cells become what a model reads.

A kind is one file beside this one and one line in `kinds.KINDS`. Tables, policies, problems in cells, training,
clipping and charging are the same for all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..strict import StrictModel

if TYPE_CHECKING:
    import pyarrow as pa

    from .cells import Cells


@dataclass(frozen=True, slots=True)
class Column:
    """A column that a kind of record reads."""

    name: str  # in the study; a site's file may call it otherwise
    kind: str  # for people: "number", "text to learn"
    expected: str  # what a cell must be, for people: "one of the study's 5 values"
    read: "Callable[[pa.Array], Cells]"  # trimmed text to values; cells that do not fit are counted, never shown
    is_label: bool = False  # of 0 and 1, what a classifier learns


@dataclass(frozen=True, slots=True)
class Examples:
    """Records as a model reads them. Nothing of them shows in its repr."""

    ids: npt.NDArray[np.int64] = field(repr=False)  # [rows, longest record], padded on the right with 0
    targets: npt.NDArray[np.generic] = field(repr=False)  # [rows] or [rows, longest], for `AdaptedModel.losses`
    units: npt.NDArray[np.int64] = field(repr=False)  # [rows], whose record it is


class Reader(Protocol):
    """Makes what a model reads of columns of values."""

    @property
    def words(self) -> int:
        """Size of the vocabulary: one more than the largest id."""

    def examples(
        self, columns: Mapping[str, np.ndarray], labels: np.ndarray | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.generic]]:
        """Returns ids [rows, longest] and targets, [rows] with a pooled head or bool [rows, longest] without."""


class RecordKind(Protocol):
    """A kind of record. `terms` below is what a study says of it, an object of the class `terms`.

    A kind's file loads torch and pyarrow inside its methods only: commands that read no record do without.
    """

    name: str  # of its table in study.toml, `[data.NAME]`
    terms: type[StrictModel]  # each field with a `description`, from which docs/study-toml.md is made
    whole: str  # why a study that has the table says nothing else of its records, after "remove it:"
    head: Literal["pooled", "lm"]  # what reads a record: a classifier, or the model's own output matrix
    reads: Literal["records", "text"]  # of which backbones: those of a schema, or those with a tokenizer
    judged: Literal["labels", "completions"]  # what a charged evaluation counts

    def problems(self, terms: Any, *, max_tokens: int) -> list[str]:
        """Lists what contradicts itself in the terms, in whole sentences that name the keys."""

    def columns(self, terms: Any) -> tuple[Column, ...]:
        """Returns the columns that a record is read from, the label among them."""

    def facts(self, terms: Any) -> dict[str, Any]:
        """Tells people what is learned from which columns; `columns` is the last key."""

    def reader(self, terms: Any, vocabulary: Any, *, max_tokens: int) -> Reader:
        """Returns the reader for a backbone.

        Args:
            vocabulary: the backbone's own: a `RecordSchema`, or a tokenizer of transformers.

        Raises:
            BackboneMismatch: the backbone reads other records.
            InvalidPrompt: the terms by themselves leave no room for a record.
        """

    def judge(self, adapted: Any, ids: np.ndarray, target: Any) -> tuple[float, float]:
        """Judges one record by itself: (label, score), the score as a logit. PRIVATE: it is counted and charged."""

    def evaluate(self, adapted: Any, tables: Sequence[Examples]) -> dict[str, Any]:
        """Computes metrics with intervals over all records of the tables, which are the operator's own."""

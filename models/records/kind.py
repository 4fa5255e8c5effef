"""The interface of a kind of record: its terms in a study, and the encoding of its cells as model inputs.

A kind is one file beside this one and one line in `kinds.KINDS`. Tables, policies, problems in cells, training,
clipping and charging are the same for all kinds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import DeploymentRefused, InvalidSchema
from ..strict import StrictModel

if TYPE_CHECKING:
    import pyarrow as pa

    from ..heads.objectives import Objective
    from ..structure.pictures import PublicPictures
    from ..structure.sense import Layout
    from ..structure.sounds import PublicSounds
    from .cells import Cells
    from .fields import RecordSchema
    from .requests import Request


# What a charged evaluation counts: scores by label; answers or completions that are right; numbers near enough;
# programs that parse; of each record, one task that is right.
Judged = Literal["labels", "answers", "numbers", "completions", "programs", "tasks"]
# The share that is right, by its name in what `evaluate` returns and on a model card.
SHARE: Mapping[Judged, str] = MappingProxyType(
    {
        "labels": "accuracy",
        "answers": "accuracy",
        "numbers": "accuracy",
        "completions": "exact_match",
        "programs": "parses",
        "tasks": "accuracy",
    }
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column that a kind of record reads."""

    name: str  # in the study; a site's file may use another name
    kind: str  # for people: "number", "text to learn"
    expected: str  # what a cell must be, for people: "one of the study's 5 values"
    read: "Callable[[pa.Array], Cells]"  # trimmed text to values; counts what does not fit, never raises
    is_label: bool = False  # of 0 and 1, what a classifier learns
    is_task: bool = False  # one of several things that are learned, each where a record tells it
    # Of names of files: what is kept of a file's bytes, which is then the value; raises InvalidFile for none that fits.
    opens: "Callable[[bytes], bytes] | None" = None
    taken: int = 0  # bytes that a record takes in memory by its file, however short that is
    sites: tuple[str, ...] | None = None  # whose tables have it; at others it is read as nothing; None: all


@dataclass(frozen=True, slots=True)
class Examples:
    """Records as model inputs and targets. Its repr is empty."""

    ids: npt.NDArray[np.int64] = field(repr=False)  # [rows, longest record], padded on the right with 0
    targets: npt.NDArray[np.generic] = field(repr=False)  # [rows] or [rows, longest], for `AdaptedModel.losses`
    units: npt.NDArray[np.int64] = field(repr=False)  # [rows], the unit of each record


class Reader(Protocol):
    """Turns columns of values into model inputs."""

    @property
    def words(self) -> int:
        """Size of the vocabulary: one more than the largest id."""

    def examples(
        self, columns: Mapping[str, np.ndarray], labels: np.ndarray | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.generic]]:
        """Returns ids [rows, longest] and targets, [rows] with a pooled head or bool [rows, longest] without."""


class RecordKind(Protocol):
    """A kind of record. The argument `terms` of its methods is a study's terms, an object of the class `terms`, and
    `reader` what the method of that name gave.

    A kind's file imports torch and pyarrow inside its methods only: commands that read no record need neither.
    """

    name: str  # of its table in study.toml, `[data.NAME]`
    terms: type[StrictModel]  # each field with a `description`, from which docs/study-toml.md is made
    whole: str  # reason that a study with the table has no other keys of records, after "remove it:"
    head: Literal["pooled", "lm"]  # what reads a record: a classifier, or the model's own output matrix
    reads: Literal["records", "text"]  # of which backbones: those of a schema, or those with a tokenizer
    makes_vocabulary: bool = False  # for a backbone that public records of the kind teach from nothing
    joins_rows: bool = False  # True where several rows of a unit make a record, see `rows_of_records`
    files: str = ""  # where records name files: the folder beside an operator's table in which they lie

    def problems(self, terms: Any, *, max_tokens: int) -> list[str]:
        """Lists contradictions in the terms, in whole sentences that name the keys."""

    def columns(self, terms: Any) -> tuple[Column, ...]:
        """Returns the columns that a record is read from, the label among them."""

    def objective(self, terms: Any) -> "Objective | None":
        """Returns what a pooled head learns; None if there is none."""

    def judged(self, terms: Any) -> Judged:
        """Returns what a charged evaluation counts."""

    def facts(self, terms: Any) -> dict[str, Any]:
        """Describes for people what is learned from which columns; `columns` is the last key."""

    def schema(self, terms: Any) -> "RecordSchema":
        """Returns the schema of the backbones that read such records, from which one is built.

        Raises:
            InvalidSchema: they are read by a tokenizer.
        """

    def vocabulary(self, terms: Any, columns: Mapping[str, np.ndarray]) -> Any:
        """Makes a tokenizer, of transformers, for a backbone that public records of the kind teach from nothing.

        Args:
            columns: of the public records.

        Raises:
            InvalidSchema: the kind makes none, see `makes_vocabulary`.
        """
        raise InvalidSchema(f"records of kind {self.name} are read by a schema, or by a published tokenizer")

    def layout(self, terms: Any) -> "Layout | None":
        """Returns the size of pictures or sounds, which an eye or an ear must have; None where there are none."""
        return None

    def lessons(self, terms: Any, columns: Mapping[str, np.ndarray]) -> "PublicPictures | PublicSounds | None":
        """Returns what teaches an eye or an ear, where records have pictures or sounds; None where they have none.

        Args:
            columns: of public records.

        Raises:
            InvalidPretraining: the terms do not say what public pictures show, or sounds say.
        """
        return None

    def rows_of_records(
        self, terms: Any, columns: Mapping[str, np.ndarray], units: np.ndarray
    ) -> Sequence[npt.NDArray[np.int64]]:
        """Returns the rows of a table that make each record, in their order, where `joins_rows`.

        A reader gets lists of cells then, one a record, and outcomes as the last of the rows says.

        Args:
            columns: of the whole table.
            units: int64 [rows], whose row it is.
        """
        return [np.array([row]) for row in range(len(units))]

    def reader(self, terms: Any, vocabulary: Any, *, max_tokens: int) -> Reader:
        """Returns the reader for a backbone.

        Args:
            vocabulary: the backbone's own: a `RecordSchema`, or a tokenizer of transformers.

        Raises:
            BackboneMismatch: the backbone reads other records.
            InvalidPrompt: the terms alone leave no room for a record.
        """

    def request(self, terms: Any, reader: Any) -> "Request":
        """Says how a request becomes tokens, and what is answered, to whoever has nothing of this package.

        Args:
            reader: that this kind made for the backbone.

        Raises:
            DeploymentRefused: it takes more than can be said so.
        """
        raise DeploymentRefused(f"records of kind {self.name} are not read outside of confide; serve the adapter")

    def judge(self, terms: Any, reader: Any, adapted: Any, ids: np.ndarray, target: Any) -> tuple[float, float]:
        """Judges one record by itself: (label, score), the score as a logit. PRIVATE: used in charged counts only.

        The label is NaN if there is nothing to judge. Of several tasks, the score is the place of the one that was
        judged.
        """

    def evaluate(self, terms: Any, reader: Any, adapted: Any, tables: Sequence[Examples]) -> dict[str, Any]:
        """Computes metrics with intervals over all records of the tables, which are the operator's own."""

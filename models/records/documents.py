"""Documents: records of free text that a head reads as a whole, to say classes, labels, a number, or several tasks.

The text is what a published template makes of a record's cells; nothing is written. What is learned is what
`tasks.OutcomeTerms` name.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..errors import InvalidPrompt, InvalidSchema
from ..strict import FIELD_NAME, FIELD_NAME_RULE, SparseModel
from .kind import Column
from .outcomes import ReadByHead
from .tasks import OutcomeTerms
from .templates import Part, PlainTokenizer, TokenTemplate, columns_of, padded
from .text import Template

Ids = npt.NDArray[np.int64]


class DocumentTerms(OutcomeTerms, SparseModel):
    """Terms of documents in a study: the text that is read of a record, and what is learned of it."""

    text: Template = Field(
        examples=['"{text}"'], description="what the model is shown of a record; names in braces are columns"
    )


@dataclass(frozen=True, slots=True)
class DocumentReader:
    """Encodes records by a template as token ids; no row is longer than the template's longest."""

    template: TokenTemplate
    tokenizer: PlainTokenizer
    outcome: OutcomeTerms

    @classmethod
    def of(cls, text: str, tokenizer: Any, max_tokens: int, *, outcome: OutcomeTerms | None = None) -> "DocumentReader":
        """Prepares the core of a transformers tokenizer in Rust to read the text of a template.

        Raises:
            InvalidPrompt: the template by itself leaves no room for a record.
        """
        plain = PlainTokenizer(tokenizer)
        template = TokenTemplate([Part(text, is_learned=False)], plain, max_tokens)
        return cls(template, plain, outcome or OutcomeTerms())

    @property
    def words(self) -> int:
        """Size of the vocabulary: one more than the largest id."""
        return self.tokenizer.words

    def examples(
        self, columns: Mapping[str, np.ndarray], labels: np.ndarray | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.generic]]:
        """Returns ids [rows, longest] and what is learned, [rows]."""
        return self.encode(columns), self.outcome.targets(columns, labels)

    def encode(self, columns: Mapping[str, Sequence[str] | np.ndarray]) -> Ids:
        """[rows, longest]; in a record that is too long, the longest cells are cut at their ends."""
        cells = [
            self.tokenizer.of_records([cell.lead + str(text) for text in columns[cell.column]])
            for cell in self.template.cells
        ]
        return padded([self.template.row(own) for own in zip(*cells, strict=True)])[0]


def encoded(template: str, texts: Sequence[str], tokenizer: Any, max_tokens: int) -> Ids:
    """Encodes texts, each in its place of a template, as token ids [rows, longest], padded on the right with 0.

    Args:
        template: with one name in braces.
        tokenizer: a transformers tokenizer in Rust.

    Raises:
        InvalidPrompt: the template is none, or leaves no room for a text.
    """
    names = columns_of(template, "the template")
    if len(names) != 1:
        raise InvalidPrompt(f"{template!r} must hold one name in braces, such as {{text}}")
    return DocumentReader.of(template, tokenizer, max_tokens).encode({names[0]: texts})


class Documents(ReadByHead):
    """Records of free text, read by a pooled head."""

    name = "document"
    terms = DocumentTerms
    whole = "a document is what its text says, and no more"
    reads = "text"

    def problems(self, terms: DocumentTerms, *, max_tokens: int) -> list[str]:
        """Lists a text that is no template, and an outcome that is missing or stands in the text."""
        try:
            names = columns_of(terms.text, "text")
        except InvalidPrompt as err:
            return [f"data.document: {err}"]
        if not names:
            return ["data.document.text must hold a column's name in braces, such as {text}"]
        problems = [
            f"data.document.text names a column {name!r}; it must be {FIELD_NAME_RULE}"
            for name in names
            if not re.fullmatch(FIELD_NAME, name)
        ]
        return problems + terms.outcome_problems("data.document", names)

    def columns(self, terms: DocumentTerms) -> tuple[Column, ...]:
        """Returns what is learned, then the columns of text."""
        from . import cells

        most, read = f"text of at most {cells.MAX_TEXT:,} characters", partial(cells.free_text, may_be_missing=True)
        texts = (Column(name, "text", most, read) for name in columns_of(terms.text, "text"))
        return (*terms.learned_columns(), *texts)

    def facts(self, terms: DocumentTerms) -> dict[str, Any]:
        """Describes the text and what is learned of it."""
        columns = [f"{name} (free text, shown)" for name in columns_of(terms.text, "text")]
        return {"text": terms.text, **terms.outcome_facts(), "columns": columns}

    def schema(self, terms: DocumentTerms) -> NoReturn:
        """Raises `InvalidSchema`: a tokenizer reads documents."""
        raise InvalidSchema("documents have no schema; import a backbone that reads text, with its tokenizer")

    def reader(self, terms: DocumentTerms, vocabulary: Any, *, max_tokens: int) -> DocumentReader:
        """Returns the reader of the study's text for a tokenizer.

        Raises:
            InvalidPrompt: the template by itself leaves no room for a record.
        """
        return DocumentReader.of(terms.text, vocabulary, max_tokens, outcome=terms)

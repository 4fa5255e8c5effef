"""Documents: records of free text that a head reads as a whole, to say classes, labels, a number, or several tasks.

The text is what a published template makes of a record's cells. What is learned is what `tasks.OutcomeTerms` name. One
of several tasks may be a text: then the model writes it behind the document, which the head reads alone.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar, NoReturn

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..errors import InvalidPrompt, InvalidSchema
from ..strict import FIELD_NAME, FIELD_NAME_RULE, SparseModel
from .completions import perplexity_by_unit, text_scores
from .kind import Column, Examples
from .outcomes import Outcome, ReadByHead
from .requests import Request
from .tasks import OutcomeTerms, WrittenTerms, is_told
from .templates import Part, PlainTokenizer, Row, TokenTemplate, beginning, columns_of, padded, said, shown_of
from .text import Template

Ids = npt.NDArray[np.int64]


class DocumentTerms(OutcomeTerms, SparseModel):
    """Terms of documents in a study: the text that is read of a record, and what is learned of it."""

    can_write: ClassVar[bool] = True

    text: Template = Field(
        examples=['"{text}"'], description="what the model is shown of a record; names in braces are columns"
    )


@dataclass(frozen=True, slots=True)
class _Behind:
    """The place behind a document: what is asked, and the text that answers it."""

    template: TokenTemplate
    column: str
    asked: int  # tokens of what is asked
    longest: int  # tokens that are kept for both

    @classmethod
    def of(cls, terms: WrittenTerms, tokenizer: PlainTokenizer) -> "_Behind":
        parts = [Part(terms.prompt, is_learned=False), Part(terms.completion, is_learned=True)]
        template = TokenTemplate(parts, tokenizer, terms.longest)
        return cls(template, terms.column, len(tokenizer.of_template(said(terms.prompt))), terms.longest)


@dataclass(frozen=True, slots=True)
class DocumentReader:
    """Encodes records by a template as token ids; no row is longer than the template's longest."""

    template: TokenTemplate
    tokenizer: PlainTokenizer
    outcome: OutcomeTerms
    behind: _Behind | None = None  # what is written, if anything is

    @classmethod
    def of(cls, text: str, tokenizer: Any, max_tokens: int, *, outcome: OutcomeTerms | None = None) -> "DocumentReader":
        """Prepares the core of a transformers tokenizer in Rust to read the text of a template.

        Raises:
            InvalidPrompt: the template by itself leaves no room for a record.
        """
        plain, outcome = PlainTokenizer(tokenizer), outcome or OutcomeTerms()
        behind = None if outcome.written is None else _Behind.of(outcome.written, plain)
        # A document has the same room whatever is told of it, or its head could read off how long its text is.
        room = max_tokens if behind is None else max_tokens - behind.longest
        template = TokenTemplate([Part(text, is_learned=False)], plain, room)
        if behind is not None and not template.begins_by_itself:
            raise InvalidPrompt("data.document.text must begin with words of its own, where a text is a task")
        return cls(template, plain, outcome, behind)

    @property
    def words(self) -> int:
        """Size of the vocabulary: one more than the largest id."""
        return self.tokenizer.words

    def examples(
        self, columns: Mapping[str, np.ndarray], labels: np.ndarray | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.generic]]:
        """Returns ids [rows, longest] and what is learned: [rows], or with a text [rows, longest], see `heads.written`.

        Of a record that is too long, the document's cells are cut, and a text to the tokens that are kept for it.
        """
        targets = self.outcome.targets(columns, labels)
        if self.behind is None:
            return self.encode(columns), targets
        from ..heads import written

        documents = self._rows(columns, self.template)
        tells, rows = is_told(columns[self.behind.column]), []
        texts = iter(self._rows({name: cells[tells] for name, cells in columns.items()}, self.behind.template))
        for (document, _), is_there in zip(documents, tells, strict=True):
            tokens, is_text = next(texts) if is_there else ([], [])
            rows.append(([*document, *tokens], [False] * len(document) + is_text))
        ids, is_written = padded(rows)
        start = np.array([len(document) for document, _ in documents], dtype=np.int64)[:, None]
        place, behind = np.arange(ids.shape[1]), tells[:, None]
        is_asked = behind & (start <= place) & (place < start + self.behind.asked)
        return ids, written.joined(targets, is_asked, is_written)

    def encode(self, columns: Mapping[str, Sequence[str] | np.ndarray]) -> Ids:
        """[rows, longest], documents alone; of one that is too long, the longest cells are cut at their ends."""
        return padded(self._rows(columns, self.template))[0]

    def _rows(self, columns: Mapping[str, Sequence[str] | np.ndarray], template: TokenTemplate) -> list[Row]:
        cells = [
            self.tokenizer.of_records([cell.lead + str(text) for text in columns[cell.column]])
            for cell in template.cells
        ]
        return [template.row(own) for own in zip(*cells, strict=True)]


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
        if terms.written is not None:
            if not beginning(terms.text).strip():
                problems.append(
                    "data.document.text must begin with some words of its own, such as Letter:, where a text is a task"
                )
            if terms.written.longest >= max_tokens:
                problems.append(
                    f"data.document.tasks.{terms.text_task}.text.longest is {terms.written.longest}; it must be below "
                    f"data.max_tokens, {max_tokens}, of which the document has the rest"
                )
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
        columns += [] if terms.written is None else [f"{terms.written.column} (free text, learned)"]
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

    def request(self, terms: DocumentTerms, reader: DocumentReader) -> Request:
        """Says what is read of a document; one that is too long is cut as in the study."""
        return Request(shown_of(reader.template, reader.template.room), terms.all_answered())

    def judge(self, terms: Outcome, reader: Any, adapted: Any, ids: np.ndarray, target: Any) -> tuple[float, float]:
        """Judges what the head gives for the document, and what is written behind it, see `OutcomeTerms.judge`."""
        from ..heads import written

        told = np.asarray(target)
        if not (isinstance(terms, DocumentTerms) and told.ndim):
            return super().judge(terms, reader, adapted, ids, target)
        document, outputs = self.read_by_head(adapted, written.documents(ids, told))
        # Of every record, also if it tells no text: workers of a site pass through the model together.
        exact, _, _ = _texts_of(adapted, Examples(ids[None], told[None], np.zeros(1, np.int64)))
        is_written = None if np.isnan(exact[0]) else bool(exact[0])
        return terms.judge(outputs, told[0], document, is_written=is_written)

    def evaluate(self, terms: Outcome, reader: Any, adapted: Any, tables: Sequence[Examples]) -> dict[str, Any]:
        """Computes metrics of the outcome; of a text also its exact match, and perplexity by unit."""
        name = terms.text_task if isinstance(terms, DocumentTerms) else None
        if not isinstance(terms, DocumentTerms) or name is None:
            return super().evaluate(terms, reader, adapted, tables)
        from ..evaluation.metrics import exact_match

        found, targets = terms.scored(adapted, tables)
        texts = [_texts_of(adapted, examples) for examples in tables]
        exact = np.concatenate([is_exact for is_exact, _, _ in texts])
        measured = {"records": len(targets)} | terms.measured(found, targets, exact)
        told = exact[~np.isnan(exact)]
        if len(told):
            by_unit = [(each.units[own[-1] > 0], *(sums[own[-1] > 0] for sums in own[1:]))
                       for each, own in zip(tables, texts, strict=True)]  # fmt: skip
            measured[f"exact_match_{name}"] = asdict(exact_match((told > 0).tolist()))
            measured[f"perplexity_{name}"] = asdict(perplexity_by_unit(by_unit))
        return measured


def _texts_of(
    adapted: Any, examples: Examples
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Scores the texts behind documents.

    Returns:
        (is_exact, losses, tokens), each [rows]: 1 or 0, whether the text is written word for word, NaN where there is
        none; the others as `text_scores`.
    """
    from ..heads.written import WRITTEN

    is_written = np.asarray(examples.targets) == WRITTEN
    is_written[:, 0] = False
    exact, losses, tokens = text_scores(adapted, Examples(examples.ids, is_written, examples.units))
    return np.where(tokens > 0, exact, np.nan), losses, tokens

"""Formulas: a question, its derivation step by step, and an answer that mathematics can compare.

A record is read as `question?derivation;#answer`, and all behind the question mark is learned. A derivation is lines
with semicolons between them, each operation written out with its value: `k=12/3=4;C=-8-4=-12`. Where the study has
`engine`, the values behind numeric expressions are not learned: whoever lets the model write has them computed exactly
(`decoding.arithmetic`). What is measured is answers that equal the right one as mathematics (`evaluation.answers`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..errors import AnswerRefused
from ..strict import FieldName, SparseModel, matches
from .completions import Completions, perplexity_by_unit, text_scores
from .kind import Column, Examples, Judged
from .requests import CellShown, Request, TextShown, Writing
from .templates import Row, WordTokenizer, padded

if TYPE_CHECKING:
    import pyarrow as pa

    from ..decoding.arithmetic import Arithmetic
    from .cells import Cells

ASKED, LINE, ANSWERED = "?", ";", "#"  # behind a question, behind a line of a derivation, before an answer
_HARMLESS = "0"  # in a misfit's place
_PROBE = "\\frac{1}{2}\\cdot x-3=4; y"


class FormulaTerms(SparseModel):
    """Terms of records of formulas: the columns of question, derivation and answer."""

    question: FieldName = Field(examples=['"question"'], description="column of what is asked")
    derivation: FieldName | None = Field(
        default=None,
        examples=['"derivation"'],
        description="column of its lines, semicolons between them; left out, the answer is learned alone",
    )
    answer: FieldName = Field(
        examples=['"answer"'], description="column of formulas in LaTeX or infix, such as 3e^{2x}-1"
    )
    symbols: Annotated[str, matches("[a-df-zA-Z]{0,8}", "at most 8 letters, e not among them")] = Field(
        default="x", description="letters that may stand in an answer as variables"
    )
    max_written: int = Field(
        default=128, ge=1, le=4096,
        description="tokens that a model may write behind a question; a charged evaluation always runs it so often",
    )  # fmt: skip
    engine: bool = Field(
        default=True, description="values behind numeric expressions are computed when the model writes, not learned"
    )


class FormulaEncoder:
    """Encodes records as token ids, and reads what a model has written."""

    def __init__(self, terms: FormulaTerms, tokenizer: Any, max_tokens: int) -> None:
        """Prepares the core of `tokenizer`, a transformers tokenizer in Rust.

        Raises:
            BackboneMismatch: it has no word that ends a text, or its words do not add up to the text.
        """
        self._terms, self._max_tokens = terms, max_tokens
        self._tokenizer = WordTokenizer(tokenizer, _PROBE, "formulas")
        self.end, self.texts, self.text = self._tokenizer.end, self._tokenizer.texts, self._tokenizer.text

    @property
    def words(self) -> int:
        """Size of the vocabulary: one more than the largest id."""
        return self._tokenizer.words

    def examples(
        self, columns: Mapping[str, np.ndarray], labels: np.ndarray | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.generic]]:
        """Returns ids and the mask of what is learned, both [rows, longest]; there are no labels."""
        del labels
        derivation = self._terms.derivation
        questions, answers = (columns[name].tolist() for name in (self._terms.question, self._terms.answer))
        lines = [""] * len(questions) if derivation is None else columns[derivation].tolist()
        return self.encode(questions, lines, answers)

    def encode(
        self, questions: Sequence[str], derivations: Sequence[str], answers: Sequence[str]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Encodes records as (ids, is_learned), both [rows, longest row]; what is longer than `max_tokens` is cut.

        A record that is cut has no answer, so that a model of it can never be right: choose `max_tokens` large enough.
        """
        asked = self._tokenizer.of_records([f"{question}{ASKED}" for question in questions])
        written = [
            (f"{lines}{LINE}" if lines else "") + f"{ANSWERED}{answer}"
            for lines, answer in zip(derivations, answers, strict=True)
        ]
        spans = self._tokenizer.spans_of_records(written)
        return padded([self._row(*parts) for parts in zip(asked, written, spans, strict=True)])

    def written(self, model: Any, ids: np.ndarray, is_learned: np.ndarray, *, is_fixed: bool = False) -> list[str]:
        """Lets a model write behind the questions of records, with values computed if the study says so.

        Args:
            ids: [rows, longest], as encoded; neither what stands behind the questions nor how long it is counts.
            is_learned: bool [rows, longest].
            is_fixed: True to run the model equally often for every record, see `decoding.writing`.
        """
        from ..decoding.writing import write

        asked = [row[: int(mask.argmax())].tolist() for row, mask in zip(ids, is_learned, strict=True)]
        written = write(
            model, asked, self.texts, ends=(self.end,), longest=self._terms.max_written, guide=self._guide,
            is_fixed=is_fixed,
        )  # fmt: skip
        return [each.text for each in written]

    @cached_property
    def _guide(self) -> "Arithmetic | None":
        from ..decoding.arithmetic import Arithmetic

        return Arithmetic(self.texts) if self._terms.engine else None

    def told(self, ids: np.ndarray, is_learned: np.ndarray) -> str:
        """Returns what stands behind a record's question."""
        behind = ids[int(is_learned.argmax()) :].tolist()
        return self.text(behind[: behind.index(self.end) if self.end in behind else None])

    def is_right(self, written: str, ids: np.ndarray, is_learned: np.ndarray) -> bool:
        """True if the answer in a text equals that of a record, as mathematics; a record that was cut has none."""
        _, mark, truth = self.told(ids, is_learned).rpartition(ANSWERED)
        is_whole = self.end in ids
        try:
            return bool(mark) and is_whole and self.is_answered(written, truth)
        except AnswerRefused:  # a truth that stands in no table that was checked
            return False

    def is_answered(self, written: str, truth: str) -> bool:
        """True if the answer in a text equals the truth, as mathematics.

        Raises:
            AnswerRefused: the truth cannot be compared.
        """
        from ..evaluation.answers import is_equivalent

        _, mark, answer = written.rpartition(ANSWERED)
        return bool(mark) and is_equivalent(answer, truth, symbols=tuple(self._terms.symbols))

    def prompt(self, question: str) -> list[int]:
        """Returns the token ids that a model is shown of a question."""
        return self._tokenizer.of_records([f"{question}{ASKED}"])[0]

    def _row(self, asked: list[int], written: str, spans: tuple[list[int], list[tuple[int, int]]]) -> Row:
        from ..decoding.arithmetic import given

        ids, places = spans
        computed = given(written) if self._terms.engine else []
        is_learned = [not any(start <= low and high <= end for start, end in computed) for low, high in places]
        row = [*asked, *ids, self.end]
        mask = [False] * len(asked) + is_learned + [True]
        return row[: self._max_tokens], mask[: self._max_tokens]


class Formulas(Completions):
    """Records of formulas, written by the model's own output matrix and compared as mathematics."""

    name = "formulas"
    makes_vocabulary = True
    terms = FormulaTerms
    whole = "a record of formulas is its question, derivation and answer"

    def problems(self, terms: FormulaTerms, *, max_tokens: int) -> list[str]:
        """Lists a column that stands for two things."""
        names = [name for name in (terms.question, terms.derivation, terms.answer) if name is not None]
        if len(set(names)) < len(names):
            return [f"data.formulas names {', '.join(names)}; question, derivation and answer are columns of their own"]
        return []

    def columns(self, terms: FormulaTerms) -> tuple[Column, ...]:
        """Returns the columns of question, derivation if there is one, and answer; none of their cells may be empty."""
        asked = partial(_read, is_fit=lambda text: ASKED not in text)
        said = f"printable ASCII without {ASKED!r}, and not nothing"
        found = [Column(terms.question, "question", said, asked)]
        if terms.derivation is not None:
            lines = f"lines with {LINE!r} between them, without {ANSWERED!r}, whose numeric equalities hold"
            found.append(Column(terms.derivation, "derivation to learn", lines, partial(_read, is_fit=_is_derivation)))
        said = "a formula that can be compared: docs/mathematics.md" + (
            f", in {terms.symbols}" if terms.symbols else ""
        )
        is_answer = partial(_is_answer, symbols=terms.symbols)
        return (*found, Column(terms.answer, "answer to learn", said, partial(_read, is_fit=is_answer)))

    def judged(self, terms: FormulaTerms) -> Judged:
        """Returns what is counted: answers that are right as mathematics."""
        return "answers"

    def facts(self, terms: FormulaTerms) -> dict[str, Any]:
        """Describes what is asked and learned."""
        kinds = [f"{terms.question} (question, shown)"]
        kinds += [f"{terms.derivation} (derivation, learned)"] if terms.derivation else []
        values = {"values in derivations": "computed" if terms.engine else "learned"} if terms.derivation else {}
        return {**values, "columns": [*kinds, f"{terms.answer} (answer, learned)"]}

    def vocabulary(self, terms: FormulaTerms, columns: Mapping[str, np.ndarray]) -> Any:
        """Makes a tokenizer of single characters and LaTeX's commands, whatever the records are."""
        from .vocabularies import COMMANDS, character_tokenizer

        return character_tokenizer(COMMANDS)

    def reader(self, terms: FormulaTerms, vocabulary: Any, *, max_tokens: int) -> FormulaEncoder:
        """Returns the encoder of formulas for a tokenizer.

        Raises:
            BackboneMismatch: the tokenizer has no word that ends a text, or its words do not add up to the text.
        """
        return FormulaEncoder(terms, vocabulary, max_tokens)

    def request(self, terms: FormulaTerms, reader: FormulaEncoder) -> Request:
        """Says how a question is asked."""
        guide: Literal["arithmetic"] | None = "arithmetic" if terms.engine else None
        writing = Writing((reader.end,), terms.max_written, guide)
        return Request(TextShown((CellShown(terms.question, behind=ASKED),)), writing=writing)

    def judge(
        self, terms: FormulaTerms, reader: FormulaEncoder, adapted: Any, ids: np.ndarray, target: Any
    ) -> tuple[float, float]:
        """Returns 1 if the answer that the model writes is right, and the logit of its tokens' mean likelihood."""
        is_learned = np.asarray(target, dtype=np.bool_)
        _, score = super().judge(terms, reader, adapted, ids, is_learned)
        (written,) = reader.written(adapted.model, ids[None], is_learned[None], is_fixed=True)
        return float(reader.is_right(written, ids, is_learned)), score

    def evaluate(
        self, terms: FormulaTerms, reader: FormulaEncoder, adapted: Any, tables: Sequence[Examples]
    ) -> dict[str, Any]:
        """Computes the shares of right answers, equal texts and derivations that hold, and perplexity."""
        from ..evaluation.derivations import wrong_equalities
        from ..evaluation.metrics import exact_match

        right: list[bool] = []
        same: list[bool] = []
        sound: list[bool] = []
        for examples in tables:
            is_learned = np.asarray(examples.targets, dtype=np.bool_)
            texts = reader.written(adapted.model, examples.ids, is_learned)
            for text, *row in zip(texts, examples.ids, is_learned, strict=True):
                right.append(reader.is_right(text, *row))
                same.append(text == reader.told(*row))
                sound.append(not wrong_equalities(text))
        shares = {"accuracy": right, "exact_match": same} | ({"sound_derivations": sound} if terms.derivation else {})
        by_unit = perplexity_by_unit([(examples.units, *text_scores(adapted, examples)[1:]) for examples in tables])
        return {
            "records": len(right),
            **{name: asdict(exact_match(share)) for name, share in shares.items()},
            "perplexity": asdict(by_unit),
        }


def _read(text: "pa.Array", *, is_fit: Callable[[str], bool]) -> "Cells":
    from . import cells

    return cells.fitting_text(text, lambda cell: cell.isascii() and cell.isprintable() and is_fit(cell), _HARMLESS)


def _is_derivation(text: str) -> bool:
    from ..evaluation.derivations import wrong_equalities

    return ANSWERED not in text and not wrong_equalities(text)


def _is_answer(text: str, *, symbols: str) -> bool:
    from ..evaluation import answers

    try:
        return answers.is_comparable(text, symbols=tuple(symbols))
    except AnswerRefused:
        return False

"""Code: functions of an organisation's own programs, of which a model writes the rest or fills in a gap.

A record is one function, or a few lines that stand by themselves. To the model it is a line that names the language,
and the program behind it, all of which is learned; in an evaluation its first tokens are shown. Of a fill-in, as many
of the records as the study says, some lines in the middle are learned: the lines behind them are shown first, then
`structure.code.SPLIT` and the lines before, so that the model writes on where the gap begins (suffix, prefix, middle:
Bavarian et al. 2022, arXiv:2207.14255). Which lines follows from the record's own text and from nothing else.

What is counted is programs that parse (`evaluation.programs`); nothing that a model has written is ever run.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..strict import FieldName, SparseModel, Unique
from ..structure.code import SPLIT, parts_of
from ..structure.constructs import LANGUAGES
from .completions import Completions, perplexity_by_unit, text_scores
from .kind import Column, Examples, Judged
from .requests import CellShown, Request, TextShown, Words, Writing
from .templates import Row, WordTokenizer, padded

if TYPE_CHECKING:
    import pyarrow as pa

    from ..decoding.grammar import Grammar
    from ..decoding.writing import Written
    from .cells import Cells

LONGEST_LINE = 200  # signs; minified programs have longer ones
_HARMLESS = "pass"  # in a misfit's place
_PROBE = "def f(x):\n    return [x, 1]"
_BOUNDARIES = frozenset(")]}:;")

Language = Literal["python", "java"]


class CodeTerms(SparseModel):
    """Terms of records of code: their column, their languages, and what is shown of them."""

    code: FieldName = Field(
        examples=['"function"'], description="column of programs: one function each, or a few lines"
    )
    languages: Annotated[tuple[Language, ...], Unique, Field(min_length=1)] = Field(
        default=("python",), description="of the programs: python, java"
    )
    language: FieldName | None = Field(
        default=None, examples=['"language"'], description="column that names a program's language, if there are two"
    )
    shown: int = Field(
        default=16, ge=1, le=1024, description="tokens of a program that a model is shown in an evaluation"
    )
    fill_in: float = Field(
        default=0.0, ge=0, le=1,
        description="share of the programs whose middle lines are learned, between those before and behind",
    )  # fmt: skip
    max_written: int = Field(
        default=128, ge=1, le=4096,
        description="tokens that a model may write; a charged evaluation always runs it so often",
    )  # fmt: skip
    temperature: float = Field(
        default=0.7, ge=0, le=4, description="at which a model writes in an evaluation; 0 takes the likeliest word"
    )
    grammar: bool = Field(
        default=True, description="a model writes no bracket, string or indentation that breaks the program"
    )


class CodeEncoder:
    """Encodes programs as token ids, and reads what a model has written."""

    def __init__(self, terms: CodeTerms, tokenizer: Any, max_tokens: int) -> None:
        """Prepares the core of `tokenizer`, a transformers tokenizer in Rust.

        Raises:
            BackboneMismatch: it has no word that ends a text, or its words do not add up to the text.
        """
        self._terms, self._max_tokens = terms, max_tokens
        self._tokenizer = WordTokenizer(tokenizer, _PROBE + (SPLIT if terms.fill_in else ""), "code")
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
        programs = columns[self._terms.code].tolist()
        only = [self._terms.languages[0]] * len(programs)
        languages = only if self._terms.language is None else columns[self._terms.language].tolist()
        return self.encode(programs, languages)

    def encode(
        self, programs: Sequence[str], languages: Sequence[str]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Encodes programs as (ids, is_learned), both [rows, longest row]; what is longer than `max_tokens` is cut.

        A program that is cut has no end, so that no model learns to end there.
        """
        return padded([self._row(*each) for each in zip(programs, languages, strict=True)])

    def written(
        self, model: Any, ids: np.ndarray, is_learned: np.ndarray, *, is_fixed: bool = False
    ) -> "list[Written]":
        """Lets a model write behind what is shown of records.

        Args:
            ids: [rows, longest], as encoded; what is not shown of them does not count, nor how long it is.
            is_learned: bool [rows, longest].
            is_fixed: True to run the model equally often for every record, see `decoding.writing`.
        """
        from ..decoding.writing import write

        shown = [self.shown(*row) for row in zip(ids, is_learned, strict=True)]
        return write(
            model, shown, self.texts, ends=(self.end,), longest=self._terms.max_written, guide=self._guide,
            is_fixed=is_fixed, temperature=self._terms.temperature,
        )  # fmt: skip

    @cached_property
    def _guide(self) -> "Grammar | None":
        from ..decoding.grammar import Grammar

        return Grammar(self.texts, (self.end,)) if self._terms.grammar else None

    def parses(self, written: "Written", ids: np.ndarray, is_learned: np.ndarray) -> bool:
        """True if a text has ended and, with what is shown of its record, is a program that parses."""
        from ..evaluation.programs import parses

        language, before, behind = parts_of(self.text(self.shown(ids, is_learned)))
        return written.is_ended and language in LANGUAGES and parses(language, before + written.text + behind)

    def shown(self, ids: np.ndarray, is_learned: np.ndarray) -> list[int]:
        """Returns the tokens of a record that a model is shown: what is not learned, and the beginning of a completion.

        Of a program that is shorter than `shown` all is shown but its end.
        """
        begin = int(is_learned.argmax())
        learned = ids[begin : begin + int(is_learned.sum())].tolist()
        is_gap = SPLIT in self.text(ids[:begin].tolist())
        first = [] if is_gap else learned[: self._terms.shown]
        return [*ids[:begin].tolist(), *(token for token in first if token != self.end)]

    def mutant(
        self, ids: np.ndarray, is_learned: np.ndarray
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]] | None:
        """Encodes a copy of a record's program with one error, see `evaluation.mutants.some_mutant`.

        Returns:
            (ids, is_learned), both [1, tokens]; None if no error has a place in the program, if the record is a fill-in
            or cut, or if its copy would be.
        """
        from ..evaluation.mutants import some_mutant

        begin = int(is_learned.argmax())
        heading, learned = self.text(ids[:begin].tolist()), ids[is_learned].tolist()
        language = parts_of(heading).language
        if SPLIT in heading or learned[-1] != self.end or language not in LANGUAGES:
            return None
        mutant = some_mutant(language, self.text(learned[:-1]))
        if mutant is None:
            return None
        row, mask = padded([self._completion(mutant.text, language)])
        return (row, mask) if int(row[0, -1]) == self.end else None

    def is_boundary(self, token: int) -> bool:
        """True if a token breaks a line, ends the text, or is one of `) ] } : ;`."""
        word = self.texts[token]
        return token == self.end or word.startswith("\n") or word.strip() in _BOUNDARIES

    def _row(self, program: str, language: str) -> Row:
        heading = self.heading(language)
        gap = self._around_gap(program, self._max_tokens - len(heading) - 1)
        if gap is None:
            return self._completion(program, language)
        shown, learned = gap
        return self._cut([*heading, *shown], learned)

    def _completion(self, program: str, language: str) -> Row:
        return self._cut(self.heading(language), self._tokenizer.of_records([program])[0])

    def heading(self, language: str) -> list[int]:
        """Returns the tokens of the line that names a language."""
        (heading,) = self._tokenizer.of_records([f"{language}\n"])
        return heading

    def _cut(self, shown: list[int], learned: list[int]) -> Row:
        row, mask = [*shown, *learned, self.end], [False] * len(shown) + [True] * (len(learned) + 1)
        return row[: self._max_tokens], mask[: self._max_tokens]

    def _around_gap(self, program: str, room: int) -> tuple[list[int], list[int]] | None:
        """Returns what is shown and what is learned of a fill-in; None if the program is a completion, or too long."""
        gap = self._gap(program)
        if gap is None:
            return None
        lines, (start, stop) = program.split("\n"), gap
        texts = ["\n".join(["", *lines[stop:]]), SPLIT, "\n".join(lines[:start]), "\n".join(["", *lines[start:stop]])]
        behind, split, before, learned = self._tokenizer.of_records(texts)
        shown = [*behind, *split, *before]
        return (shown, learned) if len(shown) + len(learned) <= room else None

    def _gap(self, program: str) -> tuple[int, int] | None:
        """Chooses the lines [start, stop) of a fill-in, neither the first nor the last among them; None: a completion.

        All follows from SHA-256 of the program, so it is the same each time that the record is read.
        """
        digest = hashlib.sha256(b"confide code fill-in\0" + program.encode()).digest()
        share, first, second = (int.from_bytes(digest[place : place + 8], "little") / 2**64 for place in (0, 8, 16))
        inner = program.count("\n") - 1  # lines that may be missing
        if share >= self._terms.fill_in or inner < 1:
            return None
        start = 1 + int(first * inner)
        return start, start + 1 + int(second * (inner + 1 - start))


class Code(Completions):
    """Records of code, written by the model's own output matrix and judged by whether they parse."""

    name = "code"
    makes_vocabulary = True
    terms = CodeTerms
    whole = "a record of code is its program, and the language that it is in"

    def problems(self, terms: CodeTerms, *, max_tokens: int) -> list[str]:
        """Lists languages that no column tells apart, and what leaves nothing to learn."""
        found = []
        if (len(terms.languages) > 1) != (terms.language is not None):
            found.append(
                "data.code.language names the column of a program's language if data.code.languages has two, and only "
                "then"
            )
        if terms.language == terms.code:
            found.append("data.code.code and data.code.language are columns of their own")
        if terms.shown + 4 > max_tokens:
            found.append(f"data.max_tokens of {max_tokens} leaves nothing to write behind {terms.shown} shown tokens")
        return found

    def columns(self, terms: CodeTerms) -> tuple[Column, ...]:
        """Returns the columns of the program and, if there are two, of its language; no cell may be empty."""
        said = (
            f"a program that parses as {' or '.join(terms.languages)}, in printable ASCII without tabs and in lines of "
            f"at most {LONGEST_LINE} signs"
        )
        found = [Column(terms.code, "program to learn", said, partial(_read, languages=terms.languages))]
        if terms.language is not None:
            words = ", ".join(terms.languages)
            found.append(Column(terms.language, "language", words, partial(_read_language, languages=terms.languages)))
        return tuple(found)

    def judged(self, terms: CodeTerms) -> Judged:
        """Returns what is counted: programs that parse."""
        return "programs"

    def facts(self, terms: CodeTerms) -> dict[str, Any]:
        """Describes what is shown and learned."""
        kinds = [f"{terms.code} (program, learned)"]
        kinds += [f"{terms.language} (language, shown)"] if terms.language else []
        gaps = {"programs with a gap to fill in": f"{terms.fill_in:.0%}"} if terms.fill_in else {}
        return {"languages": list(terms.languages), **gaps, "columns": kinds}

    def vocabulary(self, terms: CodeTerms, columns: Mapping[str, np.ndarray]) -> Any:
        """Makes a tokenizer of the commonest pieces of the programs."""
        from .vocabularies import code_tokenizer

        return code_tokenizer(columns[terms.code].tolist())

    def reader(self, terms: CodeTerms, vocabulary: Any, *, max_tokens: int) -> CodeEncoder:
        """Returns the encoder of programs for a tokenizer.

        Raises:
            BackboneMismatch: the tokenizer has no word that ends a text, or its words do not add up to the text.
        """
        return CodeEncoder(terms, vocabulary, max_tokens)

    def request(self, terms: CodeTerms, reader: CodeEncoder) -> Request:
        """Says how the beginning of a program is shown; gaps in the middle are not asked for so."""
        heading: Words | CellShown
        if terms.language is None:
            heading = Words(tuple(reader.heading(terms.languages[0])))
        else:
            heading = CellShown(terms.language, behind="\n", values=terms.languages)
        guide: Literal["grammar"] | None = "grammar" if terms.grammar else None
        writing = Writing((reader.end,), terms.max_written, guide)
        return Request(TextShown((heading, CellShown(terms.code, is_begun=True))), writing=writing)

    def judge(
        self, terms: CodeTerms, reader: CodeEncoder, adapted: Any, ids: np.ndarray, target: Any
    ) -> tuple[float, float]:
        """Returns 1 if the program that the model writes parses, and the logit of its tokens' mean likelihood."""
        is_learned = np.asarray(target, dtype=np.bool_)
        _, score = super().judge(terms, reader, adapted, ids, is_learned)
        (written,) = reader.written(adapted.model, ids[None], is_learned[None], is_fixed=True)
        return float(reader.parses(written, ids, is_learned)), score

    def evaluate(
        self, terms: CodeTerms, reader: CodeEncoder, adapted: Any, tables: Sequence[Examples]
    ) -> dict[str, Any]:
        """Computes the share of programs that parse, of next tokens that are right at boundaries, and perplexity.

        Boundaries are line breaks with their indentation, closing brackets, colons, semicolons and the end; the program
        up to there is given. If errors have a place in any, also the share of programs that are likelier than a copy of
        theirs with one error, as `preferred`.
        """
        from ..evaluation.metrics import exact_match

        fit: list[bool] = []
        right: list[bool] = []
        preferred: list[bool] = []
        for examples in tables:
            is_learned = np.asarray(examples.targets, dtype=np.bool_)
            written = reader.written(adapted.model, examples.ids, is_learned)
            for text, *row in zip(written, examples.ids, is_learned, strict=True):
                fit.append(reader.parses(text, *row))
                foretold = _foretold(adapted, *row)
                right += _at_boundaries(reader, foretold, *row)
                if (mutant := reader.mutant(*row)) is not None:
                    wrong = _foretold(adapted, mutant[0][0], mutant[1][0])
                    preferred.append(bool(foretold.losses_N.double().sum() < wrong.losses_N.double().sum()))
        by_unit = perplexity_by_unit([(examples.units, *text_scores(adapted, examples)[1:]) for examples in tables])
        return {
            "records": len(fit),
            "parses": asdict(exact_match(fit)),
            "boundaries": asdict(exact_match(right)),
            **({"preferred": asdict(exact_match(preferred))} if preferred else {}),
            "perplexity": asdict(by_unit),
        }


def is_program(text: str, languages: Sequence[str]) -> bool:
    """True if a cell is a program that a model can be taught: it parses in one of the languages, in lines to read."""
    from ..evaluation.programs import parses

    is_plain = text.isascii() and all(line.isprintable() and len(line) <= LONGEST_LINE for line in text.split("\n"))
    return is_plain and any(parses(language, text) for language in languages)


def _foretold(adapted: Any, ids: np.ndarray, is_learned: np.ndarray) -> Any:
    """Foretells what is learned of a record, both [longest], see `heads.foretell`."""
    import torch

    from ..heads import foretell

    device, length = next(iter(adapted.trained.values())).device, int(np.flatnonzero(is_learned).max(initial=0)) + 1
    with torch.no_grad():
        rows = (torch.from_numpy(each[None, :length]).to(device) for each in (ids, is_learned))
        return foretell(adapted.model, *rows)


def _at_boundaries(reader: CodeEncoder, foretold: Any, ids: np.ndarray, is_learned: np.ndarray) -> list[bool]:
    """Says of each boundary that is learned of a record whether the model's first choice is right."""
    is_right = foretold.is_first_choice_N.tolist()
    return [right for right, token in zip(is_right, ids[is_learned].tolist(), strict=True) if reader.is_boundary(token)]


def _read(text: "pa.Array", *, languages: Sequence[str]) -> "Cells":
    from . import cells

    return cells.fitting_text(text, partial(is_program, languages=languages), _HARMLESS)


def _read_language(text: "pa.Array", *, languages: Sequence[str]) -> "Cells":
    from . import cells

    found = cells.categories(text, languages)
    misfit = found.misfit | found.missing
    return cells.Cells(np.where(misfit, languages[0], found.values), found.missing, misfit)

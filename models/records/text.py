"""Records of free text: a published template makes a prompt of each record, and the completion to learn.

Only the template itself can contain control words such as `<|im_start|>`. A record's cells are read as plain text, even
if they spell a control word, so no record can end its own prompt.

A template is text with column names in braces, `{review}`; `{{` and `}}` are braces. A blank before a placeholder
belongs to the cell, because words of byte-level vocabularies can begin with a blank.
"""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, NoReturn

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field
from tokenizers import AddedToken

from ..errors import InvalidPrompt, InvalidSchema, ModelError
from ..strict import FIELD_NAME, FIELD_NAME_RULE, StrictModel, rule
from .kind import Column, Examples, RecordKind

_TEXTS = 16  # records scored at a time


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str  # what the template says before the cell
    column: str | None  # None after the last placeholder
    lead: str  # "" or the blank that belongs to the cell


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A template for the prompt that a model is shown of a record, and for the completion that it must write."""

    prompt: str
    completion: str

    def __post_init__(self) -> None:
        asked, told = _columns(self.prompt, "prompt"), _columns(self.completion, "completion")
        if not asked or not told:
            raise InvalidPrompt("prompt and completion must each hold a column's name in braces, such as {review}")
        if both := sorted({*asked} & {*told}):
            raise InvalidPrompt(f"{', '.join(both)} stands in prompt and completion; a model would just copy it")

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """Columns of the prompt, in order, each once."""
        return _columns(self.prompt, "prompt")

    @property
    def completion_columns(self) -> tuple[str, ...]:
        """Columns of the completion, in order, each once."""
        return _columns(self.completion, "completion")


class PromptEncoder:
    """Encodes records by a template as token ids; no row is longer than `max_tokens`."""

    def __init__(self, template: PromptTemplate, tokenizer: Any, max_tokens: int) -> None:
        """Prepares the core of `tokenizer`, a transformers tokenizer in Rust; nothing else of it is used or changed.

        Raises:
            InvalidPrompt: the template by itself leaves no room for a record.
        """
        self._core = tokenizer.backend_tokenizer
        _disarm(self._core)
        self._core.no_padding()
        self._core.no_truncation()
        self._prompt, self._completion = _pieces(template.prompt), _pieces(template.completion)
        literals = [piece.text for piece in (*self._prompt, *self._completion)]
        self._literal = dict(zip(literals, self._encode(literals, is_template=True), strict=True))
        used = sum(len(self._literal[text]) for text in literals)
        cells = sum(piece.column is not None for piece in (*self._prompt, *self._completion))
        if not self._prompt[0].text:
            raise InvalidPrompt("prompt must begin with some words of its own: the first token is never learned")
        if used + cells > max_tokens:
            raise InvalidPrompt(f"the template takes {used} tokens, and a record has {max_tokens} in all")
        self._room = max_tokens - used  # for the cells of a record

    @property
    def words(self) -> int:
        """Size of the vocabulary: one more than the largest id."""
        return 1 + int(max(self._core.get_vocab(with_added_tokens=True).values()))

    def encode(
        self, columns: Mapping[str, Sequence[str] | npt.NDArray[np.object_]]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Encodes records as (ids, is_completion), both [rows, longest row], padded on the right with 0 and False.

        In a record that is too long, cells are cut at their ends: the prompt's longest cells first, so that short ones
        stay whole; the completion's only if they alone do not fit. A cut completion is then the target.
        """
        parts = [self._cells(self._prompt, columns), self._cells(self._completion, columns)]
        rows = [self._row(prompt, completion) for prompt, completion in zip(*parts, strict=True)]
        longest = max((len(prompt) + len(completion) for prompt, completion in rows), default=0)
        ids = np.zeros((len(rows), longest), dtype=np.int64)
        is_completion = np.zeros(ids.shape, dtype=np.bool_)
        for i, (prompt, completion) in enumerate(rows):
            end = len(prompt) + len(completion)
            ids[i, :end] = prompt + completion
            is_completion[i, len(prompt) : end] = True
        return ids, is_completion

    def examples(
        self, columns: Mapping[str, np.ndarray], labels: np.ndarray | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.generic]]:
        """Returns ids and the mask of completions, both [rows, longest]; there are no labels."""
        return self.encode(columns)

    def _cells(self, pieces: list[_Piece], columns: Mapping[str, Any]) -> list[tuple[list[int], ...]]:
        """Tokenizes the cells of every record, in the order of the template."""
        asked = [(piece.lead, piece.column) for piece in pieces if piece.column is not None]
        encoded = [self._encode([lead + str(cell) for cell in columns[column]], is_template=False)
                   for lead, column in asked]  # fmt: skip
        return list(zip(*encoded, strict=True))

    def _row(self, prompt: tuple[list[int], ...], completion: tuple[list[int], ...]) -> tuple[list[int], list[int]]:
        told = _cut(completion, self._room - len(prompt))  # a token for each cell of the prompt, at the least
        asked = _cut(prompt, self._room - sum(map(len, told)))
        return self._joined(self._prompt, asked), self._joined(self._completion, told)

    def _joined(self, pieces: list[_Piece], cells: list[list[int]]) -> list[int]:
        row: list[int] = []
        rest = iter(cells)
        for piece in pieces:
            row += self._literal[piece.text]
            row += next(rest) if piece.column is not None else []
        return row

    def _encode(self, texts: list[str], *, is_template: bool) -> list[list[int]]:
        self._core.encode_special_tokens = not is_template
        return [encoding.ids for encoding in self._core.encode_batch(texts, add_special_tokens=False)]


def _cut(cells: Sequence[list[int]], room: int) -> list[list[int]]:
    """Cuts cells to `room` tokens together: the longest ones to one length, shorter ones not at all."""
    if sum(map(len, cells)) <= room:
        return list(cells)
    lengths, left = [0] * len(cells), room
    for place, index in enumerate(sorted(range(len(cells)), key=lambda i: len(cells[i]))):
        lengths[index] = min(len(cells[index]), left // (len(cells) - place))
        left -= lengths[index]
    return [cell[:length] for cell, length in zip(cells, lengths, strict=True)]


def _disarm(core: Any) -> None:
    """Marks every word added to the vocabulary as special: only special words can be switched to plain text."""
    kinds = ("single_word", "lstrip", "rstrip", "normalized")
    added = [
        AddedToken(token.content, special=True, **{kind: getattr(token, kind) for kind in kinds})
        for token in core.get_added_tokens_decoder().values()
        if not token.special
    ]
    core.add_special_tokens(added)


def _columns(text: str, part: str) -> tuple[str, ...]:
    try:
        fields = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(text)]
    except ValueError as err:
        raise InvalidPrompt(f"{part}: {err}; a brace that is meant as one is written twice") from None
    names = [name for name, _, _ in fields if name is not None]
    if any(not name or spec or conversion for name, spec, conversion in fields if name is not None):
        raise InvalidPrompt(f"{part}: braces hold a column's name and nothing else, such as {{review}}")
    return tuple(dict.fromkeys(names))


def _pieces(text: str) -> list[_Piece]:
    pieces = []
    for before, name, _, _ in string.Formatter().parse(text):
        lead = " " if name is not None and before.endswith(" ") else ""
        pieces.append(_Piece(before.removesuffix(lead), name, lead))
    return pieces


def _is_template(text: str) -> str:
    if not text.replace("\n", " ").replace("\t", " ").isprintable():
        raise rule("printable text")
    return text


Template = Annotated[str, Field(min_length=1, max_length=16_384), AfterValidator(_is_template)]


class TextTerms(StrictModel):
    """Terms of records of free text in a study: the prompt shown of a record, and the completion to learn."""

    prompt: Template = Field(
        examples=['"Topic of: {text}\\nIt is"'], description="what the model is shown; names in braces are columns"
    )
    completion: Template = Field(examples=['" {topic}"'], description="what it learns to write after that")

    def template(self) -> PromptTemplate:
        """The same description as a `PromptTemplate`."""
        return PromptTemplate(self.prompt, self.completion)


class FreeText(RecordKind):
    """Records of free text, completed by the model's own output matrix."""

    name = "text"
    terms = TextTerms
    whole = "a record of free text is what the template says, and no more"
    head = "lm"
    reads = "text"
    judged = "completions"

    def problems(self, terms: TextTerms, *, max_tokens: int) -> list[str]:
        """Lists texts that are no template, and names in braces that cannot be columns."""
        try:
            template = terms.template()
        except ModelError as err:
            return [f"data.text: {err}"]
        return [
            f"data.text names a column {name!r}; it must be {FIELD_NAME_RULE}"
            for name in (*template.prompt_columns, *template.completion_columns)
            if not re.fullmatch(FIELD_NAME, name)
        ]

    def columns(self, terms: TextTerms) -> tuple[Column, ...]:
        """Returns the prompt's columns, then the completion's; cells of the latter may not be empty."""
        from . import cells

        template, most = terms.template(), f"text of at most {cells.MAX_TEXT:,} characters"
        shown, told = (partial(cells.free_text, may_be_missing=is_shown) for is_shown in (True, False))
        return (
            *(Column(name, "text", most, shown) for name in template.prompt_columns),
            *(Column(name, "text to learn", f"{most}, and not nothing", told) for name in template.completion_columns),
        )

    def facts(self, terms: TextTerms) -> dict[str, Any]:
        """Describes the template, and the columns of prompt and completion."""
        template = terms.template()
        kinds = [f"{name} (free text, shown)" for name in template.prompt_columns]
        kinds += [f"{name} (free text, learned)" for name in template.completion_columns]
        return {"prompt": terms.prompt, "completion": terms.completion, "columns": kinds}

    def schema(self, terms: TextTerms) -> NoReturn:
        """Raises `InvalidSchema`: a tokenizer reads free text."""
        raise InvalidSchema(
            "records of free text have no schema; import a backbone that reads text, with its tokenizer"
        )

    def reader(self, terms: TextTerms, vocabulary: Any, *, max_tokens: int) -> PromptEncoder:
        """Returns the encoder of the study's template for a tokenizer.

        Raises:
            InvalidPrompt: the template by itself leaves no room for a record.
        """
        return PromptEncoder(terms.template(), vocabulary, max_tokens)

    def judge(self, adapted: Any, ids: np.ndarray, target: Any) -> tuple[float, float]:
        """Returns True if greedy decoding writes the completion, and the logit of its tokens' mean likelihood."""
        import torch

        from ..heads import foretell

        device = next(iter(adapted.trained.values())).device
        length = int(np.flatnonzero(target).max(initial=0)) + 1
        rows = torch.from_numpy(ids[None, :length]), torch.from_numpy(np.asarray(target)[None, :length])
        foretold = foretell(adapted.model, *(each.to(device) for each in rows))
        loss = foretold.by_record().double()
        return float(foretold.is_exact()), float(-loss - torch.log(-torch.expm1(-loss)))

    def evaluate(self, adapted: Any, tables: Sequence[Examples]) -> dict[str, Any]:
        """Computes exact match and perplexity by unit."""
        import torch

        from ..evaluation.metrics import exact_match, perplexity
        from ..heads import foretell

        exact: list[bool] = []
        by_unit: dict[tuple[int, int], list[float]] = {}  # loss and tokens of all texts of a unit
        for table, examples in enumerate(tables):
            for start in range(0, len(examples.ids), _TEXTS):
                here = slice(start, start + _TEXTS)
                rows = torch.from_numpy(examples.ids[here]), torch.from_numpy(examples.targets[here])
                with torch.no_grad():
                    found = foretell(adapted.model, *rows)
                exact += found.is_exact().tolist()
                losses = (found.by_record() * found.tokens_R).tolist()
                for unit, loss, tokens in zip(examples.units[here], losses, found.tokens_R.tolist(), strict=True):
                    so_far = by_unit.setdefault((table, int(unit)), [0.0, 0.0])
                    so_far[0], so_far[1] = so_far[0] + loss, so_far[1] + tokens
        sums = np.array(list(by_unit.values())).reshape(-1, 2)
        return {
            "records": len(exact),
            "exact_match": asdict(exact_match(exact)),
            "perplexity": asdict(perplexity(sums[:, 0], sums[:, 1])),
        }

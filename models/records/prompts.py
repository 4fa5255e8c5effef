"""How a record of free text becomes a prompt and the completion that is to be learned: a published template.

Only what the template itself says can be a control word such as `<|im_start|>`. What stands in a record is read as
plain text, control words spelt out in it included, so no record can end its own prompt.

A template is text with column names in braces, `{review}`; `{{` and `}}` are braces. A blank before a placeholder
belongs to the cell, as byte-level vocabularies have words that begin with one.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken

from ..errors import InvalidPrompt


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str  # what the template says before the cell
    column: str | None  # None after the last placeholder
    lead: str  # "" or the blank that belongs to the cell


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """What a model is shown of a record, and what it is to write after it."""

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
        """Columns that are shown, in order, each once."""
        return _columns(self.prompt, "prompt")

    @property
    def completion_columns(self) -> tuple[str, ...]:
        """Columns that are to be written, in order, each once."""
        return _columns(self.completion, "completion")


class PromptEncoder:
    """Token ids of records by a template, no row longer than `max_tokens`."""

    def __init__(self, template: PromptTemplate, tokenizer: Any, max_tokens: int) -> None:
        """`tokenizer` is a transformers tokenizer in Rust, of which only the core is used and changed.

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
        """(ids, is_completion), both [rows, longest row], padded on the right with 0 and False.

        Where a record is too long, its cells are cut at their ends: the prompt's longest first, so that short ones
        stay whole, and the completion's only if they alone do not fit. A cut completion is what is learned.
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

    def _cells(self, pieces: list[_Piece], columns: Mapping[str, Any]) -> list[tuple[list[int], ...]]:
        """Of every record, the tokens of its cells in the order of the template."""
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
    """The cells, cut so that they have `room` tokens together: the longest to one length, shorter ones not at all."""
    if sum(map(len, cells)) <= room:
        return list(cells)
    lengths, left = [0] * len(cells), room
    for place, index in enumerate(sorted(range(len(cells)), key=lambda i: len(cells[i]))):
        lengths[index] = min(len(cells[index]), left // (len(cells) - place))
        left -= lengths[index]
    return [cell[:length] for cell, length in zip(cells, lengths, strict=True)]


def _disarm(core: Any) -> None:
    """Marks every word that was added to the vocabulary as special: only such a one can be told to be plain text."""
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

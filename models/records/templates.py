"""Templates of free text as token ids: only a template can say control words, never a record.

A template is text with column names in braces, `{review}`; `{{` and `}}` are braces. A blank before a placeholder
belongs to the cell, because words of byte-level vocabularies can begin with a blank. Template and cells are tokenized
apart: a record's cells are read as plain text, even if they spell a control word such as `<|im_start|>`, so no record
can end its own turn.
"""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken

from ..errors import BackboneMismatch, InvalidPrompt
from .requests import CellShown, TextShown, Words

Row = tuple[list[int], list[bool]]  # token ids, and which of them are learned


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a template, whose tokens are all learned or all only shown."""

    text: str  # with names in braces
    is_learned: bool


@dataclass(frozen=True, slots=True)
class Cell:
    """A placeholder of a template."""

    column: str
    lead: str  # "" or the blank that belongs to the cell


@dataclass(frozen=True, slots=True)
class _Piece:
    ids: list[int]  # of what the template says before the cell
    cell: Cell | None  # None after the last placeholder


class PlainTokenizer:
    """The core of a tokenizer, which reads records as plain text and templates as they are meant."""

    def __init__(self, tokenizer: Any) -> None:
        """Prepares the core of `tokenizer`, a transformers tokenizer in Rust; nothing else of it is used or changed."""
        self._core = tokenizer.backend_tokenizer
        _disarm(self._core)
        self._core.no_padding()
        self._core.no_truncation()
        added = {token.content for token in self._core.get_added_tokens_decoder().values()}
        longest_first = sorted(filter(str.strip, added), key=len, reverse=True)  # some vocabularies add white space
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @property
    def words(self) -> int:
        """Size of the vocabulary: one more than the largest id."""
        return 1 + int(max(self._core.get_vocab(with_added_tokens=True).values()))

    def after_control_word(self, text: str) -> int | None:
        """Finds where the first control word in a template's text ends; None if there is none."""
        found = self._control.search(text)
        return found and found.end()

    def is_control_word(self, token: int) -> bool:
        """True if a token is one that only a template can say."""
        return token in self._core.get_added_tokens_decoder()

    def of_template(self, text: str) -> list[int]:
        """Tokenizes what a template says, control words included."""
        ids: list[int] = self._encode([text], is_template=True)[0].ids
        return ids

    def of_records(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenizes cells of records as plain text."""
        return [encoding.ids for encoding in self._encode(texts, is_template=False)]

    def spans_of_records(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Tokenizes cells as `of_records`, and says of each token which characters [start, end) of the text it is."""
        return [(encoding.ids, encoding.offsets) for encoding in self._encode(texts, is_template=False)]

    def _encode(self, texts: Sequence[str], *, is_template: bool) -> list[Any]:
        self._core.encode_special_tokens = not is_template
        found: list[Any] = self._core.encode_batch(list(texts), add_special_tokens=False)
        return found


class WordTokenizer(PlainTokenizer):
    """A tokenizer whose words add up to the text, so that what a model writes word by word can be read."""

    def __init__(self, tokenizer: Any, probe: str, kind: str) -> None:
        """Prepares the core of `tokenizer`, a transformers tokenizer in Rust.

        Args:
            probe: a text such as records of the kind have, which must come back word by word.
            kind: of records that need it, for errors.

        Raises:
            BackboneMismatch: it has no word that ends a text, or its words do not add up to the text.
        """
        from ..structure.inputs import words_of

        if tokenizer.eos_token_id is None:
            raise BackboneMismatch(f"has a tokenizer without a word that ends a text, which {kind} needs")
        super().__init__(tokenizer)
        self.end = int(tokenizer.eos_token_id)
        self.texts = words_of(tokenizer)  # of each token id; "" for control words
        (ids,) = self.of_records([probe])
        if self.text(ids) != probe:
            raise BackboneMismatch(f"has a tokenizer whose words do not add up to the text, which {kind} needs")

    def text(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids."""
        return "".join(self.texts[token] for token in ids)


class TokenTemplate:
    """A template whose own words are token ids already; rows of it are never longer than `max_tokens`."""

    def __init__(
        self, parts: Sequence[Part], tokenizer: PlainTokenizer, max_tokens: int, *, must_fit: bool = True
    ) -> None:
        """Tokenizes the template.

        Args:
            must_fit: False for a template that may leave no room, as long as `fits` is asked first.

        Raises:
            InvalidPrompt: the template by itself leaves no room for a record.
        """
        self._parts = [(list(_pieces(part.text, tokenizer)), part.is_learned) for part in parts if part.text]
        pieces = [(piece, is_learned) for own, is_learned in self._parts for piece in own]
        self.cells = tuple(piece.cell for piece, _ in pieces if piece.cell is not None)
        self._is_learned = [is_learned for piece, is_learned in pieces if piece.cell is not None]
        used = sum(len(piece.ids) for piece, _ in pieces)
        if any(is_learned for _, is_learned in pieces) and not pieces[0][0].ids:
            raise InvalidPrompt("prompt must begin with some words of its own: the first token is never learned")
        if must_fit and used + len(self.cells) > max_tokens:
            raise InvalidPrompt(f"the template takes {used} tokens, and a record has {max_tokens} in all")
        self._room = max_tokens - used  # for the cells of a record

    @property
    def begins_by_itself(self) -> bool:
        """True if the first token is the template's own, whatever a record says."""
        pieces, _ = self._parts[0]
        return bool(pieces[0].ids)

    @property
    def room(self) -> int:
        """Tokens of a row that are left for the cells of a record."""
        return self._room

    @property
    def shown(self) -> tuple[tuple[tuple[int, ...], Cell | None], ...]:
        """Pieces before the last part that is learned, or all: words of the template's own, each before a cell."""
        learned = [place for place, (_, is_learned) in enumerate(self._parts) if is_learned]
        parts = self._parts[: learned[-1]] if learned else self._parts
        return tuple((tuple(piece.ids), piece.cell) for pieces, _ in parts for piece in pieces)

    @property
    def behind(self) -> tuple[int, ...]:
        """Words behind the last cell that is learned, such as the one that ends a turn."""
        learned = [pieces for pieces, is_learned in self._parts if is_learned]
        return tuple(learned[-1][-1].ids) if learned and learned[-1][-1].cell is None else ()

    def fits(self, cells: Sequence[list[int]]) -> bool:
        """True if no cell would have to be cut."""
        return sum(map(len, cells)) <= self._room

    def filled(self, cells: Sequence[list[int]]) -> list[int]:
        """Puts the tokens of a record's cells in their places, and cuts none."""
        rest = iter(cells)
        return [
            token
            for pieces, _ in self._parts
            for piece in pieces
            for token in (*piece.ids, *(next(rest) if piece.cell is not None else ()))
        ]

    def row(self, cells: Sequence[list[int]]) -> Row:
        """Puts the tokens of a record's cells in their places.

        Where they are too many, cells are cut at their ends: of those that are shown the longest first, so that short
        ones stay whole; those that are learned only if they alone do not fit.
        """
        learned = [cell for cell, is_learned in zip(cells, self._is_learned, strict=True) if is_learned]
        shown = [cell for cell, is_learned in zip(cells, self._is_learned, strict=True) if not is_learned]
        learned = _cut(learned, self._room - len(shown))  # a token for each cell that is shown, at the least
        shown = _cut(shown, self._room - sum(map(len, learned)))
        rest = {True: iter(learned), False: iter(shown)}
        ids: list[int] = []
        mask: list[bool] = []
        for pieces, is_learned in self._parts:
            for piece in pieces:
                ids += piece.ids
                ids += next(rest[is_learned]) if piece.cell is not None else []
            mask += [is_learned] * (len(ids) - len(mask))
        return ids, mask


def shown_of(template: TokenTemplate, room: int | None = None) -> TextShown:
    """Says piece by piece what a template shows of a request."""
    pieces: list[Words | CellShown] = []
    for ids, cell in template.shown:
        pieces += [Words(ids)] if ids else []
        pieces += [CellShown(cell.column, before=cell.lead)] if cell is not None else []
    return TextShown(tuple(pieces), room)


def columns_of(text: str, part: str) -> tuple[str, ...]:
    """Names the columns in a template, in order, each once.

    Args:
        part: its name, for errors.

    Raises:
        InvalidPrompt: braces hold anything but a name.
    """
    try:
        fields = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(text)]
    except ValueError as err:
        raise InvalidPrompt(f"{part}: {err}; a brace that is meant as one is written twice") from None
    names = [name for name, _, _ in fields if name is not None]
    if any(not name or spec or conversion for name, spec, conversion in fields if name is not None):
        raise InvalidPrompt(f"{part}: braces hold a column's name and nothing else, such as {{review}}")
    return tuple(dict.fromkeys(names))


def beginning(text: str) -> str:
    """Returns what a template says before its first name."""
    found = ""
    for literal, name, _, _ in string.Formatter().parse(text):
        found += literal
        if name is not None:
            break
    return found


def said(text: str) -> str:
    """Returns what a template without names says."""
    return "".join(literal for literal, _, _, _ in string.Formatter().parse(text))


def literally(text: str) -> str:
    """Writes text as a template that says just that."""
    return text.replace("{", "{{").replace("}", "}}")


def padded(rows: Sequence[Row]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Returns rows as (ids, is_completion), both [rows, longest row], padded on the right with 0 and False."""
    # At least one token long: no model reads rows of none, which all records of a table may be.
    ids = np.zeros((len(rows), max((len(row) for row, _ in rows), default=0) or min(1, len(rows))), dtype=np.int64)
    is_completion = np.zeros(ids.shape, dtype=np.bool_)
    for i, (row, mask) in enumerate(rows):
        ids[i, : len(row)], is_completion[i, : len(row)] = row, mask
    return ids, is_completion


def _cut(cells: Sequence[list[int]], room: int) -> list[list[int]]:
    """Cuts cells to `room` tokens together: the longest ones to one length, shorter ones not at all."""
    if sum(map(len, cells)) <= room:
        return list(cells)
    lengths, left = [0] * len(cells), room
    for place, index in enumerate(sorted(range(len(cells)), key=lambda i: len(cells[i]))):
        lengths[index] = min(len(cells[index]), left // (len(cells) - place))
        left -= lengths[index]
    return [cell[:length] for cell, length in zip(cells, lengths, strict=True)]


def _pieces(text: str, tokenizer: PlainTokenizer) -> list[_Piece]:
    """Splits a template at its placeholders; braces that are written twice part no words."""
    pieces, before = [], ""
    for literal, name, _, _ in string.Formatter().parse(text):
        before += literal
        if name is not None:
            lead = " " if before.endswith(" ") else ""
            pieces.append(_Piece(tokenizer.of_template(before.removesuffix(lead)), Cell(name, lead)))
            before = ""
    return [*pieces, _Piece(tokenizer.of_template(before), None)] if before else pieces


def _disarm(core: Any) -> None:
    """Marks every word added to the vocabulary as special: only special words can be switched to plain text."""
    kinds = ("single_word", "lstrip", "rstrip", "normalized")
    added = [
        AddedToken(token.content, special=True, **{kind: getattr(token, kind) for kind in kinds})
        for token in core.get_added_tokens_decoder().values()
        if not token.special
    ]
    core.add_special_tokens(added)

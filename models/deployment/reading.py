"""Reads requests: values of a record, or cells of a text, as the token ids that a deployed model is shown.

Entries come from a CSV file, where all are text, or from JSON. What counts as missing, true or a number is what a
site's own tables count as such (`records.cells`). No error repeats an entry.
"""

import binascii
import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidPicture, InvalidPrompt, UnknownValue
from ..records.requests import (
    FALSE,
    MISSING,
    NUMBER,
    TRUE,
    Answered,
    CellShown,
    FieldsShown,
    FieldWords,
    Request,
    TextShown,
    Words,
)
from ..structure.pictures import MOST_BYTES, PictureLayout, decode

_LARGEST = 1e300  # of a number in JSON, which may have any length

Asked = Mapping[str, Any] | Sequence[Mapping[str, Any]]  # a request; of a history its visits


class Reader:
    """Turns requests into token ids, and what a head gives into answers."""

    def __init__(self, request: Request, tokenizer: Any = None) -> None:
        """Takes the description of requests, and of those of text also the core of a tokenizer (`tokenizers`)."""
        self._request, self._tokenizer = request, tokenizer
        if tokenizer is not None:
            tokenizer.encode_special_tokens = True  # what people write is no control word
            tokenizer.no_padding()
            tokenizer.no_truncation()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what a request says; nothing else of it is read."""
        shown = self._request.shown
        if isinstance(shown, TextShown):
            names = dict.fromkeys(piece.column for piece in shown.pieces if isinstance(piece, CellShown))
            return (*(() if shown.picture is None else (shown.picture.column,)), *names)
        order = () if shown.order is None else (shown.order,)
        return (*order, *(field.name for field in shown.fields))

    def ids(self, asked: Asked) -> list[int]:
        """Returns the tokens that the model is shown; of a text without any words none.

        Raises:
            InvalidPrompt: the request is of another form, or does not say what is asked for.
            UnknownValue: an entry is not what its column may hold.
        """
        shown = self._request.shown
        if isinstance(shown, TextShown):
            return self._of_text(shown, self._one(asked))
        visits = [asked] if isinstance(asked, Mapping) else asked
        if not isinstance(visits, list) or not visits or not all(isinstance(visit, Mapping) for visit in visits):
            raise InvalidPrompt("a record is an object of columns; one of several visits is a list of such objects")
        if len(visits) > 1 and shown.order is None:
            raise InvalidPrompt("the study reads one row a record, and the request has several")
        return _of_visits(shown, visits)

    @property
    def picture_tokens(self) -> int:
        """Number of tokens that stand before those of the text."""
        layout = self._layout
        return 0 if layout is None else layout.tokens

    def picture(self, asked: Asked) -> npt.NDArray[np.uint8] | None:
        """Returns what the tokens of a request's picture carry, [N, B]; None if none is shown.

        Raises:
            InvalidPrompt: the request is of another form, or does not say what is asked for.
            UnknownValue: the picture is not what the column may hold.
        """
        layout, shown = self._layout, self._request.picture
        if layout is None or shown is None:
            return None
        name = shown.column
        entry = self._one(asked)[name]
        said = f"{name}: a picture is a PNG file of up to {MOST_BYTES >> 20} MiB in base64"
        if not isinstance(entry, str) or len(entry) > 4 * (MOST_BYTES // 3 + 1):
            raise UnknownValue(said)
        try:
            file = binascii.a2b_base64(entry, strict_mode=True)
        except ValueError:  # also of letters beyond ASCII
            raise UnknownValue(said) from None
        try:
            squares: npt.NDArray[np.uint8] = layout.squares(decode([file], layout.size))[0]
        except InvalidPicture as err:
            raise UnknownValue(f"{name}: the picture {err}") from None
        return squares

    @property
    def _layout(self) -> PictureLayout | None:
        shown = self._request.picture
        return None if shown is None else PictureLayout(shown.size, shown.cell)

    def answers(self, outputs_K: npt.NDArray[np.float32]) -> dict[str, Any]:
        """Says what the outputs of the head for one request mean: chances between 0 and 1, or numbers of a scale."""
        found, place = {}, 0
        for each in self._request.answers:
            width = max(1, len(each.names))
            found[each.name] = _answer(each, outputs_K[place : place + width].astype(np.float64))
            place += width
        return found

    def _one(self, asked: Asked) -> Mapping[str, Any]:
        if not isinstance(asked, Mapping):
            raise InvalidPrompt("a request is an object of columns")
        if absent := [name for name in self.columns if name not in asked]:
            raise InvalidPrompt(f"the request does not say {', '.join(absent)}")
        return asked

    def _of_text(self, shown: TextShown, asked: Mapping[str, Any]) -> list[int]:
        cells = [piece for piece in shown.pieces if isinstance(piece, CellShown)]
        texts = [f"{cell.before}{_cell(cell, asked[cell.column])}{cell.behind}" for cell in cells]
        encoded = [encoding.ids for encoding in self._tokenizer.encode_batch(texts, add_special_tokens=False)]
        rest = iter(encoded if shown.room is None else _cut(encoded, shown.room))
        ids: list[int] = []
        for piece in shown.pieces:
            ids += piece.ids if isinstance(piece, Words) else next(rest)
        return ids


def _of_visits(shown: FieldsShown, visits: Sequence[Mapping[str, Any]]) -> list[int]:
    """Returns the tokens of a record, or of the last visits of a history in their order."""
    names = [field.name for field in shown.fields] + ([] if shown.order is None else [shown.order])
    for visit in visits:
        if absent := [name for name in names if name not in visit]:
            raise InvalidPrompt(f"the request does not say {', '.join(absent[:5])}")
    if shown.order is not None:
        places = [_number(shown.order, visit[shown.order]) for visit in visits]
        if None in places:
            raise UnknownValue(f"{shown.order}: a visit has no place in the order")
        visits = [visits[at] for at in sorted(range(len(visits)), key=lambda at: places[at] or 0.0)]
    ids: list[int] = []
    for visit in visits[-shown.visits :]:
        ids += [word for field in shown.fields for word in _words(field, visit[field.name])]
        ids += [shown.end] if shown.visits > 1 else []
    return ids or [shown.end]


def _words(field: FieldWords, entry: Any) -> list[int]:
    if field.kind == "number":
        number = _number(field.name, entry)
        return [field.ids[0 if number is None else 1 + bisect_right(field.cuts, number)]]
    text = _text(field.name, entry).strip()
    if field.kind == "category":
        if text in field.values:
            return [field.ids[1 + field.values.index(text)]]
        if text.lower() in MISSING:
            return [field.ids[0]]
        raise UnknownValue(f"{field.name}: an entry is not in the published list of {len(field.values)} values")
    if text.lower() in TRUE:
        return list(field.ids)
    if text.lower() not in (*FALSE, *MISSING):
        raise UnknownValue(f"{field.name}: an entry is not a flag (true/false, yes/no, 1/0)")
    return []


def _number(name: str, entry: Any) -> float | None:
    text = _text(name, entry).strip()
    if text.lower() in MISSING:
        return None
    number = float(text) if re.match(NUMBER, text) else math.nan
    if not math.isfinite(number):
        raise UnknownValue(f"{name}: an entry is not a number")
    return number


def _cell(cell: CellShown, entry: Any) -> str:
    """Reads a cell of text as a table has it: trimmed, but for one that goes on where it ends."""
    text = _text(cell.column, entry)
    text = text if cell.is_begun else text.strip()
    if cell.values and text not in cell.values:
        raise UnknownValue(f"{cell.column}: an entry is none of {', '.join(cell.values)}")
    return text


def _text(name: str, entry: Any) -> str:
    """Writes an entry as a cell of a table."""
    if entry is None:
        return ""
    if isinstance(entry, bool):
        return "true" if entry else "false"
    if isinstance(entry, int | float) and abs(entry) < _LARGEST:
        return str(entry)
    if not isinstance(entry, str) or not _is_unicode(entry):
        raise UnknownValue(f"{name}: an entry is neither text nor a number nor true or false")
    return entry


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair, which JSON can say
        return False
    return True


def _cut(cells: Sequence[list[int]], room: int) -> list[list[int]]:
    """Cuts cells to so many tokens together, the longest at their ends, as a study's template does."""
    lengths, left = [len(cell) for cell in cells], room
    for place, index in enumerate(sorted(range(len(cells)), key=lambda i: len(cells[i]))):
        lengths[index] = min(lengths[index], left // (len(cells) - place))
        left -= lengths[index]
    return [cell[:length] for cell, length in zip(cells, lengths, strict=True)]


def _answer(each: Answered, outputs_K: npt.NDArray[np.float64]) -> Any:
    if each.kind == "number":
        return _rounded(each.low + (each.high - each.low) * (float(outputs_K[0].clip(-1, 1)) + 1) / 2)
    if each.kind == "class":
        shares = np.exp(outputs_K - outputs_K.max())
        chances = shares / shares.sum()
    else:
        chances = 1 / (1 + np.exp(-outputs_K.clip(-500, 500)))
    if each.kind == "label":
        return _rounded(float(chances[0]))
    return dict(zip(each.names, map(_rounded, chances.tolist()), strict=True))


def _rounded(number: float) -> float:
    """Cuts to what float32 knows."""
    return float(f"{number:.6g}")

"""Parses the text in a table's cells as numbers, flags, categories, labels or free text, and finds missing cells.

Every reader takes a column of trimmed text and returns its values with two masks: the missing cells, and the misfits,
which are no valid values. A misfit is replaced by a harmless value; the caller refuses the table.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .requests import FALSE, MISSING, NUMBER, TRUE

MAX_TEXT = 2**16  # characters of a cell of free text
_FILE = r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}){0,7}\z"
_COMMA_NUMBER = r"^[+-]?[0-9]*,[0-9]+([eE][+-]?[0-9]+)?$"


@dataclass(frozen=True, slots=True)
class Cells:
    """The parsed cells of one column of one batch."""

    values: np.ndarray  # [rows] of numbers or bools, or objects that are text or None: what can travel to workers
    missing: np.ndarray  # bool [rows]
    misfit: np.ndarray  # bool [rows]; a missing cell can be one, too


def numbers(text: pa.Array) -> Cells:
    """Parses numbers: float64, NaN if missing. Decimal point; no thousands separators, no infinities."""
    missing = _is_in(pc.utf8_lower(text), MISSING)
    plain = pc.match_substring_regex(text, NUMBER)
    values = _numpy(pc.cast(pc.if_else(plain, text, pa.scalar(None, pa.string())), pa.float64())).astype(np.float64)
    return Cells(values, missing, ~missing & ~np.isfinite(values))


def with_points(text: pa.Array) -> pa.Array:
    """Writes decimal commas as points. A point that was there is a thousands separator, and no number any more."""
    return pc.replace_substring(pc.replace_substring(text, ".", " "), ",", ".")


def has_decimal_comma(text: pa.Array) -> np.ndarray:
    """Finds numbers that are written with a decimal comma: bool [rows]."""
    return _numpy(pc.match_substring_regex(text, _COMMA_NUMBER)).astype(bool)


def flags(text: pa.Array) -> Cells:
    """Parses flags: bool; a missing flag counts as not set."""
    lower = pc.utf8_lower(text)
    set_, unset, missing = _is_in(lower, TRUE), _is_in(lower, FALSE), _is_in(lower, MISSING)
    return Cells(set_, missing, ~(set_ | unset | missing))


def categories(text: pa.Array, published: Sequence[str]) -> Cells:
    """Parses categories: objects, each a string of `published` in its exact spelling, or None if missing."""
    codes = _numpy(pc.fill_null(pc.index_in(text, value_set=pa.array(published, pa.string())), len(published)))
    known = codes < len(published)
    missing = ~known & _is_in(pc.utf8_lower(text), MISSING)
    return Cells(np.array([*published, None], dtype=object)[codes], missing, ~(known | missing))


def labels(text: pa.Array) -> Cells:
    """Parses labels: int64, 0 or 1. A missing label is a misfit, as such a record cannot be used for training."""
    lower = pc.utf8_lower(text)
    ones, zeros = _is_in(lower, ("1", "1.0", "true")), _is_in(lower, ("0", "0.0", "false"))
    return Cells(ones.astype(np.int64), _is_in(lower, MISSING), ~(ones | zeros))


def free_text(text: pa.Array, *, may_be_missing: bool) -> Cells:
    """Parses free text: objects, strings of at most 65,536 characters, trimmed like all cells; "none" is a word too."""
    missing = _is_in(text, ("",))
    too_long = _numpy(pc.greater(pc.utf8_length(text), MAX_TEXT))
    return Cells(_numpy(text).astype(object), missing, too_long if may_be_missing else too_long | missing)


def fitting_text(text: pa.Array, is_fit: Callable[[str], bool], harmless: str) -> Cells:
    """Parses free text that must fit, and puts `harmless` in the place of what does not, is missing or is too long.

    A cell that is too long is not looked at: it may be a whole archive.
    """
    plain = free_text(text, may_be_missing=False)
    fits = [not misfit and is_fit(cell) for cell, misfit in zip(plain.values, plain.misfit, strict=True)]
    misfit = ~np.array(fits, dtype=np.bool_)
    return Cells(np.where(misfit, harmless, plain.values), plain.missing, misfit)


def file_names(text: pa.Array) -> Cells:
    """Parses names of files below a folder: parts of letters, digits and _ - . that begin with no point or sign.

    So a name leads nowhere but below the folder it is looked for in, whatever system reads it.
    """
    missing = _is_in(text, ("",))
    fits = _numpy(pc.match_substring_regex(text, _FILE)).astype(bool)
    return Cells(_numpy(text).astype(object), missing, ~fits)


def anything(text: pa.Array) -> Cells:
    """Parses no values and finds only the missing cells."""
    missing = _is_in(pc.utf8_lower(text), MISSING)
    return Cells(np.zeros(0), missing, np.zeros(len(missing), dtype=bool))


def unit_ids(text: pa.Array) -> Cells:
    """Finds ids of units that can be used; they stay text, and no values are parsed.

    Ids are compared as text: 007 is not 7. A record without an id is a misfit: it would count for no unit.
    """
    missing = _is_in(text, ("",))
    usable = _numpy(pc.and_(pc.less_equal(pc.utf8_length(text), 256), pc.utf8_is_printable(text)))
    return Cells(np.zeros(0), missing, missing | ~usable)


def respell(text: pa.Array, spelling: Mapping[str, str]) -> pa.Array:
    """Replaces a site's own words in a column, the keys of `spelling`, by the study's."""
    if not spelling:
        return text
    places = pc.index_in(text, value_set=pa.array(list(spelling), pa.string()))
    return pc.coalesce(pc.take(pa.array(list(spelling.values()), pa.string()), places), text)


def kinds(text: pa.Array, rows: np.ndarray) -> Iterator[str]:
    """Names the kind of the cells at `rows` in words that reveal nothing else about them."""
    for row in rows:
        cell = pa.array([text[int(row)].as_py()], pa.string())
        if _is_in(pc.utf8_lower(cell), MISSING)[0]:
            yield "nothing"
        else:
            yield "a number" if pc.match_substring_regex(cell, NUMBER)[0].as_py() else "text"


def _is_in(text: pa.Array, words: Sequence[str]) -> np.ndarray:
    return _numpy(pc.is_in(text, value_set=pa.array(words, pa.string())))


def _numpy(array: pa.Array) -> np.ndarray:
    return np.asarray(array.to_numpy(zero_copy_only=False))

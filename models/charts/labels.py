"""Reads the labels of a chart's vertical axis as numbers, and compares what was read with their ink.

A reader says which letters it sees in six cuts of each label. What is lost from all labels, or read wrongly in all of
them, leaves the line through them straight; so their ink, their way of writing and their steps are looked at too.

Legend: `N` cuts of a label, `H`, `W` pixels of one, `S` columns, `C` letters and blank.
"""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ChartRefused
from .ink import FAINT
from .reader import COLUMN, CROP_HEIGHT, CROP_WIDTH, LETTERS, UNKNOWN, ChartReader, cut_label

_CUTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (1, 1), (-1, 1))  # pixels down and to the right, of each cut of a label
_SURE_WORD = 0.3  # probability of a label's least sure letter, in the mean over cuts, 0 in those that say another word
_SURER = 1.2  # times as much as for any other word
_ABOVE = 6  # pixels above and below a label's own line
_BORDER = 3  # pixels from where a label may be cut off
_LETTER_WIDTH = 11  # pixels at most from a letter's middle to where the one before it has ended
_WIDTHS = {"-": 1.3, ".": 0.5, ",": 0.5, "%": 1.5}  # of letters, in digits
_WIDEST = 0.93  # width of a digit over its height, in all fonts that were measured
_MIRRORED = 0.6  # ink of a piece that differs from its mirror image, of all; a 4 in any font differs by 0.52 and more
_PLAIN = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")
_THOUSANDS = re.compile(r"-?[1-9][0-9]{0,2}(,[0-9]{3})+(\.[0-9]+)?")
_POINTED = re.compile(r"-?[1-9][0-9]{0,2}\.[0-9]{3}")


def numbers(
    reader: ChartReader, picture_HW: npt.NDArray[np.uint8], edge: float, rows: npt.NDArray[np.float64]
) -> tuple[list[float], bool]:
    """Reads the labels of ticks as numbers.

    Args:
        edge: x of the vertical axis, in pixels.
        rows: y of its ticks, from above.

    Returns:
        The numbers, in that order, and whether they are percent.

    Raises:
        ChartRefused: they cannot be read for sure, or not in one way alone.
    """
    cuts = np.stack(
        [cut_label(picture_HW, round(edge) + right, round(y) + down) for y in rows for down, right in _CUTS]
    )
    likely_NSC = reader.letters(torch.from_numpy(cuts)).double().softmax(-1).numpy()
    if not np.isfinite(likely_NSC).all():
        raise ChartRefused("a label of its vertical axis cannot be read")
    words, digits, pluses = [], [], []
    for first in range(0, len(cuts), len(_CUTS)):
        own = slice(first, first + len(_CUTS))
        word, cut, column = _word(likely_NSC[own])
        white = max(0, CROP_WIDTH + 1 - round(edge) - _CUTS[cut][1])
        pieces, whole = _pieces(cuts[own][cut], word, column, white=white)
        digits.append(_digit(whole, word))
        pluses.append(_is_plus(pieces[0]))
        words.append(word)
    if not np.median(digits) <= _WIDEST:
        raise ChartRefused("the labels of its vertical axis have more letters than were read")
    if any(pluses) and all(word.startswith("4") for word in words):
        raise ChartRefused("the labels of its vertical axis begin with a sign that is not read")
    found, is_percent = _parsed(words)
    _refuse_odd_steps(found, rows, words)
    return found, is_percent


def _word(likely_NSC: npt.NDArray[np.float64]) -> tuple[str, int, int]:
    """What most cuts of one label say, the number of the first of them, and the pixel in which its first letter is."""
    sure: dict[str, float] = {}
    seen: dict[str, tuple[int, int]] = {}
    for number, likely_SC in enumerate(likely_NSC):
        best = likely_SC.argmax(-1)
        starts = np.flatnonzero((best < len(LETTERS)) & (np.diff(best, prepend=-1) != 0))
        word = "".join(LETTERS[letter] for letter in best[starts])
        runs = np.split(likely_SC.max(-1), np.flatnonzero(np.diff(best)) + 1)
        # Between a letter and the blank beside it a column may be either; at its middle a letter is sure.
        sure[word] = sure.get(word, 0.0) + float(min(run.max() for run in runs)) / len(likely_NSC)
        seen.setdefault(word, (number, int(starts[0]) * COLUMN if len(starts) else 0))
    # A letter that none of them knows may be the edge of another one; one that is there is seen in the label's pieces.
    known = [word for word in sure if UNKNOWN not in word] or list(sure)
    word, *others = sorted(known, key=lambda word: -sure[word])
    if not word or sure[word] < max([_SURE_WORD, *(_SURER * sure[other] for other in others)]):
        raise ChartRefused("a label of its vertical axis cannot be read for sure")
    return word, *seen[word]


def _parsed(words: Sequence[str]) -> tuple[list[float], bool]:
    """Takes labels for numbers, all of them in one way of writing."""
    are_percent = {word.endswith("%") for word in words}
    plain = [word.removesuffix("%") for word in words]
    has_commas = any("," in word for word in plain)
    fits = all(_PLAIN.fullmatch(word) or _THOUSANDS.fullmatch(word) for word in plain)
    if not fits or len(are_percent) > 1 or UNKNOWN in "".join(words):
        raise ChartRefused("a label of its vertical axis is no plain number")
    numbers = [float(word.replace(",", "")) for word in plain]
    without = any(abs(number) >= 1000 and "," not in word for number, word in zip(numbers, plain, strict=True))
    if (has_commas and without) or _may_be_thousands([word for word in plain if float(word.replace(",", ""))]):
        raise ChartRefused("the labels of its vertical axis can be understood in two ways")
    return numbers, are_percent.pop()


def _may_be_thousands(words: Sequence[str]) -> bool:
    """True if points may stand for thousands, as in 1.000 and 1.250: no axis needs decimals that all end in 0."""
    pointed = [bool(_POINTED.fullmatch(word)) for word in words]
    return any(pointed) and (
        not all("." in word for word in words) or (all(pointed) and all(word.endswith("0") for word in words))
    )


def _refuse_odd_steps(found: Sequence[float], rows: npt.NDArray[np.float64], words: Sequence[str]) -> None:
    """Refuses ticks that are no whole multiples of their distance, as those that programs choose are.

    A letter that stands behind each number, such as the `g` of 250g, may be read as a digit of all of them.
    """
    steps = round((rows[-1] - rows[0]) / np.diff(rows).min())
    step = (found[0] - found[-1]) / steps
    decimals = max(len(word.removesuffix("%").partition(".")[2]) for word in words)
    if step and max(abs(number - round(number / step) * step) for number in found) > 0.6 * 10.0**-decimals:
        raise ChartRefused("the labels of its vertical axis are no whole multiples of their distance")


def _pieces(
    label_HW: npt.NDArray[np.uint8], word: str, first: int, *, white: int
) -> tuple[list[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]:
    """The parts of a label between columns without ink and all of it, if they are those of the letters that were read.

    What is lost from every label leaves the line through them straight, so no other check would see it.

    Args:
        first: column of pixels in which the first letter was read.
        white: columns on the left that lie outside of the picture.

    Raises:
        ChartRefused: the label shows more than that.
    """
    inked = np.pad((label_HW[_ABOVE:-_ABOVE] < 255 - FAINT).any(0), 1)
    starts, ends = (np.flatnonzero(np.diff(inked.astype(np.int8)) == change) for change in (1, -1))
    pieces = [(start, end) for start, end in zip(starts, ends, strict=True) if end < label_HW.shape[1]]  # not the tick
    if not pieces or pieces[0][0] < max(white + _BORDER, first - _LETTER_WIDTH):
        raise ChartRefused("a label of its vertical axis has more letters than were read, or is cut off")
    if len(pieces) > len(word) + 2 * word.count("%"):  # which may be three
        raise ChartRefused("a label of its vertical axis has more letters than were read")
    left, right = pieces[0][0], pieces[-1][1]
    lines: npt.NDArray[np.bool_] = np.any(label_HW[:, left:right] < 255 - FAINT, axis=1)
    middle = CROP_HEIGHT // 2
    top, bottom = middle - lines[:middle][::-1].argmin(), middle + lines[middle:].argmin()
    if len(pieces) == len(word):
        for (start, end), letter in zip(pieces, word, strict=True):
            if letter == "." and (label_HW[top : (top + bottom) // 2, start:end] < 255 - FAINT).any():
                raise ChartRefused("a label of its vertical axis has a sign that is no point")
    return [label_HW[top:bottom, start:end] for start, end in pieces], label_HW[top:bottom, left:right]


def _digit(label_HW: npt.NDArray[np.uint8], word: str) -> float:
    """The width of a digit over its height, were the label's ink that of the letters that were read."""
    height, width = label_HW.shape
    return float(width / sum(_WIDTHS.get(letter, 1.0) for letter in word) / max(height, 1))


def _is_plus(piece_HW: npt.NDArray[np.uint8]) -> bool:
    """True if a piece is its own mirror image both ways, which a 4 is not."""
    ink_HW = 255.0 - piece_HW
    ink_HW = ink_HW[(ink_HW > FAINT).any(1)]
    apart = max(np.abs(ink_HW - ink_HW[::-1]).sum(), np.abs(ink_HW - ink_HW[:, ::-1]).sum())
    return bool(apart < _MIRRORED * ink_HW.sum())

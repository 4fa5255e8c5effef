"""Reads the values of a chart, or refuses it: a reader points, the axis' own labels measure, and checks decide.

Every value stands above, or below, a tick of the horizontal axis; a straight line through the ticks of the vertical
axis and what their labels say turns its height into a number. A chart is refused rather than misread: all ticks must
have been read and lie on that line, no label may be wider or in more pieces than what was read of it, each tick below
must have exactly one value and each value a tick, in the mean over looks at the chart that is shifted by some pixels
each time. Ink is checked where the reader sees one mark alone: bars of several parts, error bars. No check can find a
mistake that fits them all.

Legend: `H`, `W` pixels, `h`, `w` squares, `K` kinds of marks, `P` values.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ChartRefused, InvalidPicture
from ..structure import pictures
from .reader import (
    COLUMN,
    CROP_HEIGHT,
    CROP_WIDTH,
    HEIGHT,
    KINDS,
    LETTERS,
    STRIDE,
    UNKNOWN,
    WIDTH,
    ChartReader,
    cut_label,
)

_SHIFTS = ((0, 0), (2, 1), (-1, -2))  # pixels down and to the right, of each look at a chart
_FAINTEST = 0.05  # probability of a mark below which a square says nothing
_SURE, _SEEN = 0.35, 0.12  # strength of a mark that counts, and of a multiplier that must not be there
_RIVAL = 0.5  # strength of a second mark above a tick, of the first one's
_FARTHEST = 2.0  # squares of a mark from the square that points at it
_CUTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (1, 1), (-1, 1))  # pixels down and to the right, of each cut of a label
_SURE_WORD = 0.3  # probability of a label's least sure letter, in the mean over cuts, 0 in those that say another word
_SURER = 1.2  # times as much as for any other word
_ON_LINE = 0.8  # pixels of a tick from the line through all
_UNEVEN = 2.0  # pixels between the distances of ticks below
_SAME = 2.0  # pixels within which squares point at one mark
_MOST_APART = 1.5  # pixels between looks at one mark
_LEVEL = 2.5  # pixels of a bar's top from its middle
_LEAST_TICKS, _LEAST_VALUES = 3, 2
_EDGE = 4  # pixels at both ends of a bar that may be of another shade: its border, or a tick
_UNIFORM = 4  # shades that one bar may have
_LOW = 8.0  # pixels of a bar beside others of the other sign
_BEYOND = 12  # pixels from a mark's middle at which it has ended, and a joining line is beside it
_DARK = 0.6  # of the darkest pixel's darkness, of a line through a mark
_FLATTEST = 1e-9  # what a pixel is worth, of the largest label
_FAINT = 12  # shades darker than white that are ink
_ABOVE = 6  # pixels above and below a label's own line
_BORDER = 3  # pixels from where a label may be cut off
_LETTER_WIDTH = 11  # pixels at most from a letter's middle to where the one before it has ended
_WIDTHS = {"-": 1.3, ".": 0.5, ",": 0.5, "%": 1.5}  # of letters, in digits
_WIDEST = 0.93  # width of a digit over its height, in all fonts that were measured
_PLAIN = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")
_THOUSANDS = re.compile(r"-?[1-9][0-9]{0,2}(,[0-9]{3})+(\.[0-9]+)?")
_VALUE, _Y_TICK, _X_TICK, _MULTIPLIER = range(len(KINDS))


@dataclass(frozen=True, slots=True)
class Reading:
    """The values of a chart, and the axis by which they were measured."""

    values: npt.NDArray[np.float64]  # [P], from left to right
    pixel: float  # what the height of one pixel is worth
    ticks: tuple[float, ...]  # what the labels of the vertical axis say, from below
    is_percent: bool


def decode(file: bytes) -> npt.NDArray[np.uint8]:
    """Decodes a PNG file to a chart [H, W] in grey.

    Raises:
        InvalidPicture: it is no PNG of `HEIGHT` and `WIDTH`, or hostile.
    """
    try:
        picture_HW: npt.NDArray[np.uint8] = pictures.decode([file], (HEIGHT, WIDTH))[0]
    except InvalidPicture as err:
        raise InvalidPicture(str(err).removeprefix("picture 1 of 1 ")) from None
    return picture_HW


@torch.no_grad()
def read(reader: ChartReader, picture_HW: npt.NDArray[np.uint8]) -> Reading:
    """Reads the values of a chart.

    Args:
        picture_HW: uint8 [HEIGHT, WIDTH], grey.

    Raises:
        ChartRefused: a check failed.
    """
    found = _Votes.of(reader, picture_HW)
    if found.of_kind(_MULTIPLIER).strongest() > _SEEN:
        raise ChartRefused("its vertical axis has a multiplier above it, which is not read")
    edge, rows = _ticks(found.of_kind(_Y_TICK), "vertical", _LEAST_TICKS)
    base, below = _ticks(found.of_kind(_X_TICK).turned(), "horizontal", _LEAST_VALUES)
    ticks, is_percent = _numbers(reader, picture_HW, edge, rows)
    slope, level = _line(rows, ticks)
    values = found.of_kind(_VALUE)
    zero = -level / slope
    heights = _heights(values, below, zero)
    if not all(0 <= place < HEIGHT for place in (*rows, *heights)):
        raise ChartRefused("its marks leave the picture")
    _refuse_values_without_a_tick(values, below, heights, zero)
    _refuse_strange_ink(picture_HW, below, heights, base, zero)
    return Reading(level + slope * heights, abs(slope), tuple(ticks[::-1]), is_percent)


@dataclass(frozen=True, slots=True)
class _Votes:
    """Where squares of all looks at a chart point, in pixels of the chart as it is."""

    x: npt.NDArray[np.float64]  # [V]
    y: npt.NDArray[np.float64]
    column: npt.NDArray[np.float64]  # x of the middle of the square that points
    likely: npt.NDArray[np.float64]  # that a mark is in that square
    look: npt.NDArray[np.int64]
    kind: npt.NDArray[np.int64]

    @classmethod
    def of(cls, reader: ChartReader, picture_HW: npt.NDArray[np.uint8]) -> "_Votes":
        """Looks at a chart that is shifted by some pixels each time."""
        shifted = np.stack([_shifted(picture_HW, down, right) for down, right in _SHIFTS])
        found_BhwK3 = reader(torch.from_numpy(shifted)).double().numpy()
        likely_BhwK = 1 / (1 + np.exp(-found_BhwK3[..., 0]))
        votes = np.nonzero(likely_BhwK > _FAINTEST)
        look, row, column, kind = votes
        _, across, down = found_BhwK3[votes].T
        if not (np.isfinite(found_BhwK3).all() and (np.abs(down[kind != _X_TICK]) <= _FARTHEST).all()):
            raise ChartRefused("its marks are nowhere: this is no reader, or no chart")
        lower, righter = np.array(_SHIFTS)[look].T
        middle = (column + 0.5) * STRIDE - righter
        return cls(
            middle + across * STRIDE, (row + 0.5 + down) * STRIDE - lower, middle, likely_BhwK[votes], look, kind
        )

    def of_kind(self, kind: int) -> "_Votes":
        """The votes for marks of a kind."""
        return self.where(self.kind == kind)

    def where(self, chosen_V: npt.NDArray[np.bool_]) -> "_Votes":
        """Some of the votes."""
        return _Votes(*(getattr(self, part.name)[chosen_V] for part in fields(self)))

    def turned(self) -> "_Votes":
        """The votes with x and y exchanged."""
        return replace(self, x=self.y, y=self.x)

    def marks(self) -> "list[_Mark]":
        """What the votes point at, by their y alone, strongest square first; what points near a mark belongs to it."""
        left, found = self, []
        while len(left.y):
            near = np.abs(left.y - left.y[left.likely.argmax()]) <= _SAME
            found.append(_Mark.of(left.where(near)))
            left = left.where(~near)
        return found

    def strongest(self) -> float:
        """The strength of the strongest mark, 0 if there is none."""
        return max((mark.strength for mark in self.marks()), default=0.0)


@dataclass(frozen=True, slots=True)
class _Mark:
    """A place at which squares of all looks point."""

    y: float
    x: float  # where its likeliest squares point
    strength: float  # how likely the likeliest square of each look is, in the mean over looks
    apart: float  # pixels between where the looks point

    @classmethod
    def of(cls, votes: _Votes) -> "_Mark":
        """Takes all votes for one mark."""
        weights, best = votes.likely**2, np.zeros(len(_SHIFTS))
        np.maximum.at(best, votes.look, votes.likely)
        by_look = [
            np.average(votes.y[own], weights=weights[own])
            for own in (votes.look == look for look in range(len(_SHIFTS)))
            if own.any()
        ]
        y = float(np.average(votes.y, weights=weights))
        x = float(np.median(votes.x[votes.likely >= votes.likely.max() / 2]))
        return cls(y, x, float(best.mean()), float(np.ptp(by_look)))


def _ticks(votes: _Votes, axis: str, least: int) -> tuple[float, npt.NDArray[np.float64]]:
    """The place of an axis, and those of its ticks along it, in order."""
    found = [mark for mark in votes.marks() if mark.strength > _SURE]
    if len(found) < least:
        raise ChartRefused(f"its {axis} axis has fewer than {least} ticks that were found")
    _refuse_apart(found, "ticks")
    across = np.array([mark.x for mark in found])
    edge = float(np.median(across))
    if not np.abs(across - edge).max() <= STRIDE:
        raise ChartRefused("the ticks of an axis do not stand in one line")
    return edge, np.sort([mark.y for mark in found])


def _refuse_apart(found: Sequence[_Mark], what: str) -> None:
    if max(mark.apart for mark in found) > _MOST_APART:
        raise ChartRefused(f"looks at its {what} do not agree")


def _heights(votes: _Votes, below: npt.NDArray[np.float64], zero: float) -> npt.NDArray[np.float64]:
    """[P], the y in pixels of the one mark above each tick.

    Args:
        zero: y of what is worth 0, where the other end of a bar stands.
    """
    found = []
    for x in below:
        marks = votes.where(np.abs(votes.column - x) < STRIDE).marks()
        ends = [mark for mark in marks if abs(mark.y - zero) > _SAME]
        if any(mark.strength > _SURE for mark in ends):
            marks = ends
        marks.sort(key=lambda mark: -mark.strength)
        if not marks or not marks[0].strength > _SURE:
            raise ChartRefused("no value was found above one of the ticks of its horizontal axis")
        if len(marks) > 1 and marks[1].strength > _RIVAL * marks[0].strength:
            raise ChartRefused("more than one value may stand above one of the ticks of its horizontal axis")
        found.append(marks[0])
    _refuse_apart(found, "values")
    return np.array([mark.y for mark in found])


def _refuse_values_without_a_tick(
    votes: _Votes, below: npt.NDArray[np.float64], heights: npt.NDArray[np.float64], zero: float
) -> None:
    """Refuses a chart with a mark that belongs to no tick, or with ticks in uneven distances."""
    apart = np.diff(below)
    if np.ptp(apart) > _UNEVEN:
        raise ChartRefused("the ticks of its horizontal axis do not stand in even distances")
    # A bar's top is marked as a whole, and its corner may lie nearer to another tick.
    is_near = np.abs(votes.column[:, None] - below) <= 0.5 * apart.min() + STRIDE
    is_level = np.abs(votes.y[:, None] - heights) <= _LEVEL
    astray = votes.where(~(is_near & is_level).any(1) & (np.abs(votes.y - zero) > _SAME))
    if any(astray.where(np.abs(astray.column - x) < STRIDE).strongest() > _SURE for x in np.unique(astray.column)):
        raise ChartRefused("a value may stand where its horizontal axis has no tick")


def _refuse_strange_ink(
    picture_HW: npt.NDArray[np.uint8],
    below: npt.NDArray[np.float64],
    heights: npt.NDArray[np.float64],
    base: float,
    zero: float,
) -> None:
    """Refuses bars of several parts, low bars of both signs, and marks with an error bar.

    The reader points at one end of a bar alone, and in a low bar it cannot tell the end from the foot.
    """
    foot, is_bar = min(base, max(0.0, zero)), False
    for x, y in zip(below, heights, strict=True):
        column, row = int(x - 0.5), round(y - 0.5)
        top, bottom = sorted((y, foot))
        inside = picture_HW[math.ceil(top) + _EDGE : math.floor(bottom) - _EDGE, max(column - 2, 0) : column + 4]
        if inside.size and (inside < 255 - _FAINT).all():
            is_bar = True
            if np.ptp(inside, axis=0).max() > _UNIFORM:
                raise ChartRefused("its bars may have several parts")
        around = picture_HW[max(row - _BEYOND, 0) : row + _BEYOND + 1, column : column + 2].min(1, initial=255)
        darkness = 255.0 - around
        if len(around) > 2 * _BEYOND and darkness.min() > _DARK * darkness.max():
            raise ChartRefused("its marks may have error bars")
    above = zero - heights
    if is_bar and above.min() < -_SAME and above.max() > _SAME and np.abs(above).min() < _LOW:
        raise ChartRefused("one of its bars is too low to tell whether it stands or hangs")


def _numbers(
    reader: ChartReader, picture_HW: npt.NDArray[np.uint8], edge: float, rows: npt.NDArray[np.float64]
) -> tuple[list[float], bool]:
    """Reads the labels of ticks as numbers."""
    cuts = np.stack(
        [cut_label(picture_HW, round(edge) + right, round(y) + down) for y in rows for down, right in _CUTS]
    )
    likely_NSC = reader.letters(torch.from_numpy(cuts)).double().softmax(-1).numpy()
    if not np.isfinite(likely_NSC).all():
        raise ChartRefused("a label of its vertical axis cannot be read")
    words, digits = [], []
    for first in range(0, len(cuts), len(_CUTS)):
        own = slice(first, first + len(_CUTS))
        word, cut, column = _word(likely_NSC[own])
        white = max(0, CROP_WIDTH + 1 - round(edge) - _CUTS[cut][1])
        digits.append(_digit(cuts[own][cut], word, column, white=white))
        words.append(word)
    if not np.median(digits) <= _WIDEST:
        raise ChartRefused("the labels of its vertical axis have more letters than were read")
    return _parsed(words)


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
    if not word or sure[word] < max(_SURE_WORD, *(_SURER * sure[other] for other in others), 0.0):
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
    # 1.000 and 2.000 are thousands in some languages: no axis needs three decimals that are all 0.
    if (has_commas and without) or all(re.search(r"\.0{3,}$", word) for word in plain if float(word.replace(",", ""))):
        raise ChartRefused("the labels of its vertical axis can be understood in two ways")
    return numbers, are_percent.pop()


def _digit(label_HW: npt.NDArray[np.uint8], word: str, first: int, *, white: int) -> float:
    """The width of a digit over its height, if a label's ink is that of the letters that were read.

    What is lost from every label leaves the line through them straight, so no other check would see it.

    Args:
        first: column of pixels in which the first letter was read.
        white: columns on the left that lie outside of the picture.

    Raises:
        ChartRefused: the label shows more than that.
    """
    inked = np.pad((label_HW[_ABOVE:-_ABOVE] < 255 - _FAINT).any(0), 1)
    starts, ends = (np.flatnonzero(np.diff(inked.astype(np.int8)) == change) for change in (1, -1))
    pieces = [(start, end) for start, end in zip(starts, ends, strict=True) if end < label_HW.shape[1]]  # not the tick
    if not pieces or pieces[0][0] < max(white + _BORDER, first - _LETTER_WIDTH):
        raise ChartRefused("a label of its vertical axis has more letters than were read, or is cut off")
    if len(pieces) > len(word) + 2 * word.count("%"):  # which may be three
        raise ChartRefused("a label of its vertical axis has more letters than were read")
    left, right = pieces[0][0], pieces[-1][1]
    lines: npt.NDArray[np.bool_] = np.any(label_HW[:, left:right] < 255 - _FAINT, axis=1)
    middle = CROP_HEIGHT // 2
    above, under = lines[:middle][::-1].argmin(), lines[middle:].argmin()
    height = max(int(above + under), 1)
    return float((right - left) / sum(_WIDTHS.get(letter, 1.0) for letter in word) / height)


def _line(rows: npt.NDArray[np.float64], ticks: Sequence[float]) -> tuple[float, float]:
    """Slope and level of the line through ticks, on which all of them must lie."""
    slope, level = (float(number) for number in np.polyfit(rows, ticks, 1))
    if not slope < -_FLATTEST * max(map(abs, ticks)):
        raise ChartRefused("the labels of its vertical axis do not rise")
    if not np.abs((np.asarray(ticks) - level) / slope - rows).max() <= _ON_LINE:
        raise ChartRefused("the labels of its vertical axis do not stand in even distances")
    return slope, level


def _shifted(picture_HW: npt.NDArray[np.uint8], down: int, right: int) -> npt.NDArray[np.uint8]:
    padded = np.pad(picture_HW, STRIDE, mode="edge")
    top, left = STRIDE - down, STRIDE - right
    return padded[top : top + HEIGHT, left : left + WIDTH]

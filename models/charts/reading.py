"""Reads the values of a chart, or refuses it: a reader points, the axis' own labels measure, and checks decide.

Every value stands above, or below, a tick of the horizontal axis; a straight line through the ticks of the vertical
axis and what their labels say turns its height into a number. A chart is refused where a check fails: all ticks must
have been read and lie on that line (`labels`), each tick below must have one value and each mark a tick, in the mean
over looks at the chart that is shifted by some pixels each time, and the ink must be that of such marks (`ink`). No
check can find a mistake that fits them all.

Legend: `H`, `W` pixels, `h`, `w` squares, `K` kinds of marks, `P` values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ChartRefused
from ..structure import pictures
from . import ink, labels
from .reader import HEIGHT, KINDS, STRIDE, WIDTH, ChartReader

# Thresholds were set on 400 made-up charts of seeds that no table of docs/charts.md has.
_SHIFTS = ((0, 0), (2, 1), (-1, -2))  # pixels down and to the right, of each look at a chart
_FAINTEST = 0.05  # probability of a mark below which a square says nothing
_SURE, _SEEN = 0.35, 0.12  # strength of a mark that counts, and of a multiplier that must not be there
_RIVAL = 0.5  # strength of a second mark above a tick, of the first one's
_FARTHEST = 2.0  # squares of a mark from the square that points at it
_SAME = 2.0  # pixels within which squares point at one mark
_MOST_APART = 1.5  # pixels between looks at one mark
_ON_LINE = 0.8  # pixels of a tick from the line through all
_UNEVEN = 2.0  # pixels between the distances of ticks below
_FARTHEST_TICK = 0.85  # distances of ticks below from the end of their axis
_LEVEL = 2.5  # pixels of a bar's top from its middle
_LOWEST_BAR = 8.0  # pixels of a bar beside others of the other sign
_LEAST_TICKS, _LEAST_VALUES = 3, 2
_FLATTEST = 1e-9  # what a pixel is worth, of the largest label
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
    picture_HW: npt.NDArray[np.uint8] = pictures.decode([file], (HEIGHT, WIDTH))[0]
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
    ticks, is_percent = labels.numbers(reader, picture_HW, edge, rows)
    slope, level = _line(rows, ticks)
    top, right = ink.ends_of_axes(picture_HW, edge, base)
    _refuse_uneven(below, edge, right)
    zero = -level / slope
    foot = min(base, max(top, zero))
    has_bars = ink.has_bars(picture_HW, below, foot)
    values = found.of_kind(_VALUE)
    heights = _heights(values, below, zero if has_bars else None)
    if not all(0 <= place < HEIGHT for place in (*rows, *heights)):
        raise ChartRefused("its marks leave the picture")
    _refuse_values_without_a_tick(values, below, heights, zero if has_bars else None)
    if has_bars:
        _refuse_bars_of_doubt(picture_HW, below, heights, zero, top)
    ink.refuse_strange_marks(picture_HW, below, heights, foot)
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
        pointed_BhwK3 = reader(torch.from_numpy(shifted)).double()
        found_BhwK3, likely_BhwK = pointed_BhwK3.numpy(), pointed_BhwK3[..., 0].sigmoid().numpy()
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


def _heights(votes: _Votes, below: npt.NDArray[np.float64], zero: float | None) -> npt.NDArray[np.float64]:
    """[P], the y in pixels of the one mark above each tick.

    Args:
        zero: of bars, the y of their foot: a mark there is none beside another. A bar of no height has that one alone.
    """
    found = []
    for x in below:
        marks = votes.where(np.abs(votes.column - x) < STRIDE).marks()
        ends = [mark for mark in marks if zero is None or abs(mark.y - zero) > _SAME]
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


def _refuse_uneven(below: npt.NDArray[np.float64], left: float, right: float) -> None:
    """Refuses a chart whose ticks below have uneven distances, or leave room for another one at an end."""
    apart = np.diff(below)
    if np.ptp(apart) > _UNEVEN:
        raise ChartRefused("the ticks of its horizontal axis do not stand in even distances")
    if max(below[0] - left, right - below[-1]) > _FARTHEST_TICK * apart.min():
        raise ChartRefused("its horizontal axis may have a tick at an end that was not found")


def _refuse_values_without_a_tick(
    votes: _Votes, below: npt.NDArray[np.float64], heights: npt.NDArray[np.float64], zero: float | None
) -> None:
    """Refuses a chart with a mark that belongs to no tick; at the foot of bars there may be any."""
    # A bar's top is marked as a whole, and its corner may lie nearer to another tick.
    is_near = np.abs(votes.column[:, None] - below) <= 0.5 * np.diff(below).min() + STRIDE
    is_level = np.abs(votes.y[:, None] - heights) <= _LEVEL
    is_astray = ~(is_near & is_level).any(1)
    if zero is not None:
        is_astray &= np.abs(votes.y - zero) > _SAME
    astray = votes.where(is_astray)
    if any(astray.where(np.abs(astray.column - x) < STRIDE).strongest() > _SURE for x in np.unique(astray.column)):
        raise ChartRefused("a value may stand where its horizontal axis has no tick")


def _refuse_bars_of_doubt(
    picture_HW: npt.NDArray[np.uint8],
    below: npt.NDArray[np.float64],
    heights: npt.NDArray[np.float64],
    zero: float,
    top: float,
) -> None:
    """Refuses bars that the axis cuts off, and low ones of which the reader cannot tell the end from the foot."""
    if heights.min() <= top + _SAME:
        raise ChartRefused("one of its bars may go on above the axis")
    above = zero - heights
    if above.min() < -_SAME and above.max() > _SAME and np.abs(above).min() < _LOWEST_BAR:
        raise ChartRefused("one of its bars is too low to tell whether it stands or hangs")
    if any(ink.goes_on(picture_HW, x, zero) for x in below[np.abs(above) <= _SAME]):
        raise ChartRefused("the end of one of its bars was not found")


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

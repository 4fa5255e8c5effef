"""Looks at the ink of a chart for what a reader that points at marks does not see.

Legend: `H`, `W` pixels.
"""

import math

import numpy as np
import numpy.typing as npt

from ..errors import ChartRefused
from .reader import HEIGHT, WIDTH

FAINT = 12  # shades darker than white that are ink
_AXIS = 160  # shade of the palest axis
_ROOM = 12  # pixels above an axis in which a multiplier would be seen
_END = 4  # pixels at both ends of a bar that may be of another shade: its border, or a tick
_UNIFORM = 4  # shades that one bar may have
_BEYOND = 12  # pixels from a mark's middle at which it has ended, and a joining line is beside it
_DARK = 0.6  # of the darkest pixel's darkness, of a line through a mark


def ends_of_axes(picture_HW: npt.NDArray[np.uint8], edge: float, base: float) -> tuple[float, float]:
    """Returns the y where the vertical axis ends above and the x where the horizontal one ends on the right.

    Args:
        edge: x of the vertical axis, in pixels.
        base: y of the horizontal axis.

    Raises:
        ChartRefused: an axis is not drawn, or a multiplier above it might lie outside of the picture.
    """
    row, column = min(max(round(base), 1), HEIGHT - 1), min(max(round(edge), 1), WIDTH - 1)
    upwards = picture_HW[:row, max(column - 2, 0) : column + 2].min(1)[::-1] < _AXIS
    rightwards = picture_HW[max(row - 2, 0) : row + 2, column:].min(0) < _AXIS
    up, across = (int(dark.argmin()) if not dark.all() else len(dark) for dark in (upwards[_END:], rightwards[_END:]))
    if not (up and across):
        raise ChartRefused("an axis is not drawn as a dark line")
    top = row - _END - up
    if top < _ROOM:
        raise ChartRefused("there is no room above its vertical axis in which a multiplier would be seen")
    return float(top), float(column + _END + across)


def has_bars(picture_HW: npt.NDArray[np.uint8], below: npt.NDArray[np.float64], foot: float) -> bool:
    """True if there is a bar at most ticks: ink that is wider than a line above or below their common foot."""
    return bool(np.mean([goes_on(picture_HW, x, foot) for x in below]) >= 0.5)


def goes_on(picture_HW: npt.NDArray[np.uint8], x: float, y: float) -> bool:
    """True if ink that is wider than a line goes on above or below a place, where no axis or tick is any more."""
    across = slice(max(int(x - 0.5) - 2, 0), int(x - 0.5) + 4)
    over = picture_HW[max(math.floor(y) - 2 * _END, 0) : max(math.floor(y) - _END, 0), across]
    under = picture_HW[math.ceil(y) + _END : math.ceil(y) + 2 * _END, across]
    return any(part.size > 0 and bool((part < 255 - FAINT).all()) for part in (over, under))


def refuse_strange_marks(
    picture_HW: npt.NDArray[np.uint8], below: npt.NDArray[np.float64], heights: npt.NDArray[np.float64], foot: float
) -> None:
    """Refuses bars of several parts and marks with an error bar, of which a reader points at one end alone.

    Args:
        below: x of each mark.
        heights: y of each mark.
        foot: y where bars stand or hang.
    """
    for x, y in zip(below, heights, strict=True):
        column, row = int(x - 0.5), round(y - 0.5)
        top, bottom = sorted((y, foot))
        inside = picture_HW[math.ceil(top) + _END : math.floor(bottom) - _END, max(column - 2, 0) : column + 4]
        if inside.size and (inside < 255 - FAINT).all() and np.ptp(inside, axis=0).max() > _UNIFORM:
            raise ChartRefused("its bars may have several parts")
        around = picture_HW[max(row - _BEYOND, 0) : row + _BEYOND + 1, column : column + 2].min(1, initial=255)
        darkness = 255.0 - around
        if len(around) > 2 * _BEYOND and darkness.min() > _DARK * darkness.max():
            raise ChartRefused("its marks may have error bars")

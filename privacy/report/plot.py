"""Small plots as inline SVG that print well: axes, curves, bars and labels, with a text for who cannot see them."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from markupsafe import Markup

Scale = Callable[[float], float]

_SVG = Markup(
    '<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{title}" '
    'xmlns="http://www.w3.org/2000/svg"><title>{title}</title><desc>{story}</desc>{parts}</svg>'
)
_LINE = Markup('<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>')
_TEXT = Markup('<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>')
_PATH = Markup('<path class="{kind}" d="{path}"/>')
_DOT = Markup('<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>')
_BAR = Markup('<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>')
_LABEL_HEIGHT = 14  # below which two names at the right margin would overlap


@dataclass(slots=True)
class Plot:
    """An SVG under construction; coordinates are in its own units, y downwards."""

    width: float
    height: float
    left: float  # margins
    right: float
    top: float
    bottom: float
    _parts: list[Markup] = field(default_factory=list)
    _names: list[tuple[float, str, str]] = field(default_factory=list)

    @property
    def x_range(self) -> tuple[float, float]:
        """The plot's area from left to right."""
        return self.left, self.width - self.right

    @property
    def y_range(self) -> tuple[float, float]:
        """The plot's area from bottom to top."""
        return self.height - self.bottom, self.top

    def line(self, kind: str, x1: float, y1: float, x2: float, y2: float) -> None:
        """A straight line."""
        self._parts.append(_LINE.format(kind=kind, x1=x1, x2=x2, y1=y1, y2=y2))

    def level(self, kind: str, y: float) -> None:
        """A horizontal line over the whole area."""
        self.line(kind, self.x_range[0], y, self.x_range[1], y)

    def text(self, kind: str, x: float, y: float, text: object, anchor: str = "start") -> None:
        """A line of text; `anchor` is start, middle or end."""
        self._parts.append(_TEXT.format(kind=kind, x=x, y=y, text=text, anchor=anchor))

    def curve(self, kind: str, points: Iterable[tuple[float, float]], *, closed: bool = False) -> None:
        """A path through the points, or the area that they enclose."""
        path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points) + ("Z" if closed else "")
        self._parts.append(_PATH.format(kind=kind, path=path))

    def dot(self, kind: str, x: float, y: float, radius: float = 3.2) -> None:
        """A filled circle."""
        self._parts.append(_DOT.format(kind=kind, x=x, y=y, radius=radius))

    def bar(self, kind: str, x1: float, x2: float, y: float, height: float) -> None:
        """A horizontal bar from x1 to x2, its middle at y."""
        width = max(0.0, x2 - x1)
        self._parts.append(_BAR.format(kind=kind, x=x1, y=y - height / 2, width=width, height=height))

    def cells(self, kind: str, corners: Iterable[tuple[float, float]], width: float, height: float) -> None:
        """Many rectangles of one size, each from its upper left corner, as one path: a picture may have thousands."""
        if path := "".join(f"M{x:.1f} {y:.1f}h{width:.2f}v{height:g}h-{width:.2f}z" for x, y in corners):
            self._parts.append(_PATH.format(kind=kind, path=path))

    def name(self, kind: str, y: float, text: str) -> None:
        """The name of a curve, in the right margin at the height where it ends; names never overlap."""
        self._names.append((y, kind, text))

    def y_axis(self, title: str, scale: Scale, ticks: Iterable[tuple[float, str]]) -> None:
        """A grid line and a number for each tick, and the title above."""
        for value, text in ticks:
            self.level("grid", scale(value))
            self.text("tick", self.left - 8, scale(value) + 4, text, "end")
        self.text("axis", 0, self.top - 10, title)

    def x_axis(self, title: str, scale: Scale, ticks: Iterable[tuple[float, str]]) -> None:
        """A number for each tick, and the title below."""
        for value, text in ticks:
            self.text("tick", scale(value), self.y_range[0] + 17, text, "middle")
        self.text("axis", sum(self.x_range) / 2, min(self.height - 4, self.y_range[0] + 36), title, "middle")

    def svg(self, kind: str, title: str, story: str) -> Markup:
        """The picture; `title` and `story` say what it shows, to who has it read out."""
        for at, name_kind, text in _apart(self._names):
            self.text(name_kind, self.x_range[1] + 9, at + 4, text)
        parts = Markup("").join(self._parts)
        return _SVG.format(kind=kind, width=self.width, height=self.height, title=title, story=story, parts=parts)


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """Takes low to start and high to end; beyond them it stays there."""
    return lambda value: start + (end - start) * min(max((value - low) / (high - low), 0.0), 1.0)


def logarithmic(low: float, high: float, start: float, end: float) -> Scale:
    """The same on a logarithmic axis; whatever is below `low`, 0 too, is put at its start."""
    place = linear(math.log(low), math.log(high), start, end)
    return lambda value: place(math.log(max(value, low)))


def nice_top(value: float) -> float:
    """A round number a little above `value`, where an axis may end."""
    value = value * 1.08 if 0 < value < math.inf else 100.0 if value else 1.0
    step = _step(value)
    return math.ceil(value / step) * step


def ticks(top: float) -> list[tuple[float, str]]:
    """Round numbers from 0 to `top`."""
    step = _step(top)
    found = [step * count for count in range(int(top / step + 1.5)) if step * count <= top * 1.001]
    return [(value, f"{value:g}") for value in found]


def whole_ticks(last: int) -> list[tuple[float, str]]:
    """Whole numbers from 0 to `last`, which is among them."""
    step = max(1, round(_step(last)))
    found = list(range(0, last + 1, step))
    if last - found[-1] >= step / 2:
        found.append(last)
    return [(value, f"{value:,}") for value in found]


def between(low: float, high: float, most: int = 8) -> list[tuple[float, str]]:
    """Round numbers, the first at most `low` and the last at least `high`, for an axis that does not begin at 0."""
    step = next((step for step in _SHARES if (high - low) / step <= most), _SHARES[-1])
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = 3 if step < 0.01 else 2
    return [(step * count, f"{step * count:.{digits}f}") for count in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Numbers 1, 2 and 5 times a power of ten from `low` to `high`, for a logarithmic axis."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return [(value, f"{value:g}") for value in found if low <= value <= high]


_SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # between ticks of an axis of shares
_SPANS = (1, 5, 15, 60, 300, 900, 3600, 3 * 3600, 6 * 3600, 12 * 3600)  # seconds between ticks
_DAYS = (1, 2, 7, 14, 28, 91, 182, 365, 730, 1825, 3650)


def time_ticks(first: float, last: float, most: int = 6) -> list[tuple[float, str]]:
    """Round times in UTC between two, all in seconds of Unix time; at least one, and one more than `most` at most."""
    steps = [*_SPANS, *(days * 86_400 for days in _DAYS)]
    at = next((at for at, step in enumerate(steps) if (last - first) / step <= most), len(steps) - 1)
    for step in steps[at::-1]:
        if places := list(range(math.ceil(first / step) * step, math.floor(last) + 1, step)):
            break
    found: list[float] = [*places] or [first]
    if step != steps[at]:  # there is no rounder time in between, and of these there may be too many
        found = [found[len(found) // 2]]
    shape = "%Y-%m-%d" if step >= 86_400 else "%m-%d %H:%M" if last - first > 86_400 else "%H:%M:%S"
    return [(place, datetime.fromtimestamp(place, UTC).strftime(shape)) for place in found]


def _step(top: float) -> float:
    size = 10.0 ** math.floor(math.log10(top / 4))
    return next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor * 5 >= top)


def _apart(names: Sequence[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    """Moves labels down until no two overlap."""
    placed: list[tuple[float, str, str]] = []
    for at, kind, name in sorted(names):
        placed.append((max(at, placed[-1][0] + _LABEL_HEIGHT) if placed else at, kind, name))
    return placed

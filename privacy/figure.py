"""Epsilon over releases as a small SVG: both accountants' curves and the budget's line."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from .report_format import Account

WIDTH, HEIGHT = 560, 258
LEFT, RIGHT, TOP, BOTTOM = 34, 56, 24, 40  # margins; the curves' names stand in the right one

_SVG = Markup(
    '<svg class="course" viewBox="0 0 {width} {height}" role="img" aria-label="{label}" '
    'xmlns="http://www.w3.org/2000/svg">{parts}</svg>'
)
_GRID = Markup('<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
_TEXT = Markup('<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>')
_CURVE = Markup('<path class="{kind}" d="{path}"/>')
_DOT = Markup('<circle class="{kind}-dot" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>')
_CAP = Markup('<line class="cap" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')


def course(account: Account) -> Markup:
    """The plot for an account that has a budget and a course; empty otherwise."""
    if account.budget is None or not account.course:
        return Markup("")
    last = account.course[-1]
    cap = account.budget.epsilon
    top = _nice_top(max([cap, *(point.pld for point in account.course), *_drawable(account)]))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(releases: float) -> float:
        return LEFT + (right - LEFT) * releases / last.releases

    def y(epsilon: float) -> float:
        return bottom - (bottom - TOP) * min(epsilon, top) / top

    parts: list[Markup] = []
    for tick in _ticks(top):
        parts.append(_GRID.format(left=LEFT, right=right, y=y(tick)))
        parts.append(_TEXT.format(kind="tick", x=LEFT - 8, y=y(tick) + 4, anchor="end", text=f"{tick:g}"))
    for releases in _whole_ticks(last.releases):
        parts.append(_TEXT.format(kind="tick", x=x(releases), y=bottom + 17, anchor="middle", text=releases))
    middle = (LEFT + right) / 2
    parts.append(_TEXT.format(kind="axis", x=middle, y=HEIGHT - 5, anchor="middle", text="releases"))
    parts.append(_TEXT.format(kind="axis", x=LEFT, y=TOP - 8, anchor="start", text="epsilon"))
    parts.append(_CAP.format(left=LEFT, right=right, y=y(cap)))
    names = [(y(cap), "cap-name", "budget")]
    for kind, name in (("rdp", "RDP"), ("pld", "PLD")):
        values = [(0, 0.0)] + [(point.releases, getattr(point, kind)) for point in account.course]
        values = [(releases, epsilon) for releases, epsilon in values if math.isfinite(epsilon)]
        path = "M" + " L".join(f"{x(releases):.1f} {y(epsilon):.1f}" for releases, epsilon in values)
        parts.append(_CURVE.format(kind=kind, path=path))
        parts.append(_DOT.format(kind=kind, x=x(values[-1][0]), y=y(values[-1][1])))
        names.append((y(values[-1][1]), f"{kind}-name", name))
    for at, kind, name in _apart(names):
        parts.append(_TEXT.format(kind=kind, x=right + 9, y=at + 4, anchor="start", text=name))
    label = (
        f"Epsilon after each of {last.releases} releases: {last.pld:.2f} by PLD and {last.rdp:.2f} by RDP, "
        f"budget {cap:g}"
    )
    return _SVG.format(width=WIDTH, height=HEIGHT, label=label, parts=Markup("").join(parts))


def _drawable(account: Account) -> list[float]:
    """RDP values worth room on the axis: not the infinite ones."""
    return [point.rdp for point in account.course if math.isfinite(point.rdp)]


def _nice_top(value: float) -> float:
    value = value * 1.08 if math.isfinite(value) else 100.0
    step = _step(value)
    return math.ceil(value / step) * step


def _step(top: float) -> float:
    size = 10.0 ** math.floor(math.log10(top / 4))
    return next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor * 5 >= top)


def _ticks(top: float) -> list[float]:
    step = _step(top)
    return [step * count for count in range(int(top / step + 1.5)) if step * count <= top * 1.001]


def _whole_ticks(last: int) -> list[int]:
    step = max(1, round(_step(last)))
    ticks = list(range(0, last + 1, step))
    return ticks if last - ticks[-1] < step / 2 else [*ticks, last]


def _apart(names: Sequence[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    """Moves labels down until no two overlap."""
    placed: list[tuple[float, str, str]] = []
    for at, kind, name in sorted(names):
        placed.append((max(at, placed[-1][0] + 14) if placed else at, kind, name))
    return placed

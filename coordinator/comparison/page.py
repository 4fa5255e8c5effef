"""Renders a comparison as one HTML page, in the style of the budget report: utility against epsilon, and the table."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from ...privacy.report import templating
from ...privacy.report.plot import Plot, Scale, between, linear
from .figures import CAUTION, Comparison, Point, Row, spread
from .ladder import OWN

_GAP = 64  # from the largest epsilon to the place of no privacy


def render_html(comparison: Comparison) -> str:
    """Renders the page."""
    template = templating.templates(__name__).get_template("ladder.html")
    return template.render(found=comparison, plot=plot(comparison), caution=CAUTION, spread=spread)


def plot(comparison: Comparison) -> Markup:
    """Draws a line for each rung, with Student's interval over seeds at each epsilon; no privacy is the last place."""
    picture = Plot(width=792, height=400, left=48, right=200, top=28, bottom=44)
    x, y = _across(comparison, picture), _up(comparison, picture)
    drawn, below = _drawn(comparison)
    if below is not None:
        text = f"{below.name} {below.points[0].value:.3f}, below"
        picture.text(f"name rung-{below.rung}", picture.x_range[0] + 6, picture.y_range[0] - 6, text)
    for row in drawn:
        places = sorted(((x(_epsilon(point)), point) for point in row.points), key=lambda each: each[0])
        kind = f"rung-{row.rung}"
        if row.rung == "constant":
            picture.level(f"line {kind}", y(places[0][1].value))
        elif len(places) > 1:
            picture.curve(f"line {kind}", [(at, y(point.value)) for at, point in places])
        for at, point in places:
            picture.dot(f"dot {kind}", at, y(point.value))
            if point.spread is not None:
                picture.line(f"bar {kind}", at, y(point.spread[0]), at, y(point.spread[1]))
        picture.name(f"name {kind}", y(places[-1][1].value), row.name)
    return picture.svg("ladder", f"{comparison.metric} of each rung against epsilon", _story(comparison))


def _across(comparison: Comparison, picture: Plot) -> Scale:
    """Draws the axis of epsilon, logarithmic; returns the place of an epsilon, infinity being that of no privacy."""
    left, right = picture.x_range
    found = {asked: comparison.epsilon(asked) for asked in comparison.asked}
    epsilons = [epsilon for epsilon in found.values() if epsilon is not None]
    low, high = (min(epsilons) / 1.2, max(epsilons) * 1.1) if epsilons else (0.5, 2.0)
    place = linear(math.log(low), math.log(high), left, right - _GAP)

    def x(epsilon: float) -> float:
        return right if math.isinf(epsilon) else place(math.log(epsilon))

    marks = [(epsilon, asked) for asked, epsilon in found.items() if epsilon is not None and asked != OWN]
    picture.x_axis("ε of a whole run, evaluation left out", x, [*marks, (math.inf, "no privacy")])
    own = found.get(OWN)
    if own is not None:
        picture.line("own", x(own), picture.y_range[0], x(own), picture.y_range[1])
        picture.text("own-name", x(own), picture.y_range[1] - 6, "the study’s", "middle")
    return x


def _up(comparison: Comparison, picture: Plot) -> Scale:
    """Draws the axis of utility, around what was found."""
    marks = between(*_reach(_drawn(comparison)[0]))
    y = linear(marks[0][0], marks[-1][0], *picture.y_range)
    picture.y_axis(comparison.metric, y, marks)
    return y


def _drawn(comparison: Comparison) -> tuple[list[Row], Row | None]:
    """The rows with a point, and the constant apart where it lies so low that it would flatten all others."""
    rows = [row for row in comparison.rows if row.points]
    others = [row for row in rows if row.rung != "constant"]
    if others and len(others) < len(rows):
        (low, high), (constant,) = _reach(others), [row for row in rows if row.rung == "constant"]
        if constant.points[0].value < low - (high - low):
            return others, constant
    return rows, None


def _reach(rows: Sequence[Row]) -> tuple[float, float]:
    ends = [end for row in rows for point in row.points for end in (point.value, *(point.spread or ()))]
    return max(0.0, min(ends, default=0.0)), min(1.0, max(ends, default=1.0))


def _epsilon(point: Point) -> float:
    return math.inf if point.epsilon is None else point.epsilon


def _story(comparison: Comparison) -> str:
    """Says what the picture shows, to who has it read out."""
    lines = [
        f"{row.name}: " + ", ".join(f"{point.value:.3f} at {comparison.heading(point.asked)}" for point in row.points)
        for row in comparison.rows
        if row.points
    ]
    return ". ".join(lines)

"""Charts of the operator's page, as SVG; each stands above a table with the same figures."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import floor
from typing import TYPE_CHECKING

from markupsafe import Markup

from ...privacy.report.figures import Sheet
from ...privacy.report.language import DEFAULT, load
from ...privacy.report.plot import Plot, Scale, linear, nice_top, ticks, time_ticks, whole_ticks
from ..run.laps import STEPS, Step
from ..run.overview import OpenedRound

if TYPE_CHECKING:  # accounting takes seconds to import
    from ...privacy.ledger.standings import Course
    from .comparing import DatedPoint, Point

WIDE, NARROW = 760, 310  # units across on a wide page, and on a telephone
_LETTER = 7.0  # width of a letter, on the safe side
STEP_NAMES: Mapping[Step, str] = {
    "collect": "sites answer", "topup": "noise for missing sites", "deliver": "shares to aggregators",
    "wait": "waits for a turn", "sum": "aggregators add", "open": "total verified", "apply": "server step",
}  # fmt: skip


def twice(draw: Callable[[float], Markup], wide: float = WIDE) -> Markup:
    """Draws a chart for a wide page and for a narrow one; the style shows one of them."""
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(draw(wide), draw(NARROW))


def of_report(draw: Callable[..., Markup], *facts: object) -> Markup:
    """Draws a chart of the budget report, for a wide page and for a narrow one; empty where it is."""
    language = load(DEFAULT)
    wide, narrow = draw(*facts, Sheet(language)), draw(*facts, Sheet(language, is_narrow=True))
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(wide, narrow) if wide else wide


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a chart: its name, how long it is, and what stands at its end."""

    name: str
    part: float  # 0 to 1
    text: str
    kind: str  # whole, part or over: a class of the style


def bars(found: Sequence[Bar], title: str, story: str) -> Markup:
    """Draws horizontal bars from 0 to 100 %, each below its name; empty without any."""
    if not found:
        return Markup("")

    def draw(width: float) -> Markup:
        plot = Plot(width=width, height=14 + 34 * len(found), left=2, right=46, top=4, bottom=10)
        x = linear(0, 1, *plot.x_range)
        for row, each in enumerate(found):
            y = plot.y_range[1] + 34 * row + 12
            most = int(width / _LETTER)
            plot.text("label", x(0), y, each.name if len(each.name) <= most else each.name[: most - 1] + "…")
            plot.bar("rail", x(0), x(1), y + 11, 7)
            plot.bar(each.kind, x(0), x(each.part), y + 11, 7)
            plot.text("label", width, y + 15, each.text, "end")
        return plot.svg("bars", title, story)

    return twice(draw)


def rounds(found: Sequence[OpenedRound]) -> Markup:
    """Draws the seconds of each round, with a mark at those in which a site was missing; empty before the second."""
    if len(found) < 2:
        return Markup("")

    def draw(width: float) -> Markup:
        plot = Plot(width=width, height=170, left=42, right=24, top=26, bottom=40)
        last, top = found[-1].round, nice_top(max(each.seconds for each in found))
        x, y = linear(0.5, last + 0.5, *plot.x_range), linear(0, top, *plot.y_range)
        plot.y_axis("seconds", y, ticks(top))
        plot.x_axis("round", x, [each for each in whole_ticks(last) if each[0] >= 1])
        corners = [(x(each.round + side), y(each.seconds)) for each in found for side in (-0.5, 0.5)]
        plot.curve("wash", [(corners[0][0], y(0)), *corners, (corners[-1][0], y(0))], closed=True)
        plot.curve("guaranteed", corners)
        partial = [each for each in found if each.missing or each.too_long]
        for each in partial:
            plot.dot("part", x(each.round), y(each.seconds), 3.2 if len(found) < 200 else 1.8)
        story = f"{len(found)} rounds, the slowest {max(each.seconds for each in found):.1f} s; "
        story += f"in {len(partial)} of them a site was missing or left out, marked by a dot."
        return plot.svg("rounds", "Seconds of each round", story)

    return twice(draw)


def timeline(found: Sequence[OpenedRound]) -> Markup:
    """Draws each round as a bar of its steps, one after the other; empty if none of them was measured."""
    timed = [each for each in found if each.steps]
    if not timed:
        return Markup("")
    slowest = max(timed, key=lambda each: sum(each.steps.values()))

    def draw(width: float) -> Markup:
        names = list(_in_lines([STEP_NAMES[step] for step in STEPS], width))
        above = 18 * (names[-1][1] + 1) + 8
        plot = Plot(width=width, height=above + 20 * len(timed) + 42, left=46, right=24, top=above, bottom=42)
        for (x_name, line, name), step in zip(names, STEPS, strict=True):
            plot.bar(f"step-{step}", x_name, x_name + 10, 18 * line + 9, 10)
            plot.text("label", x_name + 15, 18 * line + 13, name)
        top = nice_top(sum(slowest.steps.values()))
        x = linear(0, top, *plot.x_range)
        for value, _ in ticks(top):
            plot.line("grid", x(value), plot.y_range[1], x(value), plot.y_range[0])
        plot.x_axis("seconds", x, ticks(top))
        for row, each in enumerate(timed):
            y, end = above + 20 * row + 10, 0.0
            plot.text("tick", plot.left - 8, y + 4, f"{each.round:,}", "end")
            for step, seconds in each.steps.items():
                plot.bar(f"step-{step}", x(end), x(end + seconds), y, 12)
                end += seconds
        told = ", ".join(f"{STEP_NAMES[step]} {seconds:.1f} s" for step, seconds in slowest.steps.items())
        story = f"{len(timed)} rounds, one below the other. The slowest, round {slowest.round}: {told}."
        return plot.svg("timeline", "Steps of each round", story)

    return twice(draw)


def _in_lines(names: Sequence[str], width: float) -> Iterator[tuple[float, int, str]]:
    """Yields the place of each name of a legend, from left to right and then in the next line: its x, and its line."""
    at, line = 0.0, 0
    for name in names:
        needed = 15 + _LETTER * len(name) + 12
        if at and at + needed > width:
            at, line = 0.0, line + 1
        yield at, line, name
        at += needed


def measured(found: "Sequence[Point]") -> Markup:
    """Draws what runs measured, with its interval, over the epsilon that they have spent.

    Runs without privacy stand at the right border; empty unless something was measured, and the same of all.
    """
    if not found or len({each.name for each in found}) > 1:
        return Markup("")
    name, lowest = found[0].name, min(each.main.low for each in found)

    def draw(width: float) -> Markup:
        plot = Plot(width=width, height=220, left=42, right=16, top=26, bottom=40)
        top = nice_top(max((each.epsilon or 0.0) for each in found))
        is_bare = any(each.epsilon is None for each in found)
        end = plot.x_range[1] - (70 if is_bare else 12)
        low, high = min(floor(10 * lowest - 0.5), 9), 10  # in tenths
        x, y = linear(0, top, plot.x_range[0], end), linear(max(0, low) / 10, high / 10, *plot.y_range)
        plot.y_axis(name, y, [(each / 10, f"{each / 10:g}") for each in range(max(0, low), high + 1)])
        plot.x_axis("ε spent, by PLD", x, ticks(top))
        if is_bare:
            plot.text("tick", plot.x_range[1] - 22, plot.y_range[0] + 17, "no privacy", "middle")
        places: dict[float, int] = {}
        for each in found:
            at = plot.x_range[1] - 22 if each.epsilon is None else x(each.epsilon)
            near = round(at / 14)
            places[near] = places.get(near, 0) + 1
            at += 14 * (places[near] - 1) * (-1 if at > width / 2 else 1)  # runs of one study cost the same
            _interval(plot, each, at, y)
        story = "; ".join(
            f"{each.letter}, {each.run}: {each.main.value:.3f}, {each.main.low:.3f} to {each.main.high:.3f}"
            for each in found
        )
        return plot.svg("measured", f"{name} and ε of each run", story)

    return twice(draw)


def learned(found: "Sequence[DatedPoint]") -> Markup:
    """Draws what the runs of a study measured, with its interval, over the epsilon that the study had cost by then.

    Without privacy it is drawn over time; empty unless something was measured. A thin line leads from run to run.
    """
    if not found:
        return Markup("")
    name, by_time = found[0].name, any(each.spent is None or not math.isfinite(each.spent) for each in found)
    places = [each.at if by_time or each.spent is None else each.spent for each in found]
    margin = max(60.0, 0.05 * (places[-1] - places[0]))
    low = max(0, min(floor(10 * min(each.main.low for each in found) - 0.5), 9))  # in tenths

    def draw(width: float) -> Markup:
        plot = Plot(width=width, height=220, left=42, right=20, top=26, bottom=40)
        left, right = plot.x_range[0] + 8, plot.x_range[1] - 12
        y = linear(low / 10, 1, *plot.y_range)
        plot.y_axis(name, y, [(each / 10, f"{each / 10:g}") for each in range(low, 11)])
        if by_time:
            x = linear(places[0] - margin, places[-1] + margin, left, right)
            marks = time_ticks(places[0] - margin, places[-1] + margin, most=2 if width < WIDE else 5)
            plot.x_axis("measured at, UTC", x, marks)
        else:
            top = nice_top(places[-1])
            x = linear(0, top, left, right)
            plot.x_axis("ε of all runs by then, by PLD", x, ticks(top))
        if len(found) > 1:
            ways = [(x(place), y(each.main.value)) for place, each in zip(places, found, strict=True)]
            plot.curve("way", ways)
        for place, each in zip(places, found, strict=True):
            _interval(plot, each, x(place), y)
        story = "; ".join(
            f"{each.letter}, {each.run}: {each.main.value:.3f}, {each.main.low:.3f} to {each.main.high:.3f}"
            for each in found
        )
        return plot.svg("measured", f"{name} of each run of the study", story)

    return twice(draw)


def _interval(plot: Plot, each: "Point", at: float, y: Scale) -> None:
    """Draws a run's figure with its interval, and its letter above."""
    plot.line("series0", at, y(each.main.low), at, y(each.main.high))
    for edge in (each.main.low, each.main.high):
        plot.line("series0", at - 4, y(edge), at + 4, y(edge))
    plot.dot("whole", at, y(each.main.value))
    plot.text("label", at, y(each.main.high) - 6, each.letter, "middle")


def spending(course: "Course", cap: float | None) -> Markup:
    """Draws the guaranteed epsilon of an account over the site's clock, and its cap; empty without one or a charge."""
    points = [(_seconds(each.time), each.guaranteed) for each in course.points if math.isfinite(each.guaranteed)]
    if cap is None or not points or len(points) < len(course.points):
        return Markup("")
    times = [time for time, _ in points]
    margin = max(30.0, 0.03 * (max(times) - min(times)))
    first, last = min(times) - margin, max(times) + margin

    def draw(width: float) -> Markup:
        plot = Plot(width=width, height=190, left=38, right=76, top=26, bottom=40)
        top = nice_top(max(cap, *(epsilon for _, epsilon in points)))
        x, y = linear(first, last, *plot.x_range), linear(0, top, *plot.y_range)
        plot.y_axis("epsilon", y, ticks(top))
        plot.x_axis("the site's clock, UTC", x, time_ticks(first, last, most=2 if width < WIDE else 5))
        plot.level("cap", y(cap))
        plot.name("cap-name", y(cap), "cap")
        places, before = [(x(first), y(0))], 0.0
        for time, epsilon in points:
            places += [(x(time), y(before)), (x(time), y(epsilon))]
            before = epsilon
        places.append((x(last), y(before)))
        plot.curve("wash", [*places, (x(last), y(0))], closed=True)
        plot.curve("guaranteed", places)
        plot.name("guaranteed-name", places[-1][1], "guaranteed")
        story = f"Guaranteed epsilon {before:.3g} of a cap of {cap:g} after {course.points[-1].releases} releases."
        return plot.svg("spending", f"Spending on {course.dataset} over time", story)

    return twice(draw)


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()

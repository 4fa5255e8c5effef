"""Charts of the operator's page, as SVG; each stands above a table with the same figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ...privacy.report.figures import Sheet
from ...privacy.report.language import DEFAULT, load
from ...privacy.report.plot import Plot, linear, nice_top, ticks, whole_ticks
from ..run.overview import OpenedRound

WIDE, NARROW = 760, 310  # units across on a wide page, and on a telephone
_LETTER = 7.0  # width of a letter, on the safe side


def twice(draw: Callable[[float], Markup]) -> Markup:
    """Draws a chart for a wide page and for a narrow one; the style shows one of them."""
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(draw(WIDE), draw(NARROW))


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
        plot = Plot(width=width, height=170, left=42, right=12, top=26, bottom=40)
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

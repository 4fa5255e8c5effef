"""Charts of the operator's page, as SVG; each stands above a table with the same figures."""

from collections.abc import Callable, Sequence

from markupsafe import Markup

from ...privacy.report.plot import Plot, linear, nice_top, ticks, whole_ticks
from ..run.overview import OpenedRound

WIDE, NARROW = 760, 310  # units across on a wide page, and on a telephone


def twice(draw: Callable[[float], Markup]) -> Markup:
    """Draws a chart for a wide page and for a narrow one; the style shows one of them."""
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(draw(WIDE), draw(NARROW))


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

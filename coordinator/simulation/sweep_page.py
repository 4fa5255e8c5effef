"""Renders a sweep as one HTML page, in the style of the budget report: utility against epsilon, and all trials."""

import math
from itertools import pairwise

from markupsafe import Markup

from ...privacy.report import templating
from ...privacy.report.plot import Plot, Scale, between, linear, log_ticks, logarithmic
from .axes import shown
from .run_page import metric_name
from .swept import Sweep, Trial, half_spread

_LEAST = 1e-3  # smaller epsilons, 0 too, stand at the start of the axis
_GAP = 96  # from the largest epsilon to the place of no privacy


def render_html(found: Sweep) -> str:
    """Renders the page, also of a sweep that is not done."""
    template = templating.templates(__name__).get_template("sweep.html")
    return template.render(
        found=found, name=metric_name(found.metric), plot=scatter(found), shown=shown, spread=half_spread
    )


def scatter(found: Sweep) -> Markup:
    """Draws every trial at its epsilon, those on the front filled and with their intervals, joined by a line."""
    plot = Plot(width=760, height=380, left=48, right=24, top=28, bottom=44)
    x = _across(found, plot)
    ends = [end for each in found.front for end in each.over_records] + [each.value for each in found.trials]
    marks = between(max(0.0, min(ends)), min(1.0, max(ends)))
    y = linear(marks[0][0], marks[-1][0], *plot.y_range)
    plot.y_axis(metric_name(found.metric), y, marks)
    front = [(x(_cost(each)), y(each.value)) for each in found.front]
    for each in found.trials:
        if not each.is_on_front:
            plot.dot("tried", x(_cost(each)), y(each.value))
    if len(front) > 1:  # what is best for at most an epsilon stays so until the next
        steps = [front[0]]
        for (_, before), (at, value) in pairwise(front):
            steps += [(at, before), (at, value)]
        plot.curve("front", steps)
    for each, (at, value) in zip(found.front, front, strict=True):
        low, high = each.over_records
        plot.line("interval", at, y(low), at, y(high))
        for edge in (low, high):
            plot.line("interval", at - 4, y(edge), at + 4, y(edge))
        plot.bar("best", at - 4, at + 4, value, 8)
        is_last = at > plot.x_range[1] - 24
        plot.text("number", at - 8 if is_last else at + 8, value - 6, each.number, "end" if is_last else "start")
    story = "; ".join(
        f"trial {each.number}: {each.value:.3f}, {each.over_records[0]:.3f} to {each.over_records[1]:.3f}, at "
        + ("no privacy" if each.epsilon is None else f"ε {each.epsilon:.3g}")
        for each in found.front
    )
    return plot.svg("simulated", f"{metric_name(found.metric)} against epsilon of {len(found.trials)} trials", story)


def _across(found: Sweep, plot: Plot) -> Scale:
    """Draws the axis of epsilon, logarithmic; returns the place of an epsilon, infinity being that of no privacy."""
    left, right = plot.x_range
    is_open = any(each.epsilon is None for each in found.trials)
    epsilons = [each.epsilon for each in found.trials if each.epsilon is not None and each.epsilon >= _LEAST]
    low, high = _round_ends(min(epsilons), max(epsilons)) if epsilons else (0.5, 2.0)
    place = logarithmic(low, high, left, right - _GAP if is_open else right)

    def x(epsilon: float) -> float:
        return right - 8 if math.isinf(epsilon) else place(epsilon)

    plot.x_axis("ε of all rounds, by PLD", x, log_ticks(low, high) if epsilons else [])
    if is_open:
        plot.text("tick", right, plot.y_range[0] + 17, "no privacy", "end")
    return x


def _round_ends(least: float, largest: float) -> tuple[float, float]:
    """Round numbers a little below and above, so that the axis has two ticks at least."""
    marks = [value for value, _ in log_ticks(least / 20, largest * 20)]
    return max(mark for mark in marks if mark <= least / 1.1), min(mark for mark in marks if mark >= largest * 1.1)


def _cost(trial: Trial) -> float:
    return math.inf if trial.epsilon is None else trial.epsilon

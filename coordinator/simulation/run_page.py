"""Renders a simulated run as one HTML page, in the style of the budget report."""

from collections import Counter
from collections.abc import Sequence
from functools import cache

from jinja2 import Template
from markupsafe import Markup

from ...models.evaluation.metrics import Estimate
from ...privacy.report import templating
from ...privacy.report.plot import Plot, Scale, between, linear, nice_top, ticks, whole_ticks
from .fairness import fairness, worst_count
from .outcome import CAUTION, RoundOutcome, Simulation, SiteOutcome

_WIDTH = 760
_FEW = 60  # points that have a dot each
_MOST_NAMES = 5  # of sites in a cell
_FATES = (("summed", "summed"), ("late", "late"), ("refused", "left out by the norm check"), ("away", "away"))


def render_html(found: Simulation) -> str:
    """Renders the page of a simulation, also of one that is not done."""
    return _template().render(
        found=found,
        final=final(found),
        name=metric_name(found.metric),
        fair=fairness(found.sites),
        curve=learning_curve(found),
        spending=spending(found),
        sites_plot=sites_plot(found),
        attendance=attendance(found),
        missing=missing(found.rounds),
        named=named,
        caution=CAUTION,
    )


@cache  # to compile it takes longer than a small round
def _template() -> Template:
    return templating.templates(__name__).get_template("simulation.html")


def metric_name(metric: str) -> str:
    """Writes a metric's name for people."""
    return "AUC" if metric == "auc" else metric.replace("_", " ")


def final(found: Simulation) -> Estimate | None:
    """The metric of the final model with its interval over records; None before the end, or where it is not defined."""
    told = found.final.get(found.metric)
    return None if told is None else Estimate(**told)


def named(sites: Sequence[str]) -> str:
    """Names a few sites, or says how many they are."""
    return ", ".join(sites) if len(sites) <= _MOST_NAMES else f"{len(sites)} sites"


def missing(rounds: Sequence[RoundOutcome]) -> list[tuple[str, int]]:
    """Lists the sites that were missing in most sums, with the number of those; five at most."""
    count = Counter(site for each in rounds for site in (*each.away, *each.late, *each.refused))
    return sorted(count.items(), key=lambda each: (-each[1], each[0]))[:_MOST_NAMES]


def learning_curve(found: Simulation) -> Markup:
    """Draws the metric over rounds, the last one with its interval; empty before the first look."""
    points = [(each.number, each.metric) for each in found.rounds if each.metric is not None]
    if not points:
        return Markup("")
    plot, end = _plot(), final(found)
    ends = [value for _, value in points] + ([] if end is None else [end.low, end.high])
    x, y = _rounds_axis(plot, found), _metric_axis(plot, metric_name(found.metric), ends)
    places = [(x(number), y(value)) for number, value in points]
    plot.curve("curve", places)
    for place in places if len(places) <= _FEW else places[-1:]:
        plot.dot("mark", *place)
    if end is not None:
        at = places[-1][0]
        plot.line("interval", at, y(end.low), at, y(end.high))
        for edge in (end.low, end.high):
            plot.line("interval", at - 4, y(edge), at + 4, y(edge))
    plot.name("strong", places[-1][1], f"{points[-1][1]:.3f}")
    story = f"From {points[0][1]:.3f} after round {points[0][0]} to {points[-1][1]:.3f} after round {points[-1][0]}."
    return plot.svg("simulated", f"{metric_name(found.metric)} over rounds", story)


def spending(found: Simulation) -> Markup:
    """Draws epsilon over rounds, and what a whole real run costs; empty if there is no bound."""
    points = [(each.number, each.epsilon) for each in found.rounds if each.epsilon is not None]
    if not points:
        return Markup("")
    plot, planned = _plot(), found.epsilon_planned
    top = nice_top(max(points[-1][1], planned or 0.0))
    x, y = _rounds_axis(plot, found), linear(0, top, *plot.y_range)
    plot.y_axis("ε spent, by PLD", y, ticks(top))
    if planned is not None:
        plot.level("cap", y(planned))
        plot.name("cap-name", y(planned), f"whole run {planned:.2f}")
    places = [(x(0), y(0)), *((x(number), y(epsilon)) for number, epsilon in points)]
    plot.curve("curve", places)
    plot.name("strong", places[-1][1], f"{points[-1][1]:.2f}")
    story = f"ε {points[-1][1]:.3g} after round {points[-1][0]}."
    return plot.svg("simulated", "Epsilon over rounds", story)


def sites_plot(found: Simulation) -> Markup:
    """Draws a mark for each site in rising order of its metric, another for the worst tenth; empty without any."""
    judged = in_order(found.sites)
    fair = fairness(found.sites)
    if fair is None:
        return Markup("")
    plot, end = _plot(), final(found)
    values = [value for _, value in judged]
    y = _metric_axis(plot, metric_name(found.metric), [*values, *([] if end is None else [end.value])])
    x = linear(0.5, len(judged) + 0.5, *plot.x_range)
    plot.x_axis("sites, the worst served first", x, [(1, "1"), *whole_ticks(len(judged))[1:]])
    if end is not None:
        plot.level("all", y(end.value))
        plot.name("soft-name", y(end.value), f"all records {end.value:.3f}")
    worst, radius = worst_count(fair.sites), 3.2 if len(judged) < 200 else 1.9
    plot.line("worst-level", x(0.5), y(fair.worst_tenth), x(worst + 0.5), y(fair.worst_tenth))
    honest = 0
    for place, (site, value) in enumerate(judged, start=1):
        at = x(place), y(value)
        honest += not site.is_malicious
        if site.is_malicious:
            plot.line("malicious", at[0] - 4, at[1] - 4, at[0] + 4, at[1] + 4)
            plot.line("malicious", at[0] - 4, at[1] + 4, at[0] + 4, at[1] - 4)
        elif honest <= worst:
            plot.bar("worst", at[0] - radius, at[0] + radius, at[1], 2 * radius)
        else:
            plot.dot("mark", *at, radius)
    story = (
        f"{fair.sites} sites from {fair.lowest:.3f} to {fair.highest:.3f}, median {fair.median:.3f}; the worst "
        f"tenth has a mean of {fair.worst_tenth:.3f}."
    )
    return plot.svg("simulated", f"{metric_name(found.metric)} of each site", story)


def in_order(sites: Sequence[SiteOutcome]) -> list[tuple[SiteOutcome, float]]:
    """Lists the sites for which the metric is defined, the worst served first."""
    judged = [(each, each.metric) for each in sites if each.metric is not None]
    return sorted(judged, key=lambda each: each[1])


def attendance(found: Simulation) -> Markup:
    """Draws a column for each round with the sites that were in its sum and those that were not, and why."""
    if not found.rounds:
        return Markup("")
    plot = _plot(top=48)
    x, asked = _rounds_axis(plot, found), max(each.asked for each in found.rounds)
    y = linear(0, asked, *plot.y_range)
    plot.y_axis("", y, whole_ticks(asked))
    at = plot.left
    for kind, text in _FATES:
        plot.bar(kind, at, at + 14, 12, 11)
        plot.text("tick", at + 19, 16, text)
        at += 40 + 6.2 * len(text)
    for each in found.rounds:
        fates = (each.summed, len(each.late), len(each.refused), len(each.away))
        below = 0
        for (kind, _), count in zip(_FATES, fates, strict=True):
            if count:
                upper, lower = y(below + count), y(below)
                left, right = x(each.number - 0.42), x(each.number + 0.42)
                plot.bar(kind, left, right, (upper + lower) / 2, lower - upper)
            below += count
    plot.text("axis", 0, 38, "sites")
    fewest = min(found.rounds, key=lambda each: each.summed)
    story = f"At least {fewest.summed} of {fewest.asked} sites in every sum, fewest in round {fewest.number}."
    return plot.svg("simulated", "Sites in the sum of each round", story)


def _plot(top: float = 28) -> Plot:
    return Plot(width=_WIDTH, height=260 + top, left=48, right=130, top=top, bottom=44)


def _rounds_axis(plot: Plot, found: Simulation) -> Scale:
    last = found.settings.rounds
    x = linear(0, last + 0.5, *plot.x_range)
    plot.x_axis("round", x, whole_ticks(last))
    return x


def _metric_axis(plot: Plot, name: str, values: Sequence[float]) -> Scale:
    marks = between(max(0.0, min(values)), min(1.0, max(values)))
    y = linear(marks[0][0], marks[-1][0], *plot.y_range)
    plot.y_axis(name, y, marks)
    return y

"""The figures of a budget report: spending over releases and over time, the audit beside the claim, attacks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup

from ...models.rounding import rounded_down, rounded_up
from .language import Language
from .meaning import most_found
from .plot import Plot, Scale, linear, logarithmic, nice_top, ticks, time_ticks, whole_ticks
from .schema import Account, AuditFacts, MembershipFacts

_LEAST_RATE = 1e-3  # where the axes of a ROC begin
_DECADES = ((1e-3, "0.1 %"), (1e-2, "1 %"), (1e-1, "10 %"), (1.0, "100 %"))
_LETTER = 7.5  # width of a letter of the larger labels, on the safe side
NARROW = 290  # units across in a chart for a telephone, where a unit is about a pixel


@dataclass(frozen=True, slots=True)
class Sheet:
    """Describes what a chart is drawn for: readers of a language, and a wide page or the narrow one of a telephone."""

    language: Language
    is_narrow: bool = False

    def width(self, wide: float) -> float:
        """The width of a chart that is `wide` on a wide page."""
        return NARROW if self.is_narrow else wide

    def marked(self, found: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
        """Ticks with the language's marks in their numbers."""
        return [(value, self.language.digits(text)) for value, text in found]

    def up(self, epsilon: float) -> str:
        """An upper bound for people."""
        if not math.isfinite(epsilon):
            return str(self.language.say("chart.unbounded"))
        return self.language.digits(rounded_up(epsilon))

    def down(self, epsilon: float) -> str:
        """A lower bound for people."""
        return self.language.digits(rounded_down(epsilon))


def course(account: Account, sheet: Sheet) -> Markup:
    """Epsilon over releases, spent and guaranteed, for an account that has a budget and a course; empty otherwise."""
    if account.budget is None or not account.course:
        return Markup("")
    say, plot = sheet.language.say, _spending_plot(sheet)
    last, cap = account.course[-1], account.budget.epsilon
    x = linear(0, last.releases, *plot.x_range)
    y = _epsilon_axis(plot, account, sheet)
    plot.x_axis(say("chart.releases"), x, sheet.marked(whole_ticks(last.releases)))
    names = {"rdp": say("chart.rdp"), "pld": say("chart.pld"), "guaranteed": say("chart.guaranteed")}
    for kind, name in names.items():
        values = [(0, 0.0)] + [(point.releases, getattr(point, kind)) for point in account.course]
        places = [(x(releases), y(epsilon)) for releases, epsilon in values if math.isfinite(epsilon)]
        plot.curve(kind, places)
        plot.dot(f"{kind}-dot", *places[-1])
        plot.name(f"{kind}-name", places[-1][1], name)
    story = say(
        "chart.course_story",
        releases=last.releases,
        guaranteed=sheet.up(last.guaranteed),
        pld=sheet.up(last.pld),
        rdp=sheet.up(last.rdp),
        cap=sheet.language.digits(f"{cap:g}"),
    )
    return plot.svg("course", say("chart.course", dataset=account.dataset), story)


def over_time(account: Account, issued: str, sheet: Sheet) -> Markup:
    """Guaranteed epsilon over the site's clock until the report was issued; empty where `course` is."""
    if account.budget is None or not account.course:
        return Markup("")
    say, plot = sheet.language.say, _spending_plot(sheet)
    times = [_seconds(point.time) for point in account.course]
    first, end = min(times), max(*times, _seconds(issued))
    margin = max(30.0, 0.03 * (max(times) - first))
    # years without spending would press all of it against the left edge: the axis ends soon after the last charge
    last = min(end, max(times) + max(30.0, 0.25 * (max(times) - first)))
    x = linear(first - margin, last, *plot.x_range)
    y = _epsilon_axis(plot, account, sheet)
    plot.x_axis(say("chart.clock"), x, time_ticks(first - margin, last, most=2 if sheet.is_narrow else 5))
    places, before = [(x(first - margin), y(0))], 0.0
    for time, point in zip(times, account.course, strict=True):
        places += [(x(time), y(before)), (x(time), y(point.guaranteed))]
        before = point.guaranteed
    places.append((x(last), y(before)))
    plot.curve("wash", [*places, (x(last), y(0))], closed=True)
    plot.curve("guaranteed", places)
    plot.name("guaranteed-name", places[-1][1], say("chart.guaranteed"))
    story = say(
        "chart.time_story",
        first=sheet.language.day(account.course[0].time),
        last=sheet.language.day(account.course[-1].time),
        epsilon=sheet.up(before),
        cap=sheet.language.digits(f"{account.budget.epsilon:g}"),
    )
    return plot.svg("course", say("chart.time", dataset=account.dataset), story)


def audits(found: Sequence[AuditFacts], sheet: Sheet) -> Markup:
    """Draws for each audit a bar as far as its guesses refute epsilon, and a mark at the claim."""
    say, row_height = sheet.language.say, 68
    plot = Plot(width=sheet.width(720), height=50 + row_height * len(found), left=8, right=14, top=8, bottom=42)
    top = nice_top(max(max(facts.claimed_epsilon, facts.lower_bound, facts.largest_bound) for facts in found))
    x = linear(0, top, *plot.x_range)
    bottom, upper = plot.y_range
    for value, text in sheet.marked(ticks(top)):
        plot.line("grid", x(value), bottom, x(value), upper)
        plot.text("tick", x(value), bottom + 16, text, "middle")
    plot.text("axis", sum(plot.x_range) / 2, plot.height - 6, say("chart.audits_axis"), "middle")
    for row, facts in enumerate(found):
        y = upper + row_height * row + 28
        name = str(say("chart.audit", run=facts.run[:60], round=facts.round).unescape())
        plot.text("label", x(0), y - 13, name[: int(plot.width / _LETTER)])
        plot.bar("refuted" if facts.passed else "refuted failed", x(0), x(facts.lower_bound), y, 13)
        plot.line("reach", x(facts.lower_bound), y, x(facts.largest_bound), y)
        plot.line("reach", x(facts.largest_bound), y - 5, x(facts.largest_bound), y + 5)
        plot.line("claim", x(facts.claimed_epsilon), y - 10, x(facts.claimed_epsilon), y + 20)
        claimed = say("chart.claimed", epsilon=sheet.up(facts.claimed_epsilon))
        bound = say("chart.at_least", epsilon=sheet.down(facts.lower_bound))
        _beside(plot, "claim-name", x(facts.claimed_epsilon), y + 20, claimed)
        is_crowded = x(facts.claimed_epsilon) - x(facts.lower_bound) < _LETTER * len(bound)
        _beside(plot, "label", x(facts.lower_bound), y + 35 if is_crowded else y + 20, bound)
    story = Markup(" ").join(
        say(
            "chart.audit_story",
            run=facts.run,
            round=facts.round,
            claimed=sheet.up(facts.claimed_epsilon),
            shown=sheet.down(facts.lower_bound),
            confidence=sheet.language.digits(f"{100 * facts.confidence:g}"),
        )
        for facts in found
    )
    return plot.svg("audits", say("chart.audits"), story)


def roc(attacks: Sequence[MembershipFacts], limit: tuple[float, float] | None, sheet: Sheet) -> Markup:
    """The attacks' trade-offs on logarithmic axes, the diagonal, and what the guarantee (epsilon, delta) rules out."""
    say, plot = sheet.language.say, _roc_plot(sheet)
    x = logarithmic(_LEAST_RATE, 1, *plot.x_range)
    y = logarithmic(_LEAST_RATE, 1, *plot.y_range)
    rates = [10 ** (-3 + 3 * step / 120) for step in range(121)]
    if limit is not None:
        edge = [(x(rate), y(most_found(*limit, rate))) for rate in rates]
        plot.curve("excluded", [*edge, (x(1), plot.y_range[1]), (x(_LEAST_RATE), plot.y_range[1])], closed=True)
    plot.y_axis(say("chart.found"), y, sheet.marked(_DECADES))
    plot.x_axis(say("chart.accused"), x, sheet.marked(_DECADES))
    plot.line("mark", x(0.01), plot.y_range[0], x(0.01), plot.y_range[1])
    plot.line("diagonal", x(_LEAST_RATE), y(_LEAST_RATE), x(1), y(1))
    if limit is not None:
        plot.curve("limit", edge)
        plot.text("limit-name", x(_LEAST_RATE) + 6, plot.y_range[1] + 15, say("chart.ruled_out"))
    plot.text("axis", x(0.0042), y(0.0023), say("chart.guessing"))
    for facts in attacks:
        kind = "private" if facts.is_private else "open"
        found = sorted((point.false_positive_rate, point.true_positive_rate) for point in facts.roc)
        places = [(x(false), y(true)) for false, true in found if true > 0 and false >= _LEAST_RATE]
        if places:
            plot.curve(kind, places)
        low, high = facts.tpr_at_1_percent_fpr_low, facts.tpr_at_1_percent_fpr_high
        plot.line(f"{kind} interval", x(0.01), y(low), x(0.01), y(high))
        plot.dot(f"{kind}-dot", x(0.01), y(facts.tpr_at_1_percent_fpr), 3.6)
    _legend(plot, attacks, sheet)
    story = Markup(" ").join(
        say(
            "chart.roc_story",
            attacked=facts.attacked,
            area=sheet.language.digits(f"{facts.auc:.3f}"),
            found=sheet.language.digits(f"{100 * facts.tpr_at_1_percent_fpr:.2f}"),
        )
        for facts in attacks
    )
    return plot.svg("roc", say("chart.roc"), story)


def _legend(plot: Plot, attacks: Sequence[MembershipFacts], sheet: Sheet) -> None:
    """Names the curves in the right margin or, on a narrow page, below the axis."""
    at, x = plot.y_range[1] + 12, plot.x_range[1] + 12
    if sheet.is_narrow:
        at, x = plot.y_range[0] + 56, plot.x_range[0]
    names = {"open": sheet.language.say("chart.open"), "private": sheet.language.say("chart.private")}
    for kind, text in names.items():
        if any(facts.is_private == (kind == "private") for facts in attacks):
            plot.line(kind, x, at, x + 18, at)
            plot.text(f"{kind}-name", x + 24, at + 4, text)
            at += 18


def _spending_plot(sheet: Sheet) -> Plot:
    return Plot(width=sheet.width(480), height=164, left=34, right=92, top=26, bottom=38)


def _roc_plot(sheet: Sheet) -> Plot:
    if sheet.is_narrow:
        return Plot(width=NARROW, height=340, left=50, right=22, top=28, bottom=82)
    return Plot(width=600, height=380, left=54, right=150, top=28, bottom=40)


def _epsilon_axis(plot: Plot, account: Account, sheet: Sheet) -> Scale:
    assert account.budget is not None
    cap = account.budget.epsilon
    shown = [value for point in account.course for value in (point.rdp, point.guaranteed) if math.isfinite(value)]
    top = nice_top(max([cap, *shown]))
    y = linear(0, top, *plot.y_range)
    plot.y_axis(sheet.language.say("chart.epsilon"), y, sheet.marked(ticks(top)))
    plot.level("cap", y(cap))
    plot.name("cap-name", y(cap), sheet.language.say("chart.cap"))
    return y


def _beside(plot: Plot, kind: str, x: float, y: float, text: str) -> None:
    """Writes a label to the right of a place, or to its left where the chart ends too soon."""
    is_last = x + 5 + _LETTER * len(text) > plot.width
    plot.text(kind, x - 5 if is_last else x + 5, y, text, "end" if is_last else "start")


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()

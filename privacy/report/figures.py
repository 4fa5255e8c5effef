"""The figures of a budget report: spending over releases and over time, the audit beside the claim, attacks."""

import math
from collections.abc import Sequence
from datetime import datetime

from markupsafe import Markup

from ...models.rounding import rounded_down, rounded_up
from .meaning import most_found
from .plot import Plot, Scale, linear, logarithmic, nice_top, ticks, time_ticks, whole_ticks
from .schema import Account, AuditFacts, MembershipFacts

_LEAST_RATE = 1e-3  # where the axes of a ROC begin
_DECADES = [(1e-3, "0.1 %"), (1e-2, "1 %"), (1e-1, "10 %"), (1.0, "100 %")]


def course(account: Account) -> Markup:
    """Epsilon over releases, spent and guaranteed, for an account that has a budget and a course; empty otherwise."""
    if account.budget is None or not account.course:
        return Markup("")
    plot = Plot(width=560, height=164, left=34, right=78, top=26, bottom=38)
    last, cap = account.course[-1], account.budget.epsilon
    x = linear(0, last.releases, *plot.x_range)
    y = _epsilon_axis(plot, account)
    plot.x_axis("releases", x, whole_ticks(last.releases))
    for kind, name in (("rdp", "RDP"), ("pld", "PLD"), ("guaranteed", "guaranteed")):
        values = [(0, 0.0)] + [(point.releases, getattr(point, kind)) for point in account.course]
        places = [(x(releases), y(epsilon)) for releases, epsilon in values if math.isfinite(epsilon)]
        plot.curve(kind, places)
        plot.dot(f"{kind}-dot", *places[-1])
        plot.name(f"{kind}-name", places[-1][1], name)
    story = (
        f"After {last.releases} releases guaranteed epsilon is {_said(last.guaranteed)}; spent is {_said(last.pld)} by "
        f"PLD and {_said(last.rdp)} by RDP; cap {cap:g}."
    )
    return plot.svg("course", f"Epsilon over releases, {account.dataset}", story)


def over_time(account: Account, issued: str) -> Markup:
    """Guaranteed epsilon over the site's clock until the report was issued; empty where `course` is."""
    if account.budget is None or not account.course:
        return Markup("")
    plot = Plot(width=560, height=164, left=34, right=78, top=26, bottom=38)
    times = [_seconds(point.time) for point in account.course]
    first, end = min(times), max(*times, _seconds(issued))
    margin = max(30.0, 0.03 * (max(times) - first))
    # years without spending would press all of it against the left edge: the axis ends soon after the last charge
    last = min(end, max(times) + max(30.0, 0.25 * (max(times) - first)))
    x = linear(first - margin, last, *plot.x_range)
    y = _epsilon_axis(plot, account)
    plot.x_axis("reserved, by the site’s clock (UTC)", x, time_ticks(first - margin, last))
    places, before = [(x(first - margin), y(0))], 0.0
    for time, point in zip(times, account.course, strict=True):
        places += [(x(time), y(before)), (x(time), y(point.guaranteed))]
        before = point.guaranteed
    places.append((x(last), y(before)))
    plot.curve("wash", [*places, (x(last), y(0))], closed=True)
    plot.curve("guaranteed", places)
    plot.name("guaranteed-name", places[-1][1], "guaranteed")
    story = (
        f"From {account.course[0].time[:10]} to {account.course[-1].time[:10]} guaranteed epsilon rose to "
        f"{_said(before)}; cap {account.budget.epsilon:g}."
    )
    return plot.svg("course", f"Epsilon over time, {account.dataset}", story)


def audits(found: Sequence[AuditFacts]) -> Markup:
    """Draws for each audit a bar as far as its guesses refute epsilon, and a mark at the claim."""
    row_height = 54
    plot = Plot(width=720, height=50 + row_height * len(found), left=8, right=64, top=8, bottom=42)
    top = nice_top(max(max(facts.claimed_epsilon, facts.lower_bound, facts.largest_bound) for facts in found))
    x = linear(0, top, *plot.x_range)
    bottom, upper = plot.y_range
    for value, text in ticks(top):
        plot.line("grid", x(value), bottom, x(value), upper)
        plot.text("tick", x(value), bottom + 16, text, "middle")
    plot.text("axis", sum(plot.x_range) / 2, plot.height - 6, "epsilon of one audited step", "middle")
    for row, facts in enumerate(found):
        y = upper + row_height * row + 28
        plot.text("label", x(0), y - 13, f"{facts.run}, round {facts.round}"[:60])
        plot.bar("refuted" if facts.passed else "refuted failed", x(0), x(facts.lower_bound), y, 13)
        plot.line("reach", x(facts.lower_bound), y, x(facts.largest_bound), y)
        plot.line("reach", x(facts.largest_bound), y - 5, x(facts.largest_bound), y + 5)
        plot.line("claim", x(facts.claimed_epsilon), y - 10, x(facts.claimed_epsilon), y + 20)
        bound = f"at least {rounded_down(facts.lower_bound)}"
        # below the bar, or above it where it would meet the claim's label
        is_crowded = x(facts.claimed_epsilon) - x(facts.lower_bound) < 90
        plot.text("label", x(facts.lower_bound) + 5, y - 9 if is_crowded else y + 20, bound)
        plot.text("claim-name", x(facts.claimed_epsilon) + 5, y + 20, f"claimed {rounded_up(facts.claimed_epsilon)}")
    story = " ".join(
        f"Run {facts.run}, round {facts.round}: claimed {rounded_up(facts.claimed_epsilon)}, shown to be at "
        f"least {rounded_down(facts.lower_bound)} at {100 * facts.confidence:g} per cent confidence."
        for facts in found
    )
    return plot.svg("audits", "Audit bounds beside the claims", story)


def roc(attacks: Sequence[MembershipFacts], limit: tuple[float, float] | None) -> Markup:
    """The attacks' trade-offs on logarithmic axes, the diagonal, and what the guarantee (epsilon, delta) rules out."""
    plot = Plot(width=600, height=380, left=54, right=150, top=28, bottom=40)
    x = logarithmic(_LEAST_RATE, 1, *plot.x_range)
    y = logarithmic(_LEAST_RATE, 1, *plot.y_range)
    rates = [10 ** (-3 + 3 * step / 120) for step in range(121)]
    if limit is not None:
        edge = [(x(rate), y(most_found(*limit, rate))) for rate in rates]
        plot.curve("excluded", [*edge, (x(1), plot.y_range[1]), (x(_LEAST_RATE), plot.y_range[1])], closed=True)
    plot.y_axis("members found (true positive rate)", y, _DECADES)
    plot.x_axis("others accused (false positive rate)", x, _DECADES)
    plot.line("mark", x(0.01), plot.y_range[0], x(0.01), plot.y_range[1])
    plot.line("diagonal", x(_LEAST_RATE), y(_LEAST_RATE), x(1), y(1))
    if limit is not None:
        plot.curve("limit", edge)
        plot.text("limit-name", x(_LEAST_RATE) + 6, plot.y_range[1] + 15, "ruled out by the guarantee")
    plot.text("axis", x(0.0042), y(0.0023), "guessing")
    for facts in attacks:
        kind = "private" if facts.is_private else "open"
        found = sorted((point.false_positive_rate, point.true_positive_rate) for point in facts.roc)
        places = [(x(false), y(true)) for false, true in found if true > 0 and false >= _LEAST_RATE]
        if places:
            plot.curve(kind, places)
        low, high = facts.tpr_at_1_percent_fpr_low, facts.tpr_at_1_percent_fpr_high
        plot.line(f"{kind} interval", x(0.01), y(low), x(0.01), y(high))
        plot.dot(f"{kind}-dot", x(0.01), y(facts.tpr_at_1_percent_fpr), 3.6)
    _legend(plot, attacks)
    story = " ".join(
        f"{facts.attacked}: area under the curve {facts.auc:.3f}; {100 * facts.tpr_at_1_percent_fpr:.2f} per cent of "
        "members found at 1 per cent false alarms."
        for facts in attacks
    )
    return plot.svg("roc", "Membership inference, with and without protection", story)


def _legend(plot: Plot, attacks: Sequence[MembershipFacts]) -> None:
    at, x = plot.y_range[1] + 12, plot.x_range[1] + 12
    for kind, text in (("open", "without noise"), ("private", "with noise")):
        if any(facts.is_private == (kind == "private") for facts in attacks):
            plot.line(kind, x, at, x + 18, at)
            plot.text(f"{kind}-name", x + 24, at + 4, text)
            at += 18


def _epsilon_axis(plot: Plot, account: Account) -> Scale:
    assert account.budget is not None
    cap = account.budget.epsilon
    shown = [value for point in account.course for value in (point.rdp, point.guaranteed) if math.isfinite(value)]
    top = nice_top(max([cap, *shown]))
    y = linear(0, top, *plot.y_range)
    plot.y_axis("epsilon", y, ticks(top))
    plot.level("cap", y(cap))
    plot.name("cap-name", y(cap), "cap")
    return y


def _said(epsilon: float) -> str:
    return rounded_up(epsilon) if math.isfinite(epsilon) else "unbounded"


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()

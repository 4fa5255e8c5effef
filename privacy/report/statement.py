"""The statement of a ledger, account by account: the figures of a budget report, from the entries alone.

Who writes a report and who verifies one both call this, and compare. Nothing here walks through the charges one by one:
a statement over 1,000,000 of them costs what their distinct kinds cost.
"""

from collections.abc import Mapping
from dataclasses import asdict

from ..accounting import Release
from ..ledger.charges import Books, Budget, Recovery, spent
from ..ledger.tally import Tally
from .schema import Account, BudgetFacts, Event, Point, Spending

MAX_POINTS = 9  # of the course; each costs one composition


def accounts(books: Books) -> list[Account]:
    """One statement for each (dataset, unit) of the ledger, sorted."""
    return [account(dataset, unit, books) for dataset, unit in books.accounts()]


def account(dataset: str, unit: str, books: Books) -> Account:
    """The statement for one (dataset, unit) of the ledger."""
    tally, budget = books.tallies.get((dataset, unit), Tally()), books.budgets.get((dataset, unit))
    order = books.order_in_force(dataset, unit)
    recovery = books.recoveries.get((dataset, unit))
    releases = tally.releases()
    unprotected = sum(count for release, count in releases.items() if release.mode == "none")
    return Account(
        dataset=dataset,
        unit=unit,
        budget=BudgetFacts(epsilon=budget.epsilon, delta=budget.delta, collusion=budget.collusion) if budget else None,
        order=order,
        releases=len(tally),
        unprotected=unprotected,
        spent=[_spending(releases, budget, order, colluding, recovery) for colluding in levels(budget)],
        events=_events(tally),
        course=_course(tally, budget, order) if budget and not unprotected and not recovery else [],
    )


def levels(budget: Budget | None) -> list[int]:
    """An outsider, one site that knows its own noise, and what the site's budget demands."""
    return sorted({0, 1, budget.collusion if budget else 0})


def course_ends(total: int) -> list[int]:
    """After how many of `total` releases the course has a point, rising.

    They are closer together at the start, where the curve bends; the first and the last are always there.
    """
    ends = {max(1, round(total * (step / MAX_POINTS) ** 1.5)) for step in range(1, MAX_POINTS + 1)}
    return sorted(end for end in ends if end <= total)


def _spending(
    releases: Mapping[Release, int], budget: Budget | None, order: int | None, colluding: int, recovery: Recovery | None
) -> Spending:
    if budget is None:
        unbounded = float("inf") if releases else 0.0
        return Spending(colluding=colluding, pld=unbounded, rdp=unbounded, guaranteed=unbounded)
    found = spent(releases, colluding=colluding, delta=budget.delta, order=order, recovery=recovery)
    return Spending(colluding=colluding, pld=found.pld, rdp=found.rdp, guaranteed=found.guaranteed)


def _events(tally: Tally) -> list[Event]:
    return [
        Event(study=kind.study, purpose=kind.purpose, is_settled=kind.is_settled, count=count, **asdict(kind.release))
        for kind, count in tally.kinds().items()  # in the order of their first charges
    ]


def _course(tally: Tally, budget: Budget, order: int | None) -> list[Point]:
    points = []
    for end in course_ends(len(tally)):
        found = spent(tally.first(end), colluding=budget.collusion, delta=budget.delta, order=order, recovery=None)
        time = tally.time(end - 1)
        points.append(Point(releases=end, time=time, pld=found.pld, rdp=found.rdp, guaranteed=found.guaranteed))
    return points

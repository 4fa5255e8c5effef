"""The standing of every account of a ledger against its cap, and its course, by the filter alone.

That is quick, however long the ledger is.
"""

import math
from dataclasses import dataclass

from ..accounting import renyi
from .charges import Books, RunCharges, guaranteed


@dataclass(frozen=True, slots=True)
class Standing:
    """One data set and unit."""

    dataset: str
    unit: str
    cap: float | None  # epsilon; None if none was ever set
    guaranteed: float  # epsilon at the cap's delta and collusion; infinite without noise, or without a cap
    filled: float  # part of the filter, 0 to 1; 1 if nothing more may be charged


@dataclass(frozen=True, slots=True)
class CoursePoint:
    """The epsilon of an account after some of its releases."""

    releases: int
    time: str  # of the last of them, by the site's clock, UTC
    guaranteed: float


@dataclass(frozen=True, slots=True)
class Course:
    """The course of one account: a few points of its spending, and the charges of each run."""

    dataset: str
    unit: str
    delta: float | None  # of the cap in force, and how many colluding sites it supposes; None without a cap
    collusion: int | None
    points: list[CoursePoint]  # none without a cap
    runs: list[RunCharges]  # in the order of their first charges


def courses(books: Books, *, points: int = 24) -> list[Course]:
    """Computes the course of every account, sorted by data set and unit.

    By the filter alone, with the cap of today: quick, however long the ledger is.

    Args:
        points: at most so many of each account, closer together at the start, where the curve bends. The first release
            and the last have one.
    """
    return [_course(books, dataset, unit, points) for dataset, unit in books.accounts()]


def _course(books: Books, dataset: str, unit: str, most: int) -> Course:
    budget, tally = books.budgets.get((dataset, unit)), books.tallies.get((dataset, unit))
    runs = books.runs(dataset, unit)
    if budget is None or tally is None:
        delta, collusion = (budget.delta, budget.collusion) if budget else (None, None)
        return Course(dataset, unit, delta, collusion, [], runs)
    total, order, recovery = len(tally), books.order(budget), books.recoveries.get((dataset, unit))
    ends = sorted({max(1, round(total * (step / (most - 1)) ** 1.5)) for step in range(most)}) if total else []
    found = []
    for end in ends:
        spent = guaranteed(
            tally.first(end), colluding=budget.collusion, delta=budget.delta, order=order, recovery=recovery
        )
        found.append(CoursePoint(end, tally.time(end - 1), spent))
    return Course(dataset, unit, budget.delta, budget.collusion, found, runs)


def standings(books: Books) -> list[Standing]:
    """Computes the standing of every account, sorted by data set and unit."""
    return [_standing(books, dataset, unit) for dataset, unit in books.accounts()]


def _standing(books: Books, dataset: str, unit: str) -> Standing:
    budget, recovery = books.budgets.get((dataset, unit)), books.recoveries.get((dataset, unit))
    releases = books.releases(dataset, unit)
    if budget is None:
        return Standing(dataset, unit, None, math.inf if releases else 0.0, 1.0)
    order = books.order(budget)
    spent = guaranteed(releases, colluding=budget.collusion, delta=budget.delta, order=order, recovery=recovery)
    is_over = recovery is not None or math.isinf(spent)
    filled = 1.0 if is_over else min(1.0, renyi.filled(spent, budget.epsilon, budget.delta, order))
    return Standing(dataset, unit, budget.epsilon, spent, filled)

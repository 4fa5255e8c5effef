"""The standing of every account of a ledger against its cap, by the filter alone: quick, however long the ledger is."""

import math
from dataclasses import dataclass

from ..accounting import renyi
from .charges import Books, guaranteed


@dataclass(frozen=True, slots=True)
class Standing:
    """One data set and unit."""

    dataset: str
    unit: str
    cap: float | None  # epsilon; None if none was ever set
    guaranteed: float  # epsilon at the cap's delta and collusion; infinite without noise, or without a cap
    filled: float  # part of the filter, 0 to 1; 1 if nothing more may be charged


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

"""What a ledger adds up to, account by account: the figures of a budget report, from the entries alone.

Who writes a report and who verifies one both call this, and compare.
"""

from collections import Counter
from collections.abc import Sequence

from . import accounting
from .accounting import Release
from .charges import Booked, Books, Budget
from .report_format import Account, BudgetFacts, Event, Point, Spending

MAX_POINTS = 12  # of the course; each costs one composition


def accounts(books: Books) -> list[Account]:
    """One statement for each (dataset, unit) of the ledger, sorted."""
    return [_account(books, dataset, unit) for dataset, unit in books.accounts()]


def _account(books: Books, dataset: str, unit: str) -> Account:
    booked = books.of(dataset, unit)
    releases = books.releases(dataset, unit)
    budget = books.budgets.get((dataset, unit))
    unprotected = sum(release.mode == "none" for release in releases)
    return Account(
        dataset=dataset,
        unit=unit,
        budget=BudgetFacts(epsilon=budget.epsilon, delta=budget.delta, collusion=budget.collusion) if budget else None,
        releases=len(releases),
        unprotected=unprotected,
        spent=[_spending(releases, budget, colluding) for colluding in _levels(budget)],
        events=_events(booked, books.site),
        course=_course(releases, budget) if budget and not unprotected else [],
    )


def _levels(budget: Budget | None) -> list[int]:
    """An outsider, one site that knows its own noise, and what the site's budget demands."""
    return sorted({0, 1, budget.collusion if budget else 0})


def _spending(releases: Sequence[Release], budget: Budget | None, colluding: int) -> Spending:
    if budget is None:
        unbounded = float("inf") if releases else 0.0
        return Spending(colluding=colluding, pld=unbounded, rdp=unbounded)
    return Spending(
        colluding=colluding,
        pld=accounting.epsilon_pld(releases, budget.delta, colluding),
        rdp=accounting.epsilon_rdp(releases, budget.delta, colluding),
    )


def _events(booked: Sequence[Booked], site: str) -> list[Event]:
    counts: Counter[tuple[str, bool, Release]] = Counter()
    for item in booked:
        counts[item.charge.study, item.summed is not None, item.release(site)] += 1
    return [
        Event(
            study=study,
            mode=release.mode,
            sample_rate=release.sample_rate,
            clip_norm=release.clip_norm,
            dim=release.dim,
            scale_bits=release.scale_bits,
            site_noise_int=release.site_noise_int,
            sites=release.sites,
            steps=release.steps,
            is_settled=is_settled,
            count=count,
        )
        for (study, is_settled, release), count in counts.items()  # in ledger order
    ]


def _course(releases: Sequence[Release], budget: Budget) -> list[Point]:
    total = len(releases)
    # closer together at the start, where the curve bends; the first and the last are always there
    ends = sorted({max(1, round(total * (step / MAX_POINTS) ** 1.5)) for step in range(1, MAX_POINTS + 1)} - {0})
    return [
        Point(
            releases=end,
            pld=accounting.epsilon_pld(releases[:end], budget.delta, budget.collusion),
            rdp=accounting.epsilon_rdp(releases[:end], budget.delta, budget.collusion),
        )
        for end in ends
        if end <= total
    ]

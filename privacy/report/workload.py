"""Estimates the work of verifying a report before it begins, so that an auditor knows, and nobody is kept for hours.

A ledger of one page costs seconds. But every entry may be a release of its own noise and sample rate, each of which the
accountants compose anew for every figure: a report of the largest size that is read could then take hours.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..accounting import composition, prv
from ..errors import VerificationTooLong
from ..ledger.charges import Books
from . import statement
from .schema import Account, AuditFacts, SiteReport

MAX_SECONDS = 3600.0  # of estimated work that is begun unless somebody says so
WORTH_TELLING_S = 10.0

# Processor seconds, measured on one core of 2026: from a tenth (little noise on large samples) to three times that.
_PLD_S = 0.011  # a distinct release and figure, as long as PLD is asked
_RDP_S = 0.002  # the same, where so many are distinct that RDP answers alone
_PRV_S = 0.5  # a figure that the third accountant is asked for
_AUDIT_S, _GUESS_S = 0.03, 2.5e-6  # an audit, and each of its guesses


@dataclass(frozen=True, slots=True)
class Workload:
    """The work of a verification, or of a part of one."""

    releases: int
    seconds: float  # about, on one core

    @property
    def is_long(self) -> bool:
        """True if a person who waits for it should be told."""
        return self.seconds > WORTH_TELLING_S

    def __str__(self) -> str:
        return f"{self.releases:,} release{'' if self.releases == 1 else 's'}, about {in_words(self.seconds)}"


Watch = Callable[[Workload, float], None]  # told the whole work and the seconds of it that are done, by the estimate


@dataclass(slots=True)
class Progress:
    """Counts the work that is done, and tells a watcher of it."""

    work: Workload
    watch: Watch | None
    done_s: float = 0.0

    def add(self, seconds: float) -> None:
        """Adds work of so many seconds, by the estimate."""
        self.done_s += seconds
        if self.watch is not None:
            self.watch(self.work, self.done_s)


def of(sites: Iterable[tuple[SiteReport, Books]], audits: Iterable[AuditFacts]) -> Workload:
    """Estimates the work of recomputing every account of these ledgers, of asking a third accountant, and of audits."""
    releases, seconds = 0, audits_s(audits)
    for site, books in sites:
        releases += sum(len(tally) for tally in books.tallies.values())
        seconds += sum(statement_s(books, *names) for names in books.accounts())
        seconds += sum(third_s(stated, books) for stated in site.accounts)
    return Workload(releases, seconds)


def statement_s(books: Books, dataset: str, unit: str) -> float:
    """Estimates the seconds that it takes to state one account of a ledger."""
    tally, budget = books.tallies.get((dataset, unit)), books.budgets.get((dataset, unit))
    if tally is None or budget is None:
        return 0.0
    composed = [len(tally.releases())] * len(statement.levels(budget))
    composed += [len(tally.first(end)) for end in statement.course_ends(len(tally))]
    return sum(count * (_PLD_S if count <= composition.MAX_DISTINCT else _RDP_S) for count in composed)


def third_s(stated: Account, books: Books) -> float:
    """Estimates the seconds that a third accountant takes for an account as a report states it."""
    tally = books.tallies.get((stated.dataset, stated.unit))
    if stated.budget is None or tally is None:
        return 0.0
    releases = tally.releases()
    return sum(_PRV_S for item in stated.spent if len(composition.merge(releases, item.colluding)) <= prv.MAX_PAIRS)


def audits_s(audits: Iterable[AuditFacts]) -> float:
    """Estimates the seconds that it takes to recompute the bounds of audits."""
    return sum(_AUDIT_S + _GUESS_S * facts.guesses for facts in audits)


def refuse_above(limit_s: float, work: Workload) -> None:
    """Refuses work that would take longer than `limit_s` seconds, which may be infinite.

    Raises:
        VerificationTooLong: it would; the message says about how long.
    """
    if work.seconds > limit_s:
        raise VerificationTooLong(
            f"to verify this report would take long: {work}, and the limit is {in_words(limit_s)}; none of its figures "
            "was verified. A report of ordinary studies takes seconds, so ask its issuer why; --no-limit verifies it "
            "all the same"
        )


def in_words(seconds: float) -> str:
    """A length of time for people, in seconds, minutes or hours, rounded up."""
    for unit, size in (("hour", 3600.0), ("minute", 60.0)):
        if seconds > 2 * size:
            return f"{math.ceil(seconds / size):,} {unit}s"
    whole = max(1, math.ceil(seconds))
    return f"{whole} second{'' if whole == 1 else 's'}"

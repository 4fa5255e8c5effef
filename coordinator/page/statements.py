"""Adds up the ledgers of sites beside the requests: a long one takes seconds to read, and no page waits for that."""

import threading
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass

from markupsafe import Markup

from ...privacy.accounting import Release, renyi
from ...privacy.ledger import chain
from ...privacy.ledger.charges import Books, guaranteed
from ...privacy.ledger.tally import Tally
from ...privacy.report import figures, standing, statement
from ...privacy.report.schema import Account
from ..ledger_standings import Ledgers
from ..store import Store
from . import charts


@dataclass(frozen=True, slots=True)
class Charged:
    """The charges of one study for one purpose on an account."""

    study: str  # hash
    purpose: str
    mode: str
    count: int
    unsettled: int  # of them; they are charged at their worst
    filled: float | None  # part of the cap that they fill by themselves; parts add up. None without cap or noise


@dataclass(frozen=True, slots=True)
class AccountStatement:
    """One data set and unit of a site, as the budget report states it, with its charts."""

    facts: Account
    state: standing.State
    left: float | None  # epsilon, by the filter; None without a cap
    filled: float  # 0 to 1
    charged: tuple[Charged, ...]
    over_time: Markup
    course: Markup


@dataclass(frozen=True, slots=True)
class Statement:
    """All accounts of a site, over the first `length` entries of its ledger."""

    length: int
    accounts: tuple[AccountStatement, ...]


class Statements:
    """Statements of sites' ledgers, each computed once for a length of the ledger; `ledgers` reads these once for all.

    Its method may be called from any thread. One ledger is read at a time, on a thread that ends with the process.
    """

    def __init__(self, ledgers: Ledgers) -> None:
        self._ledgers = ledgers
        self._made: dict[str, Statement] = {}
        self._coming: dict[str, Future[Statement]] = {}
        self._mutex, self._one = threading.Lock(), threading.Lock()

    def of(self, store: Store, site: str, *, wait_s: float) -> Statement | None:
        """Returns a site's statement; one over fewer entries, or None, if the newest takes longer than `wait_s`.

        Raises:
            ReplicaBroken: the ledger does not hold together.
            StoreUnavailable: the database cannot be read.
        """
        length = store.ledger_length(site)
        with self._mutex:
            made = self._made.get(site)
            if made is not None and made.length == length:
                return made
            coming = self._coming.get(site)
            if coming is None:
                coming = self._coming[site] = Future()
                threading.Thread(
                    target=self._make, args=(store, site, coming), name="confide-statement", daemon=True
                ).start()
        try:
            return coming.result(wait_s)
        except TimeoutError:
            return made

    def _make(self, store: Store, site: str, coming: "Future[Statement]") -> None:
        try:
            with self._one:
                length = store.ledger_length(site)  # before it is read: what comes in between is then seen as new
                with self._ledgers.books(site) as books:
                    made = Statement(length, tuple(_account(books, each) for each in statement.accounts(books)))
        except BaseException as err:  # told to whoever waits
            with self._mutex:
                del self._coming[site]
            coming.set_exception(err)
            return
        with self._mutex:
            self._made[site] = made
            del self._coming[site]
        coming.set_result(made)


def _account(books: Books, facts: Account) -> AccountStatement:
    return AccountStatement(
        facts=facts,
        state=standing.state(facts, books),
        left=standing.left(facts, books),
        filled=standing.share(facts, books) / 100,
        charged=_charged(books, facts),
        over_time=charts.of_report(figures.over_time, facts, chain.now()),
        course=charts.of_report(figures.course, facts),
    )


def _charged(books: Books, facts: Account) -> tuple[Charged, ...]:
    """Adds up charges by study and purpose, in the order of their first ones."""
    tally = books.tallies.get((facts.dataset, facts.unit), Tally())
    groups: dict[tuple[str, str, str], list[tuple[Release, bool, int]]] = {}
    for kind, count in tally.kinds().items():
        group = groups.setdefault((kind.study, kind.purpose, kind.release.mode), [])
        group.append((kind.release, kind.is_settled, count))
    return tuple(
        Charged(
            *named,
            count=sum(count for *_, count in group),
            unsettled=sum(count for _, is_settled, count in group if not is_settled),
            filled=_filled(facts, group),
        )
        for named, group in groups.items()
    )


def _filled(facts: Account, group: list[tuple[Release, bool, int]]) -> float | None:
    cap, order, releases = facts.budget, facts.order, Counter[Release]()
    if cap is None or order is None:
        return None
    for release, _, count in group:
        releases[release] += count
    if any(release.mode == "none" for release in releases):
        return None
    epsilon = guaranteed(releases, colluding=cap.collusion, delta=cap.delta, order=order, recovery=None)
    return renyi.filled(epsilon, cap.epsilon, cap.delta, order)

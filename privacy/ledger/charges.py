"""Meaning of a ledger's entries: budgets, charges, and the books that they add up to.

Kinds: `open` (whose ledger this is), `budget` (a cap on one data set and unit), `reserve` (a release that may happen,
at its worst, written before it can), `settle` (which sites a release really summed), `cohort` (a set of sites that
later entries refer to, see `cohorts`), `recover` (entries were lost for good), `succeed` (another key of the site signs
from here on, see `succession`). A reserve that is never settled stays charged at its worst: nobody can prove that
nothing was released.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from ..accounting import Release, composition, renyi
from ..errors import InvalidPrivacyParameter, LedgerBroken
from . import canonical, cohorts, succession
from .chain import Entry
from .tally import Kind, Purpose, Tally

FORMAT = "confide-ledger-2"


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """Entry 0: whose ledger this is."""

    format: str
    site: str
    public_key: str  # Ed25519, hex


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """The most that all releases about one data set may cost together, for one unit of it."""

    dataset: str
    unit: str  # the word for whom it protects: "patient"
    epsilon: float
    delta: float
    collusion: int  # how many other sites may pool what they know with the observer

    def __post_init__(self) -> None:
        if not (0 < self.epsilon < float("inf") and 0 < self.delta < 1 and 0 <= self.collusion <= 10**6):
            raise InvalidPrivacyParameter(f"need finite epsilon > 0, delta in (0, 1), collusion >= 0, got {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Charge:
    """One release about one data set that may happen, at its worst: `release.sites` = planned - max_dropouts."""

    study: str  # hash of the study, 64 hex digits
    run: str
    round: int
    dataset: str
    unit: str
    cohort: tuple[str, ...]  # names of the sites planned for this round; kept sorted
    release: Release
    purpose: Purpose = "update"  # a step of training, a mean of states, or a histogram of held-out scores
    relation: Literal["add_or_remove_one"] = "add_or_remove_one"
    sampler: Literal["poisson"] = "poisson"

    def __post_init__(self) -> None:
        if (ordered := tuple(sorted(self.cohort))) != self.cohort:  # else charges of one cohort share its tuple
            object.__setattr__(self, "cohort", ordered)
        checks = {
            "study must be a sha256 in hex": len(self.study) == 64 and set(self.study) <= set("0123456789abcdef"),
            "run, dataset and unit must be named": bool(self.run and self.dataset and self.unit),
            "round must be at least 0": self.round >= 0,
            "cohort must name each site once": len(set(self.cohort)) == len(self.cohort) > 0,
            "release.sites must not pass the cohort": self.release.sites <= len(self.cohort),
            "release.planned_sites must be 0 or the cohort": self.release.planned_sites in (0, len(self.cohort)),
            f"purpose must be one of {', '.join(get_args(Purpose))}": self.purpose in get_args(Purpose),
            "relation must be add_or_remove_one": self.relation == "add_or_remove_one",
            "sampler must be poisson": self.sampler == "poisson",
        }
        for claim, holds in checks.items():
            if not holds:
                raise InvalidPrivacyParameter(f"{claim}, got {self}")

    @property
    def is_unprotected(self) -> bool:
        """True if the release carries no noise at all and so has no guarantee."""
        return self.release.mode == "none"

    @property
    def is_listed(self) -> bool:
        """True if a ledger writes this cohort's names in full, each time."""
        return len(self.cohort) <= cohorts.MOST_LISTED

    def body(self) -> dict[str, Any]:
        """Writes the body of the entry that reserves it; one that is not listed names its cohort by the digest."""
        record = canonical.to_record(self)
        return record if self.is_listed else record | {"cohort": cohorts.digest(self.cohort)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Settlement:
    """The sites whose vectors the opened sum of a round really held."""

    run: str
    round: int
    summed: tuple[str, ...]  # sorted

    def body(self, charge: Charge) -> dict[str, Any]:
        """Writes the body of the entry that settles `charge`; if its cohort is not listed, the missing sites alone."""
        if charge.is_listed:
            return canonical.to_record(self)
        missing = tuple(sorted(set(charge.cohort).difference(self.summed)))
        return canonical.to_record(cohorts.Absence(run=self.run, round=self.round, missing=missing))


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovery:
    """Entries on one data set and unit were lost for good: whatever they were, their budget had held them to its cap.

    From then on the account counts as spent up to `epsilon`, whatever its cap is later, and takes no more charges.
    """

    dataset: str
    unit: str
    epsilon: float  # the highest cap that was ever in force
    delta: float  # the largest with which a cap was kept
    collusion: int  # the fewest colluding sites for which one was
    generation: int  # seconds of Unix time; greater than that of any earlier recovery

    def __post_init__(self) -> None:
        if not 0 < self.generation < 2**48:
            raise InvalidPrivacyParameter(f"generation must be in [1, 2**48), got {self.generation}")
        Budget(  # refuses what is no cap
            dataset=self.dataset, unit=self.unit, epsilon=self.epsilon, delta=self.delta, collusion=self.collusion
        )

    def spent(self, *, colluding: int, delta: float) -> float:
        """The epsilon that counts as spent, infinite for an observer or a delta that the lost budget did not cover."""
        return self.epsilon if colluding <= self.collusion and delta >= self.delta else float("inf")


@dataclass(frozen=True, slots=True)
class Spent:
    """Spending on one data set: upper bounds on epsilon, and the number of releases.

    `pld` and `rdp` are true of releases that were all decided beforehand. `guaranteed` is true whatever was chosen or
    stopped by earlier results; the cap is kept by it.
    """

    pld: float
    rdp: float
    guaranteed: float
    releases: int
    unprotected: int  # of them without noise; any makes every epsilon infinite


@dataclass(frozen=True, slots=True)
class RunCharges:
    """The charges of one run on one data set and unit, whether or not it came to its end."""

    study: str  # hash
    run: str
    updates: int  # rounds of training
    prototypes: int
    evaluations: int
    unsettled: int  # of all of them: still open, or given up; they stay charged at their worst


@dataclass(frozen=True, slots=True)
class Booked:
    """A charge, the entry that reserved it, and the settled set once known."""

    seq: int
    charge: Charge
    place: int  # among the charges on its data set and unit
    settled_seq: int | None = None
    summed: tuple[str, ...] | None = None

    def release(self, site: str) -> Release:
        """The release to account for: over the set really summed, or at its worst while that is unknown.

        If the set leaves `site` itself out, its sealed shares went out all the same: the reserve stands.
        """
        if self.summed is None or site not in self.summed:
            return self.charge.release
        return self.charge.release.over(len(self.summed))

    def kind(self, site: str) -> Kind:
        """The kind of this charge: all that it has in common with equal ones."""
        return Kind(self.charge.study, self.charge.purpose, self.summed is not None, self.release(site))


@dataclass(slots=True)
class Books:
    """The state that a ledger's entries add up to. Apply entries in order, after their chain was checked."""

    opening: Opening | None = None
    budgets: dict[tuple[str, str], Budget] = field(default_factory=dict)  # (dataset, unit) -> the one in force
    booked: dict[tuple[str, int], Booked] = field(default_factory=dict)  # (run, round)
    named: dict[str, tuple[str, ...]] = field(default_factory=dict)  # cohorts, by the digest that stands for them
    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)  # (dataset, unit)
    weakest: dict[tuple[str, str], Budget] = field(default_factory=dict)  # (dataset, unit) -> what all caps kept to
    recoveries: dict[tuple[str, str], Recovery] = field(default_factory=dict)  # (dataset, unit) -> the last one
    generation: int = 0  # of the last recovery
    keys: tuple[str, ...] = ()  # that signed entries, hex, oldest first; the last one signs the next entry
    _orders: dict[tuple[str, str], int] = field(default_factory=dict)  # of the filters of charged accounts
    _runs: Counter[tuple[str, str]] = field(default_factory=Counter)  # reserves by run and purpose

    @classmethod
    def replay(cls, entries: Iterable[Entry]) -> "Books":
        """The state after all `entries`.

        Raises:
            LedgerBroken: an entry has no meaning where it stands; names it.
        """
        books = cls()
        for entry in entries:
            books.apply(entry)
        return books

    def apply(self, entry: Entry) -> None:
        """Adds one entry.

        Raises:
            LedgerBroken: the entry has no meaning here; names it. The state is as before.
        """
        try:
            self._apply(entry)
        except (ValueError, InvalidPrivacyParameter) as err:
            raise LedgerBroken(f"entry {entry.seq} ({entry.kind}): {err}") from err

    def open_rounds(self) -> list[tuple[str, int]]:
        """Lists run and round of every charge whose outcome is not recorded yet."""
        return sorted(name for name, booked in self.booked.items() if booked.summed is None)

    def releases(self, dataset: str, unit: str) -> Counter[Release]:
        """Counts the releases to account for on one data set and unit, across studies."""
        tally = self.tallies.get((dataset, unit))
        return tally.releases() if tally else Counter()

    def runs(self, dataset: str, unit: str) -> list[RunCharges]:
        """Counts the charges on one data set and unit by run, in the order of their first charges."""
        found: dict[str, list[Booked]] = {}
        for booked in self.booked.values():
            if (booked.charge.dataset, booked.charge.unit) == (dataset, unit):
                found.setdefault(booked.charge.run, []).append(booked)
        return [
            RunCharges(
                study=charged[0].charge.study,
                run=run,
                updates=sum(booked.charge.purpose == "update" for booked in charged),
                prototypes=sum(booked.charge.purpose == "prototype" for booked in charged),
                evaluations=sum(booked.charge.purpose == "evaluation" for booked in charged),
                unsettled=sum(booked.summed is None for booked in charged),
            )
            for run, charged in found.items()
        ]

    def order(self, budget: Budget) -> int:
        """The order of the filter for the account of `budget`: fixed by the budget under which it was first charged.

        Until then it follows from `budget`. Were it to follow a later cap, it would depend on what was released.
        """
        fixed = self._orders.get((budget.dataset, budget.unit))
        return renyi.filter_order(budget.epsilon, budget.delta) if fixed is None else fixed

    def order_in_force(self, dataset: str, unit: str) -> int | None:
        """The order of the filter that keeps the cap in force; None if there is no cap."""
        budget = self.budgets.get((dataset, unit))
        return self.order(budget) if budget else None

    def charged(self, run: str, purpose: str) -> int:
        """The number of releases of `run` that are reserved for that purpose."""
        return self._runs[run, purpose]

    def accounts(self) -> list[tuple[str, str]]:
        """Every (dataset, unit) with a budget or a charge, sorted."""
        return sorted({*self.budgets, *self.tallies, *self.recoveries})

    @property
    def site(self) -> str:
        """The name in entry 0."""
        if self.opening is None:
            raise LedgerBroken("entry 0 is missing: the ledger was never opened")
        return self.opening.site

    def _apply(self, entry: Entry) -> None:
        if (entry.kind == "open") != (self.opening is None):
            raise ValueError("a ledger is opened by its first entry and by no other")
        match entry.kind:
            case "open":
                opening = canonical.from_record(Opening, entry.body)
                if opening.format != FORMAT:
                    raise ValueError(
                        f"format is {opening.format}; this version reads {FORMAT} alone and carries no other over. "
                        'Nothing was changed; "Upgrade" in docs/site.md says how to go on'
                    )
                self.opening, self.keys = opening, (opening.public_key,)
            case "budget":
                budget = canonical.from_record(Budget, entry.body)
                account = budget.dataset, budget.unit
                self.budgets[account] = budget
                self.weakest[account] = _weaker(self.weakest.get(account, budget), budget)
            case cohorts.KIND:
                self._name(canonical.from_record(cohorts.Cohort, entry.body))
            case "reserve":
                self._reserve(entry, self._charge(entry.body))
            case "settle":
                self._settle(entry, self._settlement(entry.body))
            case "recover":
                self._recover(canonical.from_record(Recovery, entry.body))
            case succession.KIND:
                self._succeed(succession.read_handover(entry.body))
            case _:
                raise ValueError("unknown kind")

    def _succeed(self, stated: succession.Succession) -> None:
        if stated.site != self.site:
            raise ValueError(f"the succession is of site {stated.site!r}, the ledger of {self.site!r}")
        if stated.old != self.keys[-1] or stated.new in self.keys:
            raise ValueError("the succession does not follow from the ledger's keys")
        self.keys = (*self.keys, stated.new)

    def _recover(self, recovery: Recovery) -> None:
        account = recovery.dataset, recovery.unit
        if recovery.generation < self.generation:
            raise ValueError(f"generation {recovery.generation} is before {self.generation}")
        kept = self.weakest.get(account)
        if kept is None or (recovery.epsilon, recovery.delta, recovery.collusion) != (
            kept.epsilon,
            kept.delta,
            kept.collusion,
        ):
            raise ValueError("it does not count the account as spent up to the weakest of its caps")
        self.generation = recovery.generation
        self.recoveries[account] = recovery

    def _name(self, cohort: cohorts.Cohort) -> None:
        if cohort.digest in self.named:
            raise ValueError(f"cohort {cohort.digest[:16]} is named a second time")
        self.named[cohort.digest] = cohort.sites

    def _charge(self, body: Mapping[str, Any]) -> Charge:
        stated = body.get("cohort")
        if not isinstance(stated, str):
            return canonical.from_record(Charge, body)
        if stated not in self.named:
            raise ValueError(f"cohort {stated[:16]!r} is named by no entry before")
        return canonical.from_record(Charge, body, cohort=self.named[stated])

    def _settlement(self, body: Mapping[str, Any]) -> Settlement:
        if "missing" not in body:
            return canonical.from_record(Settlement, body)
        stated = canonical.from_record(cohorts.Absence, body)
        booked = self.booked.get((stated.run, stated.round))
        summed = stated.summed(booked.charge.cohort) if booked else ()  # then the settlement is refused for that
        return Settlement(run=stated.run, round=stated.round, summed=summed)

    def _reserve(self, entry: Entry, charge: Charge) -> None:
        if (charge.run, charge.round) in self.booked:
            raise ValueError(f"round {charge.round} of run {charge.run} is reserved a second time")
        account = charge.dataset, charge.unit
        if account in self.recoveries and not charge.is_unprotected:
            raise ValueError("a charge on an account that lost entries closed")
        if (order := self.order_in_force(*account)) is not None:
            self._orders[account] = order
        tally = self.tallies.get(account, Tally())
        place = tally.add(Kind(charge.study, charge.purpose, False, charge.release), entry.time)
        self.tallies[account] = tally
        self._runs[charge.run, charge.purpose] += 1
        self.booked[charge.run, charge.round] = Booked(entry.seq, charge, place)

    def _settle(self, entry: Entry, settlement: Settlement) -> None:
        booked = self.booked.get((settlement.run, settlement.round))
        check_settlement(booked, settlement)
        assert booked is not None
        settled = replace(booked, settled_seq=entry.seq, summed=settlement.summed)
        tally = self.tallies[booked.charge.dataset, booked.charge.unit]
        tally.change(booked.place, settled.kind(self.site))
        self.booked[settlement.run, settlement.round] = settled


def _weaker(one: Budget, other: Budget) -> Budget:
    """The cap that holds whichever of the two was kept."""
    return replace(
        one,
        epsilon=max(one.epsilon, other.epsilon),
        delta=max(one.delta, other.delta),
        collusion=min(one.collusion, other.collusion),
    )


def check_settlement(booked: Booked | None, settlement: Settlement) -> None:
    """Raises ValueError unless `settlement` can settle `booked` now."""
    name = f"round {settlement.round} of run {settlement.run}"
    if booked is None:
        raise ValueError(f"{name} was never reserved")
    if booked.summed is not None:
        raise ValueError(f"{name} is settled already")
    if not settlement.summed or list(settlement.summed) != sorted(set(settlement.summed)):
        raise ValueError(f"{name}: the summed sites must be named once each, sorted")
    least = booked.charge.release.sites
    if booked.charge.release.mode == "distributed" and len(settlement.summed) < least:
        raise ValueError(f"{name}: {len(settlement.summed)} sites summed, the charge is for at least {least}")
    strangers = set(settlement.summed) - set(booked.charge.cohort)
    if strangers:
        raise ValueError(f"{name}: {', '.join(sorted(strangers))} summed without being in the cohort")


def spent(
    releases: Mapping[Release, int],
    *,
    colluding: int,
    delta: float,
    order: int | None,
    recovery: Recovery | None,
) -> Spent:
    """The accountants' and the filter's answer for `releases` (how many of each) together.

    Args:
        order: of the filter; None if there is none, and so no guarantee for what was chosen by results.
        recovery: of the account, if it lost entries: no figure is less than what that counts. Without a default, so
            that nobody leaves it out by mistake.
    """
    least = _least(recovery, colluding=colluding, delta=delta)
    return Spent(
        pld=max(least, composition.epsilon_pld(releases, delta, colluding)),
        rdp=max(least, composition.epsilon_rdp(releases, delta, colluding)),
        guaranteed=guaranteed(releases, colluding=colluding, delta=delta, order=order, recovery=recovery),
        releases=sum(releases.values()),
        unprotected=sum(count for release, count in releases.items() if release.mode == "none"),
    )


def guaranteed(
    releases: Mapping[Release, int], *, colluding: int, delta: float, order: int | None, recovery: Recovery | None
) -> float:
    """Computes the filter's epsilon alone, as `spent` does; it takes no time worth speaking of."""
    unfiltered = math.inf if releases else 0.0
    found = composition.epsilon_guaranteed(releases, delta, colluding, order) if order else unfiltered
    return max(_least(recovery, colluding=colluding, delta=delta), found)


def _least(recovery: Recovery | None, *, colluding: int, delta: float) -> float:
    return recovery.spent(colluding=colluding, delta=delta) if recovery else 0.0

"""The budget of a site for its people: caps, spent epsilon, reports, and the ledger as one file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...privacy.ledger import backup
from ...privacy.ledger.chain import Head
from ...privacy.ledger.charges import Budget, RunCharges, Spent
from ...privacy.ledger.ledger import Ledger
from ...privacy.report.build import SiteLedger, build_report
from .. import ledger_head
from ..data.known_units import KnownUnits
from ..enrolment import Enrolment, NodeIdentity
from ..errors import PolicyInvalid, StudyInvalid, StudyUnknown
from ..policy import decisions, load_policy, pending
from ..study.toml import parse_json
from .catalogue import cached_study, known_studies
from .charges import open_ledger, record_budget, standing, whole_ledger
from .run_reservations import RunReservations


@dataclass(frozen=True, slots=True)
class SiteRun:
    """One run's part of an account, for people."""

    run: str
    study: str  # its name, or the beginning of its hash if the study is not known here any more
    charged: int  # rounds of training
    planned: int | None  # of the study; None if it is not known here any more
    prototype: bool  # charged
    evaluation: bool  # charged
    unsettled: int  # charged at their worst: open, or given up
    holds: bool  # budget for its coming rounds


@dataclass(frozen=True, slots=True)
class SiteAccount:
    """One data set and unit in the site's ledger."""

    dataset: str
    unit: str
    budget: Budget | None  # None if none was ever set
    spent: Spent | None  # at the budget's delta and collusion; None without a budget
    runs: tuple[SiteRun, ...]  # in the order of their first charges
    is_closed: bool = False  # entries on it were lost for good: nothing more is charged, whatever its cap

    @property
    def begun_anew(self) -> int:
        """The number of runs whose study had been begun here before."""
        return len(self.runs) - len({each.study for each in self.runs})


def accounts(home: Path) -> list[SiteAccount]:
    """Lists every data set in the site's ledger, with its cap and its cost."""
    with whole_ledger(home) as ledger:
        return _accounts(home, ledger)


@dataclass(frozen=True, slots=True)
class CapChange:
    """A cap for the site's data that nobody has set yet, beside the one in force."""

    before: decisions.BudgetPolicy
    after: decisions.BudgetPolicy
    guaranteed: float  # epsilon of what is charged, at the new delta and collusion

    @property
    def is_weaker(self) -> bool:
        """True if more may be spent under the new cap: any of its three figures promises less."""
        old, new = self.before, self.after
        return new.epsilon > old.epsilon or new.delta > old.delta or new.collusion < old.collusion

    @property
    def is_spent(self) -> bool:
        """True if the charges so far are over the new cap already."""
        return self.guaranteed > self.after.epsilon


def cap_change(home: Path, *, epsilon: float, delta: float, collusion: int) -> CapChange:
    """Compares a cap for the site's data with the one in force, and with what is charged. Nothing is written.

    Raises:
        PolicyInvalid: a number is out of range, or site.toml describes no data.
    """
    stated = json.dumps({"epsilon": epsilon, "delta": delta, "collusion": collusion})
    budget = parse_json(stated, decisions.BudgetPolicy, error=PolicyInvalid, source="budget")
    policy = load_policy(home)  # without described data the cap would apply to nothing
    stands = standing(home, policy.model_copy(update={"budget": budget}))
    return CapChange(policy.budget, budget, stands.guaranteed)


def set_budget(home: Path, change: CapChange, *, by: str | None = None) -> list[SiteAccount]:
    """Sets the cap for the site's data, at once and instead of the one in site.toml; returns every account afterwards.

    Args:
        by: who decides; None for the account that runs this process.

    Raises:
        SecondPersonMissing: by the policy a cap that allows more takes two people, and this is the first.
    """
    first = ""
    if change.is_weaker and load_policy(home).policy.four_eyes:
        cap = change.after
        terms = f"epsilon {cap.epsilon!r}, delta {cap.delta!r}, colluding {cap.collusion}"
        first = pending.seconded(home, "cap", "budget", terms, by=by).told()
    with whole_ledger(home) as ledger:
        decisions.set_budget(home, change.after, before=change.before, by=by, first=first)
        record_budget(ledger, load_policy(home))
        return _accounts(home, ledger)


def budget_report(home: Path) -> dict[str, Any]:
    """Builds the signed budget report of this site, with its whole ledger."""
    with whole_ledger(home) as ledger:
        return build_report(
            federation=Enrolment.load(home).address,
            sites={ledger.site: SiteLedger(ledger.public_key, ledger.entries())},
            studies=[study.canonical().decode() for study in known_studies(home)],
            signer=NodeIdentity.load(home).signer,
        )


def export_ledger(home: Path, file: Path) -> Head:
    """Writes the whole ledger to a new file, and returns its last entry's number and hash."""
    with whole_ledger(home) as ledger:
        return backup.write(file, ledger.walk(), ledger.public_key)


def recover_ledger(home: Path) -> list[SiteAccount]:
    """Closes every account, for a ledger that lost entries which nobody has; returns the accounts afterwards.

    The caps count as spent from now on. The ledger goes on from its present end, here and at the aggregators. An
    account whose budget is among the lost entries is closed too, if its people are known here: with the policy's cap,
    as nobody knows its own.

    Raises:
        ChargeConflict: the clock is behind that of an earlier recovery.
    """
    with open_ledger(home, NodeIdentity.load(home), Enrolment.load(home), may_be_lost=True) as ledger:
        policy = load_policy(home)
        record_budget(ledger, policy)
        for account in KnownUnits(home).accounts():
            if ledger.budget(account.dataset, account.unit) is None:
                ledger.set_budget(Budget(dataset=account.dataset, unit=account.unit, **policy.budget.model_dump()))
        ledger_head.recover(home, ledger)
        return _accounts(home, ledger)


def _accounts(home: Path, ledger: Ledger) -> list[SiteAccount]:
    holding = RunReservations(home).runs()
    found = []
    for dataset, unit in ledger.accounts():
        budget = ledger.budget(dataset, unit)
        spent = ledger.spent(dataset, unit, budget.collusion, budget.delta) if budget else None
        runs = tuple(_run(home, each, holds=each.run in holding) for each in ledger.runs(dataset, unit))
        is_closed = ledger.recovery(dataset, unit) is not None
        found.append(SiteAccount(dataset, unit, budget, spent, runs, is_closed))
    return found


def _run(home: Path, charged: RunCharges, *, holds: bool) -> SiteRun:
    try:
        study = cached_study(home, charged.study)
    except (StudyUnknown, StudyInvalid):
        study = None  # the charges are told all the same
    return SiteRun(
        run=charged.run,
        study=study.name if study else charged.study[:12],
        charged=charged.updates,
        planned=study.draft.rounds.rounds if study else None,
        prototype=charged.prototypes > 0,
        evaluation=charged.evaluations > 0,
        unsettled=charged.unsettled,
        holds=holds,
    )

"""The budget of a site for its people: caps, spent epsilon, reports, and the ledger as one file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...privacy.ledger import backup
from ...privacy.ledger.chain import Head
from ...privacy.ledger.charges import Budget, Spent
from ...privacy.ledger.ledger import Ledger
from ...privacy.report.build import SiteLedger, build_report
from .. import ledger_head
from ..enrolment import Enrolment, NodeIdentity
from ..errors import PolicyInvalid
from ..policy import BudgetPolicy, decisions, load_policy
from ..study.toml import parse_json
from .catalogue import known_studies
from .charges import LEDGER_FILE, open_ledger, record_budget


@dataclass(frozen=True, slots=True)
class SiteAccount:
    """One data set and unit in the site's ledger."""

    dataset: str
    unit: str
    budget: Budget | None  # None if none was ever set
    spent: Spent | None  # at the budget's delta and collusion; None without a budget


def accounts(home: Path) -> list[SiteAccount]:
    """Lists every data set in the site's ledger, with its cap and its cost."""
    with _ledger(home) as ledger:
        return _accounts(ledger)


def set_budget(home: Path, *, epsilon: float, delta: float, collusion: int) -> list[SiteAccount]:
    """Sets the cap for the site's data, at once and instead of the one in site.toml; returns every account afterwards.

    Raises:
        PolicyInvalid: a number is out of range, or site.toml describes no data.
    """
    stated = json.dumps({"epsilon": epsilon, "delta": delta, "collusion": collusion})
    budget = parse_json(stated, BudgetPolicy, error=PolicyInvalid, source="budget")
    load_policy(home)  # without described data the cap would apply to nothing
    with _ledger(home) as ledger:
        decisions.set_budget(home, budget)
        record_budget(ledger, load_policy(home))
        return _accounts(ledger)


def budget_report(home: Path) -> dict[str, Any]:
    """Builds the signed budget report of this site, with its whole ledger."""
    with _ledger(home) as ledger:
        return build_report(
            federation=Enrolment.load(home).address,
            sites={ledger.site: SiteLedger(ledger.public_key, ledger.entries())},
            studies=[study.facts() for study in known_studies(home)],
            signer=NodeIdentity.load(home).signer,
        )


def export_ledger(home: Path, file: Path) -> Head:
    """Writes the whole ledger to a new file, and returns its last entry's number and hash."""
    with _ledger(home) as ledger:
        return backup.write(file, ledger.walk(), ledger.public_key)


def import_ledger(home: Path, file: Path) -> tuple[int, int]:
    """Imports a ledger from a file, with every entry verified; returns the number of added entries, and of all."""
    signer, name = NodeIdentity.load(home).signer, Enrolment.load(home).name
    return Ledger.restore(home / LEDGER_FILE, backup.read(file), signer, name)


def recover_ledger(home: Path) -> list[SiteAccount]:
    """Closes every account, for a ledger that lost entries which nobody has; returns the accounts afterwards.

    The caps count as spent from now on. The ledger goes on from its present end, here and at the aggregators.

    Raises:
        ChargeConflict: the clock is behind that of an earlier recovery.
    """
    with _ledger(home) as ledger:
        record_budget(ledger, load_policy(home))
        ledger_head.recover(home, ledger)
        return _accounts(ledger)


def _ledger(home: Path) -> Ledger:
    return open_ledger(home, NodeIdentity.load(home), Enrolment.load(home))


def _accounts(ledger: Ledger) -> list[SiteAccount]:
    found = []
    for dataset, unit in ledger.accounts():
        budget = ledger.budget(dataset, unit)
        spent = ledger.spent(dataset, unit, budget.collusion, budget.delta) if budget else None
        found.append(SiteAccount(dataset, unit, budget, spent))
    return found

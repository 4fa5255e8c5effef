"""How the `client-node` command shows things: tables for people, JSON for programs."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ..enrolment import Enrolment
from ..policy import load_decisions, load_policy
from ..policy.site_policy import FILE
from ..study import Study

if TYPE_CHECKING:  # accounting takes seconds to import
    from ...privacy.ledger.ledger import Ledger
    from ..approval.budget_planning import BudgetPlan

out, err = Console(), Console(stderr=True)


def show(title: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    """Rows of equal keys as a table, or as JSON."""
    if as_json:
        return print_json([{name.replace(" ", "_"): value for name, value in row.items()} for row in rows])
    if not rows:
        return out.print(f"{title}: none yet")
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    out.print(table, highlight=False)


def show_facts(title: str, facts: dict[str, Any], as_json: bool) -> None:
    """One thing's facts as a table of two columns, or as JSON."""
    if as_json:
        return print_json({name.replace(" ", "_"): value for name, value in facts.items()})
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, _text(value))
    out.print(table, highlight=False)


def show_budget(ledger: "Ledger", as_json: bool) -> None:
    """Cap and cost of every data set in the ledger."""
    rows = budget_rows(ledger)
    if not as_json and not any(row["unprotected"] for row in rows):
        rows = [{name: value for name, value in row.items() if name != "unprotected"} for row in rows]
    show("Budget: cap on epsilon, and what was spent by PLD and by RDP", rows, as_json)


def show_plan(plan: "BudgetPlan", as_json: bool) -> None:
    """What a study would cost at this site."""
    budget = plan.budget
    costs = [
        {
            "colluding": cost.colluding,
            "PLD": cost.pld,
            "RDP": cost.rdp,
            "PLD with all before": cost.pld_after,
            "RDP with all before": cost.rdp_after,
        }
        for cost in plan.costs
    ]
    fit = plan.rounds_left >= plan.rounds
    facts = {
        "study": plan.study,
        "dim": plan.dim,
        "dim is assumed": plan.is_dim_assumed,
        "data set": budget.dataset,
        "unit": budget.unit,
        "cap": budget.epsilon,
        "delta": budget.delta,
        "colluding": budget.collusion,
        "spent or held": plan.spent,
        "rounds": plan.rounds,
        "rounds that fit in what is left": plan.rounds_left,
        "rounds that fit in the cap from zero": plan.rounds_from_zero,
        "all rounds fit": fit,
        "noise multiplier": plan.noise_multiplier,
        "noise multiplier with which all rounds fit": plan.noise_multiplier_needed,
    }
    if as_json:
        rows = [{name.replace(" ", "_"): value for name, value in cost.items()} for cost in costs]
        return print_json({name.replace(" ", "_"): value for name, value in facts.items()} | {"costs": rows})
    show(f"Epsilon of the whole study at delta {budget.delta:g}, by colluding sites", costs, as_json=False)
    show_facts("Plan", facts, as_json=False)


def show_verification(file: Path, issuer: str | None, sites: Sequence[str], as_json: bool) -> bool:
    """What verifying a budget report found, and whether it holds; `sites` are NAME=KEY texts known from elsewhere."""
    from ...privacy.report.verify import known_keys, verify_file

    found = verify_file(file, issuer=issuer, site_keys=known_keys(sites))
    if as_json:
        print_json(found.to_dict())
        return found.ok
    for line in found.lines():
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    out.print("Everything holds." if found.ok else "This report does not hold.")
    return found.ok


def print_json(value: Any) -> None:
    """One JSON value on stdout; infinities are written "inf", which JSON has no number for."""
    sys.stdout.write(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) or "-"
    return "-" if value is None else str(value).replace("[", r"\[")  # no markup from a study's text


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return "inf" if isinstance(value, float) and math.isinf(value) else value


def study_row(home: Path, study: Study) -> dict[str, Any]:
    """A study in the list of those that this node knows, and what was decided about it."""
    name, verdict = Enrolment.load(home).name, load_decisions(home).verdict(study.study_hash)
    if verdict is None and (home / FILE).exists():
        listed = load_policy(home).studies
        verdict = "approved" if study.study_hash in {*listed.approved, *listed.unprotected} else None
    roles = ["train"] if name in study.site_names() else []
    roles += ["aggregate"] if name in {party.name for party in study.aggregators} else []
    return {
        "study": study.name,
        "hash": study.study_hash,
        "privacy": study.draft.privacy.mode,
        "rounds": study.draft.rounds.rounds,
        "sites": len(study.sites),
        "this node": roles,
        "decision": verdict or "none",
        "created": study.created.isoformat(),
    }


def study_facts(study: Study) -> dict[str, dict[str, Any]]:
    """All that approving a study means, under headings."""
    draft = study.draft
    facts = draft.data.kind.facts(draft.data.terms)
    columns = facts.pop("columns")
    return {
        f"Study {study.name}": {
            "hash": study.study_hash,
            "description": draft.description or None,
            "created": study.created.isoformat(),
            "coordinator": study.coordinator,
            "backbone": study.backbone_hash,
            "routed experts": draft.model.experts,
        },
        "Data": {
            **facts,
            "unit": draft.data.unit,
            "records a unit": draft.data.max_records_per_unit,
            "columns": columns,
        },
        "Privacy": {**draft.privacy.model_dump(), "fewest sites in a sum": study.quorum},
        "Adapter": {**draft.adapter.model_dump(), "trained numbers": study.dim},
        "Rounds": draft.rounds.model_dump(),
        "Optimizer": draft.optimizer.model_dump(),
        "Aggregation": {**draft.aggregation.model_dump(), "max_norm": draft.max_norm},
        **({"Evaluation on held-out records": draft.evaluation.model_dump()} if draft.evaluation else {}),
        "Sites (name: identity key)": {site.name: site.identity for site in study.sites},
        "Aggregators (name: identity key, address)": {
            party.name: f"{party.identity}, {party.address}" for party in study.aggregators
        },
    }


def report_facts(study: Study) -> dict[str, Any]:
    """What a budget report says about a study."""
    privacy = study.draft.privacy
    return {
        "name": study.name,
        "hash": study.study_hash,
        "mode": privacy.mode,
        "delta": privacy.delta,
        "collusion": privacy.collusion,
        "sites": list(study.site_names()),
        "rounds": study.draft.rounds.rounds,
        "noise_multiplier": privacy.noise_multiplier,
        "clip_norm": privacy.clip_norm,
        "sample_rate": privacy.sample_rate,
        "max_dropouts": privacy.max_dropouts,
    }


def budget_rows(ledger: "Ledger") -> list[dict[str, Any]]:
    """Cap and cost of every data set in the ledger, at the budget's delta and collusion."""
    rows = []
    for dataset, unit in ledger.accounts():
        budget = ledger.budget(dataset, unit)
        spent = ledger.spent(dataset, unit, budget.collusion, budget.delta) if budget else None
        rows.append(
            {
                "data set": dataset,
                "unit": unit,
                "cap": budget.epsilon if budget else None,
                "PLD": spent.pld if spent else None,
                "RDP": spent.rdp if spent else None,
                "delta": budget.delta if budget else None,
                "colluding": budget.collusion if budget else None,
                "releases": spent.releases if spent else None,
                "unprotected": spent.unprotected if spent else None,
            }
        )
    return rows

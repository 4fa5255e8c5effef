"""Prints results for the `client-node` command: tables for people, JSON for programs."""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from ...models.rounding import rounded_down, rounded_up
from ..spoken_hash import words
from ..telling import outlook_lines, proposal_lines, said
from .console import command_at, err, is_whole, out, print_json, print_rows, show_hash, show_page, tell
from .options import DEFAULT_HOME

if TYPE_CHECKING:  # accounting takes seconds to import
    from ..approval.assessment import Outlook
    from ..approval.budget_planning import BudgetPlan
    from ..approval.site_budget import CapChange, SiteAccount, SiteRun
    from ..approval.study_decisions import Fetched, KnownStudy, Proposal
    from ..data import DataReport
    from ..enrolment import Enrolment
    from ..explanation import Explanation
    from ..policy.decision_log import Entry, Verified
    from ..step_audit import StepAudit
    from ..study import Study
    from ..traffic import Day
    from ..witness import Witnessed

_EPOCH = dt.date(1970, 1, 1).toordinal()
# what the headings of bounds on epsilon begin with; a cap is a person's number and stays as it was written
_BOUNDS = ("guaranteed", "spent", "PLD", "RDP", "epsilon planned", "epsilon spent", "epsilon guaranteed")


def show(title: str, rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Prints rows of equal keys as a table, or as JSON."""
    if as_json:
        return print_json([_keys(row) for row in rows])
    print_rows(title, rows, said, highlight=False)


def show_facts(title: str, facts: dict[str, Any], as_json: bool) -> None:
    """Prints facts as a table of two columns, or as JSON. Hashes and keys follow the table, each whole on its line."""
    if as_json:
        return print_json(_keys(facts))
    texts = {name: said(value) for name, value in facts.items()}
    whole = {name: text for name, text in texts.items() if is_whole(text)}
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, text in texts.items():
        if name not in whole:
            table.add_row(name, escape(text))
    out.print(table if table.row_count else title, highlight=False, markup=False)
    for name, text in whole.items():
        out.print(f"{name}: {text}", highlight=False, markup=False, soft_wrap=True)


def show_enrolment(found: "Enrolment", home: Path, as_json: bool, spoken: str = "") -> None:
    """Prints the federation that this node has joined, its key's fingerprint as it is `spoken`, and the next steps."""
    if as_json:
        facts = {"name": found.name, "roles": list(found.roles), "coordinator": found.address, "home": str(home)}
        return print_json(facts | {"fingerprint": spoken})
    told = [f"This node is {found.name} in the federation at {found.address}: {', '.join(found.roles)}."]

    def here(command: str) -> str:
        return command_at(home, DEFAULT_HOME, f"client-node {command}")

    if "train" in found.roles:
        told += [f"Read this fingerprint of its key to the aggregators' people: {spoken}"] if spoken else []
        is_described = (home / "site.toml").exists()
        told.append(f"Look at site.toml, and check the data: {here('data check TABLE')}" if is_described else
                    f"Describe the data in {home / 'site.toml'}: {here('init TABLE')}")  # fmt: skip
    if "aggregate" in found.roles:
        told.append(
            f"Ask each site's people for its fingerprint, and confirm it: {here('site confirm NAME=FINGERPRINT')}"
        )
        told.append("A study is approved here once all its sites are confirmed.")
    told += [f"Then: {here(command)}" for command in ("study list", "study approve HASH", "run")]
    for line in told:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def show_fetched(fetched: "Fetched") -> None:
    """Prints on stderr the reasons why studies could not be fetched."""
    if fetched.unreachable:
        tell(f"{fetched.unreachable}; showing the studies fetched before")
    for line in fetched.turned_away:
        tell(f"turned away: {line}")


def show_studies(known: Sequence["KnownStudy"], as_json: bool) -> None:
    """Prints the studies that this node knows and the decisions about them, then each one's hash and its words."""
    rows: list[dict[str, Any]] = [
        {
            "study": each.study.name,
            "hash": each.study.study_hash,
            "words": " ".join(words(each.study.study_hash)),
            "privacy": each.study.draft.privacy.mode,
            "rounds": each.study.draft.rounds.rounds,
            "sites": len(each.study.sites),
            "this node": each.roles,
            "decision": each.decision or "none",
            "runs": each.runs,
            "runs left": max(0, each.runs - len(each.used)),
            "used by": each.used,
            "until": each.until and each.until.isoformat(),
            "created": each.study.created.isoformat(),
        }
        for each in known
    ]
    if as_json:
        return show("Studies", rows, as_json)
    kept = ("study", "privacy", "rounds", "this node", "decision", "runs left")
    until = ({"decision": f"{row['decision']} until {row['until']}"} if row["until"] else {} for row in rows)
    show("Studies", [{name: row[name] for name in kept} | end for row, end in zip(rows, until, strict=True)], as_json)
    for each in known:
        show_hash(each.study.name, each.study.study_hash)


def show_study(study: "Study", outlook: "Outlook | None" = None) -> None:
    """Prints everything that a person approves with a study; at a site first, in a sentence, what matters there."""
    if outlook is not None:
        for line in outlook_lines(outlook):
            out.print(line, markup=False, highlight=False, soft_wrap=True)
    show_hash(study.name, study.study_hash)
    for title, facts in study.facts().items():
        show_facts(title, facts, as_json=False)


def show_proposal(proposal: "Proposal", by: str | None) -> None:
    """Prints on stderr, in a few lines, what an approval would mean."""
    for line in proposal_lines(proposal, by):
        tell(line)


def show_known_approval(known: "KnownStudy", as_json: bool) -> None:
    """Prints an approval that stands, and what is left of it."""
    study, left = known.study, max(0, known.runs - len(known.used))
    if as_json:
        facts = {"study": study.name, "hash": study.study_hash, "approved already": True}
        rest = {"runs": known.runs, "used by": known.used, "runs left": left, "until": known.until and str(known.until)}
        return print_json(_keys(facts | rest))
    used = f"{', '.join(known.used)} used it; " if known.used else ""
    out.print(
        f"Study {study.name} is approved already: {used}{left} of {known.runs} run{'' if known.runs == 1 else 's'} "
        f"may still begin, until {known.until or 'revoked'}. --runs or --until changes that.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def show_approval(proposal: "Proposal", as_json: bool) -> None:
    """Prints an approved study, and its worst cost."""
    assessment = proposal.assessment
    study, quote = assessment.study, assessment.quote
    facts = {
        "study": study.name,
        "hash": study.study_hash,
        "runs": proposal.runs,
        "until": proposal.until and proposal.until.isoformat(),
        "sites": list(study.site_names()),
        "aggregators": [party.name for party in study.aggregators],
        "units here": assessment.data.units if assessment.data else None,
        "epsilon planned": assessment.planned,
        "epsilon spent before": assessment.spent,
        "epsilon guaranteed after all rounds": quote.would_be if quote else None,
        "epsilon cap": quote.cap if quote else None,
        "takes part in the evaluation": assessment.evaluates,
        "never seen before": {each.name: each.spoken for each in proposal.peers if each.state == "new"} or None,
        "new keys": dict(proposal.accepted) or None,
        "keys that follow known ones": {e.name: e.spoken for e in proposal.peers if e.state == "followed"} or None,
    }
    if not as_json:
        out.print(f"Approved: {facts.pop('hash')}", highlight=False, soft_wrap=True)
    known = {name: value for name, value in facts.items() if value is not None}
    show_facts("Approval", known if as_json else _rounded(known), as_json)


def show_explanation(found: "Explanation", as_json: bool) -> None:
    """Prints the verdict in a sentence, and below it each rule with what it says and where it is written."""
    if as_json:
        facts = {"study": found.study, "hash": found.hash, "run": found.run, "may_run": found.may_run}
        return print_json(facts | {"sentence": found.sentence, "rules": [asdict(rule) for rule in found.rules]})
    out.print(found.sentence, highlight=False, markup=False, soft_wrap=True)
    for rule in found.rules:
        for line in (f"{rule.verdict:<8} {rule.rule} ({rule.where})", f"{'':<8} {rule.why}"):
            out.print(line, highlight=False, markup=False, soft_wrap=True)


def show_decisions(entries: "Sequence[Entry]", unread: Sequence[int], as_json: bool) -> None:
    """Prints the decision log, one a line and nothing wrapped; lines that cannot be read are told on stderr."""
    rows = [entry.model_dump(mode="json") for entry in entries]
    if as_json:
        print_json(rows)
    elif not rows and not unread:
        tell("Decisions: none yet")
    for row in () if as_json else rows:
        login = "" if row["by"] == row["login"] else f" (login {row['login']})"
        detail = "follows, signed by both keys" if row["decision"] == "rotate" else row["detail"]  # --json has it whole
        line = f"{row['at']}  {row['by']}{login}  {row['decision']} {row['about']} {detail}"
        out.print(line.rstrip(), highlight=False, markup=False, soft_wrap=True)
    if unread:
        tell(f"lines {', '.join(map(str, unread))} of the decision log, decisions.jsonl, cannot be read")


def show_verified_decisions(found: "Verified", as_json: bool) -> None:
    """Prints whether the decision log holds."""
    if as_json:
        return print_json(asdict(found))
    covered = f", and {found.plain} older ones that the first of them covers" if found.plain else ""
    told = [f"{found.entries} signed decisions{covered}; the newest is number {found.head.seq}, {found.head.hash}"]
    if found.unread:
        told.append(
            f"lines {', '.join(map(str, found.unread))} are no decisions: a crash cut them, or they were changed"
        )
    for line in (*told, *(f"! {problem}" for problem in found.problems)):
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    out.print("This log does not hold." if found.problems else "Everything holds.")


def show_witnessed(found: "Witnessed", as_json: bool) -> None:
    """Prints what this node has countersigned of the coordinator's audit log, and what it has refused since."""
    if as_json:
        return print_json(found.model_dump(mode="json"))
    last, refused = found.last, found.refused
    told = (
        ["nothing countersigned yet"]
        if last is None
        else [f"countersigned: entry {last.seq} of {last.time}, {last.hash}"]
    )
    if refused is not None:
        told.append(f"refused: entry {refused.checkpoint.seq} of {refused.checkpoint.time}; {refused.words}")
        told.append("Ask the coordinator's people why. If a backup was put back: client-node witness --forget")
    for line in told:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def show_traffic(days: "Mapping[int, Day]", as_json: bool) -> None:
    """Prints what passed between this node and its coordinator, the newest day first."""
    rows = [
        {"day": dt.date.fromordinal(_EPOCH + day).isoformat(), "kind": kind}
        | {name.replace("_", " "): value for name, value in passed.model_dump().items()}
        for day, kinds in days.items()
        for kind, passed in sorted(kinds.items())
    ]
    show("What came and what left", rows, as_json)


def show_cap_change(change: "CapChange") -> None:
    """Prints on stderr the cap in force beside the new one, and says so if more than the new one is spent."""
    old, new = change.before, change.after
    tell(
        f"Cap: epsilon {old.epsilon:g} -> {new.epsilon:g}, delta {old.delta:g} -> {new.delta:g}, colluding "
        f"{old.collusion} -> {new.collusion}; guaranteed so far {rounded_up(change.guaranteed)}"
    )
    if new.epsilon > old.epsilon:
        tell(f"Raised from {old.epsilon:g} to {new.epsilon:g}.")
    if change.is_spent:
        tell(
            f"Below what is spent, {rounded_up(change.guaranteed)}. What is charged is over the new cap already: no "
            "round of any study is charged under it."
        )


def show_step_audit(found: "StepAudit", as_json: bool) -> None:
    """Prints what an audit of the site's own step saw, and its findings to stderr."""
    check = found.check
    facts: dict[str, Any] = {
        "study": found.study.name,
        "hash": found.study.study_hash,
        "expected by": "the ledger's last charge"
        if found.is_charged
        else "the charge of a first round; none is made yet",
        "rounds looked at": check.rounds,
        "units in the made-up table": check.units,
        "noise over the charged one": check.noise,
        "standard error of the noise": check.noise_error,
        "sum over its charged length": check.length,
        "standard error of the length": check.length_error,
        "spread over independent draws": check.spread,
        "findings": [f"{finding.check}: {finding.detail}" for finding in check.findings],
    }
    if as_json:
        return print_json(_keys(facts))
    show_facts("Audit of this site's step", {k: _short(v) for k, v in facts.items() if v not in (None, [])}, False)
    for finding in check.findings:
        err.print(f"{finding.check}: {escape(finding.detail)}", highlight=False)
    if not check.findings:
        out.print("The step has the noise, the clip and the draws that the ledger pays for.")


def _short(value: Any) -> Any:
    return f"{value:.4f}" if isinstance(value, float) else value


def show_confirmed(sites: Mapping[str, str], as_json: bool) -> None:
    """Prints the sites whose keys were confirmed here, by name."""
    show("Confirmed sites", [{"site": name, "fingerprint": known} for name, known in sorted(sites.items())], as_json)


def show_data_report(report: "DataReport", as_json: bool) -> None:
    """Prints the findings of a table check; problems go to stderr."""
    if as_json:
        print_json(report.to_dict())
    else:
        facts = {"file": report.path, "rows": report.rows, "units": report.units}
        if report.rows_per_unit:
            facts["rows of a unit"] = "{0} to {2}, median {1:g}".format(*report.rows_per_unit)
        if report.labels:
            facts["rows with label 0, 1"] = "{:,}, {:,}".format(*report.labels)
        show_facts("Table", facts, as_json=False)
        rows = [{"column": c.name, "in the file": c.own, "kind": c.kind, "fits": report.rows - c.misfits,
                 "misfits": c.misfits, "missing": c.missing} for c in report.columns]  # fmt: skip
        show("Columns", rows, as_json=False)
        for problem in report.problems:
            tell(str(problem))
        if report.problem_count > len(report.problems):
            tell(f"... and {report.problem_count - len(report.problems)} more")
    for objection in report.objections:
        tell(objection)
    if report.problem_count:
        is_one = report.problem_count == 1
        count, they = ("1 problem", "it is") if is_one else (f"{report.problem_count} problems", "they are")
        tell(f"{count}; a study cannot use this table until {they} mended.")


def show_accounts(accounts: Sequence["SiteAccount"], as_json: bool) -> None:
    """Prints cap and cost of every data set in the ledger, and the runs that were charged."""
    rows = [_account_row(account) for account in accounts]
    if as_json:
        runs = [[asdict(each) for each in account.runs] for account in accounts]
        return print_json([_keys(row) | {"runs": each} for row, each in zip(rows, runs, strict=True)])
    if not any(row["unprotected"] for row in rows):
        rows = [{name: value for name, value in row.items() if name != "unprotected"} for row in rows]
    show(
        "Epsilon of each data set: guaranteed, under its cap, and spent", [_rounded(row) for row in rows], as_json=False
    )
    for account in accounts:
        _show_runs(account)


def _account_row(account: "SiteAccount") -> dict[str, Any]:
    budget, spent = account.budget, account.spent
    left = max(0.0, budget.epsilon - spent.guaranteed) if budget and spent else None
    if account.is_closed:
        left = 0.0
    return {
        "data set": account.dataset,
        "unit": account.unit,
        "cap": budget.epsilon if budget else None,
        "guaranteed": spent.guaranteed if spent else None,
        "left": left,
        "spent by PLD": spent.pld if spent else None,
        "spent by RDP": spent.rdp if spent else None,
        "delta": budget.delta if budget else None,
        "colluding": budget.collusion if budget else None,
        "releases": spent.releases if spent else None,
        "unprotected": spent.unprotected if spent else None,
    }


def _held(run: "SiteRun") -> str:
    if not run.holds or run.planned is None:
        return "-"
    return f"{max(0, run.planned - run.charged)} rounds"


def _show_runs(account: "SiteAccount") -> None:
    if not account.runs:
        return
    rows = [
        {
            "run": each.run,
            "study": each.study,
            "rounds charged": f"{each.charged} of {'?' if each.planned is None else each.planned}",
            "prototype": "charged" if each.prototype else "-",
            "evaluation": "charged" if each.evaluation else "-",
            "not settled": each.unsettled,
            "holds budget for": _held(each),
        }
        for each in account.runs
    ]
    show(f"Runs charged on {account.dataset}", rows, as_json=False)
    count = "1 run" if len(rows) == 1 else f"{len(rows)} runs"
    anew = f", {account.begun_anew} of them of a study that had been begun before" if account.begun_anew else ""
    out.print(
        f"{count}{anew}. Guaranteed holds whatever was chosen, stopped or begun anew because of results; the "
        "cap is kept by it. Spent holds only if nothing was. A run that was stopped keeps its charges. Budget is held "
        "for a run until the coordinator says that it is over, which it may do early, or is silent for a day; other "
        "runs may take it then.",
        highlight=False,
    )


def show_budget_report(
    report: dict[str, Any], table: Callable[[], None], html: Path | None, as_json: bool, language: str
) -> None:
    """Writes a budget report as a page in `language`, or prints it as JSON; else `table` prints its figures."""
    from ...privacy.report.build import render_html

    show_page(
        "Report",
        report,
        page=lambda: render_html(report, language=language),
        table=table,
        html=html,
        as_json=as_json,
    )


def show_plan(plan: "BudgetPlan", as_json: bool) -> None:
    """Prints the cost that a study would have at this site."""
    budget = plan.budget
    costs = [
        {
            "colluding": cost.colluding,
            "PLD": cost.pld,
            "RDP": cost.rdp,
            "PLD with all before": cost.pld_after,
            "RDP with all before": cost.rdp_after,
            "guaranteed with all before": cost.guaranteed_after,
        }
        for cost in plan.costs
    ]
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
        "guaranteed for what is spent or held": plan.guaranteed,
        "rounds": plan.rounds,
        "rounds that fit in what is left": plan.rounds_left,
        "rounds that fit in the cap from zero": plan.rounds_from_zero,
        "all rounds fit": plan.rounds_left >= plan.rounds,
        "noise multiplier": plan.noise_multiplier,
        "noise multiplier with which all rounds fit": plan.noise_multiplier_needed,
    }
    if as_json:
        return print_json(_keys(facts) | {"costs": [_keys(cost) for cost in costs]})
    show(
        f"Epsilon of the whole study at delta {budget.delta:g}, by colluding sites",
        [_rounded(cost) for cost in costs],
        False,
    )
    show_facts("Plan", _rounded(facts), as_json=False)


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Replaces every bound on epsilon in a row by its text, rounded to the side on which it holds."""

    def told(name: str, value: Any) -> Any:
        if not isinstance(value, float):
            return value
        if name == "left":
            return rounded_down(value)
        return rounded_up(value) if name.startswith(_BOUNDS) else value

    return {name: told(name, value) for name, value in row.items()}


def _keys(facts: dict[str, Any]) -> dict[str, Any]:
    """Converts headings to names for JSON."""
    return {name.replace(" ", "_"): value for name, value in facts.items()}

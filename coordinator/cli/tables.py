"""Prints sites, studies, runs and costs for the `coordinator` command: tables for people, JSON for programs."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...client_node.cli.console import (
    command_at,
    err,
    out,
    print_json,
    print_rows,
    show_hash,
    show_page,
    table_of,
    tell,
)
from ...client_node.spoken_hash import words
from ...durations import duration
from ...models.rounding import rounded_down, rounded_up
from .options import DEFAULT_HOME

if TYPE_CHECKING:  # accounting takes seconds to import
    from ...models.evaluation.binned import ReliabilityBin
    from ...models.evaluation.metrics import Estimate
    from ...privacy.ledger.chain import Head
    from ...privacy.report.schema import AuditFacts
    from ..federation import Settings
    from ..federation.members import Invitation, Member
    from ..oversight.trail import Verified
    from ..results.metrics import Measurement
    from ..run.approvals import Approvals
    from ..run.glance import Glance
    from ..run.overview import OpenedRound, OpenedRounds, RunStanding
    from ..store.audit_log import Action
    from ..store.tables import StudyRow
    from ..studies.summary import StudySummary

_SHOWN_S = 0.05  # seconds of a step below which people are not told of it


def show(title: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    """Prints rows of equal keys as a table, or as JSON."""
    if as_json:
        return print_json(rows)
    print_rows(title, rows)


def show_status(found: "Glance", as_json: bool) -> None:
    """Prints a federation at a glance: its server, members, runs, and last what needs a person."""
    from ...client_node.secret_files import NOT_ENCRYPTED

    if as_json:
        parts = asdict(found)
        return print_json(
            {"federation": found.federation, "serving": parts["serving"], "sites": parts["members"]}
            | {"runs": [run_row(run) for run in found.runs], "worries": found.worries, "keys": found.keys}
            | {"standbys": found.standbys}
        )
    if found.serving is not None:
        parts = {"SuperLink": found.serving.superlink, "drivers": found.serving.worker}
        ready = ", ".join(f"{name} {'ready' if is_ready else 'not ready yet'}" for name, is_ready in parts.items())
        out.print(f"{found.federation}: served since {clock(found.serving.since)}; {ready}", highlight=False)
    if found.standbys:
        out.print(f"Stand by to take over: {', '.join(found.standbys)}", highlight=False)
    rows = [
        asdict(member)
        | {"online": {None: "", True: "yes", False: "no"}[member.online], "last_seen": ago(member.last_seen)}
        for member in found.members
    ]
    show("Sites", [{name.replace("_", " "): value for name, value in row.items()} for row in rows], as_json=False)
    show_runs(found.runs, as_json=False)
    if found.keys != NOT_ENCRYPTED:
        out.print(f"Keys: {found.keys}", highlight=False)
    for worry in found.worries:
        tell(f"! {worry}")


def ago(moment: float | None) -> str:
    """Writes how long ago a moment was."""
    if moment is None:
        return ""
    return f"{duration(max(0.0, time.time() - moment))} ago"


def show_members(members: "Sequence[Member]", as_json: bool) -> None:
    """Prints every site, its roles and state."""
    show("Sites", [asdict(member) for member in members], as_json)


def tell_voided(invitations: "Sequence[Invitation]") -> None:
    """Tells whose earlier codes are void, as new ones were made."""
    if voided := [each.name for each in invitations if each.voids_earlier]:
        tell(f"A code was out already for {', '.join(voided)}: it is void now, only the new one is taken.")


def show_invitations(invitations: "Sequence[Invitation]", as_json: bool) -> None:
    """Prints one-time codes: of one site alone on stdout, of several each behind its name."""
    if as_json:
        rows = [asdict(each) for each in invitations]
        return print_json(rows if len(rows) > 1 else rows[0])
    tell_voided(invitations)
    for each in invitations:
        err.print(f"One-time code for {each.name} (valid for a week), to be told in private:")
        print(each.code if len(invitations) == 1 else f"{each.name} {each.code}")


def show_join_files(files: Sequence[Path], as_json: bool) -> None:
    """Prints the paths of join files, each alone on its line."""
    if as_json:
        return print_json({"files": [str(file) for file in files]})
    err.print("Hand each over in private: it is as secret as the code in it, and works once, for a week.")
    for file in files:
        print(file)


def show_made(
    settings: "Settings", home: Path, as_json: bool, *, steps: Sequence[str], files: Sequence[Path] = ()
) -> None:
    """Prints that a federation was made, the join files of those who were invited, and the next steps."""
    if as_json:
        return print_json({"home": str(home), **asdict(settings), "files": [str(file) for file in files]})
    following = f" Next: {'; then: '.join(steps)}" if steps else ""
    out.print(f"Federation {settings.federation} made in {home}.{following}", highlight=False, markup=False,
              soft_wrap=True)  # fmt: skip
    if files:
        show_join_files(files, as_json=False)


def show_created_study(study: "StudySummary", as_json: bool) -> None:
    """Prints the cost and size of a new study, its words, and its hash alone on the last line."""
    if as_json:
        return print_json(asdict(study) | {"words": " ".join(words(study.hash))})
    if study.epsilon is not None:
        aimed = f", solved for a target of {study.target_epsilon:g}" if study.target_epsilon else ""
        out.print(
            f"Noise multiplier {study.noise_multiplier:g}{aimed}: a whole run is planned to cost epsilon "
            f"{rounded_up(study.epsilon, 3)} at delta {study.delta:g} with {study.collusion} colluding.",
            highlight=False,
        )
    out.print(
        f"Study [bold]{study.name}[/] trains {study.dim:,} numbers with lr {study.lr:g} and head_lr "
        f"{study.head_lr:g}. Sites approve it by its hash, or by the words that spell it. Tell them by telephone:"
    )
    show_hash(study.name, study.hash)


def show_studies(studies: "Sequence[StudyRow]", told: "Mapping[str, Approvals]", as_json: bool) -> None:
    """Prints every study with how many have approved it, then each one's hash and its words."""
    rows = [{"name": row.name, "hash": row.hash, "created": clock(row.created_at)} for row in studies]
    if as_json:
        return print_json([row | {"words": " ".join(words(row["hash"]))} | told[row["hash"]].counts for row in rows])
    show("Studies", [{"name": row["name"], "created": row["created"], "approved": _approved(told[row["hash"]])}
                     for row in rows], as_json=False)  # fmt: skip
    for row in rows:
        show_hash(row["name"], row["hash"])


def _approved(told: "Approvals") -> str:
    return f"by {told.approved} of {len(told.parties)}" if told.is_told else "nobody has said"


def show_approvals(told: "Approvals", as_json: bool) -> None:
    """Prints who has approved a study, as far as nodes have told."""
    rows = [asdict(each) | {"since": None if each.since is None else clock(each.since)} for each in told.parties]
    if as_json:
        return print_json(rows)
    shown = [{name.replace("_", " "): "" if value is None else value for name, value in row.items()} for row in rows]
    show("Approvals", shown, as_json=False)
    tell(f"As far as nodes have told, it is {told.sentence}.")


def show_started_run(run: str, home: Path, as_json: bool) -> None:
    """Prints the id of a new run, alone on stdout."""
    if as_json:
        return print_json({"run": run})
    tell(f"The run is started; watch it with: {here(home, f'run watch {run}')}")
    print(run)


def here(home: Path, words: str) -> str:
    """Writes a command of `coordinator` for people to type, with `--home` if they need it."""
    return command_at(home, DEFAULT_HOME, f"coordinator {words}")


def show_runs(runs: "Sequence[RunStanding]", as_json: bool) -> None:
    """Prints every run, its state and its rounds."""
    rows = [run_row(run) for run in runs]
    show("Runs", rows if as_json else [row | {"heartbeat": ago(row["heartbeat"])} for row in rows], as_json)


def run_row(run: "RunStanding") -> dict[str, Any]:
    """Makes the table row of a run."""
    return asdict(run) | {"started": clock(run.started)}


def show_opened_rounds(run: str, found: "OpenedRounds", as_json: bool) -> None:
    """Prints the rounds that a run has opened."""
    rows = [_opened_row(each) for each in found.rounds]
    if as_json:
        return print_json({"rounds": rows, "too_long": found.too_long})
    out.print(table_of(run, [_opened_line(each, row) for each, row in zip(found.rounds, rows, strict=True)], _listed))
    for number in found.unopened:
        out.print(
            f"Round {number} has not been opened: the vectors of {', '.join(found.too_long[number])} were too long."
        )


def _opened_row(each: "OpenedRound") -> dict[str, Any]:
    steps = {step: round(seconds, 2) for step, seconds in each.steps.items()}
    return asdict(each) | {"seconds": round(each.seconds, 1), "committed": clock(each.committed), "steps": steps}


def _opened_line(each: "OpenedRound", row: dict[str, Any]) -> dict[str, Any]:
    """Makes the line for people of a row: who is missing with the reason, and the steps that took time."""
    from ..run.overview import ABSENCES

    missing = tuple(f"{name} ({ABSENCES[each.why[name]]})" if name in each.why else name for name in each.missing)
    steps = tuple(f"{step} {seconds:.1f}" for step, seconds in row["steps"].items() if seconds >= _SHOWN_S)
    shown = {name.replace("_", " "): value for name, value in row.items() if name not in ("why", "steps")}
    return shown | {"missing": missing, "steps": steps}


def show_measurement(found: "Measurement", as_json: bool) -> None:
    """Prints the metrics of a run's model, also bin by bin, and the cost of measuring them."""
    if as_json:
        return print_json(asdict(found))
    names = {name: name.replace("_", " ") for name in ("auc", "accuracy", "prevalence", "calibration_error", "records")}
    if found.judged != "labels":
        share = {
            "completions": "exact match",
            "answers": "right answers",
            "numbers": "near enough",
            "programs": "programs that parse",
            "tasks": "tasks right",
        }[found.judged]
        names = {"prevalence": share, "calibration_error": "calibration error", "records": "records"}
    if found.judged in ("numbers", "programs", "tasks"):  # which come with no chance of being right
        del names["calibration_error"]
    rows = [
        {"metric": words, "value": value, "95 % interval": interval}
        for name, words in names.items()
        for value, interval in [estimate_texts(getattr(found.metrics, name))]
    ]
    for task, estimate in found.tasks.items():
        value, interval = estimate_texts(estimate)
        if estimate is None and not found.noise_std:
            value = "no record was asked for it"
        rows.append({"metric": f"{task} right", "value": value, "95 % interval": interval})
    out.print(table_of(f"{found.run}, held-out records of {', '.join(found.sites)}", rows))
    if found.judged not in ("numbers", "tasks"):
        bins = [reliability_row(each) for each in found.metrics.reliability]
        out.print(table_of("What the model says, and what is so", bins))
    if found.metrics.auc_tied is not None and found.judged == "labels":
        out.print(f"Scores are rounded to bins: their own AUC is within {found.metrics.auc_tied / 2:.4f} of this one.")
    if found.epsilon is not None:
        alone, added = rounded_up(found.epsilon, 3), rounded_up(found.epsilon_added or 0.0, 3)
        out.print(
            f"Noise of std {found.noise_std:.3g} in every count. Planned cost for every {found.unit}: epsilon {alone} "
            f"by itself, {added} on top of the run's updates, at delta {found.delta:g} with {found.collusion} "
            "colluding."
        )


def estimate_texts(estimate: "Estimate | None") -> tuple[str, str]:
    """Formats a metric and its interval for a table."""
    if estimate is None:
        return "hidden by the noise", ""
    digits = 0 if estimate.value > 1 else 3
    return f"{estimate.value:.{digits}f}", f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}"


def reliability_row(each: "ReliabilityBin") -> dict[str, Any]:
    """Makes the table row of a bin of the score."""
    value, interval = estimate_texts(each.positives)
    return {
        "probability": f"{each.low:.3f} to {each.high:.3f}",
        "records": f"{100 * each.share.value:.1f} %",
        "positive": value,
        "95 % interval": interval,
    }


def show_budget_report(report: dict[str, Any], html: Path | None, as_json: bool, language: str) -> None:
    """Writes a budget report as a page in that language, or prints it as JSON or as a table of epsilons."""
    from ...privacy.report.build import render_html

    show_page(
        "Report",
        report,
        page=lambda: render_html(report, language=language),
        table=lambda: out.print(table_of("Guaranteed and spent", spent_rows(report))),
        html=html,
        as_json=as_json,
    )


def spent_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Lists guaranteed and spent epsilon, a row for each site, data set and number of colluding sites."""
    return [
        {
            "site": site["name"],
            "data set": account["dataset"],
            "unit": account["unit"],
            "releases": account["releases"],
            "colluding": spent["colluding"],
            "guaranteed ε": rounded_up(float(spent["guaranteed"]), 3),
            "spent ε by PLD": rounded_up(float(spent["pld"]), 3),
            "by RDP": rounded_up(float(spent["rdp"]), 3),
            "cap": f"{float(account['budget']['epsilon']):g}" if account["budget"] else "none",
            "δ": f"{float(account['budget']['delta']):g}" if account["budget"] else "",
        }
        for site in report["sites"]
        for account in site["accounts"]
        for spent in account["spent"]
    ]


def show_exported_ledger(site: str, file: Path, head: "Head", as_json: bool) -> None:
    """Prints the file to which a site's ledger was written, and the site's command to import it."""
    if as_json:
        return print_json({"file": str(file), "site": site, "entries": head.seq + 1, "head": head.hash})
    out.print(f"{head.seq + 1} entries of {site} written to {file}. There: client-node budget import FILE")


def show_audit(facts: "AuditFacts", as_json: bool) -> None:
    """Prints the findings of an audit and its verdict on the privacy claim."""
    if as_json:
        return print_json(facts.model_dump(mode="json") | {"passed": facts.passed})
    out.print(table_of(f"Audit of {facts.run}, round {facts.round}", audit_rows(facts)))
    out.print("The claim stands." if facts.passed else "[bold red]The claim does not stand.[/]")


def show_actions(actions: "Sequence[Action]", as_json: bool) -> None:
    """Prints entries of the audit log, one a line and nothing wrapped."""
    if as_json:
        return print_json([asdict(each) for each in actions])
    if not actions:
        tell("Audit log: no such entry")
    for each in actions:
        line = f"{each.seq:>6}  {each.time}  {each.actor}  {each.action}  {each.said}"
        out.print(line.rstrip(), highlight=False, markup=False, soft_wrap=True)


def show_trail(found: "Verified", as_json: bool) -> None:
    """Prints what the verification of an audit log found."""
    if as_json:
        return print_json(asdict(found) | {"ok": found.ok})
    for line in (*found.sentences(), *(f"! {problem}" for problem in found.problems)):
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    out.print("Everything holds." if found.ok else "This log does not hold.")


def audit_rows(facts: "AuditFacts") -> list[dict[str, Any]]:
    """Makes the table rows of an audit."""
    found = {finding.check: finding.detail for finding in reversed(facts.findings)}
    bound = f"at least {rounded_down(facts.lower_bound, 3)} at {100 * facts.confidence:g} % confidence"
    guesses = f"{facts.right} of {facts.guesses} guesses about {facts.canaries} canaries right"
    if facts.right_unprotected is not None:
        guesses += f", {facts.right_unprotected} without clip and noise"
    return [
        {"check": "epsilon of a step", "claimed": rounded_up(facts.claimed_epsilon, 3), "found": f"{bound}; {guesses}"},
        *({"check": name, "claimed": "", "found": found.get(name, "holds")} for name in facts.checks),
    ]


def clock(seconds: float) -> str:
    """Formats a time for people, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))


def _listed(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)

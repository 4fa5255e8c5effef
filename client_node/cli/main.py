"""The `client-node` command.

Exit codes: 0 done, 1 refused or failed (the message says what to do), 2 wrong usage, 3 a check found problems, 77 the
coordinator does not know this node's key, 130 stopped by Ctrl-C.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ...models.errors import ModelError
from ...privacy.errors import PrivacyError
from ..errors import ClientNodeError
from .tables import (
    err,
    out,
    print_json,
    report_facts,
    show,
    show_budget,
    show_facts,
    show_plan,
    show_verification,
    study_facts,
    study_row,
)

FAILED, PROBLEMS, INTERRUPTED = 1, 3, 130
DEFAULT_HOME = Path.home() / ".confide" / "client-node"

app = typer.Typer(help="Take part in a federation: enrol, decide what may run, see what it cost.", no_args_is_help=True)
study_app = typer.Typer(help="Which studies may run on this site's records.", no_args_is_help=True)
site_app = typer.Typer(help="Whose updates this node adds up, if it aggregates.", no_args_is_help=True)
data_app = typer.Typer(help="This site's records.", no_args_is_help=True)
budget_app = typer.Typer(help="What all studies together may cost, and what they have.", no_args_is_help=True)
for name, group in (("study", study_app), ("site", site_app), ("data", data_app), ("budget", budget_app)):
    app.add_typer(group, name=name)

HomeOption = Annotated[Path, typer.Option("--home", envvar="CONFIDE_HOME", help="Folder of this node.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of a table.")]
StudyArgument = Annotated[str, typer.Argument(help="Name of a study, or the first 8 or more digits of its hash.")]
HashArgument = Annotated[str, typer.Argument(help="The study's hash, or its first 8 or more digits.")]

_state = {"debug": False}


@app.callback()
def main(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    """Common options."""
    os.umask(0o077)  # whatever a node writes is its site's alone
    _state["debug"] = debug


@contextmanager
def told() -> Iterator[None]:
    """Turns errors of ours into one message on stderr and an exit code."""
    try:
        yield
    except (ClientNodeError, ModelError, PrivacyError, OSError) as problem:
        if _state["debug"]:
            raise
        err.print(f"[bold red]{type(problem).__name__}[/]: ", end="")
        err.print(str(problem), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(FAILED) from problem
    except KeyboardInterrupt as stop:
        raise typer.Exit(INTERRUPTED) from stop


@app.command()
def enroll(
    code: Annotated[str, typer.Argument(help="The one-time code from the operator; - reads it from standard input.")],
    home: HomeOption = DEFAULT_HOME,
    party_address: Annotated[
        str | None, typer.Option(help="HOST:PORT at which the other aggregators reach this node, if it aggregates.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Join the federation that issued CODE. Keys are made here and stay here."""
    from ..enrolment import enrol as join

    with told():
        found = join(sys.stdin.read() if code == "-" else code, home, party_address=party_address)
        facts = {"name": found.name, "roles": list(found.roles), "coordinator": found.address, "home": str(home)}
        if as_json:
            return print_json(facts)
        out.print(f"This node is [bold]{found.name}[/] in the federation at {found.address}: {', '.join(found.roles)}.")
        if "train" in found.roles:
            out.print(f"Next: describe the data in {home / 'site.toml'}, then: client-node data check DATA")
        out.print("Then: client-node study list, client-node study approve HASH, client-node run")


@app.command()
def run(home: HomeOption = DEFAULT_HOME) -> None:
    """Serve the federation until stopped; only approved studies run."""
    from ..daemon import run as serve

    with told():
        raise typer.Exit(serve(home))


@app.command()
def status(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show who this node is and whether its daemon runs."""
    from ..daemon import status as look

    with told():
        show_facts("Node", look(home), as_json)


@study_app.command("list")
def study_list(
    home: HomeOption = DEFAULT_HOME,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the coordinator for new ones.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask the coordinator for its studies, check their signatures, and show them."""
    from ..approval.catalogue import known_studies

    with told():
        if not offline:
            _refresh(home)
        rows = [study_row(home, study) for study in known_studies(home)]
        if as_json:
            return show("Studies", rows, as_json)
        kept = ("study", "hash", "privacy", "rounds", "this node", "decision")
        show("Studies", [{name: row[name] for name in kept} | {"hash": row["hash"][:12]} for row in rows], as_json)


@study_app.command("show")
def study_show(study: StudyArgument, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show all that approving a study means; with --json its canonical text, whose SHA-256 is its hash."""
    from ..approval.catalogue import find_study

    with told():
        found = find_study(home, study)
        if as_json:
            sys.stdout.write(found.canonical().decode() + "\n")
            return
        for title, facts in study_facts(found).items():
            show_facts(title, facts, as_json=False)


@study_app.command("approve")
def study_approve(
    study: HashArgument,
    home: HomeOption = DEFAULT_HOME,
    unprotected: Annotated[
        bool, typer.Option("--unprotected", help="Approve it although it has no privacy: for public data only.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Let a study run here, after checking who takes part, that the data fits and that the budget can pay for it."""
    from ..approval.assessment import approve, assess
    from ..approval.catalogue import find_study, is_meant, known_studies
    from ..errors import ApprovalRefused

    with told():
        if not any(is_meant(known, study) for known in known_studies(home)):
            _refresh(home)
        found = find_study(home, study)
        assessment = assess(home, found, unprotected=unprotected)
        if assessment.reasons:
            listed = "".join(f"\n  {reason}" for reason in assessment.reasons)
            raise ApprovalRefused(f"study {found.name} was not approved; nothing left this site:{listed}")
        approve(home, found.study_hash, unprotected=unprotected and found.draft.privacy.mode == "none")
        quote = assessment.quote
        facts = {
            "study": found.name,
            "hash": found.study_hash,
            "sites": list(found.site_names()),
            "aggregators": [party.name for party in found.aggregators],
            "units here": assessment.data.units if assessment.data else None,
            "epsilon spent": quote.spent if quote else None,
            "epsilon after all rounds": quote.would_be if quote else None,
            "epsilon cap": quote.cap if quote else None,
            "takes part in the evaluation": assessment.evaluates,
        }
        show_facts("Approved", {name: value for name, value in facts.items() if value is not None}, as_json)


@study_app.command("revoke")
def study_revoke(study: HashArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Stop letting a study run here, from its next message on. What was spent stays spent."""
    from ..approval.catalogue import find_study
    from ..policy.decisions import revoke

    with told():
        study_hash = study if len(study) == 64 else find_study(home, study).study_hash
        revoke(home, study_hash)
        out.print(f"Study {study_hash} may not run here any more.")


@site_app.command("confirm")
def site_confirm(
    sites: Annotated[list[str], typer.Argument(metavar="NAME=FINGERPRINT...", help="As the site's people told you.")],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Confirm sites' keys by the fingerprints that their people read to you, never by what the coordinator says."""
    from ..policy.decisions import confirm_sites

    with told():
        pairs = [site.partition("=")[::2] for site in sites]
        confirm_sites(home, {name: spoken.strip().upper() for name, spoken in pairs})
        _show_confirmed(home, as_json)


@site_app.command("remove")
def site_remove(
    sites: Annotated[list[str], typer.Argument(metavar="NAME...", help="Sites whose keys hold no longer.")],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Take confirmations back; studies with one of these sites are not added up here from their next message on."""
    from ..policy.decisions import remove_sites

    with told():
        remove_sites(home, sites)
        _show_confirmed(home, as_json)


@site_app.command("list")
def site_list(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show the sites that were confirmed here."""
    with told():
        _show_confirmed(home, as_json)


@data_app.command("check")
def data_check(
    data: Annotated[Path, typer.Argument(help="CSV or Parquet file.")],
    study: Annotated[
        str | None, typer.Option(help="A study by name or hash, or the path of a study.toml, to check the columns of.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Check a table against the policy and a study. Shows counts and kinds to you alone, never a value."""
    from ..approval.catalogue import find_study
    from ..data import check
    from ..policy import load_policy
    from ..study import load_draft

    with told():
        policy = load_policy(home)
        if study is None:
            wanted = None
        else:
            wanted = load_draft(Path(study)) if study.endswith(".toml") else find_study(home, study)
        report = check(data.resolve(), policy, wanted)
        if as_json:
            print_json(report.to_dict())
        else:
            facts = {"file": report.path, "rows": report.rows, "units": report.units}
            if report.rows_per_unit:
                facts["rows of a unit"] = "{0} to {2}, median {1:g}".format(*report.rows_per_unit)
            show_facts("Table", facts, as_json=False)
            rows = [
                {"column": c.name, "in the file": c.own, "kind": c.kind, "missing": c.missing} for c in report.columns
            ]
            show("Columns", rows, as_json=False)
            for problem in report.problems:
                err.print(str(problem), markup=False, highlight=False, soft_wrap=True)
            if report.problem_count > len(report.problems):
                err.print(f"... and {report.problem_count - len(report.problems)} more problems")
        if not report.is_fit:
            err.print(f"{report.problem_count} problems; a study cannot use this table until they are mended.")
            raise typer.Exit(PROBLEMS)


@budget_app.command("show")
def budget_show(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show cap and cost of every data set: epsilon by two accountants, as the budget's colluding sites see it."""
    with told(), _ledger(home) as ledger:
        show_budget(ledger, as_json)


@budget_app.command("set")
def budget_set(
    epsilon: Annotated[float, typer.Option(help="Cap for one unit over all studies.")],
    delta: Annotated[
        float, typer.Option(help="Chance that the guarantee fails: less than one in the number of units.")
    ],
    collusion: Annotated[int, typer.Option(help="Sites that may pool what they know with an observer.")] = 1,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Set the cap for this site's data; it holds at once, instead of the one in site.toml."""
    from ..approval.charges import record_budget
    from ..errors import PolicyInvalid
    from ..policy import BudgetPolicy, load_policy
    from ..policy.decisions import set_budget
    from ..study.toml import parse_json

    with told():
        stated = json.dumps({"epsilon": epsilon, "delta": delta, "collusion": collusion})
        budget = parse_json(stated, BudgetPolicy, error=PolicyInvalid, source="budget")
        load_policy(home)  # a cap on data that is not described yet would hold for nothing
        with _ledger(home) as ledger:
            set_budget(home, budget)
            record_budget(ledger, load_policy(home))
            show_budget(ledger, as_json)


@budget_app.command("report")
def budget_report(
    home: HomeOption = DEFAULT_HOME,
    html: Annotated[Path | None, typer.Option(help="Write the report as a web page to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Report what was spent here, with the whole signed ledger, for people (--html) or programs (--json)."""
    from ...privacy.report.build import SiteLedger, build_report, render_html
    from ..approval.catalogue import known_studies
    from ..enrolment import Enrolment, NodeIdentity

    with told(), _ledger(home) as ledger:
        report = build_report(
            federation=Enrolment.load(home).address,
            sites={ledger.site: SiteLedger(ledger.public_key, ledger.entries())},
            studies=[report_facts(study) for study in known_studies(home)],
            signer=NodeIdentity.load(home).signer,
        )
        if html is not None:
            html.write_text(render_html(report), encoding="utf-8")
            err.print(f"Report written to {html}")
        if as_json:
            print_json(report)
        elif html is None:
            show_budget(ledger, as_json=False)


@budget_app.command("plan")
def budget_plan(
    study: Annotated[str, typer.Argument(help="Path of a study.toml, or name or hash of a study that is known here.")],
    dim: Annotated[
        int | None, typer.Option(min=1, help="Length of the trained vector, for a study.toml; hardly matters.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Tell what a study would cost here, how many of its rounds fit, and what noise would make all of them fit."""
    from ..approval.budget_planning import plan_at

    with told():
        show_plan(plan_at(home, study, dim), as_json)


@budget_app.command("export")
def budget_export(
    file: Annotated[Path, typer.Argument(help="File to write; must not exist.")],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Write the whole ledger to one file, to keep beside a backup of the keys."""
    from ...privacy.ledger import backup

    with told(), _ledger(home) as ledger:
        head = backup.write(file, ledger.walk(), ledger.public_key)
        facts = {"file": str(file), "entries": head.seq + 1, "head": head.hash}
        show_facts("Ledger written", facts, as_json)


@budget_app.command("import")
def budget_import(
    file: Annotated[Path, typer.Argument(help="What `budget export` wrote, here or at the coordinator.")],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Take a ledger back from a file, where there is none or only its beginning; every entry is checked."""
    from ...privacy.ledger import backup
    from ...privacy.ledger.ledger import Ledger
    from ..approval.charges import LEDGER_FILE
    from ..enrolment import Enrolment, NodeIdentity

    with told():
        signer, name = NodeIdentity.load(home).signer, Enrolment.load(home).name
        added, total = Ledger.restore(home / LEDGER_FILE, backup.read(file), signer, name)
        show_facts("Ledger restored", {"entries added": added, "entries now": total}, as_json)


@budget_app.command("verify")
def budget_verify(
    file: Annotated[Path, typer.Argument(help="A report in JSON.")],
    issuer: Annotated[str | None, typer.Option(help="The issuer's key in hex, known from elsewhere.")] = None,
    site: Annotated[list[str] | None, typer.Option(help="NAME=KEY known from elsewhere; may be repeated.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute a report from its entries alone: signatures, chains, every epsilon."""
    with told():
        raise typer.Exit(0 if show_verification(file, issuer, site or (), as_json) else PROBLEMS)


def _show_confirmed(home: Path, as_json: bool) -> None:
    from ..policy import load_decisions

    rows = [{"site": name, "fingerprint": known} for name, known in sorted(load_decisions(home).sites.items())]
    show("Confirmed sites", rows, as_json)


def _refresh(home: Path) -> None:
    """Fetches studies; a coordinator that is away is no reason not to show what is known."""
    from ..approval.catalogue import refresh
    from ..errors import CoordinatorUnreachable

    try:
        refused = refresh(home)
    except CoordinatorUnreachable as away:
        err.print(f"{away}; showing the studies fetched before", markup=False, highlight=False, soft_wrap=True)
        return
    for line in refused:
        err.print(f"turned away: {line}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _ledger(home: Path) -> Iterator[Any]:
    from ..approval.charges import open_ledger
    from ..enrolment import Enrolment, NodeIdentity

    with open_ledger(home, NodeIdentity.load(home), Enrolment.load(home)) as ledger:
        yield ledger


if __name__ == "__main__":
    app()

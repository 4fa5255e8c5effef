"""The commands `client-node study`: list, show, approve and revoke studies."""

import sys
from typing import Annotated

import typer

from .application import PROBLEMS, JsonOption, group
from .console import out
from .options import DEFAULT_HOME, HashArgument, HomeOption, StudyArgument
from .tables import show_approval, show_fetched, show_step_audit, show_studies, show_study

app = group("Which studies may run on this site's records.")


@app.command("list")
def study_list(
    home: HomeOption = DEFAULT_HOME,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the coordinator for new ones.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask the coordinator for its studies, check their signatures, and show them."""
    from ..approval import study_decisions

    if not offline:
        show_fetched(study_decisions.fetch(home))
    show_studies(study_decisions.overview(home), as_json)


@app.command("show")
def study_show(study: StudyArgument, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show all that approving a study means; with --json its canonical text, whose SHA-256 is its hash."""
    from ..approval.catalogue import find_study

    found = find_study(home, study)
    if as_json:
        sys.stdout.write(found.canonical().decode() + "\n")
    else:
        show_study(found)


@app.command("approve")
def study_approve(
    study: HashArgument,
    home: HomeOption = DEFAULT_HOME,
    unprotected: Annotated[
        bool, typer.Option("--unprotected", help="Approve it although it has no privacy: for public data only.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Let a study run here, after checking who takes part, that the data fits and that the budget can pay for it."""
    from ..approval import study_decisions

    show_fetched(study_decisions.fetch_unless_known(home, study))
    show_approval(study_decisions.approve_study(home, study, unprotected=unprotected), as_json)


@app.command("revoke")
def study_revoke(study: HashArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Stop letting a study run here, from its next message on. What was spent stays spent."""
    from ..approval import study_decisions

    out.print(f"Study {study_decisions.revoke_study(home, study)} may not run here any more.")


@app.command("audit")
def study_audit(study: StudyArgument, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Run a study's step here, on one record many times over, and hold its noise, clip and draws against the charge.

    Nothing is charged and nothing leaves this site. Exit code 3: the step is not what the ledger pays for.
    """
    from ..step_audit import audit_step

    found = audit_step(home, study)
    show_step_audit(found, as_json)
    raise typer.Exit(PROBLEMS if found.check.findings else 0)

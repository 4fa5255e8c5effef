"""The commands `client-node study`: list, show, approve and revoke studies."""

import sys
from typing import Annotated

import typer

from .application import PROBLEMS, JsonOption, epilog, group
from .console import agree, show_change
from .options import DEFAULT_HOME, ByOption, HomeOption, StudyArgument, WholeHashArgument, YesOption, last_day
from .serving import serve_node
from .site import spoken_fingerprints
from .tables import (
    show_approval,
    show_fetched,
    show_known_approval,
    show_proposal,
    show_step_audit,
    show_studies,
    show_study,
)  # fmt: skip

app = group("Which studies may run on this site's records.", "client-node study list")


@app.command("list", epilog=epilog("client-node study list", "client-node study list --offline --json"))
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


@app.command("show", epilog=epilog("client-node study show thyroid"))
def study_show(study: StudyArgument, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show all that approving a study means; with --json its canonical text, whose SHA-256 is its hash."""
    from ..approval.assessment import outlook
    from ..approval.catalogue import find_study

    found = find_study(home, study)
    if as_json:
        sys.stdout.write(found.canonical().decode() + "\n")
    else:
        show_study(found, outlook(home, found))


@app.command(
    "approve",
    epilog=epilog("client-node study approve HASH --until 2026-12-31", "client-node study approve HASH --runs 2 --yes"),
)
def study_approve(
    study: WholeHashArgument,
    home: HomeOption = DEFAULT_HOME,
    runs: Annotated[
        int | None, typer.Option(min=1, max=1000, help="How many runs it covers, one under way included; 1 by default.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="DATE", help="Its last day, UTC, such as 2026-12-31.")] = None,
    unprotected: Annotated[
        bool, typer.Option("--unprotected", help="Approve it although it has no privacy: for public data only.")
    ] = False,
    confirm: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FINGERPRINT", help="First confirm a site, as `site confirm` does; may be repeated."),
    ] = None,
    accept_new_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FINGERPRINT", help="Accept another key of a known site or aggregator; may be repeated."
        ),
    ] = None,
    then_run: Annotated[bool, typer.Option("--then-run", help="Then serve, as `client-node run` does.")] = False,
    by: ByOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Let a study run here, after checking who takes part, that the data fits and that the budget can pay for it.

    Ask the operator by telephone for the hash, compare, and type it.
    """
    from ..approval import study_decisions
    from ..policy import decisions

    last = None if until is None else last_day(until)
    if confirm:
        decisions.confirm_sites(home, spoken_fingerprints(confirm), by=by)
    meant = study_decisions.whole_hash(" ".join(study))
    show_fetched(study_decisions.fetch_unless_known(home, meant))
    known = study_decisions.approval(home, meant)
    accepted = spoken_fingerprints(accept_new_key or [])
    if known is not None and runs is None and until is None and not accepted:
        show_known_approval(known, as_json)
    else:
        proposal = study_decisions.propose(
            home, meant, unprotected=unprotected, runs=runs, until=last, accepted=accepted
        )
        if not yes:
            show_proposal(proposal, by)
        agree("Approve it?", yes=yes)
        study_decisions.approve_study(home, proposal, by=by)
        show_approval(proposal, as_json)
    if then_run:
        serve_node(home)


@app.command("revoke", epilog=epilog("client-node study revoke thyroid"))
def study_revoke(
    study: StudyArgument,
    home: HomeOption = DEFAULT_HOME,
    by: ByOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Stop letting a study run here, from its next message on. What was spent stays spent.

    While a run is under way it asks first, since that run fails without this node.
    """
    from ..approval import study_decisions

    study_hash, under_way = study_decisions.to_revoke(home, study)
    if under_way:
        agree(f"{' and '.join(under_way)} is under way and fails without this node. Revoke the study?", yes=yes)
    study_decisions.revoke_study(home, study_hash, by=by)
    facts = {"hash": study_hash, "decision": "revoked", "runs_under_way": list(under_way)}
    show_change(facts, as_json, f"Study {study_hash} may not run here any more.")
    if any((home / "keys").glob("identity-*.key")):  # the study may have been the last that an earlier key was kept for
        from .. import identity_keys

        identity_keys.settle(home, by=by)


@app.command("forget", epilog=epilog("client-node study forget thyroid"))
def study_forget(study: StudyArgument, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Delete what this site keeps of its records between the rounds of a study; later rounds take longer.

    A run that is under way keeps them anew, unless site.toml has limits.kept_states_bytes = 0.
    """
    from ..approval import study_decisions

    study_hash, _ = study_decisions.to_revoke(home, study)
    size = study_decisions.forget_states(home, study_hash)
    facts = {"hash": study_hash, "deleted_bytes": size}
    show_change(facts, as_json, f"{size:,} bytes of kept states of study {study_hash} were deleted.")


@app.command("audit", epilog=epilog("client-node study audit thyroid", codes=[PROBLEMS]))
def study_audit(study: StudyArgument, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Run a study's step here, on one record many times over, and hold its noise, clip and draws against the charge.

    Nothing is charged and nothing leaves this site. Exit code 3: the step is not what the ledger pays for.
    """
    from ..step_audit import audit_step

    found = audit_step(home, study)
    show_step_audit(found, as_json)
    raise typer.Exit(PROBLEMS if found.check.findings else 0)

"""The commands `coordinator audit`: the audit log, who did what; and the privacy audit, which tests an epsilon."""

from pathlib import Path
from typing import Annotated

import typer

from ...client_node.cli.application import PROBLEMS, JsonOption, epilog, group
from ...client_node.cli.console import err, show_change
from .options import DEFAULT_HOME, HomeOption
from .tables import show_actions, show_audit, show_trail

app = group(
    "The audit log, who did what: log, verify, export. The privacy audit, is the epsilon true: privacy.",
    "coordinator audit log --since 2026-03-01",
    "coordinator audit privacy RUN",
)


@app.command(
    "log", epilog=epilog("coordinator audit log", "coordinator audit log --actor anna --action site --since 2026-03-01")
)
def audit_log(
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="From then on, UTC: 2026-03-01 or 2026-03-01T12:00:00Z.")
    ] = None,
    actor: Annotated[str | None, typer.Option(help="Of this operator, login or site.")] = None,
    action: Annotated[str | None, typer.Option(help="This action, such as run.stop, or all of a noun: run.")] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Show who did what and when, oldest first: the actions of operators, and those of nodes and the server."""
    from ..federation import opened_store
    from ..oversight import trail

    with opened_store(home) as store:
        show_actions(trail.actions(store, since=since, actor=actor, action=action), as_json)


@app.command(
    "verify",
    epilog=epilog(
        "coordinator audit verify",
        "coordinator audit verify log.jsonl --issuer KEY --site svi=KEY",
        "coordinator audit verify log.jsonl --held svi.json",
        codes=[PROBLEMS],
    ),
)
def audit_verify(
    file: Annotated[
        Path | None, typer.Argument(help="An exported log, on any machine; left out, this federation's own.")
    ] = None,
    issuer: Annotated[str | None, typer.Option(help="The coordinator's key in hex, known from elsewhere.")] = None,
    site: Annotated[list[str] | None, typer.Option(help="NAME=KEY known from elsewhere; may be repeated.")] = None,
    held: Annotated[
        Path | None, typer.Option(help="What a node countersigned: the output of `client-node witness --json`.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Recompute the audit log's chain, and check its checkpoints and what sites countersigned.

    Exit code 3 if something does not hold.
    """
    from ..federation import opened_store
    from ..oversight import trail

    if file is None:
        if issuer or site or held:
            raise typer.BadParameter("--issuer, --site and --held go with an exported file", param_hint="FILE")
        with opened_store(home) as store:
            found = trail.verify(store, home)
    else:
        found = trail.verify_file(file, coordinator=issuer, nodes=trail.known_keys(site or ()), held=held)
    show_trail(found, as_json)
    raise typer.Exit(0 if found.ok else PROBLEMS)


@app.command("export", epilog=epilog("coordinator audit export log.jsonl"))
def audit_export(
    file: Annotated[Path, typer.Argument(help="File to write; must not exist.")],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Write the audit log with signatures and keys to one file, which `audit verify` checks on any machine."""
    from ..federation import opened_store
    from ..oversight import trail

    with opened_store(home) as store:
        count = trail.export(store, home, file)
        show_change(
            {"file": str(file), "entries": count}, as_json, f"{count} entries of the audit log written to {file}."
        )


@app.command("privacy", epilog=epilog("coordinator audit privacy RUN", codes=[PROBLEMS]))
def audit_privacy(run: str, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Try to prove the epsilon of a run's training step wrong, on canaries on this machine; about a minute.

    Exit code 3 if the claim does not stand. Every audit is kept and enters reports.
    """
    from ..federation import opened_store
    from ..results.privacy_audit import audit_run

    with opened_store(home) as store, err.status("Auditing the sites' training step on this run's model"):
        facts = audit_run(store, home, run)
    show_audit(facts, as_json)
    raise typer.Exit(0 if facts.passed else PROBLEMS)

"""The command `coordinator audit privacy`: tests the privacy claim of a run's training step."""

import typer

from ...client_node.cli.application import PROBLEMS, JsonOption, epilog, group
from ...client_node.cli.console import err
from .options import DEFAULT_HOME, HomeOption
from .tables import show_audit

app = group("Does the engine do what its epsilon claims?", "coordinator audit privacy RUN")


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

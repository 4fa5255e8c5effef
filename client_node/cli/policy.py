"""The commands `client-node policy`: show the policy in force, and explain it for one study."""

from typing import Annotated

import typer

from .application import PROBLEMS, JsonOption, epilog, group
from .options import DEFAULT_HOME, HomeOption
from .tables import show, show_explanation

app = group("What this node's policy allows, and where it says so.", "client-node policy show")


@app.command("show", epilog=epilog("client-node policy show", "client-node policy show --json"))
def policy_show(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show every setting in force, with the line, the decision or the default that it comes from."""
    from ..explanation import effective

    show("Policy in force", effective(home), as_json)


@app.command(
    "explain",
    epilog=epilog(
        "client-node policy explain thyroid", "client-node policy explain study.toml --json", codes=[PROBLEMS]
    ),
)
def policy_explain(
    study: Annotated[
        list[str], typer.Argument(metavar="STUDY", help="Name, hash or 24 words of a study; or a draft, study.toml.")
    ],
    home: HomeOption = DEFAULT_HOME,
    run: Annotated[
        str | None, typer.Option("--run", help="A run of it; by default one under way, or else one more.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Explain for each rule what allows or forbids a study here: a line of site.toml, a decision, or a default.

    Nothing is written and nobody is asked. The table is not looked at: `data check` does that. Exit code 3: it may not
    run.
    """
    from ..explanation import explain

    found = explain(home, " ".join(study), run=run)
    show_explanation(found, as_json)
    raise typer.Exit(0 if found.may_run else PROBLEMS)

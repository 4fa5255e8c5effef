"""The commands `coordinator study`: draft, check, compare, create, list and print studies."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ...client_node.cli.application import PROBLEMS, JsonOption, epilog, group
from ...client_node.cli.console import print_json, tell
from . import comparing, drafting
from .options import DEFAULT_HOME, AcceptOption, HomeOption, UnitsOption, UnusedExpertsOption
from .tables import show_approvals, show_created_study, show_studies

app = group("What shall be learned, on which terms.", "coordinator study create study.toml")
app.command("init", epilog=epilog("coordinator study init dictionary.csv --units 6870"))(drafting.study_init)
app.command(
    "check",
    epilog=epilog(
        "coordinator study check study.toml", "coordinator study check study.toml --units 6870", codes=[PROBLEMS]
    ),
)(drafting.study_check)

app.command(
    "compare",
    epilog=epilog(
        "coordinator study compare study.toml records",
        "coordinator study compare study.toml records --rung words --epsilon 2",
    ),
)(comparing.study_compare)


@app.command("create", epilog=epilog("coordinator study create study.toml"))
def study_create(
    draft: Path,
    home: HomeOption = DEFAULT_HOME,
    units: UnitsOption = None,
    accept: AcceptOption = False,
    accept_unused_experts: UnusedExpertsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make study.toml an immutable study of enrolled sites, and print the hash that sites approve."""
    from ..federation import Pki, opened_store
    from ..studies.create import store_study
    from ..studies.examine import examine
    from ..studies.summary import summary

    with opened_store(home) as store:
        found = examine(store, draft, units=units, accept_unused_experts=accept_unused_experts)
        found.require()
        drafting.answer_questions(found, accept=accept)
        show_created_study(summary(store_study(store, Pki.load(home), home, found)), as_json)


@app.command("list", epilog=epilog("coordinator study list"))
def study_list(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show every study."""
    from ..federation import opened_store
    from ..run.approvals import every_approval

    with opened_store(home) as store:
        rows = store.studies()
        show_studies(rows, every_approval(store, rows), as_json)


@app.command(
    "show", epilog=epilog("coordinator study show thyroid --json", "coordinator study show thyroid --approvals")
)
def study_show(
    study: str,
    home: HomeOption = DEFAULT_HOME,
    only_approvals: Annotated[
        bool, typer.Option("--approvals", help="Show who has approved it, as far as nodes have told, and nothing else.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a study as sites see it, with its hash and the words that spell it; with --json its text."""
    from ...client_node.cli.tables import show_study
    from ..federation import opened_store
    from ..run.approvals import approvals
    from ..studies.catalogue import load_study

    with opened_store(home) as store:
        row = store.study(study)
        told = approvals(store, row)
    if only_approvals:
        return show_approvals(told, as_json)
    found = load_study(row)
    if as_json:
        return print_json(json.loads(row.canonical))
    show_study(found)
    tell(f"As far as nodes have told, it is {told.sentence}.")

"""The commands `coordinator study`: draft, check, compare, create, list and print studies."""

import json
from pathlib import Path

from ...client_node.cli.application import PROBLEMS, JsonOption, epilog, group
from ...client_node.cli.console import print_json
from . import comparing, drafting
from .options import DEFAULT_HOME, AcceptOption, HomeOption, UnitsOption, UnusedExpertsOption
from .tables import show_created_study, show_studies

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

    with opened_store(home) as store:
        show_studies(store.studies(), as_json)


@app.command("show", epilog=epilog("coordinator study show thyroid --json"))
def study_show(study: str, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show a study as sites see it, with its hash and the words that spell it; with --json its text."""
    from ...client_node.cli.tables import show_study
    from ..federation import opened_store
    from ..studies.catalogue import load_study

    with opened_store(home) as store:
        row = store.study(study)
    found = load_study(row)
    if as_json:
        print_json(json.loads(row.canonical))
    else:
        show_study(found)

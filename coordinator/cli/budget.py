"""The commands `coordinator budget`: budget reports over all sites, and the export of a site's ledger."""

from pathlib import Path
from typing import Annotated

import typer

from ...client_node.cli.application import PROBLEMS, JsonOption, LangOption, epilog, group
from ...client_node.cli.console import page_language, show_verification
from .options import DEFAULT_HOME, HomeOption
from .tables import show_budget_report, show_exported_ledger

app = group("What was spent on whose data.", "coordinator budget report")


@app.command("report", epilog=epilog("coordinator budget report --study thyroid --html report.html"))
def budget_report(
    home: HomeOption = DEFAULT_HOME,
    study: Annotated[str | None, typer.Option(help="Only sites of this study.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as a web page to this file.")] = None,
    lang: LangOption = None,
    as_json: JsonOption = False,
) -> None:
    """Report what was spent at every site, from the signed ledgers, for people (--html) or programs (--json)."""
    from ..federation import opened_store
    from ..results import reports

    language = page_language(lang, html)
    with opened_store(home) as store:
        show_budget_report(reports.budget_report(store, home, study), html, as_json, language)


@app.command("export", epilog=epilog("coordinator budget export svi svi.jsonl"))
def budget_export(
    site: str,
    file: Annotated[Path, typer.Argument(help="File to write; must not exist.")],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Write the ledger that SITE has sent here to one file, so that a site that lost its own can import it."""
    from ..federation import opened_store
    from ..results.reports import export_ledger

    with opened_store(home) as store:
        show_exported_ledger(site, file, export_ledger(store, site, file), as_json)


@app.command("verify", epilog=epilog("coordinator budget verify report.json --issuer KEY", codes=[PROBLEMS]))
def budget_verify(
    file: Path,
    issuer: Annotated[str | None, typer.Option(help="The issuer's key in hex, known from elsewhere.")] = None,
    site: Annotated[list[str] | None, typer.Option(help="NAME=KEY known from elsewhere; may be repeated.")] = None,
    no_limit: Annotated[
        bool, typer.Option("--no-limit", help="Also a report whose verification would take more than 60 minutes.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Recompute a report from its entries, on any machine, without the federation's stores."""
    holds = show_verification(file, issuer, site or (), as_json, no_limit=no_limit)
    raise typer.Exit(0 if holds else PROBLEMS)

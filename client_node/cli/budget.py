"""The commands `client-node budget`: the cap on all studies together, their cost, reports, the ledger as one file."""

from pathlib import Path
from typing import Annotated

import typer

from .application import PROBLEMS, JsonOption, LangOption, epilog, group
from .console import agree, page_language, show_verification
from .options import DEFAULT_HOME, ByOption, HomeOption, YesOption
from .tables import show_accounts, show_budget_report, show_cap_change, show_facts, show_plan

app = group("What all studies together may cost, and what they have.", "client-node budget show")


@app.command("show", epilog=epilog("client-node budget show"))
def budget_show(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show every data set's cap, what is guaranteed and spent against the colluding sites agreed on, and every run."""
    from ..approval.site_budget import accounts

    show_accounts(accounts(home), as_json)


@app.command("set", epilog=epilog('client-node budget set --epsilon 4 --delta 1e-5 --by "Dr. Ada"'))
def budget_set(
    epsilon: Annotated[float, typer.Option(help="Cap for one unit over all studies.")],
    delta: Annotated[float, typer.Option(help="How rarely epsilon may fail to hold: at most 1 / units.")],
    collusion: Annotated[int, typer.Option(help="Sites that may pool what they know with an observer.")] = 1,
    home: HomeOption = DEFAULT_HOME,
    by: ByOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Set the cap for this site's data; it holds at once, instead of the one in site.toml.

    A cap under which more may be spent, or that is below what is spent, asks first.
    """
    from ..approval.site_budget import cap_change, set_budget

    change = cap_change(home, epsilon=epsilon, delta=delta, collusion=collusion)
    show_cap_change(change)
    if change.is_weaker:
        agree("What is spent under the new cap cannot be taken back. Set it?", yes=yes)
    elif change.is_spent:
        agree("Runs under way here would fail. Set it?", yes=yes)
    show_accounts(set_budget(home, change, by=by), as_json)


@app.command("report", epilog=epilog("client-node budget report --html report.html"))
def budget_report(
    home: HomeOption = DEFAULT_HOME,
    html: Annotated[Path | None, typer.Option(help="Write the report as a web page to this file.")] = None,
    lang: LangOption = None,
    as_json: JsonOption = False,
) -> None:
    """Report what was spent here, with the whole signed ledger, for people (--html) or programs (--json)."""
    from ..approval import site_budget

    language = page_language(lang, html)
    report = site_budget.budget_report(home)
    show_budget_report(
        report, lambda: show_accounts(site_budget.accounts(home), as_json=False), html, as_json, language
    )


@app.command("plan", epilog=epilog("client-node budget plan study.toml", "client-node budget plan thyroid --json"))
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

    show_plan(plan_at(home, study, dim), as_json)


@app.command("export", epilog=epilog("client-node budget export ledger.jsonl"))
def budget_export(
    file: Annotated[Path, typer.Argument(help="File to write; must not exist.")],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Write the whole ledger to one file, to keep beside a backup of the keys."""
    from ..approval.site_budget import export_ledger

    head = export_ledger(home, file)
    show_facts("Ledger written", {"file": str(file), "entries": head.seq + 1, "head": head.hash}, as_json)


@app.command("import", epilog=epilog("client-node budget import ledger.jsonl"))
def budget_import(
    file: Annotated[Path, typer.Argument(help="What `budget export` wrote, here or at the coordinator.")],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Take a ledger back from a file, where there is none or only its beginning; stop the daemon before."""
    from ..backup import import_ledger

    added, total = import_ledger(home, file)
    show_facts("Ledger restored", {"entries added": added, "entries now": total}, as_json)


@app.command("recover", epilog=epilog("client-node budget recover"))
def budget_recover(
    yes: YesOption = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Own up to ledger entries that nobody has any more: every data set counts as spent up to its cap, for good."""
    from ..approval.site_budget import recover_ledger

    if not yes:
        typer.echo(
            "Only if neither a copy of this site nor the coordinator has the missing entries (client-node budget "
            "import takes them from either).\nFrom now on every data set in this ledger counts as spent up to the "
            "highest cap that it ever had. Nothing more\nis charged on it, so no study with privacy trains on it "
            "again, whatever cap is set later. Nothing undoes this.",
            err=True,
        )
        agree("Count all budgets of this site as spent?", yes=False)
    show_accounts(recover_ledger(home), as_json)


@app.command(
    "verify",
    epilog=epilog(
        "client-node budget verify report.json",
        "client-node budget verify report.json --site svi=KEY",
        codes=[PROBLEMS],
    ),
)
def budget_verify(
    file: Annotated[Path, typer.Argument(help="A report in JSON.")],
    issuer: Annotated[str | None, typer.Option(help="The issuer's key in hex, known from elsewhere.")] = None,
    site: Annotated[list[str] | None, typer.Option(help="NAME=KEY known from elsewhere; may be repeated.")] = None,
    no_limit: Annotated[
        bool, typer.Option("--no-limit", help="Also a report whose verification would take more than 60 minutes.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Recompute a report from its entries alone: signatures, chains, every epsilon."""
    holds = show_verification(file, issuer, site or (), as_json, no_limit=no_limit)
    raise typer.Exit(0 if holds else PROBLEMS)

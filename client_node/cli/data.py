"""The command `client-node data check`: checks this site's table."""

from pathlib import Path
from typing import Annotated

import typer

from .application import PROBLEMS, JsonOption, epilog, group
from .options import DEFAULT_HOME, HomeOption
from .tables import show_data_report

app = group("This site's records.", "client-node data check patients.csv")


@app.command(
    "check",
    epilog=epilog(
        "client-node data check patients.csv",
        "client-node data check patients.csv --study thyroid --json",
        "client-node data check --study thyroid",
        codes=[PROBLEMS],
    ),
)
def data_check(
    data: Annotated[
        Path | None,
        typer.Argument(help="CSV or Parquet file, or a folder of Parquet parts; without it, what site.toml names."),
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="A study by name or hash, or the path of a study.toml, to check the columns of.")
    ] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Without a file: the records that are held out.")
    ] = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Check a table against the policy and a study. Shows counts and kinds to you alone, never a value.

    A query or a FHIR export is checked as site.toml names it.
    """
    from ..approval.table_check import check_table

    report = check_table(home, data, study, is_held_out=held_out)
    show_data_report(report, as_json)
    raise typer.Exit(0 if report.is_fit else PROBLEMS)

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
        codes=[PROBLEMS],
    ),
)
def data_check(
    data: Annotated[Path, typer.Argument(help="CSV or Parquet file.")],
    study: Annotated[
        str | None, typer.Option(help="A study by name or hash, or the path of a study.toml, to check the columns of.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Check a table against the policy and a study. Shows counts and kinds to you alone, never a value."""
    from ..approval.table_check import check_table

    report = check_table(home, data, study)
    show_data_report(report, as_json)
    raise typer.Exit(0 if report.is_fit else PROBLEMS)

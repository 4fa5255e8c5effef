"""The command `client-node init`: writes a first site.toml from this site's table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from .application import JsonOption
from .console import USAGE, command_at, is_at_terminal, out, print_json, tell
from .options import DEFAULT_HOME, HomeOption, YesOption
from .tables import show


def init(
    table: Annotated[Path, typer.Argument(help="CSV or Parquet file, or a folder of Parquet parts.")],
    study: Annotated[
        str | None,
        typer.Option(help="A study by name or hash, or the path of a study.toml, to match the columns with."),
    ] = None,
    unit_column: Annotated[str | None, typer.Option(help="Column that says whose record a row is.")] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column of what is learned, if the study calls it so.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the ledger calls the data set; by default the file's.")] = None,
    epsilon: Annotated[float, typer.Option(help="Cap for one unit over all studies: your own decision.")] = 4.0,
    backbone: Annotated[str, typer.Option(help="Folder of the backbone that the operator sends.")] = "backbone",
    home: HomeOption = DEFAULT_HOME,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a first site.toml, with comments, from a table's columns. Shows names and kinds to you alone, never a cell.

    An existing site.toml is left as it is.
    """
    wanted = Wanted(study, unit_column, label_column, name, epsilon, backbone)
    facts = describe(home, table, wanted, yes=yes, quiet=as_json)
    if as_json:
        print_json(facts)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The settings of a first site.toml that were said beforehand."""

    study: str | None = None
    unit_column: str | None = None
    label_column: str | None = None
    name: str | None = None
    epsilon: float = 4.0
    backbone: str = "backbone"


def describe(home: Path, table: Path, wanted: Wanted, *, yes: bool, quiet: bool) -> dict[str, object]:
    """Writes a first site.toml, asks for what it needs, and returns what it wrote; `quiet` prints nothing.

    Raises:
        Exit: nobody can be asked whose record a row is; wrong usage.
        PolicyInvalid: there is a site.toml.
    """
    from ..approval.table_check import draft_of, own_name
    from ..data import site_draft

    site_draft.require_no_policy(home)
    terms, site = None if wanted.study is None else draft_of(home, wanted.study).data, own_name(home)
    found = site_draft.sketch(table.resolve())
    rows = [{"column": column, "seems to be": kind} for column, kind in found.kinds.items()]
    if not quiet:
        show(f"Columns of {table.name}", rows, as_json=False)
    chosen = wanted.unit_column or _ask_unit_column(found.unit_columns, yes=yes)
    wishes = site_draft.PolicyWishes(
        name=wanted.name or site_draft.data_set_name(table),
        unit=terms.unit if terms else site_draft.unit_word(chosen),
        unit_column=chosen,
        label_column=wanted.label_column,
        epsilon=wanted.epsilon,
        backbone=str(Path(wanted.backbone).resolve()) if Path(wanted.backbone).is_dir() else wanted.backbone,
    )
    written = site_draft.write_policy(home, site_draft.site_toml(found, wishes, terms, site=site))
    guesses = site_draft.own_names(terms, found, label_column=wanted.label_column, site=site) if terms else {}
    if not quiet:
        for name, own in guesses.items():
            tell(f"The study's {name}: {f'taken to be {own}; look at it' if own else 'no column like it'}")
        check = command_at(home, DEFAULT_HOME, f"client-node data check {table} --study STUDY")
        for line in (f"Written: {written}. Look through it.", f"Next: {check}"):
            out.print(line, highlight=False, markup=False, soft_wrap=True)
    return {"file": str(written), "unit": wishes.unit, "unit_column": chosen, "columns": rows, "guessed": guesses}


def _ask_unit_column(guesses: tuple[str, ...], *, yes: bool) -> str:
    """Asks which column says whose record a row is; `yes` takes the first guess."""
    if yes and guesses:
        return guesses[0]
    if yes or not is_at_terminal():
        guess = f"; --yes takes {guesses[0]}" if guesses and not yes else ""
        tell(f"Which column says whose record a row is? Say --unit-column{guess}. No site.toml was written")
        raise typer.Exit(USAGE)
    return str(typer.prompt("Which column says whose record a row is?", default=next(iter(guesses), None), err=True))

"""The command `client-node init`: writes a first site.toml from this site's table."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import NotAgreed
from .application import JsonOption
from .console import is_at_terminal, out, print_json, tell
from .options import DEFAULT_HOME, HomeOption, YesOption
from .tables import show


def init(
    table: Annotated[Path, typer.Argument(help="CSV or Parquet file.")],
    study: Annotated[
        str | None,
        typer.Option(help="A study by name or hash, or the path of a study.toml, to match the columns with."),
    ] = None,
    unit_column: Annotated[str | None, typer.Option(help="Column that says whose record a row is.")] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column of what is learned, if the study calls it so.")
    ] = None,
    unit: Annotated[str | None, typer.Option(help="The word for whom privacy protects, as studies use it.")] = None,
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
    from ..approval.table_check import draft_of
    from ..data import site_draft

    site_draft.require_no_policy(home)
    terms = None if study is None else draft_of(home, study).data
    found = site_draft.sketch(table.resolve())
    rows = [{"column": column, "seems to be": kind} for column, kind in found.kinds.items()]
    if not as_json:
        show(f"Columns of {table.name}", rows, as_json=False)
    chosen = unit_column or _ask_unit_column(found.unit_columns, yes=yes)
    wishes = site_draft.PolicyWishes(
        name=name or site_draft.data_set_name(table),
        unit=unit or (terms.unit if terms else site_draft.unit_word(chosen)),
        unit_column=chosen,
        label_column=label_column,
        epsilon=epsilon,
        backbone=backbone,
    )
    written = site_draft.write_policy(home, site_draft.site_toml(found, wishes, terms))
    guesses = site_draft.own_names(terms, found, label_column=label_column) if terms else {}
    if as_json:
        facts = {"file": str(written), "unit": wishes.unit, "unit_column": chosen, "columns": rows, "guessed": guesses}
        return print_json(facts)
    for wanted, own in guesses.items():
        tell(f"The study's {wanted}: {f'taken to be {own}; look at it' if own else 'no column like it'}")
    out.print(f"Written: {written}. Look through it.", highlight=False, markup=False, soft_wrap=True)
    out.print(f"Next: client-node data check {table} --study STUDY", highlight=False, markup=False, soft_wrap=True)


def _ask_unit_column(guesses: tuple[str, ...], *, yes: bool) -> str:
    """Asks which column says whose record a row is; `yes` takes the first guess."""
    if yes and guesses:
        return guesses[0]
    if yes or not is_at_terminal():
        guess = f"; --yes takes {guesses[0]}" if guesses and not yes else ""
        raise NotAgreed(f"which column says whose record a row is? Say --unit-column{guess}. Nothing was written")
    return str(typer.prompt("Which column says whose record a row is?", default=next(iter(guesses), None), err=True))

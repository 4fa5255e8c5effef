"""The command `client-node init`: writes a first site.toml from this site's table, query or FHIR export."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .application import JsonOption
from .console import USAGE, command_at, is_at_terminal, out, print_json, tell
from .options import DEFAULT_HOME, HomeOption, YesOption
from .tables import show

if TYPE_CHECKING:  # pyarrow takes a while to import
    from ..data.site_draft import Database, TableSketch

UrlOption = Annotated[
    str | None,
    typer.Option(help="Database of a query, without a password: postgresql://USER@HOST/NAME or sqlite:////FILE."),
]
PasswordFileOption = Annotated[Path | None, typer.Option(help="File of mode 0600 with the database's password.")]
PasswordEnvOption = Annotated[str | None, typer.Option(help="Variable that holds the password, in its place.")]


def init(
    table: Annotated[
        Path,
        typer.Argument(
            help="CSV or Parquet file, folder of Parquet parts or of a FHIR export, or QUERY.sql with --url."
        ),
    ],
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
    url: UrlOption = None,
    password_file: PasswordFileOption = None,
    password_env: PasswordEnvOption = None,
    home: HomeOption = DEFAULT_HOME,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a first site.toml, with comments, from a table's columns. Shows names and kinds to you alone, never a cell.

    Of a FHIR export it shows codes that ten patients have, and makes columns of those that are like the study's.
    An existing site.toml is left as it is.
    """
    wanted = Wanted(study, unit_column, label_column, name, epsilon, backbone, url, password_file, password_env)
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
    url: str | None = None
    password_file: Path | None = None
    password_env: str | None = None

    def database(self) -> "Database | None":
        """Returns the database of a query; None if there is none.

        Raises:
            Exit: a password belongs to no database; wrong usage.
        """
        from ..data.site_draft import Database

        if self.url is not None:
            return Database(self.url, self.password_file, self.password_env)
        if self.password_file is not None or self.password_env is not None:
            tell("--password-file and --password-env are for a query: say --url. No site.toml was written")
            raise typer.Exit(USAGE)
        return None


def describe(home: Path, table: Path, wanted: Wanted, *, yes: bool, quiet: bool) -> dict[str, object]:
    """Writes a first site.toml, asks for what it needs, and returns what it wrote; `quiet` prints nothing.

    Raises:
        Exit: nobody can be asked whose record a row is; wrong usage.
        DataInvalid: the source cannot be read.
        PolicyInvalid: there is a site.toml, or the database of a query is missing or does not fit.
    """
    from ..approval.table_check import draft_of, own_name
    from ..data import site_draft

    site_draft.require_no_policy(home)
    terms, site = None if wanted.study is None else draft_of(home, wanted.study).data, own_name(home)
    found = site_draft.sketch(table.resolve(), wanted.database())
    rows = [{"column": column, "seems to be": kind} for column, kind in found.kinds.items()]
    if not quiet:
        _show(table.resolve().name, found, rows)
    only = None if found.export is None else found.unit_columns[0]  # of an export nobody has to be asked
    chosen = wanted.unit_column or only or _ask_unit_column(found.unit_columns, yes=yes)
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
            nothing = "no column like it" if found.export is None else "no code like it that ten patients have"
            tell(f"The study's {name}: {f'taken to be {own}; look at it' if own else nothing}")
        named = "" if found.sql or found.export else f" {table}"
        check = command_at(home, DEFAULT_HOME, f"client-node data check{named} --study STUDY")
        for line in (f"Written: {written}. Look through it.", f"Next: {check}"):
            out.print(line, highlight=False, markup=False, soft_wrap=True)
    facts: dict[str, object] = {
        "file": str(written), "unit": wishes.unit, "unit_column": chosen, "columns": rows, "guessed": guesses,
    }  # fmt: skip
    if found.export is not None:  # without counts of patients, which are for who sits here
        facts["codes"] = [
            {"kind": code.kind, "code": code.code, "name": code.name, "units": list(code.units)}
            for code in found.export.shown
        ]
    return facts


def _show(name: str, found: "TableSketch", columns: list[dict[str, str]]) -> None:
    """Shows the columns; of an export, the codes and how many patients have them in the lines that were looked at."""
    if found.export is None:
        show(f"Columns of {name}", columns, as_json=False)
        return
    codes = [
        {"kind": code.kind, "code": code.code, "name": code.name, "patients": code.patients}
        for code in found.export.shown
    ]
    show(f"Codes in {name}, and patients in the lines that were looked at", codes, as_json=False)
    left_out = len(found.export.codes) - len(codes)
    tell(f"Not shown: {left_out} codes of fewer patients, and {found.export.few} that fewer than ten have")


def _ask_unit_column(guesses: tuple[str, ...], *, yes: bool) -> str:
    """Asks which column says whose record a row is; `yes` takes the first guess."""
    if yes and guesses:
        return guesses[0]
    if yes or not is_at_terminal():
        guess = f"; --yes takes {guesses[0]}" if guesses and not yes else ""
        tell(f"Which column says whose record a row is? Say --unit-column{guess}. No site.toml was written")
        raise typer.Exit(USAGE)
    return str(typer.prompt("Which column says whose record a row is?", default=next(iter(guesses), None), err=True))

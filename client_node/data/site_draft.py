"""Writes a first site.toml from a source of records: its columns, the kinds that they seem to have, and guesses.

The kinds are told to the site's own people only. No cell is copied anywhere.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...models.records import cells
from ...models.records.kind import Column
from ...models.strict import one_line
from ..errors import DataInvalid, PolicyInvalid
from ..files import write_private
from ..policy import SitePolicy
from ..policy.decisions import today
from ..policy.site_policy import FILE, DataPolicy
from ..policy.sources import Source, SqlPolicy
from ..study.terms import DataTerms
from ..study.toml import parse_json
from . import fhir_draft
from .sources.fhir import ID
from .sources.parquet import SUFFIXES
from .tables import Problem, Problems, open_table

_SEPARATORS = ",;\t|"
_QUERY, _TABLES = ".sql", (".csv", *SUFFIXES)
_HEADER_BYTES = 2**16
_ROWS = 10_000  # looked at for kinds
_MOST_VALUES = 50  # of a column that still seems to be a category
_IDS = re.compile(r"(.*[ _.-])?(id|ids|key|mrn|pid|nr|no|num|number|pseudonym)", re.IGNORECASE)
_PEOPLE = ("patient", "person", "customer", "client", "subject", "borrower", "member", "user", "pid", "mrn")


@dataclass(frozen=True, slots=True)
class Database:
    """The database of a query, as `[data.sql]` of site.toml names it."""

    url: str
    password_file: Path | None = None
    password_env: str | None = None


@dataclass(frozen=True, slots=True)
class TableSketch:
    """A source of records as it looks from its header and its first rows, for the site's own people."""

    path: Path  # of a table, of a query's file, or of an export's folder
    separator: str
    decimal: str
    kinds: Mapping[str, str]  # column -> number, flag, category, text, or empty
    sql: SqlPolicy | None = None  # of a query
    export: fhir_draft.ExportSketch | None = None

    @property
    def unit_columns(self) -> tuple[str, ...]:
        """Columns whose names say that they tell whose record a row is, the likeliest first."""
        if self.export is not None:
            return (ID,)
        found = [name for name in self.kinds if _IDS.fullmatch(name) or _bare(name).startswith(_PEOPLE)]
        return tuple(sorted(found, key=lambda name: (not _bare(name).startswith(_PEOPLE), not _IDS.fullmatch(name))))


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyWishes:
    """The settings of a policy that only the site's people can know or decide."""

    name: str  # of the data set
    unit: str
    unit_column: str
    label_column: str | None = None
    epsilon: float = 4.0
    delta: float = 1e-5
    backbone: str = "backbone"


def sketch(path: Path, database: Database | None = None) -> TableSketch:
    """Looks at a table's header and first rows, at those of a query's answer, or at the codes of a FHIR export.

    Args:
        path: of a table, of a file with one SELECT, or of an export's folder.
        database: of the query; None where `path` is a table or an export.

    Raises:
        DataInvalid: it cannot be read, or the database refuses the query.
        PolicyInvalid: a query has no database, or a table has one.
    """
    if database is None and path.suffix.lower() == _QUERY:
        raise PolicyInvalid(str(path), ("a query needs its database: say --url, as data.sql.url of site.toml",))
    if database is not None:
        sql = _sql_of(path, database)
        source = DataPolicy(sql=sql, name="unnamed", unit="unit", unit_column="unit").beside(Path.cwd()).source
        decimal, kinds = _look(source, ",")
        return TableSketch(path, ",", decimal, kinds, sql=sql)
    if fhir_draft.is_export(path):
        return TableSketch(path, ",", ".", {ID: "text"}, export=fhir_draft.look(path))
    separator = _separator_of(path)
    decimal, kinds = _look(path, separator)
    return TableSketch(path, separator, decimal, kinds)


def unit_word(unit_column: str) -> str:
    """The word for a unit that its column suggests: `patient` for `Patient_ID`; `person` if there is none."""
    word = re.sub(r"[^a-z]+", "", re.sub(r"(id|ids|key|nr|no|num|number)$", "", _bare(unit_column)))
    return word if word in _PEOPLE[:-2] else "person"


def own_names(
    terms: DataTerms, found: TableSketch, *, label_column: str | None = None, site: str | None = None
) -> dict[str, str | None]:
    """Pairs each column of a study that the table has not with the one of the table that is most like it, if any.

    In an export every column is one that it has not, and is paired with a code.

    Args:
        label_column: the table's column for the study's label, if it is known already.
        site: whose table it is, as the study names it; without it, nothing is guessed for a column that some sites
            alone have.
    """
    if found.export is not None:
        return _of_export(found, terms, site)[1]
    names, pairs = list(found.kinds), {}
    for column in _own_columns(terms, site):
        if column.name not in names and not (column.is_label and label_column):
            may_guess = column.sites is None or site is not None
            pairs[column.name] = _like(column.name, names) if may_guess else None
    return pairs


def site_toml(
    found: TableSketch, wishes: PolicyWishes, terms: DataTerms | None = None, *, site: str | None = None
) -> str:
    """Writes the text of a site.toml with comments.

    Args:
        site: whose table it is, see `own_names`.
        terms: of a study, whose names for columns the table's are compared with.

    Raises:
        DataInvalid: the table has no such column for units or labels.
        PolicyInvalid: a wish is out of range.
    """
    for place, name in (("unit_column", wishes.unit_column), ("label_column", wishes.label_column)):
        if name is not None and name not in found.kinds:
            near = _like(name, list(found.kinds))
            hint = f"; did you mean {near}?" if near else ""
            raise DataInvalid(
                str(found.path), (Problem(None, name, f"a column of this name ({place})", f"none{hint}"),)
            )
    columns = _of_export(found, terms, site)[0] if found.export else _columns(found, wishes, terms, site)
    text = "\n".join([*_data(found, wishes), *columns, *_rest(wishes), ""])
    try:
        parse_json(json.dumps(tomllib.loads(text)), SitePolicy, error=PolicyInvalid, source="site.toml")
    except tomllib.TOMLDecodeError as err:
        raise PolicyInvalid("site.toml", ("name, unit and backbone must each be one line",)) from err
    return text


def data_set_name(table: Path) -> str:
    """Name for the ledger that a table's file suggests; it never depends on what is in the table."""
    return re.sub(r"[^a-z0-9._-]+", "-", table.stem.lower()).strip("._-")[:63] or "records"


def require_no_policy(home: Path) -> None:
    """Raises `PolicyInvalid` if the node has a site.toml: it is its people's own and is never rewritten."""
    if (home / FILE).exists():
        raise PolicyInvalid(str(home / FILE), ("it is there already, and nothing was changed; edit it by hand",))


def write_policy(home: Path, text: str) -> Path:
    """Writes a node's first site.toml, readable by its owner only, and returns its path.

    Raises:
        PolicyInvalid: there is one, which is left as it is.
    """
    require_no_policy(home)
    write_private(home / FILE, text.encode())
    return home / FILE


def _sql_of(path: Path, database: Database) -> SqlPolicy:
    """Checks the settings of a query by the rules of site.toml.

    Raises:
        PolicyInvalid: `path` is a table, or a setting does not fit; a URL is not shown.
    """
    if path.is_dir() or path.suffix.lower() in _TABLES:  # whose records would go to the database as a query
        raise PolicyInvalid(str(path), ("--url is for a query, and this is no file of one SELECT",))
    stated = {"url": database.url, "query_file": str(path), "password_env": database.password_env} | (
        {} if database.password_file is None else {"password_file": str(database.password_file.resolve())}
    )
    return parse_json(json.dumps(stated), SqlPolicy, error=PolicyInvalid, source="--url")


def _look(source: Source, separator: str) -> tuple[str, dict[str, str]]:
    """Returns the decimal sign, and the kind of every column, by the first rows."""
    table = open_table(source, separator=separator)
    with closing(table.batches(table.names, Problems())) as batches:
        first = next(islice(batches, 1), {})
    columns = {name: column.slice(0, _ROWS) for name, column in first.items()}
    commas = sum(int(cells.has_decimal_comma(column).sum()) for column in columns.values())
    points = sum(_numbers_with_a_point(column) for column in columns.values())
    decimal = "," if commas > points else "."
    kinds = {name: _kind(columns[name], decimal) if name in columns else "empty" for name in table.names if name}
    return decimal, kinds


def _of_export(
    found: TableSketch, terms: DataTerms | None, site: str | None
) -> tuple[list[str], dict[str, str | None]]:
    assert found.export is not None, "the sketch is of an export"
    columns = None if terms is None else _own_columns(terms, site)
    return fhir_draft.toml_lines(found.path, found.export, columns, day=today())


def _own_columns(terms: DataTerms, site: str | None) -> list[Column]:
    """The columns of a study that a site may have: not those that other sites alone have, or nobody."""
    return [
        column
        for column in terms.kind.columns(terms.terms)
        if column.sites is None or (column.sites and (site is None or site in column.sites))
    ]


def _data(found: TableSketch, wishes: PolicyWishes) -> list[str]:
    is_table = found.sql is None and found.export is None
    table = " TABLE" if is_table else ""
    lines = [
        f"# Written by `client-node init`. Look through it, then: client-node data check{table} --study STUDY",
        "# Every setting, those left out here too: docs/site-toml.md. Nothing runs before a study is approved.",
        "[data]",
        *([f"path = {_text(str(found.path))}"] if is_table else ()),
        f"name = {_text(wishes.name)} # what the ledger calls this data set: never rename it",
        f"unit = {_text(wishes.unit)} # whom privacy protects; a study must use the same word",
        f"unit_column = {_text(wishes.unit_column)} # all rows with one id are one {wishes.unit}",
    ]
    if wishes.label_column is not None:
        lines.append(f"label_column = {_text(wishes.label_column)}")
    if found.separator != ",":
        lines.append(f"separator = {_text(found.separator)}")
    if found.decimal != ".":
        lines.append(f"decimal = {_text(found.decimal)}")
    if is_table:
        lines.append(
            '# heldout_path = "held-out.csv" # a second table, kept out of training, for studies that evaluate'
        )
    return [*lines, ""]


def _columns(found: TableSketch, wishes: PolicyWishes, terms: DataTerms | None, site: str | None) -> list[str]:
    lines = ["[data.columns] # the study's name = the table's own; columns of one name need no line"]
    if terms is not None:
        if any(column.opens is not None for column in terms.kind.columns(terms.terms)):
            lines.insert(
                0,
                f'files = "{terms.kind.files}" # folder of the files that the table names; beside this file, or '
                "absolute\n",
            )
        for name, own in own_names(terms, found, label_column=wishes.label_column, site=site).items():
            lines.append(
                f"{_text(name)} = {_text(own)} # a guess" if own else f"# {_text(name)} = ... # nothing like it"
            )
    seen = ", ".join(f"{one_line(name)} ({kind})" for name, kind in found.kinds.items())
    return [
        *_query(found.sql),
        *lines,
        f"# the {'table' if found.sql is None else 'answer'} has: {seen}",
        "",
        "# [data.values.sex] # own spelling = the study's",
        '# female = "F"',
        "",
    ]


def _query(sql: SqlPolicy | None) -> list[str]:
    if sql is None:
        return []
    stated = {
        name: value
        for name in ("url", "password_file", "password_env", "query_file")
        if (value := getattr(sql, name)) is not None
    }
    return [
        "[data.sql]",
        *(f"{name} = {_text(str(value))}" for name, value in stated.items()),
        '# heldout_query_file = "held-out.sql" # of other people, for studies that evaluate',
        "",
    ]


def _rest(wishes: PolicyWishes) -> list[str]:
    return [
        "[budget] # the most that all studies together may cost one of them: your own decision",
        f"epsilon = {wishes.epsilon:g} # above what a study is planned to cost: docs/site.md, Three figures",
        f"delta = {wishes.delta:g} # at most 1 / units",
        "collusion = 1 # sites that may pool what they know",
        "",
        "# [policy]",
        "# tells_decisions = true # the operator sees which studies are approved here, and need not telephone",
        "",
        "[backbone]",
        f"directory = {_text(wishes.backbone)} # where the folder lies that the operator sends",
    ]


def _separator_of(path: Path) -> str:
    """The separator of which a CSV's first line has most."""
    try:
        with path.open("rb") as source:
            head = source.read(_HEADER_BYTES)
    except OSError:
        return ","  # opening the table says what is wrong
    line = next((line for line in head.decode("utf-8-sig", "replace").splitlines() if line.strip()), "")
    return max(_SEPARATORS, key=line.count)


def _kind(column: pa.Array, decimal: str) -> str:
    if bool(cells.anything(column).missing.all()):
        return "empty"
    if not cells.flags(column).misfit.any():
        return "flag"
    if not cells.numbers(cells.with_points(column) if decimal == "," else column).misfit.any():
        return "number"
    return "category" if len(column.unique()) <= _MOST_VALUES else "text"


def _numbers_with_a_point(column: pa.Array) -> int:
    return int(np.isfinite(cells.numbers(column.filter(pc.match_substring(column, "."))).values).sum())


def _like(name: str, names: Sequence[str]) -> str | None:
    """The one of `names` that is most like `name`: the same letters, one the beginning of the other, or nearly so."""
    bare = {_bare(each): each for each in names}
    wanted = _bare(name)
    begins = [each for each in bare if wanted and each and (each.startswith(wanted) or wanted.startswith(each))]
    near = [*([wanted] if wanted in bare else []), *begins, *difflib.get_close_matches(wanted, bare, n=1)]
    return bare[near[0]] if near else None


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)

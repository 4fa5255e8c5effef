"""The one source of a site's records, as `[data]` of site.toml names it: a file or folder, a query, or a FHIR export.

A password stands in no source and in no message: only the name of the file or variable that holds it does. A message
about a URL never shows the URL that was written, since it might hold one.
"""

import datetime as dt
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Self

import sqlalchemy as sa
from pydantic import AfterValidator, Field, model_validator

from ...models.strict import FieldName, Frozen, StrictModel, contradictions, matches, rule

MOST_QUERY = 2**16  # characters of a query
_MOST_URL = 2000
_LOCAL = ("", "localhost", "127.0.0.1", "::1")
_PARAMETERS = ("host", "sslmode", "sslrootcert", "sslcert", "sslkey", "connect_timeout", "application_name")
_VERIFIED = ("verify-full", "verify-ca")


@dataclass(frozen=True, slots=True)
class SqlQuery:
    """A query on a database. Its text and its repr name the database, and neither the query nor a password."""

    url: str  # without a password
    query: str = field(repr=False)
    password_file: Path | None
    password_env: str | None
    timeout_s: float

    def __str__(self) -> str:
        return f"the query on {self.url}"

    @property
    def key(self) -> str:
        """Name of this source among those whose people are known."""
        return f"sql {self.url} {hashlib.sha256(self.query.encode()).hexdigest()}"


@dataclass(frozen=True, slots=True)
class FhirExport:
    """A folder of a FHIR R4 Bulk Data export, and the columns that are made of it."""

    folder: Path
    columns: Mapping[str, "FhirColumn"] = field(hash=False)  # which no hash can be taken of

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def key(self) -> str:
        """Name of this source among those whose people are known."""
        return f"fhir {self.folder}"


Source = Path | SqlQuery | FhirExport


def key_of(source: Source) -> str:
    """Returns the name of a source among those whose people are known."""
    return str(source) if isinstance(source, Path) else source.key


def _url_problem(value: str) -> str | None:
    """Says what is wrong with a database's URL, in words that show nothing of it."""
    if len(value) > _MOST_URL or not value.isprintable() or "#" in value:
        return f"must be one line of at most {_MOST_URL} characters, without #"
    try:
        url = sa.make_url(value)
    except (sa.exc.ArgumentError, ValueError):
        return "is no URL, such as sqlite:////data/hospital.db or postgresql://node@db.hospital/records"
    if url.password is not None or any("pass" in name.lower() for name in url.query):
        return "holds a password; put that into a file of mode 0600 and name it in data.sql.password_file"
    if url.drivername == "sqlite":
        is_file = (url.database or "").startswith("/") and not url.host and not url.username and not url.query
        return None if is_file else "must name a file of SQLite and no more, such as sqlite:////data/hospital.db"
    if url.drivername != "postgresql":
        return "must begin with sqlite:/// or postgresql://"
    return _postgresql_problem(url)


def _postgresql_problem(url: sa.URL) -> str | None:
    if not url.query.keys() <= set(_PARAMETERS) or not all(isinstance(value, str) for value in url.query.values()):
        return f"may have each of {', '.join(_PARAMETERS)} once behind the ?, and nothing else"
    if not url.database:
        return "names no database, such as postgresql://node@db.hospital/records"
    hosts = {url.host or "", str(url.query.get("host", ""))}
    is_local = all((host in _LOCAL or host.startswith("/")) and "," not in host for host in hosts)
    if not is_local and url.query.get("sslmode") not in _VERIFIED:
        return "must end in ?sslmode=verify-full (or verify-ca): records would cross the network unprotected"
    return None


def _is_url(value: str) -> str:
    if (problem := _url_problem(value)) is not None:
        raise contradictions([f"data.sql.url {problem}"])
    return value


def _is_query(value: str) -> str:
    if not value.strip() or len(value) > MOST_QUERY or "\0" in value:
        raise contradictions([f"a query of data.sql must be one SELECT of at most {MOST_QUERY} characters"])
    return value


Query = Annotated[str, AfterValidator(_is_query)]
EnvironmentName = Annotated[
    str, matches(r"[A-Z_][A-Z0-9_]{0,99}", "the name of an environment variable, of A-Z, 0-9 and _")
]


class SqlPolicy(StrictModel):
    """The database, and the queries whose answers are the tables."""

    url: Annotated[str, AfterValidator(_is_url)] = Field(
        examples=['"postgresql://node@db.hospital/records?sslmode=verify-full"'],
        description="the database, without a password",
    )
    password_file: Path | None = Field(default=None, strict=False)  # of mode 0600
    password_env: EnvironmentName | None = None
    query: Query | None = None  # one SELECT, whose answer is the table
    query_file: Path | None = Field(default=None, strict=False)  # in its place: a file that holds it
    heldout_query: Query | None = None
    heldout_query_file: Path | None = Field(default=None, strict=False)
    timeout_s: float = Field(default=3600.0, ge=1, le=86_400)  # for one reading of the whole answer

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        if (self.query is None) == (self.query_file is None):
            problems.append("data.sql needs query or query_file, and not both")
        if self.heldout_query is not None and self.heldout_query_file is not None:
            problems.append("data.sql takes heldout_query or heldout_query_file, and not both")
        if self.password_file is not None and self.password_env is not None:
            problems.append("data.sql takes password_file or password_env, and not both")
        if problems:
            raise contradictions(problems)
        return self

    def source(self, query: str) -> SqlQuery:
        """Returns the source that one of the queries is."""
        return SqlQuery(self.url, query, self.password_file, self.password_env, self.timeout_s)


def _is_date(value: str) -> str:
    try:
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
            dt.date.fromisoformat(value)
            return value
    except ValueError:
        pass
    raise rule('a day like "2026-01-31"')


Day = Annotated[str, AfterValidator(_is_date)]
Code = Annotated[
    str, matches(r"[^\s|]{1,200}\|[^\s|]{1,100}", "SYSTEM|CODE, such as http://loinc.org|3016-3")
]  # fmt: skip
Take = Literal["last", "first", "least", "most", "mean", "count"]


class FhirColumn(StrictModel):
    """A column that is made of one kind of FHIR's resources."""

    patient: Literal["age", "gender", "birth_year", "deceased"] | None = None
    observation: Code | None = None  # a number, by its code
    condition: Annotated[tuple[Code, ...], Field(min_length=1, max_length=1000)] | Code | None = None
    medication: Annotated[tuple[Code, ...], Field(min_length=1, max_length=1000)] | Code | None = None
    take: Take = "last"  # of several observations
    unit: Annotated[str, Field(min_length=1, max_length=100)] | None = None  # UCUM's, of an observation
    since: Day | None = None  # what was before that day is not read
    before: Day | None = None  # what was on that day or later is not read
    at: Day | None = None  # on which an age is counted

    @model_validator(mode="after")
    def _check(self) -> Self:
        kinds = [name for name in ("patient", "observation", "condition", "medication") if getattr(self, name)]
        problems = []
        if len(kinds) != 1:
            problems.append("a column of data.fhir.columns needs one of patient, observation, condition, medication")
        if (self.patient == "age") != (self.at is not None):
            problems.append("a column of data.fhir.columns needs at with patient = 'age', and not otherwise")
        if kinds != ["observation"] and (self.take != "last" or self.unit is not None):
            problems.append("take and unit in data.fhir.columns are for an observation alone")
        if kinds == ["patient"] and (self.since is not None or self.before is not None):
            problems.append("since and before in data.fhir.columns are for what happened to a patient")
        if problems:
            raise contradictions(problems)
        return self


class FhirPolicy(StrictModel):
    """The folder of an export, and the columns that are made of it."""

    folder: Path = Field(examples=['"export"'], description="beside site.toml, or absolute", strict=False)
    heldout_folder: Path | None = Field(default=None, strict=False)
    columns: Annotated[Mapping[FieldName, FhirColumn], Field(min_length=1, max_length=1000), *Frozen] = Field(
        examples=["a table [data.fhir.columns]"]
    )

    def source(self, folder: Path) -> FhirExport:
        """Returns the source that one of the folders is."""
        return FhirExport(folder, self.columns)

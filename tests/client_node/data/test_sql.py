"""Records from a database, SQLite's and a real server's: one SELECT, read-only, one snapshot, no password anywhere."""

import logging
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from confide.client_node.approval.table_check import check_command, check_table
from confide.client_node.data import Records, check, read, tables
from confide.client_node.data.sources import sql
from confide.client_node.data.sources.digest import RowsDigest
from confide.client_node.data.tables import Problems, open_table, stamp
from confide.client_node.errors import ChargeRefused, DataInvalid, PolicyInvalid, StepFailed
from confide.client_node.policy.site_policy import load_policy
from confide.client_node.policy.sources import SqlQuery
from confide.client_node.training import warm_model

from ...system.postgresql import postgresql_server
from ..conftest import Site
from ..test_node import Desk, make_desk, prepare

pytestmark = pytest.mark.process
PASSWORD = "zq7secret-pässword"
TABLE = """CREATE TABLE visits (patient_id VARCHAR(20), age INTEGER, tsh_miu_l REAL, sex VARCHAR(10), sick BOOLEAN,
diagnosis INTEGER)"""
ROWS = [
    ("p1", 34, 1.5, "female", False, 0),
    ("p2", 71, None, "M", True, 1),
    ("p1", 35, 12.0, "F", False, 1),
    ("p3", None, 0.25, None, True, 0),
]
QUERY = "SELECT * FROM visits"
COLUMNS = ("patient_id", "age", "tsh_miu_l", "sex", "sick", "diagnosis")


@dataclass(frozen=True)
class Database:
    """A database that a test may write, and a node read."""

    url: str
    password_file: Path | None
    admin: sa.Engine

    def execute(self, statement: str, rows: list[tuple[object, ...]] | None = None) -> None:
        with self.admin.begin() as connection:
            if rows is None:
                connection.exec_driver_sql(statement)
            else:
                connection.exec_driver_sql(statement, rows)

    def fill(self, rows: list[tuple[object, ...]]) -> None:
        mark = "?" if self.admin.dialect.name == "sqlite" else "%s"
        self.execute("DELETE FROM visits")
        self.execute(f"INSERT INTO visits VALUES ({', '.join([mark] * 6)})", rows)

    def count(self) -> int:
        with self.admin.connect() as connection:
            return int(connection.exec_driver_sql("SELECT count(*) FROM visits").scalar_one())

    def source(self, query: str = QUERY, *, timeout_s: float = 60.0) -> SqlQuery:
        return SqlQuery(self.url, query, self.password_file, None, timeout_s)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgresql_server(password=PASSWORD) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        url, secret, admin = (
            f"sqlite:///{tmp_path / 'hospital.db'}",
            None,
            sa.create_engine(f"sqlite:///{tmp_path / 'hospital.db'}"),
        )
        with admin.begin() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    else:
        url, secret = request.getfixturevalue("server"), tmp_path / "password"
        secret.write_text(PASSWORD + "\n")
        secret.chmod(0o600)
        admin = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg", password=PASSWORD))
    found = Database(url, secret, admin)
    found.execute("DROP TABLE IF EXISTS visits")
    found.execute(TABLE)
    found.fill(ROWS)
    yield found
    admin.dispose()


def at(site: Site, database: Database, query: str = QUERY, *more: str) -> Path:
    """Writes a site.toml that names the query."""
    secret = "" if database.password_file is None else f'password_file = "{database.password_file}"\n'
    text = "\n".join(more)
    return site.write(
        ('path = "patients.csv"\n', ""),
        ("[budget]", f'[data.sql]\nurl = "{database.url}"\n{secret}query = """{query}"""\n{text}\n[budget]'),
    )


def whole(source: SqlQuery) -> None:
    """Reads an answer to its end."""
    table = open_table(source)
    for _ in table.batches(table.names, Problems()):
        pass


def told(source: SqlQuery) -> str:
    with pytest.raises(DataInvalid) as refused:
        for _ in open_table(source).batches(["patient_id"], Problems()):
            pass
    assert PASSWORD not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None or refused.value.__suppress_context__  # it holds the driver's own text
    return str(refused.value)


def test_a_query_and_a_file_read_equal(site, database):
    by_file = read(load_policy(site.home), site.study(), site=None, in_order=True)
    at(site, database)
    by_query = read(load_policy(site.home), site.study(), site=None, in_order=True)
    for name in ("age", "sex", "sick"):
        np.testing.assert_array_equal(by_query.columns[name], by_file.columns[name])
    np.testing.assert_array_equal(by_query.columns["TSH"], [1.5, 12, np.nan, 0.25])
    np.testing.assert_array_equal(by_query.units, by_file.units)
    np.testing.assert_array_equal(by_query.labels, by_file.labels)


def test_a_check_tells_of_each_column_and_names_no_line_and_no_cell(site, database):
    database.fill([*ROWS, ("p9", 40, 1.0, "zq7secret", True, 0)])
    at(site, database)
    policy = load_policy(site.home)
    report = check(policy.data.source, policy, site.study())
    assert {column.own: (column.missing, column.misfits) for column in report.columns} == {
        "patient_id": (0, 0), "age": (1, 0), "tsh_miu_l": (1, 0), "sex": (1, 1), "sick": (0, 0), "diagnosis": (0, 0),
    }  # fmt: skip
    assert [str(problem) for problem in report.problems] == [
        "column sex: expected one of the study's 2 values, found text"
    ]
    assert "zq7secret" not in str(report.to_dict())


def test_an_answer_streams_in_batches(database, monkeypatch):
    monkeypatch.setattr(sql, "BATCH_ROWS", 7)
    database.fill([(f"p{i}", i, i / 4, "F", True, i % 2) for i in range(100)])
    batches = list(open_table(database.source("SELECT * FROM visits ORDER BY age")).batches(["tsh_miu_l"], Problems()))
    assert [len(batch["tsh_miu_l"]) for batch in batches] == [7] * 14 + [2]
    assert [float(cell.as_py()) for batch in batches for cell in batch["tsh_miu_l"]] == [i / 4 for i in range(100)]


WRITES = [
    "UPDATE visits SET age = 0",
    "DELETE FROM visits",
    "INSERT INTO visits SELECT * FROM visits",
    "INSERT INTO visits SELECT * FROM visits RETURNING *",
    "DROP TABLE visits",
    "CREATE TABLE more AS SELECT * FROM visits",
    "SELECT 1; DELETE FROM visits",
    "SELECT 1; COMMIT; DELETE FROM visits",
    "SELECT 1; ROLLBACK; BEGIN; DELETE FROM visits; COMMIT; SELECT 1",
    "COMMIT",
    "WITH gone AS (DELETE FROM visits RETURNING *) SELECT * FROM gone",
    "SET default_transaction_read_only = off",
    "PRAGMA user_version = 7",
    "ATTACH 'other.db' AS other",
    "VACUUM",
    "",
    "-- nothing",
    "SELECT",
    "SELECT FROM WHERE",
]


@pytest.mark.parametrize("statement", WRITES)
def test_the_database_refuses_whatever_is_not_one_select(database, statement):
    with pytest.raises(DataInvalid) as refused:
        whole(database.source(statement))
    message = str(refused.value)
    assert message.count("\n") == 1  # the source, and one line of what is wrong
    assert "visits" not in message
    assert database.count() == 4
    assert {row.age for row in rows_of(database)} == {34, 71, 35, None}


def rows_of(database: Database) -> list[sa.Row[tuple[object, ...]]]:
    with database.admin.connect() as connection:
        return list(connection.exec_driver_sql("SELECT age FROM visits"))


@pytest.mark.parametrize("statement", ["UPDATE visits SET age = 0", "DELETE FROM visits", TABLE.replace("visits", "x")])
def test_the_connection_itself_is_read_only(database, statement):
    """Not the cursor alone: what a function could do inside the query is refused as well."""
    url = sa.make_url(database.url)
    opened = sql._sqlite if url.drivername == "sqlite" else sql._postgresql
    with opened(database.source(), url) as cursor:
        own = getattr(cursor, "cursor", cursor).connection
        with pytest.raises((sqlite3.DatabaseError, psycopg.Error), match=r"read-only|not authorized|prohibited"):
            own.execute(statement)
    assert database.count() == 4


def test_an_answer_is_of_one_snapshot(database, monkeypatch):
    monkeypatch.setattr(sql, "BATCH_ROWS", 1)
    table, seen = open_table(database.source("SELECT * FROM visits ORDER BY patient_id, age")), []
    for batch in table.batches(["age"], Problems()):
        seen += batch["age"].to_pylist()
        if len(seen) == 1:
            database.execute("UPDATE visits SET age = 99")
    assert sorted(seen) == ["", "34", "35", "71"]
    assert {row.age for row in rows_of(database)} == {99}


def test_an_answer_that_takes_too_long_is_told(database):
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) AS patient_id FROM n"
    assert "longer than data.sql.timeout_s" in told(database.source(endless, timeout_s=1.0))


def test_a_query_cannot_give_itself_more_time(server, tmp_path):
    query = (
        "SELECT set_config('statement_timeout', '0', false) AS a, CASE WHEN i > 10000 THEN pg_sleep(300) END::text "
        "AS b FROM generate_series(1, 10001) AS i"
    )
    (tmp_path / "password").write_text(PASSWORD)
    (tmp_path / "password").chmod(0o600)
    with pytest.raises(DataInvalid, match=r"longer than data.sql.timeout_s \(57014\)"):
        whole(SqlQuery(server, query, tmp_path / "password", None, 3.0))


@pytest.mark.parametrize("name", ["PGHOST", "PGHOSTADDR", "PGSERVICE", "PGSSLMODE", "PGOPTIONS", "PGPASSWORD"])
def test_no_variable_leads_to_another_server(server, monkeypatch, name):
    monkeypatch.setenv("RECORDS_PASSWORD", PASSWORD)
    source = SqlQuery(server, "SELECT 1 AS one", None, "RECORDS_PASSWORD", 60.0)
    monkeypatch.setenv("PGDATA", "/data")
    assert open_table(source).names == ("one",)
    monkeypatch.setenv(name, "zq7")
    message = told(source)
    assert f"that data.sql.url alone names; unset these variables for the node, found {name}" in message
    assert "zq7" not in message


def test_what_the_driver_says_is_not_passed_on(database):
    secret = "zq7secret"
    for query in (
        f"SELECT CAST('{secret}' AS INTEGER) / 0, {secret}() FROM visits",
        f"SELECT {secret} FROM visits",
        f"SELECT * FROM {secret}",
        f"SELECT '{secret}",
    ):
        assert secret not in told(database.source(query))


def test_a_cell_that_the_server_cannot_convert_is_not_told(server, tmp_path):
    (tmp_path / "password").write_text(PASSWORD)
    (tmp_path / "password").chmod(0o600)
    source = SqlQuery(server, "SELECT CAST('zq7secret' AS INTEGER) AS patient_id", tmp_path / "password", None, 60.0)
    message = told(source)
    assert "zq7" not in message
    assert "found a cell that the query cannot convert (22P02)" in message


def test_an_answer_is_known_again_in_any_order_and_not_when_a_cell_changes(database):
    def digest(query: str) -> str:
        found, table = RowsDigest(b"key"), open_table(database.source(query))
        list(table.batches(["age"], Problems(), found))  # all columns count, not only those that are read
        return found.hex()

    forwards = digest(f"{QUERY} ORDER BY age")
    assert digest(f"{QUERY} ORDER BY age DESC") == forwards
    database.execute("UPDATE visits SET sex = 'M' WHERE patient_id = 'p3'")
    assert digest(QUERY) != forwards
    database.execute("UPDATE visits SET sex = NULL WHERE patient_id = 'p3'")
    assert digest(QUERY) == forwards
    assert digest(f"{QUERY} UNION ALL {QUERY}") != forwards


def test_a_query_has_no_stamp(database):
    assert stamp(database.source()) is None


@pytest.mark.parametrize("url", ["sqlite", "postgresql"])
def test_a_password_is_in_no_message_no_log_and_no_repr(site, server, tmp_path, caplog, url):
    caplog.set_level(logging.DEBUG)
    secret = tmp_path / "password"
    secret.write_text("zq7-wrong")
    secret.chmod(0o600)
    place = server if url == "postgresql" else f"sqlite:///{tmp_path / 'none.db'}"
    source = SqlQuery(place, QUERY, secret, None, 60.0)
    with pytest.raises(DataInvalid) as refused:
        open_table(source)
    assert "zq7" not in "".join([str(refused.value), repr(source), str(source), caplog.text])
    context = refused.value.__context__
    while context is not None:
        assert "zq7" not in str(context)
        context = context.__context__


def test_a_password_may_stand_in_the_environment(server, monkeypatch):
    monkeypatch.setenv("RECORDS_PASSWORD", PASSWORD)
    source = SqlQuery(server, "SELECT 1 AS one", None, "RECORDS_PASSWORD", 60.0)
    assert open_table(source).names == ("one",)
    monkeypatch.delenv("RECORDS_PASSWORD")
    assert "a password in the variable RECORDS_PASSWORD, found none" in told(source)


@pytest.mark.parametrize("case", ["readable", "link", "absent", "empty", "long", "folder", "pipe", "not text"])
def test_a_password_file_must_be_its_owners_alone(server, tmp_path, case):
    secret = tmp_path / "secret"
    secret.write_bytes({"empty": b"\n", "long": b"x" * 5000, "not text": b"\xff\xfe"}.get(case, PASSWORD.encode()))
    secret.chmod(0o640 if case == "readable" else 0o600)
    named = tmp_path / "named"
    if case == "link":
        named.symlink_to(secret)
    elif case == "folder":
        named.mkdir(mode=0o700)
    elif case == "pipe":
        os.mkfifo(named, mode=0o600)
    elif case != "absent":
        secret.rename(named)
    source = SqlQuery(server, QUERY, named, None, 60.0)
    assert str(named) in told(source)


GOOD_URLS = [
    "sqlite:////data/hospital.db",
    "postgresql://node@/records?host=/run/postgresql",
    "postgresql://node@localhost:5432/records",
    "postgresql://node@[::1]/records",
    "postgresql://node@db.hospital/records?sslmode=verify-full&sslrootcert=/etc/ca.pem",
]
BAD_URLS = {
    "a password": "postgresql://node:zq7secret@localhost/records",
    "an empty password": "postgresql://node:@localhost/records",
    "a password behind the ?": "postgresql://node@localhost/records?password=zq7secret",
    "a password of another key": "postgresql://node@localhost/records?sslpassword=zq7secret",
    "a password file of libpq": "postgresql://node@localhost/records?passfile=zq7secret",
    "options of the server": "postgresql://node@localhost/records?options=-c%20zq7secret",
    "a service": "postgresql://node@localhost/records?service=zq7secret",
    "a network without protection": "postgresql://node@db.zq7secret/records",
    "encryption that proves nobody": "postgresql://node@db.zq7secret/records?sslmode=require",
    "a host behind the ?": "postgresql://node@localhost/records?host=zq7secret",
    "a socket and a host": "postgresql://node@/records?host=/run/postgresql,zq7secret",
    "a key twice": "postgresql://node@/records?host=/run&host=zq7secret",
    "another driver": "postgresql+psycopg2://node@localhost/zq7secret",
    "another database": "mysql://node@localhost/zq7secret",
    "no database": "postgresql://zq7secret@localhost",
    "SQLite's memory": "sqlite://",
    "a file beside": "sqlite:///zq7secret.db",
    "SQLite's own URI": "sqlite:///file:/zq7secret?uri=true",
    "SQLite on a host": "sqlite://zq7secret/data.db",
    "keys for SQLite": "sqlite:////zq7secret.db?mode=rw",
    "no URL": "zq7secret",
    "nothing": "",
    "a line break": "sqlite:////data\\n/zq7secret",
    "a port that is none": "postgresql://node@localhost:zq7secret/records",
    "a long one": "sqlite:////" + "zq7secret" * 300,
}


@pytest.mark.parametrize("url", GOOD_URLS)
def test_a_good_url_is_accepted(site, url):
    site.write(
        ('path = "patients.csv"\n', ""), ("[budget]", f'[data.sql]\nurl = "{url}"\nquery = "SELECT 1"\n[budget]')
    )
    assert load_policy(site.home).data.source == SqlQuery(url, "SELECT 1", None, None, 3600.0)


@pytest.mark.parametrize("case", BAD_URLS)
def test_a_bad_url_is_refused_and_not_shown(site, case):
    site.write(
        ('path = "patients.csv"\n', ""),
        ("[budget]", f'[data.sql]\nurl = "{BAD_URLS[case]}"\nquery = "SELECT 1"\n[budget]'),
    )
    with pytest.raises(PolicyInvalid) as refused:
        load_policy(site.home)
    assert "data.sql.url " in str(refused.value)
    assert "zq7" not in str(refused.value)


def test_a_query_may_stand_in_a_file_beside(site, database):
    (site.home / "visits.sql").write_text(f"-- of this year\n{QUERY}")
    at(site, database)
    (site.home / "site.toml").write_text(
        (site.home / "site.toml").read_text().replace(f'query = """{QUERY}"""', 'query_file = "visits.sql"')
    )
    assert read(load_policy(site.home), site.study(), site=None).num_units == 3
    (site.home / "visits.sql").unlink()
    with pytest.raises(PolicyInvalid, match="file of a query cannot be read"):
        load_policy(site.home)


def test_records_that_are_held_out_are_another_query_of_the_same_database(site, database):
    assert at(site, database).exists()
    assert load_policy(site.home).held_out() is None
    at(site, database, f"{QUERY} WHERE age > 40", f"heldout_query = \"{QUERY} WHERE patient_id = 'p1'\"")
    held_out = load_policy(site.home).held_out()
    assert held_out is not None
    assert read(held_out, site.study(), site=None).num_units == 1
    assert held_out.held_out() is None


def test_the_wire_types_of_the_server_become_plain_text(server):
    admin = sa.create_engine(sa.make_url(server).set(drivername="postgresql+psycopg", password=PASSWORD))
    with admin.begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS kinds")
        connection.exec_driver_sql(
            "CREATE TABLE kinds AS SELECT 7::bigint AS whole, 1.50::numeric AS exact, 0.1::float8 AS float, "
            "true AS flag, DATE '2026-01-31' AS day, TIMESTAMP '2026-01-31 08:00' AS moment, NULL::text AS nothing, "
            "'x'::bytea AS bytes, ARRAY[1,2] AS list, '{}'::jsonb AS object, "
            "'00000000-0000-0000-0000-000000000001'::uuid AS name, ' padded '::text AS text, 'NaN'::numeric AS nan"
        )
    admin.dispose()
    source = SqlQuery(server, "SELECT * FROM kinds", None, "PW", 60.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PW", PASSWORD)
        table = open_table(source)
        (batch,) = table.batches(table.names, Problems())
    assert {name: column[0].as_py() for name, column in batch.items()} == {
        "whole": "7", "exact": "1.50", "float": "0.1", "flag": "true", "day": "2026-01-31",
        "moment": "2026-01-31 08:00:00", "nothing": "", "bytes": "\0", "list": "\0", "object": "\0",
        "name": "00000000-0000-0000-0000-000000000001", "text": "padded", "nan": "nan",
    }  # fmt: skip


def test_columns_of_one_name_are_refused(database):
    assert "expected one column of this name, found 2" in told(database.source("SELECT age, age FROM visits"))


CELLS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.decimals(), st.dates(),
    st.datetimes(), st.uuids(), st.lists(st.integers()),
)  # fmt: skip


@given(st.lists(CELLS))
def test_a_cell_becomes_the_same_text_beside_whatever_else(cells):
    together = sql.as_texts(cells)
    assert together.type == pa.string()
    assert [text or "" for text in together.to_pylist()] == [sql.as_texts([cell])[0].as_py() or "" for cell in cells]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (1.0, "1"), (1, "1"), (Decimal("1.00"), "1"), (1e10 + 1, "10000000001"), (Decimal("1e10"), "10000000000"),
        (-0.0, "0"), (Decimal("-0.0"), "0"), (2.0**53 - 1, "9007199254740991"), (0.5, "0.5"), (True, "true"),
        (Decimal("1E+2"), "100"), (Decimal("-0.10"), "-0.10"), (date(2026, 1, 31), "2026-01-31"),
        (datetime(2026, 1, 31, 8), "2026-01-31 08:00:00"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"), (b"x", "\0"), ([1], "\0"), ("\ud800", "\0"),
        (2**70, str(2**70)),
    ],
)  # fmt: skip
def test_values_are_written_plainly(cell, text):
    assert sql.as_texts([cell, None]).to_pylist()[0] == text


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_a_person_has_one_id_however_a_number_is_spelled(number):
    spelled = [number, float(number), Decimal(number), Decimal(f"{number}.000")]
    assert {sql.as_texts([cell], are_ids=True)[0].as_py() for cell in spelled} == {str(number)}
    columns = [pa.array([number], pa.int64()), pa.array([float(number)]), pa.array([Decimal(f"{number}.00")])]
    assert {tables._as_text(column, are_ids=True)[0].as_py() for column in columns} == {str(number)}


@pytest.mark.parametrize("cell", [0.5, 2.0**53, -(2.0**60), float("inf"), float("nan"), Decimal("1.5"), Decimal("nan")])
def test_a_number_that_is_no_id_fits_nothing(cell):
    assert sql.as_texts([cell, "p1"], are_ids=True).to_pylist() == ["\0", "p1"]
    assert sql.as_texts([cell], are_ids=True).to_pylist() == ["\0"]
    if isinstance(cell, float) or cell.is_finite():
        assert tables._as_text(pa.array([cell, None]), are_ids=True).to_pylist() == ["\0", ""]


def test_floats_of_few_bits_are_ids_as_far_as_they_are_exact():
    column = pa.array([2.0**24 - 1, 2.0**24], pa.float32())
    assert tables._as_text(column, are_ids=True).to_pylist() == ["16777215", "\0"]


def test_a_person_under_a_float_and_an_integer_is_one(site, tmp_path):
    path = tmp_path / "hospital.db"
    with closing(sqlite3.connect(path)) as connection:
        for name, kind in (("old", "INTEGER"), ("new", "REAL")):
            connection.execute(TABLE.replace("visits", name).replace("patient_id VARCHAR(20)", f"patient_id {kind}"))
            rows = [(12_345_678_900 + i, 34, 1.5, "F", False, i % 2) for i in range(3)]
            connection.executemany(f"INSERT INTO {name} VALUES (?, ?, ?, ?, ?, ?)", rows)
        connection.commit()
    database = Database(f"sqlite:///{path}", None, sa.create_engine("sqlite://"))
    at(site, database, "SELECT * FROM old UNION ALL SELECT * FROM new")
    assert read(load_policy(site.home), site.study(), site=None).num_units == 3
    at(site, database, "SELECT patient_id + 0.5 AS patient_id, age, tsh_miu_l, sex, sick, diagnosis FROM new")
    with pytest.raises(DataInvalid, match="column patient_id: expected an id"):
        read(load_policy(site.home), site.study(), site=None)
    assert not check_table(site.home).is_fit


@given(st.binary(max_size=400), st.booleans())
def test_a_file_that_is_no_database_is_told(data, has_head):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hospital.db"
        path.write_bytes((b"SQLite format 3\0" if has_head else b"") + data)
        with suppress(DataInvalid):  # an empty file is an empty database, in which there is no such table
            table = open_table(SqlQuery(f"sqlite:///{path}", "SELECT * FROM visits", None, None, 10.0))
            list(table.batches(table.names, Problems()))


@given(st.integers(0, 2**13 - 1), st.integers(1, 255))
def test_a_database_with_a_flipped_byte_gives_an_answer_or_one_error(place, flip):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hospital.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(TABLE)
            connection.executemany(f"INSERT INTO visits VALUES ({', '.join('?' * 6)})", ROWS)
            connection.commit()
        data = bytearray(path.read_bytes())
        data[place % len(data)] ^= flip
        path.write_bytes(data)
        with suppress(DataInvalid):
            table = open_table(SqlQuery(f"sqlite:///{path}", QUERY, None, None, 10.0))
            list(table.batches(table.names, Problems()))


def another_answer(desk: Desk, monkeypatch: pytest.MonkeyPatch, change: Callable[[], None], times: int = 1) -> None:
    """Lets the database change just before the node reads what it will train on."""
    left, true_read = [times], warm_model.read_records

    def after_a_change(*args: Any, **named: Any) -> Records:
        if left[0] > 0:
            left[0] -= 1
            change()
        return true_read(*args, **named)

    monkeypatch.setattr(warm_model, "read_records", after_a_change)


def known(desk: Desk) -> int:
    """The number of units that the site knows."""
    with closing(sqlite3.connect(desk.site.home / "units.db")) as connection:
        return int(connection.execute("SELECT count(*) FROM marks WHERE kind = 1").fetchone()[0])


JOINED = ("p4", 55, 1.1, "F", False, 0)
CONSTANT = "the site cannot charge its table as it stands; its log says why"


def make(site: Site, database: Database) -> Desk:
    at(site, database)
    desk = make_desk(site)
    prepare(desk)
    return desk


def learned(desk: Desk) -> int:
    """The number of units that the model of the study holds."""
    trainer = desk.node._site._model.load(desk.study, load_policy(desk.site.home))
    return int(trainer._examples.units.max()) + 1


def test_a_run_learns_on_one_answer_and_the_next_run_on_the_next(site, database, monkeypatch):
    desk = make(site, database)
    desk.step()
    assert learned(desk) == known(desk) == 3
    database.fill([*ROWS, JOINED])
    with monkeypatch.context() as patch:
        patch.setattr(sql, "_running", lambda _: pytest.fail("the database was asked"))
        desk.step(2)
    assert learned(desk) == known(desk) == 3
    prepare(desk, lease=2)
    desk.step(3, lease=2)
    assert learned(desk) == known(desk) == 4


def test_an_answer_that_has_not_changed_keeps_the_model(site, database):
    desk = make(site, database)
    desk.step()
    policy = load_policy(site.home)
    before = desk.node._site._model.load(desk.study, policy)
    database.fill(ROWS[::-1])  # the same rows in another order
    prepare(desk, lease=2)
    assert desk.node._site._model.load(desk.study, policy) is before


def test_a_restarted_node_reads_the_answer_before_it_charges(site, database):
    desk = make(site, database)
    desk.step()
    database.fill([*ROWS, JOINED])
    again = desk.restarted()
    again.step(2)
    assert learned(again) == known(again) == 4


def test_people_who_join_between_two_readings_are_noted_before_they_are_learned(site, database, monkeypatch):
    desk = make(site, database)
    another_answer(desk, monkeypatch, lambda: database.fill([*ROWS, JOINED]))
    desk.step()
    assert learned(desk) == known(desk) == 4


def test_an_answer_that_never_stays_the_same_is_not_learned(site, database, monkeypatch, caplog):
    desk, ages = make(site, database), iter(range(40, 90))
    another_answer(desk, monkeypatch, lambda: database.fill([*ROWS, ("p4", next(ages), 1.1, "F", False, 0)]), times=9)
    with pytest.raises(StepFailed, match="failed after its charge"):
        desk.step()
    assert desk.charges() == ["reserve"]


def test_people_of_another_account_are_refused_in_a_query_too(site, database, caplog):
    desk = make(site, database)
    desk.step()
    text = (site.home / "site.toml").read_text()
    (site.home / "site.toml").write_text(text.replace('name = "patients"', 'name = "patients-2"'))
    with pytest.raises(ChargeRefused, match=CONSTANT):
        prepare(desk.restarted(), lease=2)
    assert "3 of 3 units and 4 of 4 rows are known under patients/patient" in caplog.text


def test_the_site_s_own_query_is_checked_without_naming_a_file(site, database):
    at(site, database, QUERY, f"heldout_query = \"{QUERY} WHERE patient_id = 'p1'\"")
    report = check_table(site.home)
    assert (report.is_fit, report.rows, report.units) == (True, 4, 3)
    assert report.path == f"the query on {database.url}"
    held_out = check_table(site.home, is_held_out=True)
    assert (held_out.is_fit, held_out.rows, held_out.units) == (True, 2, 1)
    at(site, database)
    with pytest.raises(PolicyInvalid, match="no records that are held out"):
        check_table(site.home, is_held_out=True)
    assert check_command(load_policy(site.home).data.source) == "client-node data check"
    by_file = check_table(site.home, site.home / "patients.csv")  # another table by the same policy
    assert by_file.path == str(site.home / "patients.csv")

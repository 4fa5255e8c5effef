"""Where a database is: a URL without a secret, on this machine or over a way that nobody can read or change."""

import json

import pytest

from confide.coordinator.errors import Conflict, StateDamaged
from confide.coordinator.store.place import FILE, database_of, name_of, note_database, parse_database
from confide.coordinator.store.store import Store


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("postgresql:///confide?host=/run/postgresql", "the database confide at /run/postgresql"),
        ("postgresql+psycopg://u@localhost:5433/confide", "the database confide at localhost"),
        ("postgresql://u@127.0.0.1/confide", "the database confide at 127.0.0.1"),
        ("postgresql://u@[::1]/confide?passfile=/etc/confide/pgpass", "the database confide at ::1"),
        (
            "postgresql://u@db.example/confide?sslmode=verify-full&sslrootcert=/ca.crt",
            "the database confide at db.example",
        ),
        ("postgresql://?service=confide&sslmode=verify-full", "the database confide at the server of its service"),
        ("postgresql:///x?host=a.example,b.example&sslmode=verify-full", "the database x at a.example, b.example"),
    ],
)
def test_a_database_of_postgresql_is_named_without_a_secret(tmp_path, text, name):
    url = parse_database(text)
    assert url.drivername == "postgresql+psycopg"
    assert name_of(url) == name
    note_database(tmp_path, url)
    assert database_of(tmp_path) == url
    assert (tmp_path / FILE).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("postgresql://u:hunter2@localhost/confide", "holds a password"),
        ("postgresql://u@localhost/confide?password=hunter2", "holds a password"),
        ("postgresql://u@localhost/confide?sslpassword=hunter2", "holds a password"),
        ("postgresql://u:hunter2@localhost:port/confide", "is no URL"),
        ("hunter2", "is no URL"),
        ("sqlite:///hunter2", "'sqlite' is not supported"),
        ("mysql://u:hunter2@localhost/confide", "'mysql' is not supported"),
        ("postgresql+asyncpg://u@localhost/confide", "is not supported"),
        ("postgresql://u@localhost/confide?options=-c%20fsync%3Doff", "has 'options', which is not taken"),
        ("postgresql://u@localhost", "names no database"),
        ("postgresql://u@db.example/confide", "add sslmode=verify-full"),
        ("postgresql://u@db.example/confide?sslmode=require", "add sslmode=verify-full"),
        ("postgresql://u@db.example/confide?sslmode=verify-full&sslmode=disable", "add sslmode=verify-full"),
        ("postgresql://u@localhost/confide?hostaddr=192.0.2.7", "add sslmode=verify-full"),
        ("postgresql:///confide?host=/run/postgresql,db.example", "add sslmode=verify-full"),
        ("postgresql:///confide", "does not say on which"),
        ("postgresql:///?service=confide", "add sslmode=verify-full"),
    ],
)
def test_a_secret_in_it_or_an_open_way_to_it_is_refused_without_repeating_it(text, why):
    with pytest.raises(Conflict, match=why) as told:
        parse_database(text)
    assert "hunter2" not in str(told.value)
    assert told.value.__cause__ is None


def test_a_home_without_a_word_about_it_has_its_database_in_a_file(tmp_path):
    assert database_of(tmp_path).render_as_string() == f"sqlite:///{tmp_path / 'coordinator.db'}"


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"url": 1}', b'{"url": "sqlite:///other.db"}', b'{"url": "x", "more": 1}']
)
def test_a_damaged_word_about_it_is_named(tmp_path, data):
    (tmp_path / FILE).write_bytes(data)
    with pytest.raises(StateDamaged, match=r"database.json .*restore a backup"):
        Store.open(tmp_path)


def test_somebody_who_writes_a_password_into_it_is_told_and_not_shown_it(tmp_path):
    (tmp_path / FILE).write_text(json.dumps({"url": "postgresql://u:hunter2@localhost/confide"}))
    with pytest.raises(StateDamaged, match="holds a password") as told:
        Store.open(tmp_path)
    assert "hunter2" not in str(told.value)


@pytest.mark.process
def test_a_new_federation_takes_an_empty_database_in_utf_8_alone(tmp_path, postgresql):
    with pytest.raises(Conflict, match="holds tables already, such as"):
        Store.create(tmp_path, postgresql.url())
    postgresql.do("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(Conflict, match="stores text as LATIN1"):
        Store.create(tmp_path, postgresql.named("latin"))
    assert list(tmp_path.iterdir()) == []
    url = postgresql.url(is_empty=True)
    for _ in range(2):  # the second completes one that was cut short
        store = Store.create(tmp_path, url)
        store.require_schema()
        assert store.examine() == "ok"
        store.close()
    assert {path.name for path in tmp_path.iterdir()} == {FILE}

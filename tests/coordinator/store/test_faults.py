"""A database that is full, locked or damaged: one error of ours, which says what to do."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from confide.coordinator.cli.main import app
from confide.coordinator.errors import StateDamaged, StoreUnavailable
from confide.coordinator.federation.home import Settings, create_home
from confide.coordinator.store import tables
from confide.coordinator.store.store import Store, migrate
from confide.coordinator.store.tables import Evaluation, Round, Run

from ..conftest import only_postgresql, only_sqlite


@contextmanager
def full() -> Iterator[None]:
    """Lets SQLite take no further page for any database: the error is its own, as on a full disk."""

    def limit(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")

    sa.event.listen(sa.Engine, "connect", limit)
    try:
        yield
    finally:
        sa.event.remove(sa.Engine, "connect", limit)


def fill(store: Store) -> None:
    for _ in range(200):
        with store.session() as session:
            store.log_action(session, "budget.export", site="east", file="x" * 1500)


@only_sqlite
def test_a_full_disk_is_one_error_of_ours_and_what_is_committed_stays(empty_store):
    with full(), pytest.raises(StoreUnavailable, match=r"coordinator.db cannot be used just now: the disk is full"):
        fill(empty_store)
    assert empty_store.nodes() == []


def test_a_command_on_a_full_disk_ends_with_a_sentence(tmp_path):
    settings = Settings(federation="f", address="127.0.0.1:1", listen="127.0.0.1", port=1, superlink_port=2)
    create_home(tmp_path / "home", settings)
    with full():
        store = Store.open(tmp_path / "home")
        with pytest.raises(StoreUnavailable):
            fill(store)
        store.close()
        for name in range(50):
            result = CliRunner().invoke(app, ["site", "invite", f"site-{name}", "--home", str(tmp_path / "home")])
            if result.exit_code:
                break
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.output.startswith("StoreUnavailable: ")
    assert "the disk is full" in " ".join(result.output.split())


@pytest.mark.parametrize("data", [b"[1]\n" * 2000, b"SQLite format 3\x00" + bytes(8000)])
def test_another_file_is_damage_to_every_use_of_it(tmp_path, data):
    (tmp_path / "coordinator.db").write_bytes(data)
    store = Store.open(tmp_path)
    for use in (store.require_schema, store.nodes, lambda: store.acquire_lease("r"), lambda: migrate(store.url)):
        with pytest.raises(StateDamaged, match=r"coordinator.db is damaged: .*put the file back from a backup"):
            use()
    store.close()


def test_a_table_that_is_gone_is_damage(empty_store):
    with empty_store.session() as session:
        session.execute(sa.text("DROP TABLE audit_head"))
    with (
        pytest.raises(StateDamaged, match=r'no such table: audit_head|relation "audit_head" does not exist'),
        empty_store.session() as session,
    ):
        empty_store.log_action(session, "site.revoke", site="east")


@only_sqlite
def test_another_process_that_holds_the_database_is_named_as_such(empty_store, tmp_path):
    with empty_store.session() as session:
        session.execute(sa.text("PRAGMA busy_timeout=1"))
    holder = sqlite3.connect(tmp_path / "coordinator.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="another process has held it"):
        fill(empty_store)
    holder.close()


@only_postgresql
@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("53100", "the disk of its server is full"),
        ("58030", "its server fails to read"),
        ("25006", "its server takes no changes"),
    ],
)
def test_what_a_server_says_of_its_disk_is_one_error_of_ours(empty_store, code, why):
    raising = f"BEGIN RAISE EXCEPTION ''no'' USING ERRCODE = ''{code}''; END"
    with empty_store.session() as session:
        session.execute(sa.text(f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS '{raising}'"))
        each = "BEFORE INSERT ON audit_entry FOR EACH ROW EXECUTE FUNCTION refuse()"
        session.execute(sa.text(f"CREATE TRIGGER refusing {each}"))
    with pytest.raises(StoreUnavailable, match=f"the database t[0-9]+ at .* cannot be used just now: {why}"):
        fill(empty_store)
    assert empty_store.nodes() == []


@only_postgresql
def test_another_connection_that_holds_a_table_is_named_as_such(empty_store):
    with empty_store.session() as session:
        session.execute(sa.text("SET SESSION lock_timeout = '50ms'"))
    holder = sa.create_engine(empty_store.url)
    with holder.connect() as connection:
        connection.execute(sa.text("LOCK TABLE audit_entry IN EXCLUSIVE MODE"))
        with pytest.raises(StoreUnavailable, match="another process has held it"):
            fill(empty_store)
    holder.dispose()


@only_postgresql
def test_a_server_that_is_away_is_passing_trouble_and_each_use_finds_it_again(empty_store, postgresql):
    with empty_store.session() as session:
        empty_store.log_action(session, "serve.stop")
    postgresql.stop()
    try:
        for use in (empty_store.nodes, empty_store.require_schema, lambda: migrate(empty_store.url)):
            with pytest.raises(StoreUnavailable, match="the connection to its server is lost"):
                use()
    finally:
        postgresql.start()
    assert empty_store.nodes() == []
    with empty_store.session() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(tables.ActionRow)) == 1


@only_postgresql
def test_a_server_that_restarts_within_a_change_takes_all_of_it_back(empty_store, postgresql):
    def restart_within() -> None:
        with empty_store.session() as session:
            empty_store.log_action(session, "serve.stop")
            session.flush()
            postgresql.restart()

    with pytest.raises(StoreUnavailable):
        restart_within()
    with empty_store.session() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(tables.ActionRow)) == 0


@only_postgresql
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"database": "nowhere"}, "has no such database|connection to its server is lost"),
        ({"username": "nobody"}, "lost"),
    ],
)
def test_an_account_or_database_that_the_server_does_not_know_is_told_without_a_password(
    empty_store, monkeypatch, change, why
):
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    store = Store(sa.make_url(empty_store.url).set(**change))
    with pytest.raises(StoreUnavailable, match=why) as told:
        store.nodes()
    assert "hunter2" not in str(told.value)
    store.close()


@only_postgresql
def test_more_threads_than_connections_wait_and_then_are_told(empty_store, monkeypatch):
    monkeypatch.setattr(empty_store._engine.pool, "_timeout", 0.05)

    def hold(sessions: int) -> None:
        with empty_store.session() as session:
            session.execute(sa.text("SELECT 1"))
            hold(sessions - 1)

    with pytest.raises(StoreUnavailable, match="all connections to it are taken"):
        hold(50)
    assert empty_store.nodes() == []


def test_damaged_rows_are_no_other_error(empty_store):
    with pytest.raises(StateDamaged, match="the sites of a sum of run r"):
        _ = Round(run="r", sites="[1", evidence="[]").summed
    with pytest.raises(StateDamaged, match="the evaluation of run r"):
        _ = Evaluation(run="r", counts='["a"]').histogram
    with empty_store.session() as session:
        session.add(tables.StudyRow(hash="h", name="s", canonical=b"", signature="", created_at=0))
    with empty_store.session() as session:
        session.add(Run(id="r", study="h", state="pending", created_at=0.0))
    with empty_store.session() as session:
        session.execute(sa.text("UPDATE run SET state = 'pendinh'"))
    with pytest.raises(StateDamaged, match="the state of a run"):
        empty_store.runs()

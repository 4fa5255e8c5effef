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
            store.log_action(session, "x" * 1500)


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
        session.execute(sa.text("DROP TABLE audit"))
    with pytest.raises(StateDamaged, match="no such table: audit"), empty_store.session() as session:
        empty_store.log_action(session, "x")


def test_another_process_that_holds_the_database_is_named_as_such(empty_store, tmp_path):
    with empty_store.session() as session:
        session.execute(sa.text("PRAGMA busy_timeout=1"))
    holder = sqlite3.connect(tmp_path / "coordinator.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="another process has held it"):
        fill(empty_store)
    holder.close()


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

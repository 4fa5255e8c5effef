import os
import pwd
import sqlite3

import pytest
import sqlalchemy as sa

from confide.client_node.login import login_name
from confide.coordinator.errors import Conflict, LeaseLost, NotFound, StateDamaged
from confide.coordinator.store.states import FINISH
from confide.coordinator.store.store import SCHEMA, CommittedRound, Store, migrate
from confide.coordinator.store.tables import ActionRow, Base, Evaluation, NodeRow, Run, StudyRow

from ..conftest import committed_round

RUN = "thyroid-0001"
OLD, NEW = "ab" * 32, "cd" * 32  # hashes of two studies of one name


@pytest.fixture
def store(empty_store):
    """A store with two studies and one pending run."""
    with empty_store.session() as session:
        for at, study_hash in enumerate((OLD, NEW)):
            session.add(StudyRow(hash=study_hash, name="thyroid", canonical=b"{}", signature="", created_at=at))
    with empty_store.session() as session:
        session.add(Run(id=RUN, study=NEW, state="pending", created_at=0.0))
    return empty_store


def tables(url: str) -> dict[str, object]:
    """All that SQLAlchemy can tell of a database's tables, alembic's own left out."""
    engine = sa.create_engine(url)
    inspector = sa.inspect(engine)
    found = {
        name: {
            "columns": {
                column["name"]: (str(column["type"]), column["nullable"], column["default"])
                for column in inspector.get_columns(name)
            },
            "primary key": inspector.get_pk_constraint(name)["constrained_columns"],
            "foreign keys": [
                (key["constrained_columns"], key["referred_table"], key["referred_columns"])
                for key in inspector.get_foreign_keys(name)
            ],
            "indexes": sorted((index["name"], index["column_names"]) for index in inspector.get_indexes(name)),
        }
        for name in inspector.get_table_names()
        if name != "alembic_version"
    }
    engine.dispose()
    return found


def test_migrations_make_the_tables_that_the_models_describe(tmp_path):
    store = Store.create(tmp_path)
    by_models = f"sqlite:///{tmp_path / 'models.db'}"
    engine = sa.create_engine(by_models)
    Base.metadata.create_all(engine)
    engine.dispose()
    assert tables(store.url) == tables(by_models)
    assert len(tables(by_models)) == len(Base.metadata.tables)
    store.close()


def test_a_store_migrated_twice_keeps_its_rows(store):
    migrate(store.url)
    assert [run.id for run in store.runs()] == [RUN]


def test_an_older_store_gains_the_new_tables_and_keeps_its_rows(store):
    engine = sa.create_engine(store.url)
    with engine.begin() as connection:
        for table in ("evaluation", "privacy_test", "left_out", "prototype"):
            connection.execute(sa.text(f"DROP TABLE {table}"))
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))
    engine.dispose()
    migrate(store.url)
    assert store.evaluation(RUN) is None
    assert [run.id for run in store.runs()] == [RUN]


def at_schema(store: Store, version: str) -> None:
    with store.session() as session:
        session.execute(sa.text(f"UPDATE alembic_version SET version_num = '{version}'"))


def test_a_new_store_has_the_newest_schema(tmp_path):
    store = Store.create(tmp_path)
    store.require_schema()
    with store.session() as session:
        assert session.scalar(sa.text("SELECT version_num FROM alembic_version")) == SCHEMA
    store.close()


@pytest.mark.parametrize(("version", "why"), [("0002", "start `serve` once"), ("9999", "a later version's")])
def test_a_store_of_another_version_is_refused_with_what_to_do(store, version, why):
    at_schema(store, version)
    with pytest.raises(Conflict, match=why):
        store.require_schema()


def test_a_store_without_tables_is_damaged(tmp_path):
    store = Store.open(tmp_path)
    with pytest.raises(StateDamaged, match="from a backup"):
        store.require_schema()
    store.close()


def test_an_evaluation_that_measured_nothing_opened_nothing(store):
    lease = store.acquire_lease(RUN)
    store.commit_round(committed_round(1, run=RUN, lease=lease))
    store.commit_round(
        Evaluation(
            run=RUN, number=41, sites="[]", evidence="[]", counts="[]", problem="not evaluated: few sites",
            seconds=0.0, bytes_per_site=0, lease=lease, committed_at=0.0,
        )
    )  # fmt: skip
    assert [row.number for row in store.opened(RUN)] == [1]


def test_an_evaluation_is_committed_once_by_the_current_driver(store):
    def evaluation(lease: int) -> Evaluation:
        return Evaluation(
            run=RUN, number=41, sites='["svi"]', evidence="[]", counts="[1.0, -2.5]", problem=None, seconds=1.0,
            bytes_per_site=1, lease=lease, committed_at=0.0,
        )  # fmt: skip

    lease = store.acquire_lease(RUN)
    with pytest.raises(LeaseLost):
        store.commit_round(evaluation(lease - 1))
    assert store.evaluation(RUN) is None
    store.commit_round(evaluation(lease))
    found = store.evaluation(RUN)
    assert (found.number, found.counts) == (41, "[1.0, -2.5]")
    assert store.last_round(RUN).number == 0
    assert [row.number for row in store.opened(RUN)] == [41]
    with pytest.raises(sa.exc.IntegrityError):
        store.commit_round(evaluation(lease))


def test_a_store_lies_in_any_folder(tmp_path):
    home = tmp_path / "100% ours"  # % is special to alembic's configuration
    home.mkdir()
    store = Store.create(home)
    assert store.runs() == []
    assert (home / "coordinator.db").exists()
    store.close()


def test_what_one_process_commits_another_reads(store, tmp_path):
    other = Store.open(tmp_path)
    store.acquire_lease(RUN)
    store.commit_round(committed_round(run=RUN))
    assert other.last_round(RUN) == CommittedRound(number=1, state_hash=f"{1:064x}")
    other.close()


def test_a_commit_is_on_disk_when_it_returns(store):
    with store.session() as session:
        assert session.scalar(sa.text("PRAGMA synchronous")) == 2  # FULL
        assert session.scalar(sa.text("PRAGMA foreign_keys")) == 1


def test_a_session_that_fails_leaves_nothing(store):
    def fail() -> None:
        with store.session() as session:
            session.add(NodeRow(name="east", roles="train"))
            store.log_action(session, "east invited")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert store.nodes() == []
    assert audited(store) == []


def test_every_taking_of_a_lease_gives_a_larger_one(store):
    assert [store.acquire_lease(RUN) for _ in range(3)] == [1, 2, 3]


def test_only_the_holder_of_the_lease_commits(store):
    old = store.acquire_lease(RUN)
    new = store.acquire_lease(RUN)
    with pytest.raises(LeaseLost, match=f"another driver has taken over from lease {old}"):
        store.commit_round(committed_round(run=RUN, lease=old))
    assert store.rounds(RUN) == []
    store.commit_round(committed_round(run=RUN, lease=new))
    assert [row.number for row in store.rounds(RUN)] == [1]


@pytest.mark.parametrize(
    "write",
    [
        lambda store, lease: store.beat(RUN, lease, "asks sites"),
        lambda store, lease: store.move_run(RUN, FINISH, lease=lease),
    ],
    ids=["a heartbeat", "a state"],
)
def test_an_overtaken_driver_writes_nothing(store, write):
    old = store.acquire_lease(RUN)
    store.acquire_lease(RUN)
    with pytest.raises(LeaseLost):
        write(store, old)
    run = store.run(RUN)
    assert (run.state, run.step, run.ended_at) == ("pending", "", None)
    assert audited(store) == []


def test_a_lease_of_the_future_is_none(store):
    store.acquire_lease(RUN)
    with pytest.raises(LeaseLost):
        store.beat(RUN, 2)


def test_a_round_is_committed_once(store):
    store.acquire_lease(RUN)
    store.commit_round(committed_round(run=RUN))
    with pytest.raises(sa.exc.IntegrityError):
        store.commit_round(committed_round(run=RUN))


def test_a_round_belongs_to_a_run_that_exists(store):
    with pytest.raises(LeaseLost):
        store.commit_round(committed_round(run="no-such-run"))


def test_a_run_belongs_to_a_study_that_exists(store):
    with pytest.raises(sa.exc.IntegrityError), store.session() as session:
        session.add(Run(id="other-0001", study="00" * 32, state="pending", created_at=0.0))


def test_rounds_come_in_order_and_the_last_is_the_largest(store):
    store.acquire_lease(RUN)
    for number in (2, 10, 1):
        store.commit_round(committed_round(number, run=RUN))
    assert [row.number for row in store.rounds(RUN)] == [1, 2, 10]
    assert store.last_round(RUN).number == 10


def test_a_run_without_rounds_stands_before_round_one(store):
    assert store.last_round(RUN) == CommittedRound(number=0, state_hash=None)


def test_a_heartbeat_without_a_step_keeps_the_step(store):
    lease = store.acquire_lease(RUN)
    store.beat(RUN, lease, "round 1: asks 4 sites")
    before = store.run(RUN).heartbeat
    store.beat(RUN, lease)
    assert store.run(RUN).step == "round 1: asks 4 sites"
    assert store.run(RUN).heartbeat >= before


def test_a_step_with_many_names_is_cut_to_its_column(store):
    lease = store.acquire_lease(RUN)
    store.beat(RUN, lease, "waiting for " + ", ".join(f"site-{number}" for number in range(100)))
    assert len(store.run(RUN).step) == 255


def test_a_study_is_found_by_its_hash_or_its_beginning_and_by_a_name_that_no_other_has(store):
    assert store.study(OLD[:8]).hash == OLD
    assert store.study(OLD).hash == OLD
    with pytest.raises(Conflict, match=f"2 studies are called 'thyroid'; name one by its hash:\n  {OLD}\n  {NEW}"):
        store.study("thyroid")


@pytest.mark.parametrize("word", ["heart", "ab" * 3, "ac" * 8, "________", "%%%%%%%%", ""])
def test_a_study_that_is_not_there_is_not_found(store, word):
    with pytest.raises(NotFound, match="no study is called"):
        store.study(word)


def test_a_node_or_run_that_is_not_there_is_not_found(store):
    with pytest.raises(NotFound, match="coordinator site list"):
        store.node("east")
    with pytest.raises(NotFound, match="coordinator run list"):
        store.run("thyroid-0002")


def test_the_database_is_plain_sqlite_in_wal_mode(store, tmp_path):
    connection = sqlite3.connect(tmp_path / "coordinator.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_the_audit_log_names_the_account_that_acted(store, monkeypatch):
    monkeypatch.setenv("LOGNAME", "somebody-else")
    with store.session() as session:
        store.log_action(session, "east invited")
        (row,) = session.scalars(sa.select(ActionRow))
    assert row.what == f"east invited (by {pwd.getpwuid(os.getuid()).pw_name})"


def audited(store: Store) -> list[str]:
    with store.session() as session:
        return [
            row.what.removesuffix(f" (by {login_name()})")
            for row in session.scalars(sa.select(ActionRow).order_by(ActionRow.seq))
        ]

import contextlib
import os
import pwd
import sqlite3
import threading
from collections.abc import Callable
from functools import partial

import pytest
import sqlalchemy as sa

from confide.coordinator.errors import Conflict, LeaseLost, NotFound, StateDamaged
from confide.coordinator.run.laps import STEPS
from confide.coordinator.store.states import ABANDON, FAIL, FINISH, RunState
from confide.coordinator.store.store import SCHEMA, CommittedRound, Store, migrate
from confide.coordinator.store.tables import ActionRow, Base, Evaluation, NodeRow, Round, Run, StudyRow

from ..conftest import committed_round, logged, only_postgresql, only_sqlite

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


def by_models(url: str) -> None:
    engine = sa.create_engine(url)
    Base.metadata.create_all(engine)
    engine.dispose()


@only_sqlite
def test_migrations_make_the_tables_that_the_models_describe(empty_store, tmp_path):
    other = f"sqlite:///{tmp_path / 'models.db'}"
    by_models(other)
    assert tables(empty_store.url) == tables(other)
    assert len(tables(other)) == len(Base.metadata.tables)


@only_postgresql
def test_migrations_make_the_tables_that_the_models_describe_at_a_server(empty_store, postgresql):
    other = postgresql.url(is_empty=True).render_as_string()
    by_models(other)
    assert tables(empty_store.url) == tables(other)
    assert len(tables(other)) == len(Base.metadata.tables)


def row_of(table: sa.Table) -> dict[str, object]:
    """A row with a value in each column that is not of a key of another table's."""
    texts = {str: "text", bytes: b"\x00\xff", float: 1.0 / 3.0, int: 2**31 - 1}
    values = {column.name: texts[column.type.python_type] for column in table.columns}
    return {name: value for name, value in values.items() if not table.columns[name].foreign_keys} | {
        name: {"study": "text", "run": "text"}[name] for name, column in table.columns.items() if column.foreign_keys
    }


def rows(url: str) -> dict[str, list[tuple[object, ...]]]:
    engine = sa.create_engine(url)
    found = sa.MetaData()
    found.reflect(engine)
    with engine.connect() as connection:
        read = {name: list(map(tuple, connection.execute(sa.select(table)))) for name, table in found.tables.items()}
    engine.dispose()
    return read


def fill_tables(url: str) -> None:
    """Adds a row to each table that has none, whatever the schema is."""
    engine = sa.create_engine(url)
    found = sa.MetaData()
    found.reflect(engine)
    with engine.begin() as connection:
        for table in found.sorted_tables:
            if connection.execute(sa.select(table)).first() is None:
                connection.execute(table.insert(), row_of(table))
    engine.dispose()


def without_audit(found: dict[str, list[tuple[object, ...]]]) -> dict[str, list[tuple[object, ...]]]:
    """All rows but the plain lines of the audit log, whose times the chain holds in whole seconds."""
    return {name: lines for name, lines in found.items() if name != "audit"}


def test_migrations_go_up_and_back_with_rows_in_every_table(empty_store):
    url = empty_store.url
    migrate(url, "0001")
    versions = [f"{number:04d}" for number in range(1, int(SCHEMA) + 1)]
    seen, shapes = {}, {}
    for version in versions:
        migrate(url, version)
        fill_tables(url)
        seen[version], shapes[version] = rows(url), tables(url)
        assert all(seen[version].values())
    assert set(seen[SCHEMA]) == {*Base.metadata.tables, "alembic_version"}
    for version in reversed(versions):
        migrate(url, version)
        assert without_audit(rows(url)) == without_audit(seen[version])
        assert [line[2] for line in rows(url).get("audit", [])] == [line[2] for line in seen[version].get("audit", [])]
        assert tables(url) == shapes[version]
    migrate(url)
    assert tables(url) == shapes[SCHEMA]
    assert rows(url)["run"] == seen["0001"]["run"]


def test_a_store_migrated_twice_keeps_its_rows(store):
    migrate(store.url)
    assert [run.id for run in store.runs()] == [RUN]


def test_an_older_store_gains_the_new_tables_and_keeps_its_rows(store):
    engine = sa.create_engine(store.url)
    with engine.begin() as connection:
        newer = ("evaluation", "privacy_test", "left_out", "prototype", "operator", "succession", "study_decision",
                 "server")  # fmt: skip
        for column in ("left_at", "trusted_cas", "known_key", "told_at"):
            connection.execute(sa.text(f"ALTER TABLE node DROP COLUMN {column}"))
        for step in STEPS:
            connection.execute(sa.text(f"ALTER TABLE round DROP COLUMN {step}_s"))
        for table in (*newer, *(f"audit_{name}" for name in ("entry", "head", "checkpoint", "countersignature"))):
            connection.execute(sa.text(f"DROP TABLE {table}"))
        plain = sa.Column("at", sa.Double()), sa.Column("what", sa.String(2000))
        sa.Table("audit", sa.MetaData(), sa.Column("seq", sa.Integer(), primary_key=True), *plain).create(connection)
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))
    engine.dispose()
    migrate(store.url)
    assert store.evaluation(RUN) is None
    assert [run.id for run in store.runs()] == [RUN]


def test_rounds_of_before_have_no_steps_and_sites_were_left_out_for_their_length(store):
    lease = store.acquire_lease(RUN)
    store.commit_round(committed_round(1, run=RUN, lease=lease), {"east": "late"})
    store.leave_out(RUN, lease, 1, ["west"])
    with store.session() as session:
        session.execute(sa.update(Round).values(collect_s=1.5, sum_s=0.25, apply_s=0.125))
    migrate(store.url, "0010")
    with store.session() as session:
        assert list(session.execute(sa.text("SELECT site FROM left_out"))) == [("west",)]
    migrate(store.url)
    (row,) = store.rounds(RUN)
    assert [getattr(row, f"{step}_s") for step in STEPS] == [None] * 7
    assert store.left_out(RUN) == {1: {"west": "long"}}


def test_what_nobody_asked_for_is_not_read(store):
    store.commit_round(committed_round(1, run=RUN, lease=store.acquire_lease(RUN)))
    (row,) = store.opened(RUN, with_evidence=False)
    assert row.summed == ()
    with pytest.raises(sa.exc.SQLAlchemyError):
        row.signed  # noqa: B018


def at_schema(store: Store, version: str) -> None:
    with store.session() as session:
        session.execute(sa.text(f"UPDATE alembic_version SET version_num = '{version}'"))


def test_a_new_store_has_the_newest_schema(empty_store):
    empty_store.require_schema()
    with empty_store.session() as session:
        assert session.scalar(sa.text("SELECT version_num FROM alembic_version")) == SCHEMA


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


@only_sqlite
def test_a_commit_is_on_disk_when_it_returns(store):
    with store.session() as session:
        assert session.scalar(sa.text("PRAGMA synchronous")) == 2  # FULL
        assert session.scalar(sa.text("PRAGMA foreign_keys")) == 1


@only_postgresql
def test_a_commit_is_on_disk_when_it_returns_whatever_the_server_says(store, postgresql):
    postgresql.do(f"ALTER DATABASE {sa.make_url(store.url).database} SET synchronous_commit = off")
    other = Store(store.url)
    for _ in range(2):  # a rollback takes nothing back
        with contextlib.suppress(ZeroDivisionError), other.session() as session:
            assert session.scalar(sa.text("SHOW synchronous_commit")) == "on"
            assert session.scalar(sa.text("SHOW transaction_isolation")) == "read committed"
            raise ZeroDivisionError
    other.close()


def test_texts_that_are_too_long_for_a_column_or_hold_nul_are_stored_as_far_as_they_fit(store):
    lease = store.acquire_lease(RUN)
    store.note_trouble(RUN, lease, "\0" + "x" * 3000)
    assert store.run(RUN).error == "\N{REPLACEMENT CHARACTER}" + "x" * 1999
    store.begin_driving(RUN, lease)
    store.move_run(RUN, FAIL, lease=lease, error="\0" * 3000)
    assert len(store.run(RUN).error) == 2000
    store.note_waiting(RUN, "y" * 300, silent_s=0)
    assert [len(fields["error"]) for action, fields in logged(store) if action == "run.fail"] == [2000]


def test_large_sizes_and_bytes_of_every_value_come_back(store):
    lease = store.acquire_lease(RUN)
    store.commit_round(committed_round(1, run=RUN, lease=lease, sent=2**40))
    with store.session() as session:
        session.add(NodeRow(name="east", roles="train", transport_key=bytes(range(256)), enrolled_at=1 / 3))
    assert store.rounds(RUN)[0].bytes_per_site == 2**40
    assert (store.node("east").transport_key, store.node("east").enrolled_at) == (bytes(range(256)), 1 / 3)


def test_names_come_in_one_order_on_each_database(store):
    names = ["a-b", "a.b", "a0", "aa", "ab", "b"]
    with store.session() as session:
        session.add_all(NodeRow(name=name, roles="train") for name in reversed(names))
    lease = store.acquire_lease(RUN)
    store.leave_out(RUN, lease, 1, list(reversed(names)))
    assert [row.name for row in store.nodes()] == names
    assert [*store.left_out(RUN)[1].items()] == [(name, "long") for name in names]


def at_once(*works: Callable[[], object]) -> list[BaseException | object]:
    """Does all of it at the same moment, each in a thread; lists what came of each."""
    start, found = threading.Barrier(len(works)), [None] * len(works)

    def do(place: int) -> None:
        start.wait(30)
        try:
            found[place] = works[place]()
        except Exception as err:
            found[place] = err

    threads = [threading.Thread(target=do, args=(place,)) for place in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_leases_that_are_taken_at_once_are_all_different(store, tmp_path):
    others = [Store.open(tmp_path) for _ in range(4)]
    leases = at_once(*([partial(each.acquire_lease, RUN) for each in others] * 5))
    assert sorted(leases) == list(range(1, 21))
    for each in others:
        each.close()


def test_of_two_drivers_that_commit_one_round_at_once_the_one_with_the_lease_does(store, tmp_path):
    other = Store.open(tmp_path)
    for number in range(1, 11):
        old, new = store.acquire_lease(RUN), store.acquire_lease(RUN)
        mine, theirs = at_once(
            partial(store.commit_round, committed_round(number, run=RUN, lease=old)),
            partial(other.commit_round, committed_round(number, run=RUN, lease=new)),
        )
        assert isinstance(mine, LeaseLost)
        assert theirs is None
    assert [row.number for row in store.rounds(RUN)] == list(range(1, 11))
    other.close()


def test_of_operators_who_order_at_once_one_is_obeyed(store, tmp_path):
    other = Store.open(tmp_path)
    for _ in range(5):
        lease = store.acquire_lease(RUN)
        store.begin_driving(RUN, lease)
        outcomes = at_once(*(partial(each.move_run, RUN, ABANDON) for each in (store, other)))
        assert sorted(type(each).__name__ for each in outcomes) == ["RunState", "TransitionRefused"]
        with store.session() as session:
            session.get(Run, RUN).state = RunState.PENDING
    other.close()


def test_who_reads_and_then_writes_alone_loses_nothing(store, tmp_path):
    """A count that is read, and then written one larger, by several at once."""

    def add(each: Store) -> None:
        for _ in range(10):
            with each.alone("the count") as session:
                row = session.get(Run, RUN)
                row.step = str(int(row.step or 0) + 1)

    others = [Store.open(tmp_path) for _ in range(4)]
    assert at_once(*(partial(add, each) for each in others)) == [None] * 4
    assert store.run(RUN).step == "40"
    for each in others:
        each.close()


def test_a_session_that_fails_leaves_nothing(store):
    def fail() -> None:
        with store.session() as session:
            session.add(NodeRow(name="east", roles="train"))
            store.log_action(session, "site.invite", site="east", roles="train")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert store.nodes() == []
    assert logged(store) == []


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
    assert logged(store) == []


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


@only_sqlite
def test_the_database_is_plain_sqlite_in_wal_mode(store, tmp_path):
    connection = sqlite3.connect(tmp_path / "coordinator.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_the_audit_log_names_the_account_that_acted(store, monkeypatch):
    monkeypatch.setenv("LOGNAME", "somebody-else")
    with store.session() as session:
        store.log_action(session, "site.revoke", site="east")
        (row,) = session.scalars(sa.select(ActionRow))
    assert (row.action, row.actor) == ("site.revoke", f"login:{pwd.getpwuid(os.getuid()).pw_name}")

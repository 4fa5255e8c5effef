"""A backup that is made while rounds are committed and their files dropped: each is of one moment."""

import dataclasses
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Connection, MetaData, select

from confide.client_node.errors import BackupInvalid
from confide.client_node.replay import Checkpoint
from confide.client_node.web.entering import make_link
from confide.coordinator.errors import Conflict, StoreUnavailable
from confide.coordinator.federation import Settings, backup, create_home
from confide.coordinator.page import model_work
from confide.coordinator.store import Store, migrate
from confide.coordinator.store.run_folder import RunFolder
from confide.coordinator.store.tables import LedgerRow, PrivacyTest, Run, StudyRow

from ..conftest import committed_round

SETTINGS = Settings(federation="f", address="127.0.0.1:1", listen="127.0.0.1", port=1, superlink_port=2)
RUN = "thyroid-0001"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.process)])
def home(request, tmp_path):
    kind = request.param
    url = None if kind == "sqlite" else request.getfixturevalue("postgresql").url(is_empty=True).render_as_string()
    create_home(tmp_path / "home", SETTINGS, url)
    store = Store.open(tmp_path / "home")
    with store.session() as session:
        session.add(StudyRow(hash="0" * 64, name="thyroid", canonical=b"{}", signature="", created_at=0.0))
    with store.session() as session:
        session.add(Run(id=RUN, study="0" * 64, state="running", created_at=0.0))
    store.close()
    return tmp_path / "home"


def test_a_new_federation_is_kept_and_comes_back_row_by_row(home, tmp_path, request):
    """The shortest way there is; tables that a migration begins with rows of its own are in it."""
    made = backup.back_up(home, tmp_path / "b")
    urls = [None]
    if not (home / "coordinator.db").exists():
        urls.append(request.getfixturevalue("postgresql").url(is_empty=True).render_as_string())
    for number, url in enumerate(urls):
        back = tmp_path / f"r{number}"
        assert backup.restore(tmp_path / "b", back, database=url).rows == made.rows
        assert rows(back) == rows(home)
    assert made.rows["audit_head"] == 1


def rows(home):
    store, found = Store.open(home), MetaData()
    with store.moment() as connection:
        found.reflect(connection)
        kept = {
            name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key.columns))]
            for name, table in found.tables.items()
        }
    store.close()
    return kept


@pytest.mark.process
@pytest.mark.parametrize("moment", ["commit", "move"])
def test_a_restoration_that_does_not_learn_of_its_commit_says_that_the_database_may_be_filled(
    home, tmp_path, postgresql, monkeypatch, moment
):
    """Twice: the server goes away as the commit is asked for; the home cannot be moved after it."""
    backup.back_up(home, tmp_path / "b")
    url = postgresql.url(is_empty=True)
    filling, is_there = Store.filling, []

    @contextmanager
    def cut_off(store):
        with filling(store) as connection:
            yield connection
            postgresql.do(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{url.database}'")

    def stay(making, *, last):
        is_there.append((making.parent / last).exists())
        raise BackupInvalid("it cannot be moved")

    with monkeypatch.context() as patch:
        if moment == "commit":
            patch.setattr(Store, "filling", cut_off)
        else:
            patch.setattr(backup, "move_in", stay)
        with pytest.raises(StoreUnavailable, match=r"may hold the whole federation now.*Drop that database") as told:
            backup.restore(tmp_path / "b", tmp_path / "r", database=url.render_as_string())
    assert "\n" not in str(told.value)
    assert not (tmp_path / "r").exists()
    if moment == "move":  # the commit came first: a home never lies there without its database
        assert is_there == [False]
        with pytest.raises(Conflict, match="holds tables already"):
            backup.restore(tmp_path / "b", tmp_path / "r", database=url.render_as_string())
        url = postgresql.url(is_empty=True)
    assert backup.restore(tmp_path / "b", tmp_path / "r", database=url.render_as_string()).rows["run"] == 1


class _Rounds:
    """Goes on with a run as its driver does: the total, the state, the commit, then what nobody needs any more goes."""

    def __init__(self, home: Path) -> None:
        self.store, self.folder, self.number = Store.open(home), RunFolder(home, RUN), 0
        self._lease, self._start = self.store.acquire_lease(RUN), Checkpoint.beginning(np.zeros(4, np.float32))

    def go_on(self) -> None:
        self.number += 1
        state = np.full(4, self.number, np.float32)
        self.folder.save_total(self.number, bytes(8))
        digest = self.folder.save(dataclasses.replace(self._start, round=self.number, state=state))
        self.store.commit_round(committed_round(self.number, run=RUN, lease=self._lease, state_hash=digest))
        with self.store.session() as session:
            entry = LedgerRow(site="east", seq=self.number, kind="reserve", hash="0" * 64, entry="{}")
            session.add(entry)
        self.folder.prune(self.number, updates=10**6)


def _assert_whole(file: Path, home: Path) -> int:
    """Asserts that the backup restores with each file that its database names; returns its last round."""
    backup.restore(file, home)
    restored = Store.open(home)
    last = restored.last_round(RUN)
    if last.number:
        assert RunFolder(home, RUN).load(last.number, last.state_hash).state.tolist() == [last.number] * 4
        assert all((home / "runs" / RUN / f"total-{each}").exists() for each in (1, last.number))
    assert restored.ledger_length("east") in (last.number, last.number - 1)
    restored.close()
    return last.number


def test_each_backup_holds_the_files_that_its_database_names(home, tmp_path):
    rounds, stop, troubles = _Rounds(home), threading.Event(), []

    def drive() -> None:
        try:
            while not stop.wait(0.02):  # a driver's rounds take seconds
                rounds.go_on()
        except Exception as err:
            troubles.append(err)

    driver = threading.Thread(target=drive)
    driver.start()
    try:
        made = [backup.back_up(home, tmp_path / f"b{number}") for number in range(6)]
    finally:
        stop.set()
        driver.join()
        rounds.store.close()
    assert troubles == []
    assert all(each.missing == () for each in made)
    for number in range(6):
        _assert_whole(tmp_path / f"b{number}", tmp_path / f"r{number}")
    assert not list(home.glob(".backing-up-*"))


def test_a_backup_is_taken_anew_when_the_driver_drops_what_its_database_names(home, tmp_path, monkeypatch):
    rounds, needed, seen = _Rounds(home), backup._needed, []
    rounds.go_on()

    def overtaken(connection: Connection) -> set[str]:
        names = needed(connection)
        seen.append(rounds.number)
        if len(seen) < 3:
            for _ in range(3):  # the state of the round that the database names is gone before it is linked
                rounds.go_on()
        return names

    monkeypatch.setattr(backup, "_needed", overtaken)
    made = backup.back_up(home, tmp_path / "b")
    rounds.store.close()
    assert made.missing == ()
    assert seen == [1, 4, 7]
    assert _assert_whole(tmp_path / "b", tmp_path / "r") == 7


def test_a_file_that_is_lost_for_good_is_named_and_keeps_nothing_else_from_being_kept(home, tmp_path):
    store = Store.open(home)
    lease = store.acquire_lease(RUN)
    store.commit_round(committed_round(1, run=RUN, lease=lease, state_hash="ab" * 32))
    store.close()
    made = backup.back_up(home, tmp_path / "b")
    assert made.missing == (f"runs/{RUN}/state-1-{'ab' * 8}.safetensors", f"runs/{RUN}/total-1")
    assert backup.restore(tmp_path / "b", tmp_path / "r").rows["round"] == 1


@pytest.mark.process
def test_new_rows_of_a_restored_database_are_numbered_after_the_old_ones(home, tmp_path, postgresql):
    store = Store.open(home)
    with store.session() as session:
        session.add_all(PrivacyTest(run=RUN, kind="audit", facts=str(number)) for number in range(3))
    store.close()
    backup.back_up(home, tmp_path / "b")
    for number, url in enumerate((None, postgresql.url(is_empty=True).render_as_string())):
        backup.restore(tmp_path / "b", tmp_path / f"r{number}", database=url)
        restored = Store.open(tmp_path / f"r{number}")
        with restored.session() as session:
            session.add(PrivacyTest(run=RUN, kind="audit", facts="after"))
        with restored.session() as session:
            assert list(session.scalars(select(PrivacyTest.seq).order_by(PrivacyTest.seq))) == [1, 2, 3, 4]
        restored.close()


def test_a_database_of_an_earlier_version_is_kept_as_it_is_and_restored_as_one_of_this(home, tmp_path):
    store = Store.open(home)
    url = store.url
    store.close()
    migrate(url, "0002")
    backup.back_up(home, tmp_path / "b")
    backup.restore(tmp_path / "b", tmp_path / "r")
    restored = Store.open(tmp_path / "r")
    restored.require_schema()
    assert [run.id for run in restored.runs()] == [RUN]
    restored.close()
    store = Store.open(home)
    with pytest.raises(Conflict, match="an earlier version's"):
        store.require_schema()
    store.close()


def test_nothing_of_the_page_is_kept_or_taken_for_a_file_that_nobody_knows(home, tmp_path):
    make_link(home, None)
    (home / model_work.FOLDER).mkdir()
    for name in ("page.log", "page.log.1", f"{model_work.FOLDER}/adapter.zip", "strange"):
        (home / name).write_text("")
    made = backup.back_up(home, tmp_path / "b")
    assert made.left_out == ("strange",)
    assert not [each.path for each in made.contents.files if "page" in each.path]

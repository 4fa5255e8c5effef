"""A backup that is made while rounds are committed and their files dropped: each is of one moment."""

import dataclasses
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from sqlalchemy import MetaData, select

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


def test_each_backup_holds_the_files_that_its_database_names(home, tmp_path):
    store, folder, stop = Store.open(home), RunFolder(home, RUN), threading.Event()
    lease = store.acquire_lease(RUN)
    troubles, start = [], Checkpoint.beginning(np.zeros(4, np.float32))

    def go_on() -> None:
        """As a driver does, only faster: the total, the state, the commit, then what nobody needs any more goes."""
        number = 0
        try:
            while not stop.is_set():
                number += 1
                folder.save_total(number, bytes(8))
                digest = folder.save(dataclasses.replace(start, round=number, state=np.full(4, number, np.float32)))
                store.commit_round(committed_round(number, run=RUN, lease=lease, state_hash=digest))
                with store.session() as session:
                    session.add(LedgerRow(site="east", seq=number, kind="reserve", hash="0" * 64, entry="{}"))
                folder.prune(number, updates=10**6)
        except Exception as err:
            troubles.append(err)

    driver = threading.Thread(target=go_on)
    driver.start()
    try:
        made = [backup.back_up(home, tmp_path / f"b{number}") for number in range(6)]
    finally:
        stop.set()
        driver.join()
        store.close()
    assert troubles == []
    assert all(each.missing == () for each in made)
    for number in range(6):
        backup.restore(tmp_path / f"b{number}", tmp_path / f"r{number}")
        restored = Store.open(tmp_path / f"r{number}")
        last = restored.last_round(RUN)
        if last.number:
            checkpoint = RunFolder(tmp_path / f"r{number}", RUN).load(last.number, last.state_hash)
            assert checkpoint.state.tolist() == [last.number] * 4
            assert all((tmp_path / f"r{number}" / "runs" / RUN / f"total-{each}").exists() for each in (1, last.number))
        assert restored.ledger_length("east") in (last.number, last.number - 1)
        restored.close()
    assert not list(home.glob(".backing-up-*"))


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

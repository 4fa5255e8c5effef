"""What a node may still do after its ledger was imported, or its home restored: never another draw under one charge."""

import fcntl
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from confide.client_node import backup
from confide.client_node.approval.charges import LEDGER_FILE, open_ledger
from confide.client_node.approval.site_budget import export_ledger
from confide.client_node.enrolment.protocol import Enrolment
from confide.client_node.errors import AlreadyRunning, RoundOver, RunEnded
from confide.client_node.shares import AggregatorRole, Outbox, aggregator
from confide.client_node.traffic import Passed, Traffic
from confide.client_node.web.entering import make_link, open_link
from confide.privacy.errors import LedgerFileInvalid
from confide.privacy.ledger.entry_store import EntryStore

from .conftest import Site, key_of
from .test_node import RUN, Desk, make_desk, new_node, prepare

ROUNDS = (1, 2, 3)


class Idle:
    """Stands for a party's process, which no key needs."""

    def __init__(self, config):
        self.config = config

    def start(self):
        pass

    def stop(self):
        pass


KILLED = """
import os, sys
from pathlib import Path
from confide.client_node import backup
from confide.client_node.shares import Outbox

lose, left = Outbox.lose, int(sys.argv[3])

def lose_and_die(outbox, run, number):
    global left
    lose(outbox, run, number)
    left -= 1
    if not left:
        os.kill(os.getpid(), 9)

Outbox.lose = lose_and_die
backup.import_ledger(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.fixture
def desk(site: Site) -> Desk:
    desk = make_desk(site)
    prepare(desk)
    return desk


@pytest.fixture
def exported(desk: Desk, tmp_path: Path) -> Path:
    """The ledger of three rounds that were charged and sealed, whose home then has lost everything of them."""
    for number in ROUNDS:
        desk.step(number)
    desk.ledger.close()
    home = desk.site.home
    export_ledger(home, tmp_path / "ledger")
    for path in (*home.glob("ledger.db*"), home / "keys" / "ledger.head"):
        path.unlink()
    for number in ROUNDS:
        Outbox(home).drop(RUN, number)
    return tmp_path / "ledger"


def reopened(desk: Desk) -> Desk:
    """The same site, whose daemon starts anew."""
    ledger = open_ledger(desk.site.home, desk.site.identity, Enrolment.load(desk.site.home))
    return replace(desk, ledger=ledger, node=new_node(desk.site, ledger))


def is_charged(home: Path) -> bool:
    path = home / LEDGER_FILE
    return path.exists() and EntryStore.peek(path, 2) is not None


def lost(home: Path) -> list[int]:
    return [number for number in ROUNDS if Outbox(home).is_lost(RUN, number)]


def test_no_charge_is_there_before_its_round_is_marked_as_lost(site, exported, monkeypatch):
    seen, lose = [], Outbox.lose

    def look(outbox, run, number):
        seen.append(is_charged(site.home))
        lose(outbox, run, number)

    monkeypatch.setattr(Outbox, "lose", look)
    assert backup.import_ledger(site.home, exported) == (5, 5)
    assert seen == [False] * 3
    assert is_charged(site.home)
    assert lost(site.home) == list(ROUNDS)


@pytest.mark.process
@pytest.mark.parametrize("marks", [1, 2, 3])
def test_an_import_that_is_killed_has_imported_nothing_and_the_next_one_draws_nothing(site, desk, exported, marks):
    words = [sys.executable, "-c", KILLED, str(site.home), str(exported), str(marks)]
    assert subprocess.run(words, check=False).returncode == -9
    assert not is_charged(site.home)
    assert lost(site.home) == list(ROUNDS[:marks])
    assert backup.import_ledger(site.home, exported) == (5, 5)
    again = reopened(desk)
    for number in ROUNDS:
        with pytest.raises(RoundOver, match="what was sealed for it is not here"):
            again.step(number)
    assert again.charges() == ["reserve"] * 3


def test_rounds_whose_shares_are_here_are_answered_with_them_after_an_import(site, desk, tmp_path):
    first = desk.step().blobs
    desk.ledger.close()
    export_ledger(site.home, tmp_path / "ledger")
    assert backup.import_ledger(site.home, tmp_path / "ledger") == (0, 3)
    assert lost(site.home) == []
    assert reopened(desk).step().blobs == first


def test_nothing_is_imported_while_a_daemon_runs(site, exported):
    with (site.home / "daemon.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(AlreadyRunning, match=r"a daemon serves .* already; stop it first"):
            backup.import_ledger(site.home, exported)
    assert not (site.home / LEDGER_FILE).exists()
    assert lost(site.home) == []


def test_a_file_that_is_cut_short_marks_no_round(site, exported):
    exported.write_bytes(exported.read_bytes()[:-20])
    with pytest.raises(LedgerFileInvalid):
        backup.import_ledger(site.home, exported)
    assert lost(site.home) == []
    assert not is_charged(site.home)


def test_a_restored_aggregator_makes_no_key_for_a_run_that_it_had_one_for(site, make_study, tmp_path, monkeypatch):
    monkeypatch.setattr(aggregator, "PartyProcess", Idle)
    study, ended = make_study(), "thyroid-0002"
    role, keys = AggregatorRole(site.home, "agg-b", lambda _: key_of("agg-b")), site.home / "aggregator" / "run-keys"
    for run in (RUN, ended):
        role.run_key(study, run)
    private = [json.loads(each.read_text())["private"] for each in keys.iterdir()]
    assert len(private) == 2
    role.end(ended)
    backup.back_up(site.home, tmp_path / "b")
    assert not any(each.encode() in (tmp_path / "b").read_bytes() for each in private)
    backup.restore(tmp_path / "b", tmp_path / "restored")
    restored = AggregatorRole(tmp_path / "restored", "agg-b", lambda _: key_of("agg-b"))
    for run in (RUN, ended):
        with pytest.raises(RunEnded):
            restored.run_key(study, run)
    assert restored.run_key(study, "thyroid-0003").run == "thyroid-0003"
    assert role.run_key(study, RUN).run == RUN  # the backup has changed nothing at home


def test_what_passed_comes_back_and_nothing_of_the_page_does(site, tmp_path):
    Traffic(site.home).note("step", Passed(came=1, answered=1, left_bytes=7))
    secret = make_link(site.home, "anna")
    for name in ("page.json", "page.log", "page.log.1"):
        (site.home / name).write_text("{}")
    assert backup.back_up(site.home, tmp_path / "b").left_out == ("patients.csv",)  # no file of the node
    backup.restore(tmp_path / "b", tmp_path / "restored")
    assert Traffic(tmp_path / "restored").days() == Traffic(site.home).days() != {}
    assert open_link(tmp_path / "restored", secret) is None
    assert not list((tmp_path / "restored").glob("page*"))
    assert open_link(site.home, secret) == ("anna", "")  # here it still works

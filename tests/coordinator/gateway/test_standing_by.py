"""A server that stands by: what it tells its supervisor and monitor, and when it goes on."""

import json
import logging
import threading
import urllib.error
import urllib.request

import pytest

from confide.client_node.supervision import Supervisor
from confide.coordinator.errors import StoreUnavailable
from confide.coordinator.gateway import stand_by, standing_by


class Watched(Supervisor):
    """Notes what it is told."""

    def __init__(self):
        super().__init__({})
        self.told = []

    def _tell(self, line):
        self.told.append(line)


class Seats:
    """The answers of a seat, one after another: where the leader runs, or what went wrong."""

    def __init__(self, *answers):
        self._answers = iter(answers)

    def stand_by(self):
        answer = next(self._answers)
        if callable(answer):
            answer = answer()
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(standing_by, "LOOK_S", 0.0)


def ask(port, page):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as err:
        return err.code, err.read().decode()


def test_it_waits_for_the_leader_s_end_and_is_ready_meanwhile(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    supervisor = Watched()
    stand_by(tmp_path, Seats("a", "a", "b", None), threading.Event(), supervisor, monitor=None)
    assert supervisor.told == ["READY=1"]
    assert [line for line in caplog.messages if "leads" in line] == [
        "stands by; a server on a leads", "stands by; a server on b leads",
        "nobody leads this federation any more; this server does",
    ]  # fmt: skip


def test_a_database_that_is_away_is_waited_for_and_told_once(tmp_path, caplog):
    away = StoreUnavailable("the database does not answer")
    stand_by(tmp_path, Seats("a", away, away, "a", None), threading.Event(), Watched(), monitor=None)
    assert [line.message for line in caplog.records if line.levelname == "WARNING"] == [
        "the database does not answer; trying again"
    ]


def test_who_finds_nobody_says_nothing_to_its_supervisor_yet(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    supervisor = Watched()
    stand_by(tmp_path, Seats(None), threading.Event(), supervisor, monitor=None)
    assert supervisor.told == []  # a migration may follow, which takes longer than its watchdog waits
    assert caplog.messages == ["nobody leads this federation; this server does"]


def test_a_home_that_is_away_is_waited_for(tmp_path, caplog):
    away = FileNotFoundError(2, "No such file or directory", "/srv/home/serve.lock")
    stand_by(tmp_path, Seats("a", away, None), threading.Event(), Watched(), monitor=None)
    assert "/srv/home/serve.lock: No such file or directory; trying again" in caplog.messages


def test_a_stop_ends_it(tmp_path):
    stop = threading.Event()

    def stopped():
        stop.set()
        return "a"

    stand_by(tmp_path, Seats("a", stopped), stop, Watched(), monitor=None)


def test_a_load_balancer_is_told_that_it_is_alive_and_not_ready(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    found = {}

    def look():
        line = next(line for line in caplog.messages if "healthz" in line)
        port = line.rpartition(":")[2]
        found.update({page: ask(port, page) for page in ("healthz", "readyz", "metrics")})

    stand_by(tmp_path, Seats("a", look), threading.Event(), Watched(), monitor=0)
    assert found["healthz"][0] == 200
    assert found["readyz"][0] == 503
    assert json.loads(found["readyz"][1])["reason"] == "this server stands by; a server on a leads."
    assert 'role="standby"' in found["metrics"][1]

import itertools
import json
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from confide.coordinator.errors import StoreUnavailable, SuperLinkFailed
from confide.coordinator.fleet.flower import Task
from confide.coordinator.gateway import drivers as drivers_module
from confide.coordinator.gateway.drivers import Drivers
from confide.coordinator.store.store import CommittedRound
from confide.coordinator.store.tables import Run, StudyRow

from ..conftest import only_postgresql, put_in_state

pytestmark = pytest.mark.process

RUNS = ("run-1", "run-2")


class PlayedSuperLink:
    """Stands where the SuperLink would be and notes its orders."""

    def __init__(self, home: Path) -> None:
        self.port, self.pid, self.is_up = 1, 100, True
        self.log_path = home / "superlink.log"
        self.begun, self.withdrawn, self.fails = 0, [], False

    def submit(self) -> Task:
        if self.fails:
            raise SuperLinkFailed("the SuperLink does not answer")
        self.begun += 1
        return Task(self.begun, f"token-{self.begun}")

    def withdraw(self, flower_run: int) -> None:
        self.withdrawn.append(flower_run)

    def driver_environment(self) -> dict[str, str]:
        return {}


@pytest.fixture
def store(any_store):
    with any_store.session() as session:
        session.add(StudyRow(hash="0" * 64, name="thyroid", canonical=b"", signature="", created_at=0.0))
    with any_store.session() as session:
        session.add_all(Run(id=run, study="0" * 64, state="pending", created_at=0.0) for run in RUNS)
    return any_store


@pytest.fixture
def superlink(tmp_path):
    return PlayedSuperLink(tmp_path)


@pytest.fixture
def drivers(tmp_path, store, superlink, monkeypatch):
    monkeypatch.setattr(drivers_module, "WORKER", (sys.executable, str(Path(__file__).with_name("played_worker.py"))))
    monkeypatch.setattr(drivers_module, "PAUSES_S", (0.1, 0.4))
    monkeypatch.setattr(drivers_module, "SILENT_S", 0.0)
    made = Drivers(tmp_path, store, superlink)
    yield made
    made.stop()


@pytest.fixture
def until(drivers):
    def wait(met):
        end = time.monotonic() + 60
        while not met():
            assert time.monotonic() < end, "not met in time"
            drivers.tick()
            time.sleep(0.01)

    return wait


@pytest.fixture
def orders(tmp_path):
    path = tmp_path / "orders"
    return lambda: [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_each_unfinished_run_gets_one_driver(drivers, until, orders, store):
    put_in_state(store, "run-2", "stopped")
    until(orders)
    for _ in range(50):
        drivers.tick()
    assert orders() == [{"drive": "run-1", "token": "token-1"}]
    put_in_state(store, "run-2", "pending")
    until(lambda: len(orders()) == 2)
    assert orders()[1] == {"drive": "run-2", "token": "token-2"}


@only_postgresql
def test_drivers_are_started_once_a_database_that_was_away_answers_again(drivers, until, orders, store, postgresql):
    put_in_state(store, "run-2", "done")
    postgresql.stop()
    try:
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="the connection to its server is lost"):
                drivers.tick()
    finally:
        postgresql.start()
    until(orders)
    assert orders() == [{"drive": "run-1", "token": "token-1"}]


def test_a_driver_that_ends_too_early_is_replaced_after_growing_pauses(drivers, until, orders, store, tmp_path):
    put_in_state(store, "run-2", "done")
    (tmp_path / "play-run-1").write_text("75")
    until(orders)
    until(lambda: len((tmp_path / "times").read_text().splitlines()) >= 4)
    begins = [float(line) for line in (tmp_path / "times").read_text().splitlines()[:4]]
    pauses = [later - earlier for earlier, later in itertools.pairwise(begins)]
    assert pauses[0] >= 0.1
    assert pauses[1] >= 0.2
    assert pauses[2] >= 0.4
    until(lambda: "ended before (exit code 75" in store.run("run-1").step)


def test_a_driver_that_commits_a_round_ends_a_row_of_failures(drivers, until, orders, store, tmp_path, monkeypatch):
    put_in_state(store, "run-2", "done")
    (tmp_path / "play-run-1").write_text("75")
    until(lambda: len(orders()) >= 4)
    assert drivers._drivers["run-1"].failures >= 2
    rounds = itertools.count(1)
    monkeypatch.setattr(store, "last_round", lambda run: CommittedRound(number=next(rounds), state_hash=None))
    until(lambda: drivers._drivers["run-1"].failures == 1)


def test_a_database_that_is_away_at_a_start_keeps_no_run_from_its_driver(drivers, until, orders, store, monkeypatch):
    put_in_state(store, "run-2", "done")
    failed = []

    def fail(run_id):
        failed.append(run_id)
        raise StoreUnavailable("held")

    with monkeypatch.context() as patched:
        patched.setattr(store, "last_round", fail)
        with suppress(StoreUnavailable):  # `Service` goes on after it
            until(lambda: failed)
    assert not any(driver.is_alive for driver in drivers._drivers.values())
    until(lambda: [order["drive"] for order in orders()] == ["run-1"])


def test_one_run_s_failures_starve_no_other_run(drivers, until, orders, tmp_path):
    (tmp_path / "play-run-1").write_text("75")
    until(lambda: len(orders()) >= 4)
    assert [order["drive"] for order in orders()].count("run-2") == 1


def test_what_an_ended_driver_had_begun_at_the_superlink_is_withdrawn(drivers, until, superlink, store, tmp_path):
    put_in_state(store, "run-2", "done")
    (tmp_path / "play-run-1").write_text("75")
    until(lambda: superlink.withdrawn == [1, 2])


@pytest.mark.parametrize(
    ("lack", "reason"),
    [("superlink", "waits for the SuperLink, which starts"), ("worker", "waits for the drivers' worker")],
)
def test_a_run_says_what_it_waits_for(drivers, until, superlink, store, tmp_path, orders, lack, reason):
    if lack == "superlink":
        superlink.is_up = False
    else:
        (tmp_path / "broken").touch()
    until(lambda: reason in store.run("run-1").step)
    assert orders() == []
    superlink.is_up = True
    (tmp_path / "broken").unlink(missing_ok=True)
    until(lambda: len(orders()) == 2)


def test_a_superlink_that_was_started_anew_gets_new_drivers(drivers, until, superlink, orders, tmp_path):
    until(lambda: len(orders()) == 2)
    until(lambda: all(driver.pid for driver in drivers._drivers.values()))
    superlink.pid = 101
    until(lambda: len(orders()) == 6)
    assert [order["kill"] for order in orders() if "kill" in order] == [1, 2]
    assert superlink.withdrawn == []  # the new one knows nothing of them


def test_all_drivers_are_replaced_if_the_worker_dies(drivers, until, orders, tmp_path):
    (tmp_path / "dies").touch()
    until(lambda: {order["token"] for order in orders()} >= {"token-3"})
    until(lambda: [order["drive"] for order in orders()].count("run-2") >= 1)


def test_a_driver_that_hangs_is_killed(drivers, until, orders, monkeypatch, store):
    put_in_state(store, "run-2", "done")
    monkeypatch.setattr(drivers_module, "HUNG_S", 0.3)
    until(lambda: {"kill": 1} in orders())
    until(lambda: [order.get("drive") for order in orders()].count("run-1") == 2)
    assert "silent" in store.run("run-1").step


def test_failures_without_end_end_no_server():
    assert drivers_module._pause(1) == drivers_module.PAUSES_S[0]
    assert drivers_module._pause(100_000) == drivers_module.PAUSES_S[1]


def test_the_loss_of_the_worker_is_taken_in_although_the_database_is_away(drivers, until, orders, store, monkeypatch):
    until(lambda: len(orders()) == 2)
    until(lambda: all(driver.pid for driver in drivers._drivers.values()))

    def fail(run_id):
        raise StoreUnavailable("held")

    with monkeypatch.context() as patched:
        patched.setattr(store, "run", fail)
        drivers._worker.kill()
        until(lambda: not any(driver.is_alive for driver in drivers._drivers.values()))
    until(lambda: len(orders()) == 4)


def test_a_driver_whose_run_is_over_is_ended_before_it_is_forgotten(
    drivers, until, orders, store, superlink, monkeypatch
):
    put_in_state(store, "run-2", "done")
    monkeypatch.setattr(drivers_module, "FAREWELL_S", 0.2)
    until(lambda: drivers._drivers["run-1"].pid if "run-1" in drivers._drivers else None)
    put_in_state(store, "run-1", "stopped")
    until(lambda: {"kill": 1} in orders())
    until(lambda: drivers._drivers == {})
    assert superlink.withdrawn == [1]


def test_a_worker_that_does_not_answer_is_started_anew(drivers, until, orders, store, monkeypatch):
    put_in_state(store, "run-2", "done")
    until(orders)
    until(lambda: drivers._drivers["run-1"].pid)
    drivers._worker._child.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(drivers_module, "HUNG_S", 0.1)
    monkeypatch.setattr(drivers_module, "KILL_S", 0.2)
    until(lambda: [order.get("drive") for order in orders()].count("run-1") >= 2)


def test_a_superlink_that_takes_no_order_is_told(drivers, until, superlink, orders):
    superlink.fails = True
    with pytest.raises(SuperLinkFailed):
        until(lambda: False)
    superlink.fails = False
    until(lambda: len(orders()) == 2)

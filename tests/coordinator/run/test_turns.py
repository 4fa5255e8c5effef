import threading
import time
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from confide.coordinator.errors import RunStopped
from confide.coordinator.run.turns import at_aggregators


@pytest.fixture
def new_run(tmp_path):
    def make(name, parties=("agg-a", "agg-b", "agg-c"), *, deadline_s=30.0, stop=lambda: None):
        draft = SimpleNamespace(rounds=SimpleNamespace(deadline_s=deadline_s))
        folder = SimpleNamespace(path=tmp_path / "runs" / name)
        return SimpleNamespace(
            id=name, parties=parties, folder=folder, study=SimpleNamespace(draft=draft), stop_if_asked=stop
        )

    return make


def test_runs_of_the_same_aggregators_give_their_orders_one_after_the_other(new_run):
    inside, most = [], []

    def order(name, parties):
        for _ in range(20):
            with at_aggregators(new_run(name, parties)):
                inside.append(name)
                most.append(len(inside))
                time.sleep(0.002)
                inside.remove(name)

    orders = [("first", ("agg-a", "agg-b", "agg-c")), ("second", ("agg-c", "agg-b", "agg-a"))]
    threads = [threading.Thread(target=order, args=each) for each in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 40
    assert max(most) == 1


def test_a_run_of_other_aggregators_does_not_wait(new_run):
    with at_aggregators(new_run("first")), at_aggregators(new_run("second", ("agg-d", "agg-e", "agg-f"))):
        pass


def test_one_aggregator_in_common_is_enough_to_wait(new_run, caplog):
    with at_aggregators(new_run("first")), at_aggregators(new_run("second", ("agg-c", "agg-d", "agg-e"), deadline_s=0)):
        pass
    assert "run second: another run has an order at agg-c for too long; going on" in caplog.text


def test_a_run_that_an_operator_stops_waits_no_longer_and_keeps_nothing(new_run):
    def stop():
        raise RunStopped("stopped")

    with ExitStack() as held:
        held.enter_context(at_aggregators(new_run("first", ("agg-b", "agg-c", "agg-d"))))
        with pytest.raises(RunStopped), at_aggregators(new_run("second", stop=stop)):
            pass
        with at_aggregators(new_run("third", ("agg-a", "agg-e", "agg-f"))):
            pass


def test_a_turn_ends_with_an_error(new_run):
    with pytest.raises(ValueError, match="of the order"), at_aggregators(new_run("first")):
        raise ValueError("of the order")
    with at_aggregators(new_run("second")):
        pass

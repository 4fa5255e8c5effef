import pytest

from confide.client_node.approval import run_reservations
from confide.client_node.approval.run_reservations import LAPSE_S, Holds
from confide.client_node.errors import SiteNotReady

STUDY, OTHER = "ab" * 32, "cd" * 32


class Clock:
    now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def held(tmp_path, clock):
    return Holds(tmp_path, clock)


def test_a_run_holds_until_it_ends_also_over_a_restart(tmp_path, held, clock):
    held.keep("run-1", STUDY)
    held.keep("run-2", OTHER)
    assert Holds(tmp_path, clock).runs() == {"run-1": STUDY, "run-2": OTHER}
    held.drop("run-1")
    held.drop("never begun")
    assert Holds(tmp_path, clock).runs() == {"run-2": OTHER}


def test_a_silent_run_lapses_and_one_that_is_heard_of_does_not(held, clock):
    held.keep("silent", STUDY)
    held.keep("lively", OTHER)
    for _ in range(3):
        clock.now += LAPSE_S * 0.4
        held.keep("lively", OTHER)
    assert held.runs() == {"lively": OTHER}


def test_a_clock_that_was_set_back_does_not_hold_for_ever(held, clock):
    held.keep("run-1", STUDY)
    clock.now -= 2 * LAPSE_S
    assert held.runs() == {}


def test_the_oldest_run_gives_way_when_there_are_too_many(held, clock, monkeypatch):
    monkeypatch.setattr(run_reservations, "MAX_RUNS", 2)
    for number in range(3):
        clock.now += 1
        held.keep(f"run-{number}", STUDY)
    assert set(held.runs()) == {"run-1", "run-2"}


@pytest.mark.parametrize("text", ["{", '{"runs": {"r": {"study": "x", "heard": 1.0}}}', '{"runs": [], "more": 1}'])
def test_a_damaged_file_stops_runs_and_tells_the_coordinator_nothing_of_it(tmp_path, held, text):
    (tmp_path / "holds.json").write_text(text)
    with pytest.raises(SiteNotReady, match="its log says where") as caught:
        held.runs()
    assert str(tmp_path) not in str(caught.value)

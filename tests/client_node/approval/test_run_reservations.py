import pytest

from confide.client_node.approval import run_reservations
from confide.client_node.approval.run_reservations import LAPSE_S, RunReservations
from confide.client_node.errors import FileDamaged

STUDY, OTHER = "ab" * 32, "cd" * 32


class Clock:
    now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def reservations(tmp_path, clock):
    return RunReservations(tmp_path, clock)


def test_a_run_reserves_until_it_ends_also_over_a_restart(tmp_path, reservations, clock):
    reservations.note("run-1", STUDY)
    reservations.note("run-2", OTHER)
    assert RunReservations(tmp_path, clock).runs() == {"run-1": STUDY, "run-2": OTHER}
    reservations.end("run-1")
    reservations.end("never begun")
    assert RunReservations(tmp_path, clock).runs() == {"run-2": OTHER}


def test_a_silent_run_lapses_and_one_that_is_heard_of_does_not(reservations, clock):
    reservations.note("silent", STUDY)
    reservations.note("lively", OTHER)
    for _ in range(3):
        clock.now += LAPSE_S * 0.4
        reservations.note("lively", OTHER)
    assert reservations.runs() == {"lively": OTHER}


def test_a_clock_that_was_set_back_does_not_reserve_for_ever(reservations, clock):
    reservations.note("run-1", STUDY)
    clock.now -= 2 * LAPSE_S
    assert reservations.runs() == {}


def test_the_oldest_run_gives_way_when_there_are_too_many(reservations, clock, monkeypatch):
    monkeypatch.setattr(run_reservations, "MAX_RUNS", 2)
    for number in range(3):
        clock.now += 1
        reservations.note(f"run-{number}", STUDY)
    assert set(reservations.runs()) == {"run-1", "run-2"}


@pytest.mark.parametrize("text", ["{", '{"runs": {"r": {"study": "x", "heard": 1.0}}}', '{"runs": [], "more": 1}'])
def test_a_damaged_file_stops_runs_and_says_what_to_do(tmp_path, reservations, text):
    (tmp_path / "holds.json").write_text(text)
    with pytest.raises(FileDamaged, match=r"holds.json .* delete it: that gives up the budget that runs hold"):
        reservations.runs()

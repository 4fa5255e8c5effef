import json
import logging
import os
import threading

import pytest

from confide.client_node.errors import FileDamaged
from confide.client_node.traffic import DAYS, FILE, Passed, Traffic


def test_what_passes_is_added_up_by_day_and_kind(tmp_path):
    now = 86_400.0 * 100
    counts = Traffic(tmp_path, clock=lambda: now)
    counts.note("step", Passed(came=1, came_bytes=10))
    counts.note("step", Passed(answered=1, left_bytes=7))
    counts.note("settle", Passed(failed=1, left_bytes=3))
    now += 86_400
    counts.note("step", Passed(came=1, came_bytes=1))
    assert list(Traffic(tmp_path).days()) == [101, 100]
    assert Traffic(tmp_path).days() == {
        100: {
            "step": Passed(came=1, came_bytes=10, answered=1, left_bytes=7),
            "settle": Passed(failed=1, left_bytes=3),
        },
        101: {"step": Passed(came=1, came_bytes=1)},
    }


def test_kinds_that_do_not_exist_are_one_kind(tmp_path):
    counts = Traffic(tmp_path)
    for number in range(50):
        counts.note(f"made-up-{number}" * 100, Passed(came=1))
    ((kinds,),) = [counts.days().values()]
    assert kinds == {"other": Passed(came=50)}


def test_the_oldest_days_are_dropped(tmp_path):
    for day in range(DAYS + 3):
        counts = Traffic(tmp_path, clock=lambda day=day: 86_400.0 * day)
        counts.note("step", Passed(came=1))
    assert sorted(counts.days()) == list(range(3, DAYS + 3))


def test_nothing_is_lost_where_threads_count_at_once(tmp_path):
    def count():
        mine = Traffic(tmp_path)
        for _ in range(20):
            mine.note("step", Passed(came=1, came_bytes=2))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    ((kinds,),) = [Traffic(tmp_path).days().values()]
    assert kinds == {"step": Passed(came=80, came_bytes=160)}


def test_a_damaged_count_is_logged_and_stops_nothing(tmp_path, caplog):
    (tmp_path / FILE).write_text(json.dumps({"format": 1, "days": {"5": {"step": {"came": -1}}}}))
    with caplog.at_level(logging.WARNING):
        Traffic(tmp_path).note("step", Passed(came=1))
    assert "what passes is not counted" in caplog.text
    with pytest.raises(FileDamaged, match="Delete it"):
        Traffic(tmp_path).days()


@pytest.mark.parametrize(("came", "now"), [(2**62, 86_400.0 * 5), (1, -86_400.0)])
def test_a_count_that_does_not_fit_is_logged_and_stops_nothing(tmp_path, caplog, came, now):
    (tmp_path / FILE).write_text(json.dumps({"format": 1, "days": {"5": {"step": {"came": came}}}}))
    before = Traffic(tmp_path).days()
    Traffic(tmp_path, clock=lambda: now).note("step", Passed(came=1))
    assert "does not fit" in caplog.text
    assert Traffic(tmp_path).days() == before


def test_two_processes_see_what_the_other_has_counted(tmp_path):
    first, second = Traffic(tmp_path), Traffic(tmp_path)
    for _ in range(5):
        first.note("step", Passed(came=1))
        second.note("step", Passed(came=1))
    (tmp_path / FILE).unlink()
    first.note("step", Passed(came=1))
    second.note("settle", Passed(came=1))
    ((kinds,),) = [Traffic(tmp_path).days().values()]
    assert kinds == {"step": Passed(came=1), "settle": Passed(came=1)}


def test_what_could_not_be_written_is_not_counted_later(tmp_path, caplog):
    counts = Traffic(tmp_path)
    counts.note("step", Passed(came=1))
    (tmp_path / f".{FILE}.{os.getpid()}").mkdir()  # where it writes first
    counts.note("step", Passed(came=1))
    assert "what passes is not counted" in caplog.text
    (tmp_path / f".{FILE}.{os.getpid()}").rmdir()
    counts.note("step", Passed(came=1))
    ((kinds,),) = [counts.days().values()]
    assert kinds == {"step": Passed(came=2)}

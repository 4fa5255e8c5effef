import logging

import pytest

from confide.client_node.diary import Diary

logger = logging.getLogger("confide.test")


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_a_line_is_written_once_however_often_it_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    diary = Diary(logger)
    for _ in range(100):
        diary.note("round %d begins", 1)
        diary.note("round %d is computed", 1)
    assert caplog.messages == ["round 1 begins", "round 1 is computed"]


def test_a_line_comes_again_when_its_time_is_over(caplog: pytest.LogCaptureFixture) -> None:
    diary = Diary(logger, again_s=0.0)
    diary.note("no answer", level=logging.WARNING)
    diary.note("no answer", level=logging.WARNING)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


def test_a_long_life_fills_no_memory() -> None:
    diary = Diary(logger)
    for number in range(10_000):
        diary.note("round %d begins", number)
    assert len(diary._written) <= 256


def test_a_percent_sign_in_what_is_told_is_no_format(caplog: pytest.LogCaptureFixture) -> None:
    Diary(logger).note("failed: %s", "100 %d")
    assert caplog.messages == ["failed: 100 %d"]

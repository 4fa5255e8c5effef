"""Lines of logs: one JSON object each where that is asked for, and files that grow no further than the rule."""

import json
import logging
import subprocess
import sys

import pytest

from confide import log_lines
from confide.client_node.diary import Diary

FIELDS = {"time", "level", "logger", "event", "message"}


@pytest.fixture
def logger():
    found = logging.getLogger("confide.test-lines")
    found.propagate, found.level = False, logging.INFO
    yield found
    for handler in list(found.handlers):
        found.removeHandler(handler)
        handler.close()


@pytest.fixture
def as_json(monkeypatch):
    monkeypatch.setenv(log_lines.VARIABLE, "json")


@pytest.mark.usefixtures("as_json")
def test_a_line_is_one_object_with_the_event_apart_from_its_values(logger, tmp_path):
    logger.addHandler(log_lines.log_file(tmp_path / "log"))
    Diary(logger).note("run %s: round %d begins", "thyroid-1", 3)
    (line,) = (tmp_path / "log").read_text().splitlines()
    said = json.loads(line)
    assert set(said) == FIELDS
    assert (said["event"], said["message"]) == ("run %s: round %d begins", "run thyroid-1: round 3 begins")
    assert (said["level"], said["time"][-6:]) == ("INFO", "+00:00")


@pytest.mark.usefixtures("as_json")
def test_nobody_forges_a_line(logger, tmp_path):
    logger.addHandler(log_lines.log_file(tmp_path / "log"))
    logger.warning("turned away: %s", 'x\n{"level": "INFO"}\r\x1b[2J\u2028')
    text = (tmp_path / "log").read_text()
    assert text.count("\n") == 1
    assert text.isascii()
    assert json.loads(text)["level"] == "WARNING"


@pytest.mark.usefixtures("as_json")
def test_a_traceback_is_a_field(logger, tmp_path):
    logger.addHandler(log_lines.log_file(tmp_path / "log"))
    try:
        raise ValueError
    except ValueError:
        logger.exception("failed")
    said = json.loads((tmp_path / "log").read_text())
    assert set(said) == FIELDS | {"traceback"}
    assert said["traceback"].endswith("ValueError")


def test_without_the_variable_lines_are_text(logger, tmp_path, monkeypatch):
    monkeypatch.delenv(log_lines.VARIABLE, raising=False)
    logger.addHandler(log_lines.log_file(tmp_path / "log"))
    logger.info("run %s", 1)
    assert (tmp_path / "log").read_text().endswith(" INFO run 1\n")


def test_a_log_file_and_its_older_one_grow_no_further_than_the_rule(logger, tmp_path):
    most = 10_000
    logger.addHandler(log_lines.log_file(tmp_path / "log", most))
    for number in range(2000):
        logger.info("line %06d", number)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * most
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    assert "line 001999" in (tmp_path / "log").read_text()


WRITER = "import sys; [print(f'line {n:06d}', flush=True) for n in range(int(sys.argv[1]))]; sys.stdin.read()"


@pytest.mark.process
def test_the_output_of_a_child_is_cut_off_while_it_goes_on_writing(tmp_path):
    log, most = tmp_path / "log", 20_000
    with log.open("ab") as output:
        child = subprocess.Popen([sys.executable, "-u", "-c", WRITER, "20000"], stdout=output, stdin=subprocess.PIPE)
    sizes = []
    while not any("line 019999" in path.read_text() for path in tmp_path.iterdir()) and child.poll() is None:
        if log_lines.cut_off(log, most):
            sizes.append((tmp_path / "log.1").stat().st_size)
    child.communicate(b"")
    assert sizes
    assert max(sizes) <= most
    log_lines.cut_off(log, most)
    assert log.stat().st_size <= most
    assert "\0" not in log.read_text()  # it appends: no hole where the lines were
    assert (tmp_path / "log.1").stat().st_mode & 0o077 == 0


def test_a_small_log_and_a_missing_one_are_left_alone(tmp_path):
    (tmp_path / "log").write_text("line\n")
    assert not log_lines.cut_off(tmp_path / "log", 5)
    assert not log_lines.cut_off(tmp_path / "none", 5)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_burst_keeps_its_newest_lines(tmp_path):
    (tmp_path / "log").write_text("".join(f"line {number:04d}\n" for number in range(1000)))
    assert log_lines.cut_off(tmp_path / "log", 100)
    assert (tmp_path / "log.1").read_text().endswith("line 0999\n")
    assert (tmp_path / "log.1").stat().st_size == 100
    assert (tmp_path / "log").read_text() == ""


def test_a_process_goes_on_in_the_new_file_after_another_has_made_it_the_older_one(logger, tmp_path):
    handler = log_lines.log_file(tmp_path / "log")
    logger.addHandler(handler)
    logger.warning("before")
    (tmp_path / "log").rename(tmp_path / "log.1")
    (tmp_path / "log").write_text("")
    logger.warning("after")
    assert "before" in (tmp_path / "log.1").read_text()
    assert "after" in (tmp_path / "log").read_text()
    assert "after" not in (tmp_path / "log.1").read_text()

"""The process behind a page, started for real: a program that serves as `process` of a page does."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from confide.client_node.web import child as child_module
from confide.client_node.web.child import WebChild

pytestmark = pytest.mark.process

PROGRAM = """
import json, os, sys, threading
from starlette.applications import Starlette
from confide.client_node.errors import PageUnavailable
from confide.client_node.web.serving import Place, serve_page
def announce(address, listening):
    print(json.dumps({"address": address}), flush=True)
    def watch():
        while os.read(0, 4096):
            pass
        listening.stop()
    threading.Thread(target=watch, daemon=True).start()
try:
    serve_page(Starlette(), Place(port=int(sys.argv[1])), announce)
except PageUnavailable as err:
    sys.exit(str(err))
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a page's process at a port, or another program."""
    monkeypatch.setattr(child_module, "PAUSES_S", (0.01, 0.05))
    made = []

    def started(port: int = 0, program: str = PROGRAM, *, asked_for: bool = True) -> WebChild:
        made.append(WebChild([sys.executable, "-c", program, str(port)], tmp_path / "page.log", asked_for=asked_for))
        return made[-1]

    yield started
    for each in made:
        each.stop()


def until(holds, child: WebChild | None = None) -> None:
    """Waits until something holds, with ticks as a server's loop makes them."""
    for _ in range(1200):
        if child is not None:
            child.tick()
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it never came to hold")


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_page_tells_its_address_starts_again_after_a_kill_and_ends(start):
    child = start()
    until(lambda: child.address, child)
    address, pid = child.address, child._child.pid
    assert httpx.get(address).status_code == 404
    os.kill(pid, signal.SIGKILL)
    until(lambda: is_gone(pid))
    until(lambda: child.address and child._child.pid != pid, child)
    assert httpx.get(child.address).status_code == 404
    last = child._child.pid
    child.stop()
    assert (child.address, is_gone(last)) == ("", True)
    child.stop()  # once more is no error


def test_a_page_does_not_outlive_its_parent(tmp_path):
    parent = (
        "import sys, time; from pathlib import Path; from confide.client_node.web.child import WebChild\n"
        "child = WebChild([sys.executable, '-c', sys.argv[1], '0'], Path(sys.argv[2]), asked_for=True)\n"
        "child.tick()\n"
        "while not child.address: time.sleep(0.01)\n"
        "print(child._child.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", parent, PROGRAM, str(tmp_path / "page.log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        pid = int(process.stdout.readline())
        assert not is_gone(pid)
        process.kill()
    until(lambda: is_gone(pid))


@pytest.mark.parametrize(("asked_for", "most"), [(False, 1), (True, 100)])
def test_a_port_that_is_taken_is_told_once_unless_a_person_asked_for_it(start, caplog, asked_for, most):
    first = start()
    until(lambda: first.address, first)
    port = int(first.address.rpartition(":")[2])
    second = start(port, asked_for=asked_for)

    def told() -> int:
        return sum("no page: its process ended" in each.message for each in caplog.records)

    with caplog.at_level(logging.WARNING):
        log = Path(second.log_path)
        until(lambda: log.read_text().count("another program does") >= 3, second)
        until(lambda: second._child is None, second)
    assert second.address == ""
    assert 1 <= told() <= most
    assert (told() > 1) == asked_for


def test_pauses_between_starts_grow_to_a_bound_and_a_program_that_is_not_there_is_no_error(
    tmp_path, monkeypatch, caplog
):
    child = WebChild([str(tmp_path / "none")], tmp_path / "page.log", asked_for=True)
    child.tick()
    child.tick()
    child.stop()
    assert sum("cannot be started" in each.message for each in caplog.records) == 1


@pytest.mark.parametrize("said", ["", "no JSON", "[]", '{"other": 1}', '"' + "x" * 10_000])
def test_a_process_that_tells_no_address_has_none(start, said):
    child = start(program=f"import time; print({said!r}, flush=True); time.sleep(600)")
    child.tick()
    child._ear.join(30)
    assert not child._ear.is_alive()
    assert child.address == ""


def test_an_address_of_a_process_that_has_ended_is_not_told(start):
    child = start(program="""print('{"address": "http://127.0.0.1:1"}')""", asked_for=False)
    for _ in range(5):
        child.tick()
        until(lambda: child._child is None or child._child.poll() is not None)
        child.tick()
        assert child.address == ""
        until(lambda: not [each for each in child_module.threading.enumerate() if each.name == "page"])
        assert child.address == ""
        time.sleep(0.06)


def test_the_log_of_a_page_that_lives_is_kept_small(start, monkeypatch):
    monkeypatch.setattr(child_module, "_LOG_S", 0.0)
    talking = "import json, os, sys\nprint(json.dumps({'address': 'here'}), flush=True)\n"
    talking += "os.write(2, b'x' * (9 << 20))\nos.read(0, 1)"
    child = start(program=talking)
    until(lambda: child.log_path.with_name("page.log.1").exists(), child)
    assert child.log_path.stat().st_size < 1 << 20
    assert child.address == "here"


LIVELY = """
import os, sys, threading, time
from contextlib import contextmanager
from pathlib import Path
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from confide.client_node.web import process
process.SIGN_S, process.END_S = 0.02, 0.2
async def block(request):
    os.write(2, b"hangs")
    time.sleep(600)
def hold(request):
    os.write(2, b"hangs")
    threading.Event().wait()
@contextmanager
def opened(home, place):
    paths = {"/": lambda _: PlainTextResponse("well"), "/block": block, "/hold": hold}
    yield Starlette(routes=[Route(path, answer) for path, answer in paths.items()])
sys.exit(process.run(opened))
"""


def test_a_thread_that_fails_leaves_no_text_in_the_log(tmp_path):
    """It may quote what it met; the page's own threads and those of libraries end in one place."""
    fails = "def hold(request):\n    raise ValueError('a record')"
    begin = "@contextmanager\ndef opened(home, place):\n"
    own = LIVELY.replace(begin, f"{fails}\n{begin}    threading.Thread(target=hold, args=[0]).start()\n")
    place = json.dumps({"home": str(tmp_path), "host": "127.0.0.1", "port": 0, "certificate": None, "key": None})
    child = WebChild([sys.executable, "-c", own, place], tmp_path / "page.log", asked_for=True)
    try:
        until(lambda: child.address, child)
        until(lambda: "ValueError in __main__" in child.log_path.read_text())
        assert "a record" not in child.log_path.read_text()
    finally:
        child.stop()


class Clock:
    """The system's clock, which may be ahead."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(child_module, "time", found := Clock())
    return found


@pytest.fixture
def lively(tmp_path, monkeypatch, clock):
    """A page by `web.process`, which gives signs of life."""
    monkeypatch.setattr(child_module, "PAUSES_S", (0.01, 0.05))
    place = json.dumps({"home": str(tmp_path), "host": "127.0.0.1", "port": 0, "certificate": None, "key": None})
    child = WebChild([sys.executable, "-c", LIVELY, place], tmp_path / "page.log", asked_for=True)
    until(lambda: child.address, child)
    yield child
    child.stop(within_s=0.1)


@contextmanager
def asking(address: str, path: str, times: int) -> Iterator[None]:
    """Sends requests whose answers nobody waits for."""
    host, _, port = address.removeprefix("http://").partition(":")
    with ExitStack() as sent:
        for _ in range(times):
            connection = sent.enter_context(socket.create_connection((host, int(port))))
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        yield


@pytest.mark.parametrize("trouble", ["stopped", "/block 1", "/hold 40"])
def test_a_page_that_hangs_is_ended_and_started_anew(lively, clock, caplog, trouble):
    """Its process is stopped, its loop is blocked, or no thread is free."""
    pid = lively._child.pid
    path, _, times = trouble.partition(" ")

    def is_ended() -> bool:
        clock.ahead += 5.0
        return is_gone(pid)

    if not times:
        os.kill(pid, signal.SIGSTOP)
    with asking(lively.address, path, int(times or 0)):
        until(is_ended, lively)
    until(lambda: lively.address and lively._child.pid != pid, lively)
    assert httpx.get(lively.address).text == "well"
    assert sum("gave no sign of life" in each.message for each in caplog.records) == 1


@pytest.mark.parametrize("path", ["/block", "/hold"])
def test_a_page_that_hangs_does_not_outlive_its_parent(lively, path):
    """Its loop is blocked, or one of its threads."""
    pid = lively._child.pid
    with asking(lively.address, path, 1):
        until(lambda: "hangs" in lively.log_path.read_text())
        lively._child.stdin.close()  # as the system does when the parent ends
        until(lambda: is_gone(pid))


def test_a_page_gives_signs_of_life_as_long_as_one_thread_is_free(lively):
    with asking(lively.address, "/hold", 39):
        for _ in range(20):
            before = lively._sign
            until(lambda before=before: lively._sign > before)
    lively.tick()
    assert lively._child.poll() is None


def test_a_page_is_not_missed_by_a_parent_that_stood_still(lively, clock):
    os.kill(lively._child.pid, signal.SIGSTOP)
    for _ in range(10):
        clock.ahead += 3600.0
        lively.tick()
    assert not lively._hangs
    for _ in range(30):  # the same for one that looked; one that is ended starts anew, and does not hang any more
        clock.ahead += 5.0
        lively.tick()
        if lively._hangs:
            return
    pytest.fail("a page that gave no sign of life was not ended")


def test_a_page_that_hangs_at_once_each_time_is_given_up_as_one_that_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(child_module, "PAUSES_S", (0.01, 0.05))
    monkeypatch.setattr(child_module, "FIRST_SIGN_S", 0.01)
    silent = [sys.executable, "-c", "import time; time.sleep(600)"]
    child = WebChild(silent, tmp_path / "page.log", asked_for=False, tries=3)
    until(lambda: child._is_given_up, child)
    assert (child._child, child._failures) == (None, 3)

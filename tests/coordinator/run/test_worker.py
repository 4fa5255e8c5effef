"""The worker as a process of its own, with real forks; no SuperLink answers its drivers."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from confide.coordinator.run import worker as worker_module

pytestmark = pytest.mark.process


class Worker:
    """The process and its lines."""

    def __init__(self, home: Path, port: int) -> None:
        self._log = (home / "worker.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "confide.coordinator.run.worker", str(home), str(port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env=os.environ | {"FLWR_TELEMETRY_ENABLED": "0"},
        )  # fmt: skip

    def order(self, **order: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, object]:
        assert self.process.stdout is not None
        event: dict[str, object] = json.loads(self.process.stdout.readline())
        return event

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._log.close()


@pytest.fixture
def home(tmp_path, pki):
    pki.loopback_pair()  # which its CA is made with
    shutil.copytree(pki.ca_path.parent, tmp_path / "pki")
    return tmp_path


@pytest.fixture
def silent_port():
    """A port that takes connections and never answers, so drivers live."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def worker(home, silent_port):
    started = Worker(home, silent_port)
    assert started.hear() == {"ready": True}
    yield started
    started.close()


def drive(worker: Worker, run: str) -> int:
    worker.order(drive=run, token="token")
    event = worker.hear()
    assert event["run"] == run
    return int(str(event["began"]))


def test_a_driver_without_a_superlink_ends_and_says_so_in_the_worker_s_log(home):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        worker = Worker(home, closed.getsockname()[1])
        assert worker.hear() == {"ready": True}
        pid = drive(worker, "run-1")
        assert worker.hear() == {"ended": pid, "code": worker_module.UNFINISHED}
        worker.close()
    log = (home / "worker.log").read_text()
    assert "the driver of run run-1 ended" in log
    assert "ConnectError" in log


def test_one_driver_is_killed_and_the_others_live(worker):
    first, second = drive(worker, "run-1"), drive(worker, "run-2")
    worker.order(kill=first)
    assert worker.hear() == {"ended": first, "code": -signal.SIGKILL}
    assert psutil.pid_exists(second)
    os.kill(second, signal.SIGKILL)
    assert worker.hear() == {"ended": second, "code": -signal.SIGKILL}


def test_a_number_that_is_no_driver_s_is_not_killed(worker):
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        worker.order(kill=stranger.pid)
        assert worker.hear() == {"ended": stranger.pid, "code": None}  # so that nobody waits for its end
        assert stranger.poll() is None
        pid = drive(worker, "run-1")
        worker.order(kill=pid)
        assert worker.hear()["ended"] == pid
    finally:
        stranger.communicate()


def is_driver(pid: int) -> bool:
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and worker_module.__name__ in process.cmdline()
    return False


@pytest.mark.parametrize("how", ["closed input", "killed"])
def test_drivers_end_with_the_worker_and_the_worker_with_its_parent(worker, how):
    drivers = [drive(worker, run) for run in ("run-1", "run-2")]
    if how == "killed":
        worker.process.kill()
    else:
        worker.process.stdin.close()
        worker.process.stdin = None
    worker.process.wait(60)
    end = time.monotonic() + 60
    while any(map(is_driver, drivers)):
        assert time.monotonic() < end, "a driver lives on"
        time.sleep(0.05)

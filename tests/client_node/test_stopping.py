"""A daemon that is told to stop ends soon, with a real process and a real signal, whatever it does just then."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from confide.client_node.stopping import GRACE_S
from confide.coordinator.federation.pki import Pki

from .conftest import Site

pytestmark = [pytest.mark.process, pytest.mark.slow]

PROLOGUE = """
import subprocess, sys, threading, time
from confide.client_node.cli.application import until_stopped
from confide.client_node.stopping import run_until
stop = until_stopped()
def work():
"""
WORK = {
    "a step that goes on in a C function": """
    import ctypes
    print("busy", flush=True)
    ctypes.CDLL(None).sleep(600)
    """,
    "a worker that is waited for": """
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print("busy", child.pid, flush=True)
    child.wait()
    """,
    "modules that are imported": """
    print("busy", flush=True)
    while True:
        exec(compile("x = [i for i in range(10**5)]", "module", "exec"), {})
    """,
}
END = "\nsys.exit(run_until(stop, work))"


@pytest.mark.parametrize(
    ("doing", "number"), [*((doing, signal.SIGTERM) for doing in WORK), (next(iter(WORK)), signal.SIGINT)]
)
def test_work_that_does_not_end_is_cut_off_with_its_children(doing: str, number: signal.Signals) -> None:
    program = PROLOGUE + WORK[doing] + END
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as daemon:
        assert daemon.stdout is not None
        assert daemon.stderr is not None
        said = daemon.stdout.readline().split()
        daemon.send_signal(number)
        assert daemon.wait(GRACE_S + 30) == 0
        assert "stopped in the middle of its work" in daemon.stderr.read()
    for pid in map(int, said[1:]):
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_work_that_ends_in_time_ends_the_daemon_with_its_own_code() -> None:
    program = PROLOGUE + "    print('busy', flush=True)\n    stop.wait()\n    return 77" + END
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        daemon.terminate()
        assert daemon.wait(60) == 77


def test_an_error_of_the_work_is_the_commands_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "confide.client_node.cli.main", "run", "--home", str(tmp_path)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "IdentityMissing" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("line", ["", "svi starts", "trying again"])
def test_a_real_daemon_stops_while_it_loads_and_while_nobody_answers(site: Site, tmp_path: Path, line: str) -> None:
    pki = Pki.create(tmp_path / "coordinator", [])
    (site.home / "ca.crt").write_bytes(pki.ca_path.read_bytes())
    command = [sys.executable, "-m", "confide.client_node.cli.main", "run", "--home", str(site.home)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as daemon:
        assert daemon.stderr is not None
        if line:
            while line not in (said := daemon.stderr.readline()):
                assert said, "the daemon ended by itself"
        else:  # its modules are being imported
            until_handled(daemon.pid)
        daemon.terminate()
        assert daemon.wait(60) == 0


def until_handled(pid: int) -> None:
    """Waits until the process has its own handler of SIGTERM."""
    caught = 0
    while not caught >> (signal.SIGTERM - 1) & 1:
        text = Path(f"/proc/{pid}/status").read_text()
        caught = int(next(each for each in text.splitlines() if each.startswith("SigCgt")).split()[1], 16)

"""The page as people meet it: `coordinator serve` starts its process, `coordinator page` prints a link to it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from confide.coordinator.federation import Settings, create_home
from confide.machine import free_ports

pytestmark = [pytest.mark.process, pytest.mark.slow]
COORDINATOR = [str(Path(sys.executable).parent / "coordinator")]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("page") / "home"
    gate, superlink = free_ports(2)
    create_home(home, Settings(federation="Four hospitals", address=f"127.0.0.1:{gate}", listen="127.0.0.1",
                               port=gate, superlink_port=superlink))  # fmt: skip
    return home


def told(home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COORDINATOR, *command, "--home", str(home)], capture_output=True, text=True, timeout=120)


def modules_of(pid: int) -> set[str]:
    """Names of the shared libraries that a process has loaded."""
    return {Path(each.path).name for each in psutil.Process(pid).memory_maps()}


def test_without_a_server_there_is_no_link(home):
    found = told(home, "page")
    assert found.returncode != 0
    assert "start `coordinator serve`" in found.stderr


def test_a_server_starts_a_page_lets_browsers_in_by_links_and_ends_it(home, tmp_path):
    log = tmp_path / "serve.log"
    with (
        log.open("wb") as out,
        subprocess.Popen([*COORDINATOR, "serve", "--home", str(home), "--page", "0"], stderr=out) as server,
    ):
        try:
            for _ in range(600):
                found = told(home, "page", "--json")
                if found.returncode == 0:
                    break
                assert server.poll() is None, log.read_text()
            link = json.loads(found.stdout)
            (link,) = [each for each in link.values() if "/enter?link=" in str(each)]
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/enter\?link=[\w-]{43}", link)
            assert link.partition("=")[2] not in log.read_text()
            with httpx.Client(follow_redirects=True) as browser:
                answer = browser.get(link)
                assert (answer.status_code, "Four hospitals" in answer.text) == (200, True)
                assert browser.get(link).status_code == 403
                assert browser.get(link.partition("/enter")[0] + "/runs").status_code == 200
            (page,) = [each for each in psutil.Process(server.pid).children(recursive=True)
                       if "confide.coordinator.page.process" in each.cmdline()]  # fmt: skip
            assert not {name for name in modules_of(page.pid) if "torch" in name}
            assert (home / "page-links").stat().st_mode & 0o777 == 0o700
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
            assert not page.is_running() or page.status() == psutil.STATUS_ZOMBIE
        finally:
            if server.poll() is None:
                os.kill(server.pid, signal.SIGKILL)
    assert (home / "page.log").read_text() == ""

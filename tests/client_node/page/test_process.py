"""The page of a daemon that runs, from its start to its end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from confide.client_node import vitals
from confide.client_node.daemon import PAGE_FILE
from confide.client_node.login import login_name
from confide.client_node.web.child import noted_address

pytestmark = pytest.mark.process

NODE = str(Path(sys.executable).parent / "client-node")


def told(home, *words):
    return subprocess.run([NODE, *words, "--home", str(home)], capture_output=True, text=True, timeout=120)


def until(is_so):
    for _ in range(1800):
        if is_so():
            return
        time.sleep(0.1)
    raise AssertionError("it never came to that")


@pytest.fixture
def daemon(site):
    """A daemon with a page, which finds no coordinator."""
    with subprocess.Popen([NODE, "run", "--home", str(site.home), "--page", "0"], stderr=subprocess.PIPE) as running:
        try:
            until(lambda: noted_address(site.home / PAGE_FILE))
            yield running
        finally:
            running.kill()


def test_a_link_opens_the_page_of_the_daemon_and_all_ends_together(site, daemon):
    link = told(site.home, "page").stdout.strip()
    assert link.startswith("http://127.0.0.1:")
    with httpx.Client(follow_redirects=True) as client:
        shown = client.get(link)
        assert shown.status_code == 200
        assert "is not reached" in shown.text
        assert login_name() in shown.text
        assert "default-src 'none'" in shown.headers["content-security-policy"]
        host = {"Host": f"elsewhere.example:{httpx.URL(link).port}"}
        assert client.get(link.partition("/enter")[0], headers=host).status_code == 421
    assert link.partition("/enter")[0] in told(site.home, "status").stdout
    standing = vitals.noted(site.home)
    assert standing is not None
    assert not standing.is_connected
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(60) == 0
    assert not (site.home / PAGE_FILE).exists()
    assert "no daemon runs here" in told(site.home, "page").stderr
    with pytest.raises(httpx.ConnectError):
        httpx.get(link)


def test_the_page_outlives_no_daemon_that_was_killed(site, daemon):
    address = noted_address(site.home / PAGE_FILE)
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.wait(60)

    def is_gone():
        try:
            httpx.get(address)
        except httpx.ConnectError:
            return True
        except httpx.TransportError:  # it is about to end
            return False
        return False

    until(is_gone)


def test_what_is_no_port_is_wrong_usage(site):
    for odd in ("abc", "70000", "0.0.0.0:80", "٣", "9" * 5000):
        found = told(site.home, "run", "--page", odd)
        assert found.returncode == 2
        assert "is neither a port nor none" in " ".join(found.stderr.replace("│", " ").split())


AS_NOBODY = """
import encodings.idna, os, sys, urllib.request  # before it may read nothing of ours any more
os.setgid(65534); os.setuid(65534)
asked = urllib.request.Request(sys.argv[1], headers={"Cookie": sys.argv[2]})
print(urllib.request.urlopen(asked).geturl())
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root acts under another account")
def test_another_account_does_nothing_with_a_cookie_that_it_was_shown(site, daemon):
    """A browser shows the cookies of a host to each of its ports, whoever listens there."""
    link = told(site.home, "page").stdout.strip()
    page = link.partition("enter")[0]
    with httpx.Client(follow_redirects=True) as client:
        client.get(link)
        cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        stolen = subprocess.run(
            ["/usr/bin/env", "python3", "-I", "-c", AS_NOBODY, page, cookie], capture_output=True, text=True, timeout=60
        )
        assert stolen.stdout.strip() == f"{page}login", stolen.stderr
        assert client.get(page).url == page


LISTENS = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
with socket.create_server(("127.0.0.1", 0)) as here:
    print(here.getsockname()[1], flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root acts under another account")
def test_no_link_is_made_to_a_port_that_another_account_has_taken(site, daemon):
    with subprocess.Popen(
        ["/usr/bin/env", "python3", "-I", "-c", LISTENS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        noted = site.home / PAGE_FILE  # as a daemon that ended by a power cut leaves it
        noted.write_text(json.dumps({"address": f"http://127.0.0.1:{int(other.stdout.readline())}"}))
        refused = told(site.home, "page")
        other.stdin.close()
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert "no program of this node's account" in " ".join(refused.stderr.split())
    assert not list((site.home / "page-links").glob("*"))
    assert "no program of this node's account" in " ".join(told(site.home, "page").stderr.split())  # nor to nobody's

import fcntl
import importlib.util
import json
import subprocess
import sys
import threading
import time

import pytest

from confide.client_node import daemon, warm_node
from confide.client_node.approval.confirmed_sites import fingerprint
from confide.client_node.daemon import run, status
from confide.client_node.errors import AlreadyRunning, NotEnrolled
from confide.client_node.policy import decisions

from .conftest import identity_of

HOLD = "import fcntl, sys; lock = open(sys.argv[1], 'a'); fcntl.flock(lock, fcntl.LOCK_EX); print('held', flush=True)"


@pytest.fixture
def another_daemon(site):
    """A process that holds the home as a daemon would, until its input closes."""
    script = f"{HOLD}; sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(site.home / "daemon.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    yield child
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()


class PlayedConnection:
    """Stands where the way to the coordinator would be; notes whether the home was held meanwhile."""

    def __init__(self, identity, enrolment, handle, vitals, *, may_refuse, traffic):
        self.home, self.handle, self.may_refuse = identity.home, handle, may_refuse

    def run(self, stop):
        assert status(self.home)["running"]
        return 77


@pytest.mark.process
@pytest.mark.usefixtures("another_daemon")
def test_a_second_daemon_on_one_home_is_refused_before_it_touches_the_ledger(site):
    with pytest.raises(AlreadyRunning, match=f"a daemon serves {site.home} already"):
        run(site.home, threading.Event())
    assert not (site.home / "ledger.db").exists()


@pytest.mark.process
@pytest.mark.usefixtures("another_daemon")
def test_status_sees_a_running_daemon(site):
    assert status(site.home)["running"]


@pytest.mark.process
def test_a_daemon_that_was_killed_leaves_the_home_free(site, another_daemon):
    another_daemon.kill()
    another_daemon.wait()
    assert not status(site.home)["running"]


def test_status_says_who_this_is_and_nothing_of_its_records(site):
    assert status(site.home) == {
        "name": "svi",
        "roles": ["train"],
        "identity": site.identity.identity_hex,
        "fingerprint": fingerprint(site.identity.identity_hex),
        "coordinator_key": identity_of("coordinator"),
        "coordinator": "127.0.0.1:1",
        "running": False,
        "keys": "not encrypted",
        "page": None,
        "ledger": "none yet",
    }


def test_status_leaves_the_home_free(site):
    status(site.home)
    with (site.home / "daemon.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_status_of_a_home_without_enrolment_says_so(tmp_path):
    with pytest.raises(NotEnrolled, match="client-node enroll CODE"):
        status(tmp_path)


@pytest.mark.parametrize(("roles", "has_ledger"), [(["train"], True), (["aggregate"], False)])
def test_a_daemon_keeps_a_ledger_only_where_it_trains(site, monkeypatch, roles, has_ledger):
    kept = {"name": "svi", "roles": roles, "address": "127.0.0.1:1", "coordinator": identity_of("coordinator")}
    (site.home / "enrolment.json").write_text(json.dumps(kept))
    monkeypatch.setattr(warm_node, "WarmNode", PlayedConnection)
    assert run(site.home, threading.Event()) == 77
    assert (site.home / "ledger.db").exists() is has_ledger


def test_a_daemon_says_at_once_what_is_wrong_with_its_policy(site, monkeypatch, caplog):
    monkeypatch.setattr(warm_node, "WarmNode", PlayedConnection)
    run(site.home, threading.Event())
    assert "no study can run" not in caplog.text
    site.write(("[limits]", "[limits]\nworkers = 2"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run(site.home, threading.Event()) == 77
    assert "no study can run" in caplog.text
    assert "pip install 'confide[deepspeed]'" in caplog.text


def test_a_daemon_whose_connection_breaks_frees_the_home(site, monkeypatch):
    class Broken(PlayedConnection):
        def run(self, stop):
            raise OSError("no network")

    monkeypatch.setattr(warm_node, "WarmNode", Broken)
    with pytest.raises(OSError, match="no network"):
        run(site.home, threading.Event())
    assert not status(site.home)["running"]


@pytest.mark.parametrize(
    ("is_approved", "workers", "imports"), [(True, 0, True), (False, 0, False), (True, 2, False)],
    ids=["approved", "nothing approved", "workers compute"],
)  # fmt: skip
def test_a_daemon_imports_ahead_what_an_approved_study_needs(site, monkeypatch, is_approved, workers, imports):
    imported = threading.Event()
    monkeypatch.setattr(warm_node, "WarmNode", PlayedConnection)
    monkeypatch.setattr(daemon, "_import_ahead", imported.set)
    site.write(("[limits]", f"[limits]\nworkers = {workers}"))
    if is_approved:
        decisions.approve(site.home, "ab" * 32)
    run(site.home, threading.Event())
    assert imported.wait(1.0 if imports else 0.1) is imports


def test_a_daemon_that_stops_waits_for_the_end_of_an_import(site, monkeypatch):
    """An interpreter that ends in the middle of torch's import aborts."""
    imported = []

    def import_slowly():
        time.sleep(0.5)
        imported.append(True)

    monkeypatch.setattr(warm_node, "WarmNode", PlayedConnection)
    monkeypatch.setattr(daemon, "_import_ahead", import_slowly)
    decisions.approve(site.home, "ab" * 32)
    run(site.home, threading.Event())
    assert imported


def test_what_is_imported_ahead_is_there():
    daemon._import_ahead()
    assert "confide.client_node.training.trainer" in sys.modules

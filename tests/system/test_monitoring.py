"""Real processes, scraped as Prometheus does: their monitors, their logs, and what a supervisor hears of them."""

import http.client
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from confide.coordinator.demo.processes import DemoFederation, environment
from confide.coordinator.federation import Settings, create_home
from confide.coordinator.store.store import Store
from confide.machine import free_ports

from .conftest import PARTIES, ROUNDS, SITES, finish, start_run, wait_for

pytestmark = pytest.mark.process

PAGE = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()


def told(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, body


def port_of(log: Path) -> int:
    return int(re.findall(r"metrics at http://127\.0\.0\.1:(\d+)", log.read_text())[-1])


def scraped(port: int) -> dict[str, dict[tuple[str, ...], float]]:
    """Values by the series' name, then by its labels' values, sorted by the labels' names."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(told(port, "/metrics")[1]):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def listed(role: str) -> set[str]:
    """Names in the page's table of that role."""
    table = PAGE.partition(f"### {role}\n")[2].partition("\n#")[0]
    return set(re.findall(r"^\| `(confide_\w+)", table, re.MULTILINE))


@pytest.fixture(scope="module")
def run(federation: DemoFederation) -> str:
    found = start_run(federation)
    finish(federation, found)
    return found


def test_all_processes_live_and_are_ready(federation: DemoFederation, run: str) -> None:
    for name in ("coordinator", *federation.nodes):
        port = port_of(federation.log(name))
        assert told(port, "/healthz") == (200, '{"ok": true, "reason": ""}\n'), name
        assert told(port, "/readyz") == (200, '{"ok": true, "reason": ""}\n'), name
        program = "coordinator" if name == "coordinator" else "client-node"
        assert federation.command(program, "health", str(port), "--ready").strip() == "ready"


def test_the_coordinator_tells_what_its_store_holds_and_each_site_its_own_ledger(
    federation: DemoFederation, run: str
) -> None:
    port = port_of(federation.log("coordinator"))
    # Ledgers are read by a thread of their own, every few seconds.
    wait_for(lambda: len(scraped(port).get("confide_epsilon_guaranteed", {})) == len(SITES), "ledgers are read", 60)
    found = scraped(port)
    store = Store.open(federation.home)
    rounds = [row for each in store.runs() for row in store.rounds(each.id)]
    store.close()
    assert found["confide_rounds_committed_total"] == {(): len(rounds)}
    assert found["confide_sealed_bytes_per_site_total"] == {(): sum(row.bytes_per_site for row in rounds)}
    assert found["confide_runs"]["done",] >= 1
    assert found["confide_members"] == {("enrolled",): 7, ("invited",): 0, ("revoked",): 0}
    assert found["confide_node_online"] == {(name,): 1 for name in (*SITES, *PARTIES)}
    assert found["confide_gate_requests_total"]["give",] > 7 * ROUNDS
    assert found["confide_gate_sent_bytes_total"][()] > 0
    ends = found["confide_certificate_expiry_timestamp_seconds"]
    assert set(ends) == {("ca", ""), ("server", ""), *(("party", party) for party in PARTIES)}
    assert ends["server", ""] < ends["ca", ""]
    for site in SITES:
        own = scraped(port_of(federation.log(site)))
        for name in ("confide_epsilon_guaranteed", "confide_epsilon_cap", "confide_budget_filled_ratio"):
            label = (site, site, "patient")
            assert own[name] == {label: found[name][label]}
        assert own["confide_epsilon_guaranteed"][site, site, "patient"] == math.inf  # the study has no noise
        assert own["confide_node_questions_total"]["step",] >= ROUNDS
        assert own["confide_node_answers_total"]["step", "answered"] >= ROUNDS
        assert own["confide_node_sent_bytes_total"][()] > 1000 * ROUNDS


def test_every_metric_is_on_the_page_and_no_other(federation: DemoFederation, run: str) -> None:
    """A new metric has to be put there, with why it says nothing of a record."""
    everywhere = listed("Every process")
    for role, name in (("Coordinator", "coordinator"), ("Site", "north"), ("Aggregator", "agg-a")):
        text = told(port_of(federation.log(name)), "/metrics")[1]
        found = {each.name.removesuffix("_total") for each in text_string_to_metric_families(text)}
        assert {each.removesuffix("_info") for each in found} == {
            each.removesuffix("_info") for each in everywhere | listed(role)
        }, role


def test_every_line_of_the_logs_is_one_json_object(federation: DemoFederation, run: str) -> None:
    logs = [federation.log(name) for name in ("coordinator", *federation.nodes)]
    for path in (*logs, federation.home / "runs" / run / "driver.log"):
        lines = path.read_text().splitlines()
        assert lines, path
        for line in lines:
            said = json.loads(line)
            assert {"time", "level", "logger", "event", "message"} <= set(said), line
            assert set(said) <= {"time", "level", "logger", "event", "message", "traceback"}, line
    events = [json.loads(line)["event"] for line in federation.log("north").read_text().splitlines()]
    assert "run %s: round %d begins" in events


@pytest.fixture
def supervised(tmp_path: Path):
    """A supervisor's socket, and the environment that it gives to what it starts."""
    ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ear.bind(str(tmp_path / "notify"))
    ear.settimeout(120)
    yield ear, environment() | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "900000"}
    ear.close()


def heard_until(ear: socket.socket, word: str, seconds: float) -> list[str]:
    found: list[str] = []
    wait_for(lambda: found.append(ear.recv(4096).decode()) or word in found, word, seconds)
    return found


def test_a_supervisor_hears_that_the_coordinator_is_ready_lives_and_stops(supervised, tmp_path: Path) -> None:
    ear, given = supervised
    home, (gate, superlink) = tmp_path / "home", free_ports(2)
    settings = Settings(
        federation="f", address=f"127.0.0.1:{gate}", listen="127.0.0.1", port=gate, superlink_port=superlink
    )
    create_home(home, settings)
    command = [str(Path(sys.executable).parent / "coordinator"), "serve", "--home", str(home)]
    with subprocess.Popen(command, env=given, stderr=subprocess.PIPE, text=True) as server:
        try:
            before = heard_until(ear, "READY=1", 300)
            assert set(before) <= {"WATCHDOG=1", "READY=1"}  # the gate lives while the SuperLink starts
            assert heard_until(ear, "WATCHDOG=1", 60)
            os.kill(server.pid, signal.SIGSTOP)
            ear.settimeout(0.2)
            drain(ear)  # what was sent before
            ear.settimeout(2)
            with pytest.raises(TimeoutError):  # one that stands still says nothing, so that it is started anew
                ear.recv(4096)
            os.kill(server.pid, signal.SIGCONT)
            ear.settimeout(120)
            assert heard_until(ear, "WATCHDOG=1", 60)
            server.terminate()
            assert heard_until(ear, "STOPPING=1", 60)
            assert server.wait(60) == 0
        finally:
            server.kill()


def drain(ear: socket.socket) -> None:
    while True:
        try:
            ear.recv(4096)
        except TimeoutError:
            return


def test_a_supervisor_hears_of_a_node_even_while_its_coordinator_is_away(
    federation: DemoFederation, supervised, tmp_path: Path
) -> None:
    ear, given = supervised
    code = federation.operator("site", "invite", "late", "--json")
    home = tmp_path / "late"
    federation.command("client-node", "enroll", json.loads(code)["code"], "--home", str(home))
    enrolled = json.loads((home / "enrolment.json").read_text())
    closed = f"127.0.0.1:{free_ports(1)[0]}"
    (home / "enrolment.json").write_text(json.dumps(enrolled | {"address": closed}))
    command = [
        str(Path(sys.executable).parent / "client-node"),
        "run",
        "--home",
        str(home),
        "--monitor",
        "0",
        "--page",
        "none",
    ]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, env=given, stderr=log) as node:
        try:
            heard_until(ear, "READY=1", 300)
            heard_until(ear, "WATCHDOG=1", 60)
            port = port_of(tmp_path / "log")
            assert told(port, "/healthz")[0] == 200
            wait_for(lambda: "not connected to" in told(port, "/readyz")[1], "the node says why", 60)
            status, reason = told(port, "/readyz")
            assert status == 503
            assert closed in json.loads(reason)["reason"]
            assert scraped(port)["confide_node_connected"] == {(): 0}
            node.terminate()
            heard_until(ear, "STOPPING=1", 60)
            assert node.wait(60) == 0
        finally:
            node.kill()
            federation.operator("site", "revoke", "late", "--yes")

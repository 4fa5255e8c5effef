"""Measures what a question to many sites costs the coordinator, by process, and what idle sites cost it.

Gate, SuperLink and driver are the real ones, each a process of its own; the sites are daemons' connections without a
model, threads of one more process, which answer each question with its own bytes. A round is one question to all of
them. Times are processor time, so other work on the machine disturbs them little. `--work` lets the sites answer so
many seconds late: what the coordinator spends while it waits is then in the figures.

    python benchmarks/messages.py [--sites 10] [--bytes 70000] [--rounds 10] [--work 0] [--idle 60] [--json]
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
from rounds import open_gate

from confide.client_node.enrolment import Enrolment, NodeIdentity, enrol
from confide.client_node.warm_node import WarmNode
from confide.client_node.wire.messages import Packet
from confide.coordinator.federation import Pki
from confide.coordinator.federation.invites import code_text
from confide.coordinator.fleet.flower import Fleet, open_grid
from confide.coordinator.gateway.superlink import SuperLink

WARM_UP = 2  # rounds that do not count


def serve_nodes(homes: list[Path], work_s: float) -> None:
    """The sites, until the parent is gone."""

    def answer(kind: str, packet: Packet) -> Packet:
        time.sleep(work_s)
        return packet

    stop = threading.Event()
    for home in homes:
        node = WarmNode(NodeIdentity.load(home), Enrolment.load(home), answer)
        threading.Thread(target=node.run, args=(stop,), daemon=True).start()
        time.sleep(0.03)
    sys.stdin.read()


def drive(home: Path, plan: dict[str, Any]) -> None:
    """A driver: at each line from the parent so many rounds; prints seconds and bytes, a line for each order."""
    names, update = json.loads((home / "register.json").read_text()), secrets.token_bytes(plan["bytes"])
    with open_grid(plan["port"], Pki.load(home).loopback_ca_path, plan["token"]) as grid:
        fleet = Fleet(grid, lambda: names)
        while len(fleet.online()) < len(names):
            time.sleep(0.2)
        print("ready", flush=True)
        for line in sys.stdin:
            seconds = []
            for _ in range(int(line)):
                began = time.monotonic()
                packet = Packet(secrets.token_bytes(16), {"update": update})
                replies = dict(fleet.ask("round", dict.fromkeys(names.values(), packet), 600))
                assert all(replies[name] == packet for name in names.values()), replies
                seconds.append(time.monotonic() - began)
            print(json.dumps(seconds), flush=True)


@contextmanager
def child(*arguments: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """One of this file's other roles, as a process that ends with the block."""
    command = [sys.executable, __file__, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


def spent(processes: dict[str, int]) -> dict[str, float]:
    """Processor seconds of each process so far."""
    times = {name: psutil.Process(pid).cpu_times() for name, pid in processes.items()}
    return {name: each.user + each.system for name, each in times.items()}


def measure(home: Path, asked: argparse.Namespace) -> dict[str, Any]:
    pki = Pki.create(home, [])
    superlink = SuperLink(home, 0)
    names = [f"site-{number}" for number in range(asked.sites)]
    with ExitStack() as stack:
        stack.callback(superlink.stop)
        register, gate = open_gate(superlink, pki, names)
        stack.callback(gate.stop)
        superlink.start()
        for name in names:
            enrol(code_text(f"127.0.0.1:{gate.port}", secrets.token_bytes(16), pki.ca_digest), home / name)
        (home / "register.json").write_text(json.dumps(register.names))
        stack.enter_context(child("--nodes", str(home), "--work", str(asked.work), "--sites", str(asked.sites)))
        task = superlink.submit()
        plan = json.dumps({"bytes": asked.bytes, "port": superlink.port, "token": task.token})
        driver = stack.enter_context(child("--drive", str(home), plan, env=os.environ | superlink.driver_environment()))
        assert driver.stdin is not None
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"

        def rounds(count: int) -> list[float]:
            driver.stdin.write(f"{count}\n")
            driver.stdin.flush()
            return list(json.loads(driver.stdout.readline()))

        assert superlink.pid is not None
        processes = {"superlink": superlink.pid, "gate": os.getpid(), "driver": driver.pid}
        rounds(WARM_UP)
        before = spent(processes)
        seconds = sorted(rounds(asked.rounds))
        after = spent(processes)
        questions = asked.rounds * asked.sites
        row: dict[str, Any] = {
            "sites": asked.sites, "bytes": asked.bytes, "work_s": asked.work,
            "ms_a_site_and_question": {name: 1e3 * (after[name] - before[name]) / questions for name in processes},
            "median_round_s": seconds[len(seconds) // 2],
        }  # fmt: skip
        if asked.idle:
            time.sleep(5.0)  # what a question leaves behind is over
            before, began = spent(processes), time.monotonic()
            time.sleep(asked.idle)
            took, after = time.monotonic() - began, spent(processes)
            row["idle_percent_of_a_core_a_site"] = {
                name: 100 * (after[name] - before[name]) / took / asked.sites for name in processes
            }
        row["mb"] = {name: psutil.Process(pid).memory_info().rss // 10**6 for name, pid in processes.items()}
        row["load"] = round(os.getloadavg()[0], 1)
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--bytes", type=int, default=70_000, help="of each question and of each answer")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--work", type=float, default=0.0, help="seconds that each site takes to answer")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds for which idle sites are watched")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--nodes", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--drive", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.nodes:
        return serve_nodes([asked.nodes / f"site-{number}" for number in range(asked.sites)], asked.work)
    if asked.drive:
        return drive(Path(asked.drive[0]), json.loads(asked.drive[1]))
    with tempfile.TemporaryDirectory(prefix="confide-messages-") as folder:
        row = measure(Path(folder), asked)
    if asked.json:
        print(json.dumps(row))
        return
    cost = row["ms_a_site_and_question"]
    print(f"{row['sites']} sites, {row['bytes']:,} bytes, answers after {row['work_s']:g} s; load {row['load']}")
    print(f"  a site and question: {sum(cost.values()):6.1f} ms  ({listed(cost, '.1f')})")
    print(f"  round, median:       {row['median_round_s']:6.2f} s")
    if idle := row.get("idle_percent_of_a_core_a_site"):
        print(f"  an idle site:        {sum(idle.values()):6.4f} % of a core  ({listed(idle, '.4f')})")
    print(f"  memory, MB:          {listed(row['mb'], 'd')}")
    return None


def listed(values: dict[str, float], form: str) -> str:
    return ", ".join(f"{name} {value:{form}}" for name, value in values.items())


if __name__ == "__main__":
    main()

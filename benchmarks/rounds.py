"""Times rounds without training: our long-lived nodes behind the gate, beside Flower's stock SuperNode.

A round has three sites, TLS, enrolled keys, and an update of 1 MB out and back. The stock round does what Flower's
strategies do: `send_and_receive`, and for each message a new ClientApp process whose app imports torch. Both run on one
SuperLink, one after the other, so the ratio holds for the machine and its load at that time.

    python benchmarks/rounds.py [--json] [--rounds 8] [--stock-rounds 3] [--bytes 1000000]
"""

import argparse
import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from confide.client_node.enrolment import Enrolment, NodeIdentity, enrol
from confide.client_node.enrolment.identity import fingerprint
from confide.client_node.enrolment.protocol import EnrolAnswer, EnrolRequest
from confide.client_node.warm_node import WarmNode
from confide.client_node.wire.messages import Packet
from confide.coordinator.federation import Pki
from confide.coordinator.federation.invites import code_text
from confide.coordinator.fleet.flower import Fleet, open_grid
from confide.coordinator.fleet.wake import PORT_VARIABLE
from confide.coordinator.gateway.crowd import Limits
from confide.coordinator.gateway.gate import FleetGate, serve_gate
from confide.coordinator.gateway.listener import GateServer
from confide.coordinator.gateway.superlink import SuperLink

SITES = ("north", "south", "west")
BIN = Path(sys.executable).parent


class Register:
    """Names invited nodes in the order in which they come."""

    def __init__(self, superlink: SuperLink, pki: Pki, sites: Sequence[str]) -> None:
        self.names: dict[str, str] = {}
        self._superlink, self._pki, self._sites = superlink, pki, sites

    def enrol(self, request: EnrolRequest) -> EnrolAnswer:
        key, name = request.transport_public.encode(), self._sites[len(self.names)]
        self.names[fingerprint(key)] = name
        self._superlink.register(key, name)
        return EnrolAnswer(name=name, roles=("train",), coordinator=self._pki.identity_hex)

    def site_of(self, key: str) -> str | None:
        return self.names.get(key)

    def revoked_site(self, key: str) -> str | None:
        return None

    def left_site(self, key: str) -> str | None:
        return None

    def site_with_identity(self, identity: str) -> str | None:
        return None


def open_gate(superlink: SuperLink, pki: Pki, sites: Sequence[str]) -> tuple[Register, GateServer]:
    """A gate at which `sites` enrol, in this order."""
    register = Register(superlink, pki, sites)
    app = FleetGate(
        register, enrol=register.enrol, rotate=register.rotate,
        studies=lambda _: {"studies": []}, ca_path=pki.ca_path, superlink=superlink.port,
        secret=superlink.secret, superlink_ca=superlink.ca_path,
    )  # fmt: skip
    limits = Limits(per_address=32 + 10 * len(sites))  # all of them come from this machine
    return register, serve_gate(app, "127.0.0.1", 0, pki.certificate_path, pki.key_path, limits=limits)


def serve_node(home: Path) -> int:
    """One warm node; torch is loaded, as in a node that trains."""
    import torch  # noqa: F401

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    return WarmNode(NodeIdentity.load(home), Enrolment.load(home), lambda kind, packet: packet).run(stop)


def measure(home: Path, plan: dict) -> dict[str, list[float]]:
    """Seconds of each round, by mode."""
    pki = Pki.create(home, [])
    superlink = SuperLink(home, 0, fab=Path(__file__).resolve().parent / "rounds_fab")
    register, gate = open_gate(superlink, pki, SITES)
    with ExitStack() as stack:
        stack.callback(superlink.stop)
        stack.callback(gate.stop)
        superlink.start()
        os.environ |= {PORT_VARIABLE: str(superlink.port)}  # as a driver's environment has it
        for name in SITES:
            enrol(code_text(f"127.0.0.1:{gate.port}", secrets.token_bytes(16), pki.ca_digest), home / name)
        (home / "register.json").write_text(json.dumps(register.names))
        warm = {name: [sys.executable, __file__, "--node", str(home / name)] for name in SITES}
        stock = {
            name: [
                str(BIN / "flower-supernode"), "--superlink", f"127.0.0.1:{superlink.port}",
                "--root-certificates", str(pki.ca_path),
                "--auth-supernode-private-key", str(home / name / "keys" / "transport.key"),
                "--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(superlink.port + 1 + number),
            ]
            for number, name in enumerate(SITES)
        }  # fmt: skip
        return {mode: run(home, superlink, mode, nodes, plan) for mode, nodes in (("warm", warm), ("stock", stock))}


def run(home: Path, superlink: SuperLink, mode: str, nodes: dict[str, list[str]], plan: dict) -> list[float]:
    with ExitStack() as stack:
        for name, command in nodes.items():
            environment = os.environ | {
                "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "FLWR_HOME": str(home / name / "flower"),
                "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
                "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1", "OMP_NUM_THREADS": "1",
            }  # fmt: skip
            log = stack.enter_context((home / f"{mode}-{name}.log").open("wb"))
            node = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            stack.callback(node.wait)
            stack.callback(node.terminate)
        with open_grid(superlink.port, Pki.load(home).loopback_ca_path, superlink.submit().token) as grid:
            one_round = warm_round(grid, home, plan) if mode == "warm" else stock_round(grid, plan)
            return [timed(one_round) for _ in range(plan["rounds"][mode])]


def timed(one_round: Callable[[], None]) -> float:
    began = time.monotonic()
    one_round()
    return time.monotonic() - began


def stock_round(grid: Grid, plan: dict) -> Callable[[], None]:
    """A round as Flower's strategies make it."""
    update = np.random.default_rng(0).standard_normal(plan["bytes"] // 4).astype(np.float32)
    nodes = wait_until(lambda: [node.node_id for node in grid.get_nodes() if node.online_until > time.time()], plan)

    def one_round() -> None:
        record = RecordDict({"update": ArrayRecord([update])})
        replies = list(grid.send_and_receive([Message(record, node, "train", ttl=120) for node in nodes], timeout=120))
        assert len(replies) == len(nodes), replies
        assert all(reply.content["update"].to_numpy_ndarrays()[0].size == update.size for reply in replies)

    return one_round


def warm_round(grid: Grid, home: Path, plan: dict) -> Callable[[], None]:
    """A round of our own exchange."""
    update = np.random.default_rng(0).standard_normal(plan["bytes"] // 4).astype(np.float32)
    names = json.loads((home / "register.json").read_text())
    fleet = Fleet(grid, lambda: names)
    nodes = wait_until(fleet.online, plan)

    def one_round() -> None:
        packet = Packet(b"{}", {"update": update.tobytes()})
        replies = dict(fleet.ask("round", dict.fromkeys(nodes, packet), 120))
        assert all(replies[name] == packet for name in nodes), {name: str(reply) for name, reply in replies.items()}

    return one_round


def wait_until(online: Callable[[], Collection[Any]], plan: dict) -> Collection[Any]:
    end = time.monotonic() + 120
    while len(found := online()) < plan["sites"] and time.monotonic() < end:
        time.sleep(0.2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=8, help="timed rounds over warm nodes")
    parser.add_argument("--stock-rounds", type=int, default=3, help="timed rounds over stock nodes")
    parser.add_argument("--bytes", type=int, default=1_000_000, help="size of the update")
    parser.add_argument("--node", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.node:
        sys.exit(serve_node(asked.node))
    # One round more than asked: the first finds nodes that are still waking up.
    plan = {
        "bytes": asked.bytes, "sites": len(SITES), "rounds": {"warm": asked.rounds + 1, "stock": asked.stock_rounds + 1}
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="confide-rounds-") as folder:
        seconds = {mode: rounds[1:] for mode, rounds in measure(Path(folder), plan).items()}
    medians = {mode: statistics.median(rounds) for mode, rounds in seconds.items()}
    ratio = medians["stock"] / medians["warm"]
    if asked.json:
        print(json.dumps({"seconds": seconds, "median": medians, "ratio": ratio, "load": os.getloadavg()[0]}))
        return
    for mode, rounds in seconds.items():
        print(f"{mode:6} {medians[mode]:7.2f} s a round  ({', '.join(f'{round_:.2f}' for round_ in rounds)})")
    print(
        f"stock / warm = {ratio:.1f}  ({asked.bytes} bytes, {len(SITES)} sites, load average {os.getloadavg()[0]:.1f})"
    )


if __name__ == "__main__":
    main()

"""Measures what strangers at the gate's port cost the enrolled nodes: time, memory of the gate, size of its log.

    python benchmarks/gate.py [--attacks idle slow heads keys requests] [--seconds 8] [--turns 3] [--json]
    python benchmarks/gate.py --odd-keys 100000

The gate is the real one with its register in SQLite, behind it a stub of the SuperLink that answers at once; both, the
attacker and the nodes are processes of their own. Eight nodes ask ten times a second each on connections that they
keep, and one of them twice a second on a new one. Three kinds of turn alternate: *quiet*; *attack*; and *decoy*, the
same attack on a second gate of the same machine, which shows what part of a delay is only a busy machine. During
attacks enrolled liars speak for others, and a revoked key and a false signature are shown: each must be in the log.

Attackers come from 16 other addresses (all of 127.0.0.0/8 is this machine), with --shared from the nodes' own as well:
  idle      2,000 connections, opened anew when closed, that say nothing
  slow      100 that send a header byte by byte
  heads     40 that send a header without end, or headers without end
  keys      a mutated key each, 1,000 a second
  requests  a key made up but valid each, 1,000 a second
"""

import argparse
import asyncio
import base64
import contextlib
import datetime as dt
import json
import logging
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import uvicorn
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree
from flwr.proto.node_pb2 import Node
from gate_attacks import HERE, KINDS, PULL, Link, attack, good_keys, mutated, new_key, public_of, request
from measuring import allocated_mib

from confide.client_node.enrolment.identity import fingerprint
from confide.coordinator.federation import Pki, Register
from confide.coordinator.gateway.gate import FleetGate, serve_gate
from confide.coordinator.store import Store
from confide.coordinator.store.tables import NodeRow
from confide.machine import free_ports

NODES, LIARS = 8, 64
ELSEWHERE = [f"127.0.1.{number}" for number in range(1, 17)]
LIE = PushMessagesRequest(
    node=Node(node_id=7),
    messages_list=[Message(metadata=Metadata(src_node_id=8))],
    message_object_trees=[ObjectTree(object_id="a")],
).SerializeToString()


async def answer(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[dict[str, Any]], Any]) -> None:
    """The stub of a SuperLink."""
    if scope["type"] == "lifespan":
        for _ in range(2):
            await send({"type": (await receive())["type"] + ".complete"})
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
    await send({"type": "http.response.body", "body": b"x"})


def serve_stub(home: Path, port: int) -> None:
    pki = Pki.load(home)
    uvicorn.run(
        answer, port=port, ssl_certfile=pki.certificate_path, ssl_keyfile=pki.key_path, log_level="error",
        timeout_keep_alive=60,
    )  # fmt: skip


def opened(register: Register, pki: Pki, superlink: int) -> FleetGate:
    return FleetGate(
        register, enrol=register.enrol, rotate=register.rotate, studies=register.studies, ca_path=pki.ca_path,
        superlink=superlink,
    )  # fmt: skip


def serve(home: Path, superlink: int, log: Path) -> None:
    logging.basicConfig(filename=log, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    pki, store = Pki.load(home), Store.open(home)
    register = Register(store, pki)
    app = opened(register, pki, superlink)
    server = serve_gate(app, HERE, 0, pki.certificate_path, pki.key_path)
    print(server.port, flush=True)
    sys.stdin.read()
    server.stop()
    store.close()


def serve_alone(home: Path, log: Path) -> None:
    """Serves a gate of a federation of nobody."""
    Pki.create(home, [])
    Store.create(home).close()
    serve(home, free_ports(1)[0], log)


class Nodes:
    """Enrolled nodes that ask regularly, and note how long answers take."""

    def __init__(self, port: int, keys: list[ec.EllipticCurvePrivateKey]) -> None:
        self._port, self._keys = port, keys
        self.kept: list[float] = []
        self.new: list[float] = []
        self.failures: Counter[str] = Counter()

    async def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        await asyncio.gather(*(self._keep_asking(key, end) for key in self._keys), self._come_anew(end))

    async def _keep_asking(self, key: ec.EllipticCurvePrivateKey, end: float) -> None:
        data, link = request(key, "pull-messages", PULL), await Link.open(self._port)
        while (began := time.monotonic()) < end:
            await self._timed(self.kept, began, link.ask(data))
            await asyncio.sleep(max(0.0, 0.1 - (time.monotonic() - began)))
        link.close()

    async def _come_anew(self, end: float) -> None:
        data = request(self._keys[0], "pull-messages", PULL)

        async def once() -> int:
            link = await Link.open(self._port)
            try:
                return await link.ask(data)
            finally:
                link.close()

        while (began := time.monotonic()) < end:
            await self._timed(self.new, began, once())
            await asyncio.sleep(max(0.0, 0.5 - (time.monotonic() - began)))

    async def _timed(self, times: list[float], began: float, asked: Awaitable[int]) -> None:
        try:
            status: object = await asked
        except (OSError, EOFError, TimeoutError) as err:
            status = type(err).__name__
        if status == 200:
            times.append(1000 * (time.monotonic() - began))
        else:
            kind = "kept" if times is self.kept else "new"
            self.failures[f"{kind}: {status}"] += 1


class Bench:
    """All processes of a measurement."""

    def __init__(self, home: Path, stack: contextlib.ExitStack) -> None:
        self.home, self._stack = home, stack
        self.nodes, self.liars = [new_key() for _ in range(NODES)], [new_key() for _ in range(LIARS)]
        self.revoked = new_key()
        Pki.create(home, [])
        store = Store.create(home)
        with store.session() as session:
            for number, key in enumerate([*self.nodes, *self.liars, self.revoked]):
                public, now = public_of(key), time.time()
                session.add(NodeRow(
                    name=f"site-{number}", roles="train", fingerprint=fingerprint(public), transport_key=public,
                    enrolled_at=now, revoked_at=now if key is self.revoked else None,
                ))  # fmt: skip
        store.close()
        superlink = free_ports(1)[0]
        self.start("--stub", str(home), str(superlink))
        self.log = home / "gate.log"
        self.gate = self.start("--gate", str(home), str(superlink), str(self.log))
        self.decoy = self.start("--gate", str(home), str(superlink), str(home / "decoy.log"))
        self.port, self.decoy_port = (int(process.stdout.readline()) for process in (self.gate, self.decoy))

    def start(self, *words: str) -> Any:
        process = subprocess.Popen(
            [sys.executable, __file__, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    async def lie(self, number: int) -> None:
        """An enrolled node speaks for another, a revoked key comes, and somebody shows a key that is not his."""
        liar = self.liars[number]
        for data, expected in (
            (request(liar, "push-messages", LIE), 400),
            (request(self.revoked, "pull-messages", PULL), 401),
            (request(new_key(), "pull-messages", PULL, public_of(liar)), 401),
        ):
            assert await self._ask_until_heard(data) == expected

    async def _ask_until_heard(self, data: bytes) -> int:
        while True:
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                link = await Link.open(self.port)
                try:
                    return await link.ask(data)
                finally:
                    link.close()
            await asyncio.sleep(0.1)


def p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98] if len(times) > 1 else float("nan")


async def measure(bench: Bench, kind: str, asked: argparse.Namespace, liar: int) -> dict[str, Any]:
    """One attack against the gate."""
    seconds, turns = asked.seconds, asked.turns
    attacker = bench.start("--attack", kind, ",".join([*ELSEWHERE, *[HERE] * asked.shared]))
    attacker.stdout.readline()
    loop = asyncio.get_running_loop()
    nodes = {turn: Nodes(bench.port, bench.nodes) for turn in ("quiet", "attack", "decoy")}
    await Nodes(bench.port, bench.nodes).run(2)
    before = after = allocated_mib(bench.gate.pid)
    sizes: list[tuple[float, int]] = []
    begun = let_in = lies = 0
    attacked = 0.0  # seconds
    gate, spent = psutil.Process(bench.gate.pid), dict.fromkeys(nodes, 0.0)

    async def watch() -> None:
        nonlocal after
        while True:
            after = max(after, allocated_mib(bench.gate.pid))
            sizes.append((time.monotonic(), bench.log.stat().st_size))
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    for turn in ("quiet", "attack", "quiet", "decoy") * turns:
        if turn != "quiet":
            attacker.stdin.write(f"{bench.port if turn == 'attack' else bench.decoy_port}\n")
            attacker.stdin.flush()
        started = time.monotonic()
        spent[turn] -= sum(gate.cpu_times()[:2])
        asking = asyncio.create_task(nodes[turn].run(seconds))
        if turn == "attack":
            await asyncio.sleep(seconds / 2)
            await bench.lie(liar + lies)
            lies += 1
        await asking
        spent[turn] += sum(gate.cpu_times()[:2])
        if turn != "quiet":
            attacker.stdin.write("\n")
            attacker.stdin.flush()
            counts = (await loop.run_in_executor(None, attacker.stdout.readline)).split()
            if turn == "attack":
                begun, let_in = begun + int(counts[0]), let_in + int(counts[1])
                attacked += time.monotonic() - started
        await asyncio.sleep(0.5)
    watching.cancel()
    attacker.kill()
    listed = bench.log.read_text()
    named = [fingerprint(public_of(key))[:16] for key in bench.liars[liar : liar + lies]]
    minute = max(size - next(s for t, s in sizes if t >= now - 60) for now, size in sizes)
    return {
        "attack": kind,
        "begun_a_second": round(begun / attacked),
        "let_in_a_second": round(let_in / attacked, 1),
        **{f"p99_ms_{turn}": round(p99(each.kept), 1) for turn, each in nodes.items()},
        **{f"median_ms_{turn}": round(statistics.median(each.kept), 1) for turn, each in nodes.items()},
        **{f"p99_ms_new_{turn}": round(p99(each.new), 1) for turn, each in nodes.items()},
        **{
            f"gate_processor_{turn}": round(cpu / seconds / turns / (2 if turn == "quiet" else 1), 3)
            for turn, cpu in spent.items()
        },
        "answers": {turn: len(each.kept) + len(each.new) for turn, each in nodes.items()},
        "failures": {turn: dict(each.failures) for turn, each in nodes.items() if each.failures},
        "memory_mib": round(after - before, 1),
        "log_kib_busiest_minute": round(minute / 1024, 1),
        "log_mib_an_hour": round(60 * minute / 2**20, 2),
        "lies": lies,
        "lies_in_log": sum(f"(key {name}, node 7) spoke for node 8" in listed for name in named),
    }


class AlwaysStranger:
    """Stands for a connection as the gate sees it."""

    key = None

    def recognise(self, key: str) -> None:
        raise AssertionError("a mutated key was recognised")


async def odd_keys(number: int, home: Path) -> dict[str, Any]:
    """Shows the gate mutated keys without a network, as many as it can take."""
    log = home / "odd.log"
    logging.basicConfig(filename=log, level=logging.INFO)
    pki, store = Pki.create(home, []), Store.create(home)
    register = Register(store, pki)
    app = opened(register, pki, superlink=1)
    draw, good, stranger = random.Random(), good_keys(), new_key()
    stamp = dt.datetime.now(dt.UTC).isoformat().encode()
    signature = base64.b64encode(stranger.sign(stamp, ec.ECDSA(hashes.SHA256())))
    statuses: Counter[int] = Counter()
    path = "/v1/fleet/pull-messages"

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses[message["status"]] += 1

    began = time.monotonic()
    for _ in range(number):
        shown = base64.b64encode(mutated(draw, good))
        headers = [(b"flwr-public-key", shown), (b"flwr-timestamp", stamp), (b"flwr-signature", signature)]
        await app({
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": headers,
            "client": ("192.0.2.1", 1), "state": {"visit": AlwaysStranger()},
        }, receive, send)  # fmt: skip
    took = time.monotonic() - began
    store.close()
    return {
        "odd_keys": number, "statuses": dict(statuses), "a_second": round(number / took),
        "log_bytes": log.stat().st_size, "tracebacks": log.read_text().count("Traceback"),
    }  # fmt: skip


def shown(row: dict[str, Any]) -> str:
    def over(name: str) -> str:
        quiet, attack, decoy = (row[f"{name}_{turn}"] for turn in ("quiet", "attack", "decoy"))
        return f"quiet {quiet:.1f}, attack {attack:} ({attack / quiet:.2f}x), decoy {decoy:.4g} ({decoy / quiet:.2f}x)"

    return (
        f"{row['attack']}: {row['begun_a_second']} begun a second, {row['let_in_a_second']} let in\n"
        f"  p99, ms: {over('p99_ms')}\n  median, ms: {over('median_ms')}\n  p99 of new connections, ms: "
        f"{over('p99_ms_new')}\n  gate's share of a processor: {over('gate_processor')}\n"
        f"  memory +{row['memory_mib']:.1f} MiB; log {row['log_mib_an_hour']:.2f} MiB an hour; lies in it "
        f"{row['lies_in_log']} of {row['lies']}; answers {row['answers']}; failed {row['failures']}"
    )


def main() -> None:
    """Prints a line an attack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attacks", nargs="*", choices=KINDS, default=KINDS)
    parser.add_argument("--seconds", type=float, default=8, help="length of a turn")
    parser.add_argument("--turns", type=int, default=3, help="of each kind; quiet ones are twice as many")
    parser.add_argument("--shared", action="store_true", help="one attacker in 17 has the nodes' own address")
    parser.add_argument("--odd-keys", type=int, default=0, help="so many mutated keys, without a network, instead")
    parser.add_argument("--json", action="store_true", help="one object a line")
    for role, words in (("--gate", 3), ("--stub", 2), ("--attack", 2), ("--decoy", 2)):
        parser.add_argument(role, nargs=words, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.gate:
        return serve(Path(asked.gate[0]), int(asked.gate[1]), Path(asked.gate[2]))
    if asked.decoy:
        return serve_alone(Path(asked.decoy[0]), Path(asked.decoy[1]))
    if asked.stub:
        return serve_stub(Path(asked.stub[0]), int(asked.stub[1]))
    if asked.attack:
        return asyncio.run(attack(asked.attack[0], asked.attack[1].split(",")))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if asked.odd_keys:
            print(json.dumps(asyncio.run(odd_keys(asked.odd_keys, Path(folder)))), flush=True)
            return None
        bench = Bench(Path(folder), stack)
        for number, kind in enumerate(asked.attacks):
            row = asyncio.run(measure(bench, kind, asked, number * asked.turns))
            print(json.dumps(row) if asked.json else shown(row), flush=True)


if __name__ == "__main__":
    main()

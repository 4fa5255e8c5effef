"""Attacks on the gate that `benchmarks/gate.py` measures, each in a process of its own that obeys its input."""

import asyncio
import base64
import contextlib
import datetime as dt
import itertools
import random
import ssl
import sys
import time
from collections.abc import Awaitable, Callable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node

from confide.client_node.enrolment.identity import wire_form

KINDS = ("idle", "slow", "heads", "keys", "requests")
HERE = "127.0.0.1"
PULL = PullMessagesRequest(node=Node(node_id=7)).SerializeToString()


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def public_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return wire_form(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))


def request(key: ec.EllipticCurvePrivateKey, call: str, body: bytes, shown: bytes = b"") -> bytes:
    """A node's request; `shown` replaces its public key."""
    stamp = dt.datetime.now(dt.UTC).isoformat()
    headers = {
        "flwr-public-key": base64.b64encode(shown or public_of(key)).decode(),
        "flwr-timestamp": stamp,
        "flwr-signature": base64.b64encode(key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))).decode(),
        "content-length": str(len(body)),
    }
    lines = [f"POST /v1/fleet/{call} HTTP/1.1", "host: x", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def mutated(draw: random.Random, good: list[bytes]) -> bytes:
    """A key with some bytes changed, cut or added; one in three with its point changed inside the OpenSSH form."""
    key = bytearray(draw.choice(good))
    if key.startswith(b"ecdsa") and draw.random() < 0.67:
        blob = bytearray(base64.b64decode(key.split()[1]))
        blob[-97] = draw.randrange(8)
        cut = draw.choice([0, 0, 48, 95, 96])
        blob = blob[: len(blob) - cut]
        blob[-97 + cut - 4 : -97 + cut] = (97 - cut).to_bytes(4, "big")
        key = bytearray(b"ecdsa-sha2-nistp384 " + base64.b64encode(blob))
    for _ in range(draw.randrange(3)):
        key[draw.randrange(len(key))] = draw.randrange(256)
    return bytes(key)


def good_keys() -> list[bytes]:
    public = new_key().public_key()
    return [
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
    ]


class Link:
    """A TLS connection of a client that checks nothing."""

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int, host: str = HERE) -> "Link":
        async with asyncio.timeout(30):
            return cls(*await asyncio.open_connection(HERE, port, ssl=cls.context, local_addr=(host, 0)))

    async def ask(self, data: bytes) -> int:
        self.writer.write(data)
        async with asyncio.timeout(30):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), b":0")
            await self.reader.readexactly(int(length.split(b":")[1]))
        return int(head.split(b" ", 2)[1])

    def close(self) -> None:
        self.writer.transport.abort()


# What each attacker does on one connection.
async def say_nothing(link: Link, _: bytes) -> None:
    await link.reader.read()


async def drip(link: Link, _: bytes) -> None:
    await pour(link, b"a: ", b"a", 0.2)


async def endless_header(link: Link, _: bytes) -> None:
    await pour(link, b"a: ", b"a" * 65536, 0)


async def endless_headers(link: Link, _: bytes) -> None:
    await pour(link, b"", b"a: b\r\n" * 10_000, 0)


async def pour(link: Link, first: bytes, more: bytes, pause: float) -> None:
    link.writer.write(b"POST / HTTP/1.1\r\n" + first)
    while not link.writer.transport.is_closing():
        link.writer.write(more)
        await link.writer.drain()
        await asyncio.sleep(pause)


async def ask_once(link: Link, data: bytes) -> None:
    await link.ask(data)


class Attacker:
    """Keeps an attack going on the port that it is told."""

    def __init__(self, kind: str, addresses: list[str]) -> None:
        self.kind, self.begun, self.let_in = kind, 0, 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._addresses = itertools.cycle(addresses)
        draw, good = random.Random(7), good_keys()
        if kind == "keys":
            key = new_key()
            self._data = [request(key, "pull-messages", PULL, mutated(draw, good)) for _ in range(2000)]
        else:
            self._data = [request(new_key(), "pull-messages", PULL) for _ in range(200)]

    async def run(self, port: int, stop: asyncio.Event) -> None:
        count = {"idle": 2000, "slow": 100, "heads": 40, "keys": 1000, "requests": 1000}[self.kind]
        acts: list[Callable[[Link, bytes], Awaitable[None]]] = {
            "idle": [say_nothing], "slow": [drip], "heads": [endless_header, endless_headers],
        }.get(self.kind, [ask_once])  # fmt: skip
        turn, due = itertools.count(), time.monotonic()
        while not stop.is_set():
            if len(self._tasks) < count:
                number = next(turn)
                task = asyncio.create_task(self._one(port, acts[number % len(acts)], self._data[number % 200]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            due = max(due + 0.001, time.monotonic() - 0.1)  # 1,000 a second
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _one(self, port: int, act: Callable[[Link, bytes], Awaitable[None]], data: bytes) -> None:
        self.begun += 1
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            link = await Link.open(port, next(self._addresses))
            self.let_in += 1
            try:
                await act(link, data)
            finally:
                link.close()


async def attack(kind: str, addresses: list[str]) -> None:
    """Obeys lines of its input: a port begins an attack, an empty line ends it."""
    attacker, loop = Attacker(kind, addresses), asyncio.get_running_loop()
    print("ready", flush=True)
    while line := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        stop = asyncio.Event()
        attacker.begun = attacker.let_in = 0
        running = asyncio.create_task(attacker.run(int(line), stop))
        await loop.run_in_executor(None, sys.stdin.readline)
        stop.set()
        await running
        print(attacker.begun, attacker.let_in, flush=True)

"""Times the norm check on shares: three party processes over TLS on this machine.

    python benchmarks/triples.py [--json] [--sites N ...] [--bound B] [--ring-bits 32|64]

Base transfers are made once an order, like triples and circuit. Wall times hold for a machine with a core for
each party; if the parties share cores, use the processor time, which is that of the busiest party. Bytes are those that
one party sends to both others. The sketches are random and every fifth site's is three times too long: the run stops
if the verdicts are not those of the plain rule.
"""

import argparse
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from confide.mpc.crypten import norm_check, runtime
from confide.mpc.crypten.triples import Oblivious
from confide.mpc.links import PartyConfig
from confide.mpc.links.certificates import make_certificate
from confide.mpc.links.tls import TlsCommunicator
from confide.mpc.sharing import sketch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "mpc"))
from plain_norm_check import is_too_long

PARTIES = range(3)
TURNS = 3


class Counted:
    """Links that count what they send."""

    def __init__(self, links: TlsCommunicator) -> None:
        self.aggregator_id, self._links, self.sent, self.messages = links.aggregator_id, links, 0, 0

    def exchange(self, step: str, outgoing: Mapping[int, bytes], limit: int) -> dict[int, bytes]:
        self.messages += 1
        self.sent += sum(len(data) for data in outgoing.values())
        return self._links.exchange(step, outgoing, limit)

    def all_gather(self, step: str, data: bytes, limit: int) -> list[bytes]:
        self.messages += 1
        self.sent += 2 * len(data)
        return self._links.all_gather(step, data, limit)


@dataclass
class Case:
    """Openings and shares of masks, and the verdicts of the plain rule."""

    opened: np.ndarray
    shares: list[np.ndarray]
    expected: np.ndarray

    @classmethod
    def draw(cls, sites: int, limits: sketch.Limits) -> "Case":
        rng, top = np.random.default_rng(sites), 2**limits.ring_bits - 1
        lengths = np.where(np.arange(sites) % 5 == 4, 3.0, 0.9)[:, None]
        rows = rng.normal(0, lengths * limits.window / 1.85, (sites, limits.rows)).astype(np.int64).view(np.uint64)
        masks, one, two = rng.integers(0, top, (3, *rows.shape), dtype=np.uint64, endpoint=True)
        opened = (rows + masks) & np.uint64(top)
        return cls(opened, [one, two, masks ^ one ^ two], is_too_long(opened, masks, limits))


def configs(folder: Path) -> list[PartyConfig]:
    """Three parties on free ports."""
    for party in PARTIES:
        (folder / str(party)).mkdir()
    files = [make_certificate(folder / str(party), f"party{party}") for party in PARTIES]
    held = [socket.create_server(("127.0.0.1", 0)) for _ in PARTIES]
    addresses = tuple(f"127.0.0.1:{one.getsockname()[1]}" for one in held)
    for one in held:
        one.close()
    pins = tuple(certificate.read_text() for certificate, _ in files)
    return [
        PartyConfig(
            aggregator_id=party,
            addresses=addresses,
            certificate=files[party][0],
            key=files[party][1],
            pins=pins,
            journal=folder / str(party) / "journal",
            timeout_s=120.0,
        )
        for party in PARTIES
    ]


def party(config: PartyConfig, limits: sketch.Limits, cases: list[Case], results: "multiprocessing.Queue") -> None:
    """Puts one (seconds, processor seconds, bytes, messages) for each part of each case's best turn."""
    links = Counted(TlsCommunicator.connect(config))
    runtime.start(links)

    def timed(call: Callable[..., object], *args: object) -> tuple[object, tuple[float, float, int, int]]:
        links.all_gather("WAIT", b"", 0)
        before = time.perf_counter(), time.process_time(), links.sent, links.messages
        value = call(*args)
        after = time.perf_counter(), time.process_time(), links.sent, links.messages
        return value, tuple(b - a for a, b in zip(before, after, strict=True))

    triples, base = timed(Oblivious, links)
    found = {"base transfers": base}
    for case in cases:
        sites, share = len(case.opened), case.shares[links.aggregator_id]
        for _ in range(TURNS):
            _, made = timed(triples.prepare, norm_check.triple_words(limits, sites))
            verdicts, circuit = timed(norm_check.verdicts, case.opened, share, limits, triples)
            assert (verdicts == case.expected).all()
            for part, spent in (("triples", made), ("circuit", circuit)):
                name = f"{part}, {sites} sites"
                found[name] = min(found.get(name, spent), spent)
    results.put(found)


def rows(found: list[dict[str, tuple[float, float, int, int]]]) -> Iterator[dict[str, object]]:
    """Of the three parties' figures the largest."""
    for name in found[0]:
        seconds, processor, sent, messages = (max(values) for values in zip(*(one[name] for one in found), strict=True))
        yield {"part": name, "ms": seconds * 1e3, "processor_ms": processor * 1e3, "bytes": sent, "messages": messages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 50], help="sites in a round")
    parser.add_argument("--bound", type=float, default=2.0**20, help="norm that is allowed, in ring units")
    parser.add_argument("--ring-bits", type=int, default=32, choices=[32, 64])
    asked = parser.parse_args()
    limits = sketch.limits(int(asked.bound), asked.ring_bits)
    cases = [Case.draw(sites, limits) for sites in asked.sites]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=party, args=(config, limits, cases, results)) for config in configs(Path(folder))
        ]
        for process in processes:
            process.start()
        measured = list(rows([results.get(timeout=600) for _ in processes]))
        for process in processes:
            process.join()
    counts = norm_check.and_counts(limits)
    load = os.getloadavg()[0]
    if asked.json:
        print(json.dumps({"parts": measured, "ands_a_site": sum(counts), "steps": len(counts), "load": load}))
        return
    print(f"{sum(counts)} ANDs a site in {len(counts)} steps, {asked.ring_bits} bits; load average {load:.1f}")
    print("part".ljust(24) + "ms".rjust(10) + "processor ms".rjust(14) + "MB sent".rjust(10) + "messages".rjust(10))
    for row in measured:
        figures = f"{row['ms']:10.0f}{row['processor_ms']:14.0f}{row['bytes'] / 1e6:10.2f}{row['messages']:10}"
        print(str(row["part"]).ljust(24) + figures)


if __name__ == "__main__":
    main()

"""Times an aggregator's own work on a round, in one piece and in shards.

    python benchmarks/shards.py [--json] [--sites 200] [--dim 1000 1000000] [--shards 1 2 4] [--unchecked]

One party of three opens the envelopes of all sites, adds them up, and sketches each for the norm check. That is all of
its work that grows with sites times numbers; `benchmarks/mpc.py` times what it does together with the other two. All
numbers of shards do the same work in turn, after a turn that is not counted, and their sums are compared. Memory is
private memory of the shards' processes, each at its highest, together, without the party beside.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from measuring import Peak
from rich.console import Console
from rich.table import Table

from confide.mpc.links import Order, PartyConfig
from confide.mpc.party import shards
from confide.mpc.party.shard import Summand
from confide.mpc.party.shards import Shards
from confide.mpc.sharing import sketch
from confide.mpc.sharing.position import Position
from confide.mpc.sharing.sealing import new_keypair, seal_update

TURNS = 3
PARTY, BITS, SCALE, NORM = 0, 32, 10, 2**20
PLACE = Position(0, 0, bytes(32))


def sealed(folder: Path, sites: int, dim: int, *, checked: bool) -> tuple[Order, dict[str, Path]]:
    """One party's order over `sites` sites, and their envelopes for it in `folder`."""
    private, public = zip(*(new_keypair() for _ in range(3)), strict=True)
    signers = {f"site{i:04d}": Ed25519PrivateKey.generate() for i in range(sites)}
    order = Order(
        study="s", run="r", round=1, state="ab" * 32, attempt=0,
        cohort=tuple((site, key.public_key().public_bytes_raw().hex()) for site, key in signers.items()),
        dim=dim, ring_bits=BITS, scale_bits=SCALE, min_sites=2, min_untopped=2, rows=sketch.ROWS if checked else 0,
        norm_bound=NORM if checked else 0, private_key=private[PARTY], timeout_s=600.0,
    )  # fmt: skip
    files, vector = {}, np.random.default_rng(0).integers(-100, 100, dim)
    for at, (site, key) in enumerate(signers.items()):
        files[site] = folder / site
        envelopes = seal_update(vector, order.context(site), public, key, at % 3, position=PLACE)
        files[site].write_bytes(envelopes[PARTY].framed())
    return order, files


def turn(pool: Shards, order: Order, files: dict[str, Path]) -> tuple[float, bytes]:
    """Seconds of one round, and the share of its sum."""
    summands = [Summand(site, is_topup=False) for site in files]
    seeds = [at.to_bytes(32, "little") for at in range(len(files))]
    start = time.perf_counter()
    pool.open(order, files, {})
    if order.rows:
        pool.add_sketched(summands, seeds)
    else:
        pool.add(summands)
    total = pool.total().vector.tobytes()
    spent = time.perf_counter() - start
    pool.forget()
    return spent, total


def peak(pool: Shards, order: Order, files: dict[str, Path]) -> float:
    """MiB of private memory in one more turn, of the processes beside this one, or of this one where there are none."""
    pids = [process.pid for process in pool._processes] or [os.getpid()]
    with ExitStack() as watched:
        peaks = [watched.enter_context(Peak(pid)) for pid in pids]
        turn(pool, order, files)
    return sum(one.mib for one in peaks)


def measure(sites: int, dim: int, counts: list[int], *, checked: bool) -> list[dict[str, Any]]:
    """A row for each number of shards, all in turn on the same envelopes."""
    with tempfile.TemporaryDirectory() as folder:
        order, files = sealed(Path(folder), sites, dim, checked=checked)
        config = {
            "aggregator_id": PARTY, "addresses": ("a:1", "b:1", "c:1"), "certificate": Path("none"),
            "key": Path("none"), "pins": ("a", "b", "c"), "journal": Path("none"), "timeout_s": 600.0,
        }  # fmt: skip
        pools = {count: Shards(PartyConfig(**config, shards=count)) for count in counts}
        try:
            for count, pool in pools.items():
                pool.warm(count if count > 1 else 0)
            totals = {turn(pool, order, files)[1] for pool in pools.values()}
            times: dict[int, list[float]] = {count: [] for count in counts}
            for _ in range(TURNS):
                for count, pool in pools.items():
                    spent, total = turn(pool, order, files)
                    times[count].append(spent)
                    totals.add(total)
            mib = {count: peak(pool, order, files) for count, pool in pools.items()}
            if len(totals) != 1:
                raise SystemExit("the sums differ")
        finally:
            for pool in pools.values():
                pool.close()
    alone = statistics.median(times[counts[0]])
    return [
        {
            "numbers": dim, "sites": sites, "shards": count, "ms_a_site": 1000 * statistics.median(own) / sites,
            "speedup": alone / statistics.median(own), "peak_mib": mib[count],
        }
        for count, own in times.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--sites", type=int, default=200)
    parser.add_argument("--dim", type=int, nargs="+", default=[1000, 1_000_000], help="numbers of an update")
    parser.add_argument(
        "--shards", type=int, nargs="+", default=[1, 2], help="the first is what others are compared to"
    )
    parser.add_argument("--unchecked", action="store_true", help="without the norm check")
    given = parser.parse_args()
    shards.LEAST_SITES = 1  # so that as many are timed as were asked for
    rows = [row for dim in given.dim for row in measure(given.sites, dim, given.shards, checked=not given.unchecked)]
    if given.json:
        print(json.dumps({"rows": rows, "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}))
        return
    table = Table("numbers", "sites", "shards", "ms a site", "speedup", "peak memory")
    for row in rows:
        cells = f"{row['numbers']:,}", str(row["sites"]), str(row["shards"]), f"{row['ms_a_site']:.1f}"
        table.add_row(*cells, f"{row['speedup']:.2f}", f"{row['peak_mib']:.0f} MiB")
    Console().print(table)
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

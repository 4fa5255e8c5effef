"""Times an aggregator's sum on CrypTen's tensors beside the same in numpy.

    python benchmarks/sums.py [--json] [--dim 1000000 10000000] [--bits 32 64] [--sites 5]

Each expands the shares of some sites, one of three with a body, and adds them up. Processor time of one thread for each
site, the median of turns that alternate in one run. In a ring of 32 bits also on CrypTen's own int64, to which a share
must be widened first.
"""

import argparse
import json
from collections.abc import Callable

import numpy as np
import torch
from measuring import medians

from confide.mpc.crypten.runtime import ArithmeticSharedTensor
from confide.mpc.crypten.sums import SharedTotal
from confide.mpc.sharing import Ring, ShareContext, shares
from confide.mpc.sharing.shares import Share

TAGS = 3
SECONDS = 10.0

Shared = list[tuple[Share, ShareContext]]


def shared(dim: int, ring: Ring, sites: int) -> Shared:
    """One party's shares of as many sites."""
    vector = np.random.default_rng(0).integers(0, 2**ring.bits, dim, dtype=ring.unsigned.type)
    found = []
    for i in range(sites):
        context = ShareContext(
            study="s", run="r", round=1, state="ab" * 32, site=str(i), dim=dim, ring_bits=ring.bits, scale_bits=0,
            tag_count=TAGS,
        )  # fmt: skip
        found.append((shares.split(vector, context, i % 3, [1, 2, 3])[0], context))
    return found


def in_numpy(given: Shared, dim: int, ring: Ring) -> Callable[[], None]:
    total, tags, memory = np.zeros(dim, ring.unsigned), np.zeros(TAGS, "<u8"), np.empty(dim, ring.unsigned)

    def add() -> None:
        nonlocal total, tags
        for share, context in given:
            parts = shares.unpack(share, context, out=memory)
            total += parts.vector
            tags += parts.tags

    return add


def on_tensors(given: Shared, dim: int, ring: Ring) -> Callable[[], None]:
    total = SharedTotal(dim, ring, TAGS)

    def add() -> None:
        for share, context in given:
            total.add(share, context)

    return add


def widened(given: Shared, dim: int, ring: Ring) -> Callable[[], None]:
    memory = np.empty(dim, ring.unsigned)
    total = ArithmeticSharedTensor.from_shares(torch.zeros(dim, dtype=torch.int64), precision=0)

    def add() -> None:
        for share, context in given:
            vector = torch.from_numpy(shares.unpack(share, context, out=memory).vector.astype(np.int64))
            total.add_(ArithmeticSharedTensor.from_shares(vector, precision=0))

    return add


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--dim", type=int, nargs="+", default=[1_000_000, 10_000_000], help="numbers of an update")
    parser.add_argument("--bits", type=int, nargs="+", default=[32, 64], choices=[32, 64], help="of the ring")
    parser.add_argument("--sites", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for dim in asked.dim:
        for bits in asked.bits:
            ring = Ring(bits, 0)
            given = shared(dim, ring, asked.sites)
            calls = {"numpy": in_numpy(given, dim, ring), "tensors": on_tensors(given, dim, ring)}
            if bits == 32:
                calls["int64"] = widened(given, dim, ring)
            times = {name: ms / asked.sites for name, ms in medians(calls, seconds=SECONDS).items()}
            rows.append({"dim": dim, "bits": bits} | times)
            if not asked.json:
                told = ", ".join(f"{name} {ms:.2f} ms ({ms / times['numpy']:.2f})" for name, ms in times.items())
                print(f"{dim:>10,} numbers, {bits} bits, a site: {told}", flush=True)
    if asked.json:
        print(json.dumps({"sites": asked.sites, "ms": rows}))


if __name__ == "__main__":
    main()

"""Measures the error rate of the norm check by shape of vector, and the cost of a sketch, for docs/norm-check.md.

    python benchmarks/norm_check.py [--draws N] [--dim D]

The verdict is that of the plain rule (`tests/mpc/plain_norm_check.py`), compared without a mask. A draw is a new seed
and, for random shapes, a new vector. Lengths are those of one vector: a sketch is linear, so one draw is judged against
several bounds.
"""

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from measuring import best

from confide.mpc.sharing import Ring
from confide.mpc.sharing.ring import from_integers
from confide.mpc.sharing.sketch import PIECE, Sketch, largest_bound, limits

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "mpc"))
from plain_norm_check import exceedances

LENGTHS = (1.0, 1.25, 1.5, 2.0, 3.0)  # of the vector over the bound
VARIANCE = 4  # of a row, for a vector of norm 1: four tables, coefficients of variance 1
UNITS = 2.0**40  # norm of a vector of real numbers once it is in a ring of 64 bits
Shape = Callable[[np.random.Generator, int], np.ndarray]


def entries(count: int) -> Shape:
    """So many equal entries at random places."""

    def shape(rng: np.random.Generator, dim: int) -> np.ndarray:
        vector = np.zeros(dim)
        vector[rng.choice(dim, count, replace=False)] = rng.choice((-1.0, 1.0), count)
        return vector

    return shape


def every(step: int) -> Shape:
    """Equal entries at the multiples of `step`."""

    def shape(rng: np.random.Generator, dim: int) -> np.ndarray:
        vector = np.zeros(dim)
        vector[::step] = 1.0
        return vector

    return shape


def one_piece(rng: np.random.Generator, dim: int) -> np.ndarray:
    """All weight in entries that are placed together."""
    vector = np.zeros(dim)
    vector[:PIECE] = rng.standard_normal(PIECE)
    return vector


SHAPES: dict[str, Shape] = {
    "Gaussian": lambda rng, dim: rng.standard_normal(dim),
    "one entry": entries(1),
    "two entries": entries(2),
    "three entries": entries(3),
    "six entries": entries(6),
    "heavy tail (t, 1.5 degrees)": lambda rng, dim: rng.standard_t(1.5, dim),
    "constant": lambda rng, dim: np.ones(dim),
    "alternating signs": lambda rng, dim: np.where(np.arange(dim) % 2, -1.0, 1.0),
    "identical pieces, Gaussian": lambda rng, dim: np.resize(rng.standard_normal(PIECE), dim),
    "one place in every piece": every(PIECE),
    "one piece": one_piece,
}


def rates(dim: int, draws: int) -> Iterator[dict]:
    """One row a shape: mean share of rows that exceed, and rejected draws, at each length."""
    rng = np.random.default_rng(1)
    ruled = [limits(round(UNITS / length), 64) for length in LENGTHS]
    for name, shape in SHAPES.items():
        counts = np.zeros((draws, len(LENGTHS)))
        for draw in range(draws):
            vector = shape(rng, dim)
            vector *= UNITS / np.linalg.norm(vector)
            ring_vector = from_integers(np.rint(vector).astype(np.int64), Ring(64, 0))
            rows = Sketch(os.urandom(32), dim, 64).sketch(ring_vector)
            counts[draw] = [exceedances(rows, rule) for rule in ruled]
        yield {
            "shape": name,
            "draws": draws,
            "exceeding": [round(float(share), 4) for share in counts.mean(axis=0) / ruled[0].rows],
            "most": counts.max(axis=0).astype(int).tolist(),
            "least": counts.min(axis=0).astype(int).tolist(),
            "rejected": [round(float((counts[:, i] > rule.tau).mean()), 4) for i, rule in enumerate(ruled)],
        }


def few_entries(entries: int, length: float, edge: float, shift: float) -> float:
    """Chance that a row of so many equal entries exceeds: 16 coins an entry, over 4 tables of 4 coins each."""
    coins, size = 16 * entries, length / math.sqrt(entries)
    ways = [math.comb(coins, heads) for heads in range(coins + 1)]
    outside = (abs((heads - coins / 2) * size + shift) > edge for heads in range(coins + 1))
    return sum(way for way, is_out in zip(ways, outside, strict=True) if is_out) / 2.0**coins


def chances() -> Iterator[dict]:
    """Probability to pass, computed: of a Gaussian vector, and of the equal entries that pass most easily.

    `shifted`: each row moved by a constant that the site has chosen before the seed was known, as wrong mask words do.
    """
    rule = limits(round(UNITS), 64)
    edge = (rule.window + rule.step) / UNITS

    def passes(exceeding: float) -> float:
        ways = (
            math.comb(rule.rows, k) * exceeding**k * (1 - exceeding) ** (rule.rows - k) for k in range(rule.tau + 1)
        )
        return math.fsum(ways)

    for length in LENGTHS[1:]:
        still = min(few_entries(entries, length, edge, 0.0) for entries in range(1, 17))
        shifted = min(
            few_entries(entries, length, edge, shift)
            for entries in range(1, 17)
            for shift in np.linspace(0, length, 41)
        )
        gaussian = math.erfc(edge / (length * math.sqrt(2 * VARIANCE)))
        yield {
            "length": length,
            "Gaussian": passes(gaussian),
            "few entries": passes(still),
            "few entries, shifted": passes(shifted),
        }


def wrapped(dim: int, bits: int) -> Iterator[tuple[str, np.ndarray]]:
    """Vectors that would wrap to something short if they could: ring elements, named."""
    half, kind = 1 << (bits - 1), np.uint32 if bits == 32 else np.uint64
    pieces = np.arange(dim) // PIECE

    def at(places: list[int], value: int) -> np.ndarray:
        vector = np.zeros(dim, kind)
        vector[places] = value
        return vector

    for name, value in {"2^(b-1)": half, "2^(b-1) - 1": half - 1, "2^(b-2)": half // 2, "2^(b-3)": half // 4}.items():
        yield f"one {name}", at([12_345], value)
        yield f"two {name}, one place of two pieces", at([5, 5 + 3 * PIECE], value)
        yield f"four {name}, two places of two pieces", at([5, 6, 5 + 3 * PIECE, 6 + 3 * PIECE], value)
        yield f"all {name}", np.full(dim, value, kind)
        yield f"two whole pieces of {name}", np.where((pieces == 1) | (pieces == 4), value, 0).astype(kind)
    ramp = np.minimum(np.arange(PIECE), np.arange(PIECE)[::-1]).clip(max=512).astype(kind) * kind(half // 512)
    both = np.zeros(dim, kind)
    both[:PIECE] = both[2 * PIECE : 3 * PIECE] = ramp
    yield "two equal pieces that rise to 2^(b-1) slowly", both


def wraps(dim: int, draws: int) -> Iterator[dict]:
    """One row a wrapped vector and ring, against the largest bound that the ring allows."""
    for bits in (32, 64):
        rule = limits(largest_bound(bits), bits)
        for name, vector in wrapped(dim, bits):
            counts = [exceedances(Sketch(os.urandom(32), dim, bits).sketch(vector), rule) for _ in range(draws)]
            yield {"bits": bits, "wrapped": name, "draws": draws, "least": min(counts), "tau": rule.tau}


def times(dim: int) -> Iterator[dict]:
    """Milliseconds, best of five, beside a plain float32 addition of as many entries."""
    rng = np.random.default_rng(0)
    left, right = rng.random(dim, np.float32), rng.random(dim, np.float32)
    plain = 1e3 * best(lambda: np.add(left, right, out=left))
    for bits, kind in ((32, np.uint32), (64, np.uint64)):
        vector = rng.integers(0, 2**bits, dim, kind)
        took = 1e3 * best(lambda bits=bits, vector=vector: Sketch(bytes(32), dim, bits).sketch(vector))
        yield {"dim": dim, "bits": bits, "sketch_ms": round(took, 1), "plain_add_ms": round(plain, 2)}


def main() -> None:
    """Prints all tables, one object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=300, help="sketches a shape")
    parser.add_argument("--dim", type=int, default=100_000, help="entries, more than 40,000")
    options = parser.parse_args()
    print(json.dumps({"machine": platform.platform(), "numpy": np.__version__, "lengths": LENGTHS}), flush=True)
    for dim in (100_000, 1_000_000, 10_000_000):
        for row in times(dim):
            print(json.dumps(row), flush=True)
    for row in chances():
        print(json.dumps(row), flush=True)
    for row in rates(options.dim, options.draws):
        print(json.dumps(row), flush=True)
    for row in wraps(options.dim, max(1, options.draws // 10)):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

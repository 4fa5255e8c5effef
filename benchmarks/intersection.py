"""Measures the ids a second that an owner hashes, blinds and answers in a set intersection, beside salted hashes.

    python benchmarks/intersection.py [--json] [--ids N]

Times are processor time of one thread, the best of several turns, all rows in one run. A whole session is one owner's
work for N ids of its own and N of the other's. Salted hashes are often exchanged instead: that is faster by orders of
magnitude and protects nobody, because the holder of the salt can try all possible ids. The Jacobi symbol is used in
place of Euler's criterion, which is timed beside it.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from measuring import best

from confide.mpc.sharing import curve25519
from confide.mpc.sharing.curve25519 import P

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "fraud"))
import psi

TURNS = 5


def rates(count: int) -> dict[str, float]:
    """Ids a second by row."""
    ids = [f"P-{number:08}" for number in range(count)]
    owner, other = psi.Owner(ids, "benchmark"), psi.Owner(ids, "benchmark")
    rows: dict[str, Callable[[], object]] = {
        "hash and blind": lambda: psi.Owner(ids, "benchmark"),
        "answer": lambda: owner.answer(other.offer),
        "whole session": lambda: psi.Owner(ids, "benchmark").answer(other.offer),
        "hash and blind, Euler's criterion": lambda: _with_euler(ids),
        "salted SHA-256 (protects nobody)": lambda: {
            hashlib.sha256(b"salt" + psi.normalised(one).encode()).digest() for one in ids
        },
    }
    return {name: count / best(run, TURNS) for name, run in rows.items()}


def _with_euler(ids: list[str]) -> psi.Owner:
    with patch.object(curve25519, "is_square", lambda a: pow(a, (P - 1) // 2, P) <= 1):
        return psi.Owner(ids, "benchmark")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--ids", type=int, default=5_000, help="ids of each owner")
    asked = parser.parse_args()
    found = rates(asked.ids)
    if asked.json:
        print(json.dumps({"ids_per_second": found, "load": os.getloadavg()[0]}))
        return
    for name, rate in found.items():
        print(f"{name:40}{rate:14,.0f} ids a second")
    print(f"load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

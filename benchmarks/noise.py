"""Times the drawing of noise in one thread: discrete Gaussians over the integers beside float normals.

    python benchmarks/noise.py [--json] [--draws N] [--sigma S]

Each row is the best of several turns, all rows in one run. Float normals are no substitute in a ring: their low bits
reveal the value that they were added to (Mironov 2012). Opacus' `secure_mode` guards against that by adding four of
them. It means to draw them from a cryptographic torch generator (torchcsprng), which is not installed here: its row
runs on torch's own generator and is faster than the real thing.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from opacus.optimizers.optimizer import _generate_noise

from confide.privacy.mechanism import noise
from confide.privacy.mechanism.sampling import SeededBytes

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "privacy" / "mechanism"))
import reference_noise

TURNS = 5


def rows(sigma: int) -> dict[str, Callable[[int], object]]:
    """Returns the timed samplers by name; each takes the number of draws."""
    stream = SeededBytes(os.urandom(32))
    numpy_generator = np.random.default_rng()
    torch_generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "little"))
    return {
        "confide": lambda n: noise.discrete_gaussian(sigma, n),
        "confide on AES-256-CTR instead of os.urandom": lambda n: noise.discrete_gaussian(sigma, n, stream),
        "rejection from the discrete Laplace (reference)": lambda n: reference_noise.discrete_gaussian(sigma, n),
        "numpy normal, float64": lambda n: numpy_generator.normal(0.0, sigma, n),
        "torch normal, float64": lambda n: torch.normal(
            0.0, float(sigma), (n,), generator=torch_generator, dtype=torch.float64
        ),
        "Opacus secure_mode, float32, torch's generator": lambda n: _generate_noise(
            float(sigma), torch.empty(n), generator=torch_generator, secure_mode=True
        ),
    }


def draws_per_second(draw: Callable[[int], object], n: int) -> float:
    draw(1000)  # tables are made at the first call
    best = float("inf")
    for _ in range(TURNS):
        start = time.process_time()
        draw(n)
        best = min(best, time.process_time() - start)
    return n / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--draws", type=int, default=2_000_000, help="draws a turn; the reference makes a tenth")
    parser.add_argument("--sigma", type=int, action="append", help="in ring units; several can be given")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    sigmas = asked.sigma or [2**10, 2**20, 2**40]
    result = {
        sigma: {
            name: draws_per_second(draw, asked.draws // (10 if "reference" in name else 1))
            for name, draw in rows(sigma).items()
        }
        for sigma in sigmas
    }
    if asked.json:
        print(json.dumps({"draws_per_second": result, "load": os.getloadavg()[0]}))
        return
    print("million draws a second".ljust(50) + "".join(f"sigma {sigma:.3g}".rjust(18) for sigma in sigmas))
    for name in result[sigmas[0]]:
        print(name.ljust(50) + "".join(f"{result[sigma][name] / 1e6:18.2f}" for sigma in sigmas))
    print(f"load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

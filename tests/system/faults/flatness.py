"""Many real rounds: memory, descriptors, files and databases, and the slope of each.

A slope is of the line through the last two thirds of the rounds, by least squares: what fills up once, at the start, is
no growth.
"""

import time
from pathlib import Path

import numpy as np
import psutil

from . import checks
from .bench import PARTY, PARTY_CHILD, SITE, SUPERLINK, WORKER, Bench, Stuck
from .outcomes import Outcome, Outcomes

_EVERY = 5  # rounds between two samples
_KINDS = {
    "coordinator serve": "coordinator", "SuperLink": SUPERLINK, "drivers' worker": WORKER, "driver": "driver",
    "site daemon": SITE, "aggregator daemon": PARTY, "MPC party": PARTY_CHILD,
}  # fmt: skip
_MIB, _KIB = 1 << 20, 1 << 10


def measure(bench: Bench, outcomes: Outcomes) -> None:
    """Runs the study of `bench` once, undisturbed: its reference run. One outcome for each process and folder.

    Raises:
        Stuck: the run did not come to its end.
    """
    samples: dict[tuple[str, str], list[tuple[int, float]]] = {}
    newest = 0

    def sample(committed: int) -> None:
        nonlocal newest
        if committed < newest + _EVERY:
            return
        newest = committed
        for (target, figure), value in _figures(bench).items():
            samples.setdefault((target, figure), []).append((committed, value))

    start, problems = time.monotonic(), list[str]()
    try:
        bench.run_undisturbed(seconds=20 * bench.rounds + 300, while_waiting=sample)
        problems += checks.look(bench, is_over=True)
    except Stuck as err:
        problems.append(str(err))
    took = time.monotonic() - start
    fault = f"{bench.rounds} rounds {'with' if bench.is_private else 'without'} noise"
    for target in dict.fromkeys(target for target, _ in samples):
        figures: dict[str, float] = {"rounds": newest, "seconds": round(took, 1)}
        for (of, figure), found in samples.items():
            if of == target:
                figures[figure] = round(found[-1][1], 1)
                figures[f"{figure} a round"] = round(slope(found), 4)
        outcomes.add(Outcome(group="flatness", fault=fault, target=target, figures=figures, problems=problems))
    if not bench.reference:
        raise Stuck("; ".join(problems))


def slope(samples: list[tuple[int, float]]) -> float:
    """What is added a round, by least squares over the last two thirds; 0 for fewer than three samples there."""
    later = samples[len(samples) // 3 :]
    if len(later) < 3:
        return 0.0
    rounds, values = np.array(later, dtype=float).T
    return float(np.polyfit(rounds, values, 1)[0])


def _figures(bench: Bench) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for title, kind in _KINDS.items():
        pid = bench.pid(kind)
        try:
            process = psutil.Process(pid or 0)
            found[title, "memory MiB"] = process.memory_info().rss / _MIB
            found[title, "descriptors"] = process.num_fds()
            found[title, "threads"] = process.num_threads()
        except psutil.Error:  # the driver of a run that has just ended
            continue
    homes = {
        "home of the coordinator": bench.home,
        "home of a site": bench.node(SITE),
        "home of an aggregator": bench.node(PARTY),
    }
    for title, home in homes.items():
        paths = [path for path in home.rglob("*") if path.is_file()]
        found[title, "files"] = len(paths)
        found[title, "KiB"] = sum(_size(path) for path in paths) / _KIB
    for title, path in _grown(bench).items():
        found[title, "KiB"] = _size(path) / _KIB
    return found


def _grown(bench: Bench) -> dict[str, Path]:
    """What grows with rounds, each by itself."""
    return {
        "coordinator.db": bench.home / "coordinator.db",
        "coordinator.db-wal": bench.home / "coordinator.db-wal",
        "superlink.log": bench.home / "flower" / "superlink.log",
        "driver.log": bench.run_folder / "driver.log",
        "ledger.db": bench.node(SITE) / "ledger.db",
        "ledger.db-wal": bench.node(SITE) / "ledger.db-wal",
        "aggregator/journal": bench.node(PARTY) / "aggregator" / "journal",
        "aggregator/positions": bench.node(PARTY) / "aggregator" / "positions",
        "log of serve": bench.federation.log("coordinator"),
        "log of a site": bench.federation.log(SITE),
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # deleted meanwhile
        return 0

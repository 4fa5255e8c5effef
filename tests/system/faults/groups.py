"""Groups of faults, each against a federation of its own."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..postgresql import Cluster, place, server
from . import clocks, damages, databases, disks, flatness, floods, halts, kills, links
from .bench import Bench
from .outcomes import Outcomes

ROUNDS = 60  # of a run that is disturbed; another one follows where they do not suffice


@contextmanager
def _bench(
    folder: Path,
    *,
    rounds: int = ROUNDS,
    has_trainer: bool = False,
    is_private: bool = False,
    database: Cluster | None = None,
) -> Iterator[Bench]:
    """A federation; its folder is deleted at the end."""
    home = Path(tempfile.mkdtemp(dir=folder))
    bench = Bench(home, rounds=rounds, has_trainer=has_trainer, is_private=is_private, server=database)
    try:
        bench.found()
        yield bench
    finally:
        bench.close()
        shutil.rmtree(home, ignore_errors=True)


def _flatness(folder: Path, outcomes: Outcomes, rounds: int) -> None:
    with _bench(folder, rounds=rounds, is_private=True) as bench:
        flatness.measure(bench, outcomes)


def _charges(folder: Path, outcomes: Outcomes, _: int) -> None:
    with _bench(folder, rounds=40, is_private=True) as bench:
        kills.kill_with_noise(bench, outcomes)


def _databases(folder: Path, outcomes: Outcomes, _: int) -> None:
    with server() as database, _bench(folder, database=database) as bench:
        bench.run_undisturbed(20 * bench.rounds + 300)
        databases.trouble_server(bench, outcomes)


# Those that disturb a run without noise share one federation and its reference run.
DISTURBING: dict[str, Callable[[Bench, Outcomes], None]] = {
    "kills": kills.kill_everywhere,
    "pairs": kills.kill_two,
    "damages": damages.damage_each,
    "disks": disks.fill_each,
    "links": links.trouble_each,
    "halts": halts.halt_each,
    "clocks": clocks.step_each,
    "floods": floods.flood_each,
}
ALONE: dict[str, Callable[[Path, Outcomes, int], None]] = {
    "charges": _charges,
    "databases": _databases,
    "flatness": _flatness,
}
GROUPS = (*DISTURBING, *ALONE)


def run_groups(names: Sequence[str], folder: Path, outcomes: Outcomes, *, rounds: int) -> None:
    """Runs groups, those that disturb first; those that this machine cannot run are named on standard error."""
    lacks = {
        "disks": os.geteuid() != 0 and "root, to mount a tmpfs",
        "clocks": clocks.library() is None and "libfaketime (apt-get install faketime)",
        "databases": place("initdb") is None and "PostgreSQL (apt-get install postgresql)",
    }
    for name in names:
        if missing := lacks.get(name):
            print(f"{name}: not run, it needs {missing}", file=sys.stderr)
    chosen = [name for name in names if not lacks.get(name)]
    if disturbing := [name for name in chosen if name in DISTURBING]:
        with _bench(folder, has_trainer=True) as bench:
            flatness.measure(bench, outcomes)
            for name in disturbing:
                print(f"== {name}", flush=True)
                DISTURBING[name](bench, outcomes)
    for name in chosen:
        if name in ALONE:
            print(f"== {name}", flush=True)
            ALONE[name](folder, outcomes, rounds)

"""Fuzzes every decoder of bytes from outside, and writes what was tried as a table.

    python tests/fuzz [--cases 100000] [--only TEXT] [--coverage] [--table docs/fuzzing.md]

Run it from the root of a checkout, or by `make fuzz`. It goes on after a failure; the input that caused it is kept in
`fuzz-failures`, and the exit code is 1. With `--coverage`, Atheris chooses inputs by the lines of confide that they
reach (`pip install atheris`); without it they are drawn, with another seed in each run unless `--seed` says which.
"""

import argparse
import multiprocessing
import os
import random
import re
import resource
import secrets
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from .all_targets import AREAS, of_area
from .mutating import mutated
from .target import Target

CASES = 100_000
PATIENCE_S = 60  # of one case
GROWTH_MIB = 200  # above which a decoder is said to keep memory
FAILURES = Path("fuzz-failures")
BEGIN, END = "<!-- made by make fuzz -->", "<!-- end -->"


class _TooLong(BaseException):
    """Ends a case that takes too long; no decoder takes it for a failure of its own."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What came out of fuzzing one decoder."""

    name: str
    sender: str
    cases: int
    refused: int
    slowest_s: float
    seconds: float
    failures: tuple[str, ...]

    def row(self) -> str:
        """Writes a line of the table."""
        share = f"{100 * self.refused / max(self.cases, 1):.0f} %"
        rate = f"{self.cases / max(self.seconds, 1e-9):,.0f}"
        return f"| {self.name} | {self.sender} | {self.cases:,} | {share} | {1e3 * self.slowest_s:,.1f} | {rate} |"


def fuzz(name: str, cases: int, seed: int) -> Told:
    """Fuzzes one decoder with drawn inputs."""
    warnings.simplefilter("ignore")
    target = the_one(name)
    rng, failures, refused, slowest = random.Random(f"{seed} {name}"), [], 0, 0.0
    corpus = list(target.seeds)
    for each in corpus:
        if not target.outcome(each):
            failures.append(f"{name}: an input that should be taken is refused")
    signal.signal(signal.SIGALRM, _too_long)
    planned, cases, begun, before = min(cases, target.most or cases), 0, time.monotonic(), _mib()
    for case in range(planned):
        cases += 1
        data = mutated(rng.choice(corpus), corpus, rng)
        signal.alarm(PATIENCE_S)
        start = time.perf_counter()
        try:
            is_taken = target.outcome(data)
        except BaseException as err:
            failures.append(_kept(name, case, data, err))
            if len(failures) > 20 or isinstance(err, KeyboardInterrupt):
                break
            continue
        finally:
            signal.alarm(0)
        slowest = max(slowest, time.perf_counter() - start)
        refused += not is_taken
        if is_taken and len(corpus) < 200:  # mutations of what was taken reach further
            corpus.append(data)
        if case == planned // 10:
            before = _mib()  # caches are warm by now
    growth = _mib() - before
    if growth > GROWTH_MIB:
        failures.append(f"{name}: {growth} MiB more memory after {cases:,} cases than after a tenth of them")
    return Told(
        name=target.name, sender=target.sender, cases=cases, refused=refused, slowest_s=slowest,
        seconds=time.monotonic() - begun, failures=tuple(dict.fromkeys(failures)),
    )  # fmt: skip


def _too_long(number: int, frame: FrameType | None) -> None:
    raise _TooLong(f"one case took more than {PATIENCE_S} s")


def _mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _kept(name: str, case: int, data: bytes, err: BaseException) -> str:
    FAILURES.mkdir(exist_ok=True)
    path = FAILURES / f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{case}"
    path.write_bytes(data)
    place = traceback.extract_tb(err.__traceback__)[-1]
    return f"{name}: {type(err).__name__} at {Path(place.filename).name}:{place.lineno}; the input is {path}"


def guided(name: str, cases: int) -> None:
    """Fuzzes one decoder with inputs that Atheris chooses by coverage; ends this process."""
    import atheris

    warnings.simplefilter("ignore")
    with atheris.instrument_imports(include=["confide"]):
        target = the_one(name)
    folder = FAILURES / "corpus" / re.sub("[^a-z0-9]+", "-", name.lower())
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (folder / f"seed-{number}").write_bytes(seed)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        if seed % 2:
            return bytes(atheris.Mutate(data, most))
        return mutated(data, target.seeds, random.Random(seed))[:most]

    options = [
        f"-runs={min(cases, target.most or cases)}",
        f"-timeout={PATIENCE_S}",
        "-max_len=1048576",
        "-rss_limit_mb=4096",
    ]
    atheris.Setup(
        [sys.argv[0], *options, f"-artifact_prefix={folder}-", str(folder)], target.outcome, custom_mutator=mutate
    )
    atheris.Fuzz()


def the_one(address: str) -> Target:
    """Finds a decoder by its area and name."""
    area, _, name = address.partition("/")
    return next(each for each in of_area(area) if each.name == name)


def chosen(only: str | None) -> list[str]:
    """Lists the decoders to fuzz, as AREA/NAME."""
    return [
        f"{area}/{each.name}"
        for area in AREAS
        for each in of_area(area)
        if only is None or only in f"{area}/{each.name}"
    ]


def all_told(names: Sequence[str], cases: int, seed: int, jobs: int) -> Iterator[Told]:
    """Fuzzes each decoder in a process of its own, several at once; yields what came out, as it comes."""
    # Forked: what decoders import takes ten seconds and is loaded by now, and no thread runs yet.
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        yield from pool.imap_unordered(_one, [(name, cases, seed) for name in names])


def _one(task: tuple[str, int, int]) -> Told:
    return fuzz(*task)


def write_table(path: Path, told: Sequence[Told]) -> None:
    """Writes the table between the marks of a page."""
    lines = [
        "| what is decoded | who sends it | cases | refused | slowest, ms | cases a second |",
        "|---|---|---|---|---|---|",
        *(each.row() for each in told),
    ]
    text = path.read_text(encoding="utf-8")
    begin, rest = text.split(BEGIN)
    path.write_text(f"{begin}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main() -> int:
    """Runs the program; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=CASES, help="of each decoder; slow ones have a limit of their own")
    parser.add_argument("--only", help="decoders with this text in their names")
    parser.add_argument("--seed", type=int, help="of the drawn inputs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    parser.add_argument("--coverage", action="store_true", help="let Atheris choose inputs")
    parser.add_argument("--table", type=Path, help="a page with marks, between which the table is written")
    parser.add_argument("--guided", help=argparse.SUPPRESS)  # the process of one decoder under Atheris
    wanted = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if wanted.guided:
        guided(wanted.guided, wanted.cases)
    names = chosen(wanted.only)
    if wanted.coverage:
        again = [sys.executable, sys.argv[0], "--cases", str(wanted.cases), "--guided"]
        failed = [name for name in names if print(name, flush=True) or subprocess.run([*again, name]).returncode]
        print("\n".join(f"failed: {name}" for name in failed) or f"{len(names)} decoders: nothing failed")
        return bool(failed)
    seed = secrets.randbelow(2**32) if wanted.seed is None else wanted.seed
    print(f"{len(names)} decoders, {wanted.cases:,} cases each, --seed {seed}", flush=True)
    found: dict[str, Told] = {}
    begun = time.monotonic()
    try:
        for told in all_told(names, wanted.cases, seed, wanted.jobs):
            found[told.name] = told
            left = (time.monotonic() - begun) / len(found) * (len(names) - len(found))
            print(f"{len(found)}/{len(names)}, about {left / 60:.0f} min left {told.row()}", flush=True)
            print("".join(f"  FAILED {line}\n" for line in told.failures), end="", flush=True)
    except KeyboardInterrupt:
        print("stopped; what was done is above", file=sys.stderr)
    in_order = [found[name] for name in (each.partition("/")[2] for each in names) if name in found]
    if wanted.table and len(in_order) == len(names):
        write_table(wanted.table, in_order)
    total, failures = sum(told.cases for told in in_order), [line for told in in_order for line in told.failures]
    minutes = (time.monotonic() - begun) / 60
    print(f"{total:,} cases of {len(in_order)} decoders in {minutes:.1f} min, {len(failures)} failed")
    return 1 if failures or len(in_order) < len(names) else 0


if __name__ == "__main__":
    sys.exit(main())

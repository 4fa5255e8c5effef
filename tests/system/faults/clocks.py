"""Clocks that jump while a process runs, by libfaketime on that process and its children; monotonic clocks do not."""

import os
import time
from dataclasses import replace
from pathlib import Path

from .attempts import after, attempt, words_of
from .bench import PARTY, SITE, Bench
from .outcomes import Outcome, Outcomes

STEPS = {"+90 s": 90, "-90 s": -90, "+1 day": 86400, "-1 day": -86400}
_WRONG_S = 15.0
_PLACES = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
)


def library() -> str | None:
    """Path of libfaketime; None if it is not installed."""
    return next((place for place in _PLACES if Path(place).exists()), None)


def step_each(bench: Bench, outcomes: Outcomes) -> None:
    """Steps the clock of a site, of an aggregator and of the coordinator, forward or back, and right again."""
    for owner in (SITE, PARTY, "coordinator"):
        planned = [Outcome(group="clock", fault=f"{step}, {_WRONG_S:.0f} s", target=owner) for step in STEPS]
        if all(map(outcomes.has, planned)) or outcomes.is_enough(planned[0].group):
            continue
        clock = bench.folder / f"clock-{owner}"
        bench.ensure_run(needs=40)
        _with_clock(bench, owner, clock)
        try:
            for each in planned:
                _set(clock, 0)
                attempt(bench, outcomes, each, lambda planned, clock=clock: _step(bench, clock, planned), needs=30)
        finally:
            bench.federation.kill(owner)
            bench.restart(owner)


def _set(clock: Path, seconds: int) -> None:
    beside = clock.with_suffix(".new")
    beside.write_text(f"{seconds:+d}s\n")
    beside.replace(clock)


def _with_clock(bench: Bench, owner: str, clock: Path) -> None:
    _set(clock, 0)
    faked = {
        "LD_PRELOAD": library() or "", "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    bench.federation.kill(owner)
    os.environ.update(faked)
    try:
        bench.restart(owner)
    finally:
        for name in faked:
            del os.environ[name]
    before = bench.committed()
    bench.wait(lambda: bench.committed() > before, "a round with a clock of ours")


def _step(bench: Bench, clock: Path, planned: Outcome) -> Outcome:
    at, log = bench.committed(), bench.federation.log(planned.target)
    size = log.stat().st_size
    _set(clock, STEPS[planned.fault.partition(",")[0]])
    time.sleep(_WRONG_S)
    before = bench.committed()
    lines = [line for line in log.read_bytes()[size:].decode(errors="replace").splitlines() if "INFO" not in line]
    told = words_of(lines[-1]) if lines and before - at < 2 else ""
    _set(clock, 0)
    figures = {"rounds meanwhile": float(before - at)}
    return after(bench, replace(planned, told=told, figures=figures), time.monotonic(), before)

"""A process that stands still beyond the deadline of a round (SIGSTOP), and goes on (SIGCONT)."""

import os
import signal
import time
from dataclasses import replace

from ..conftest import DEADLINE_S
from .attempts import after, attempt
from .bench import Bench, Missed
from .kills import KINDS
from .outcomes import Outcome, Outcomes
from .points import BY_NAME, reach

HALTED_S = DEADLINE_S + 6
_POINTS = {  # each kind where it has something to do
    "site daemon": "sites are asked",
    "aggregator daemon": "aggregators are ordered",
    "MPC party": "shares at the aggregator",
    "coordinator serve": "first answer at the coordinator",
    "SuperLink": "first answer at the coordinator",
    "driver": "all answers at the coordinator",
    "drivers' worker": "all answers at the coordinator",
}


def halt_each(bench: Bench, outcomes: Outcomes) -> None:
    """Halts each kind of process, one after the other."""
    for kind, point in _POINTS.items():
        planned = Outcome(group="halt", fault=f"SIGSTOP, {HALTED_S} s", target=kind, point=point)
        attempt(bench, outcomes, planned, lambda planned: _halt(bench, planned))


def _halt(bench: Bench, planned: Outcome) -> Outcome:
    reach(bench, BY_NAME[planned.point])
    at, pid = bench.committed(), bench.pid(KINDS[planned.target])
    if pid is None:
        raise Missed(f"there is no {planned.target}")
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(HALTED_S)
    finally:
        os.kill(pid, signal.SIGCONT)
    before = bench.committed()
    return after(bench, replace(planned, figures={"rounds meanwhile": before - at}), time.monotonic(), before)

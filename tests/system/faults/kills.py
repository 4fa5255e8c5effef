"""kill -9 of each kind of process at each named point of a round."""

import os
import signal
import time

from . import checks
from .attempts import after, attempt
from .bench import PARTY, PARTY_CHILD, SITE, SUPERLINK, TRAINER, WORKER, Bench, Missed
from .outcomes import Outcome, Outcomes
from .points import BY_NAME, POINTS, reach

KINDS = {
    "coordinator serve": "coordinator",
    "site daemon": SITE,
    "aggregator daemon": PARTY,
    "MPC party": PARTY_CHILD,
    "SuperLink": SUPERLINK,
    "driver": "driver",
    "drivers' worker": WORKER,
    "training worker": TRAINER,
}
_WITH_NOISE = (
    ("site daemon", "charge in the site's ledger"),
    ("site daemon", "first share in the outbox"),
    ("site daemon", "answer stored at the site"),
    ("site daemon", "outcome in the site's ledger"),
    ("coordinator serve", "charge in the replica"),
    ("coordinator serve", "all answers at the coordinator"),
    ("coordinator serve", "round committed"),
    ("driver", "charge in the replica"),
    ("driver", "total at the coordinator"),
    ("aggregator daemon", "set bound at the party"),
    ("MPC party", "sketches bound at the party"),
    ("MPC party", "total bound at the party"),
)
_STARTED_BY_US = ("coordinator", SITE, PARTY)  # a supervisor starts them again; the others have a parent that does


def kill(bench: Bench, planned: Outcome, *, first: int = 0) -> Outcome:
    """Kills a process at a point of the run; a supervisor starts it again at once, unless its parent does."""
    reach(bench, BY_NAME[planned.point], first=first)
    before = bench.committed()
    name = KINDS[planned.target]
    pid = bench.pid(name)
    if pid is None:
        raise Missed(f"there is no {planned.target}")
    if name in _STARTED_BY_US:
        bench.federation.kill(name)
    else:
        os.kill(pid, signal.SIGKILL)
    start = time.monotonic()
    if name in _STARTED_BY_US:
        bench.restart(name)
    return after(bench, planned, start, before)


def kill_everywhere(bench: Bench, outcomes: Outcomes) -> None:
    """Kills each kind at each point, one after the other in as few runs as it takes."""
    points = (*POINTS[::3], *POINTS[1::3], *POINTS[2::3])  # so that an end before the end has covered the whole round
    for point in points:
        for kind in KINDS:
            planned = Outcome(group="kill", fault="kill -9", target=kind, point=point.name)
            attempt(bench, outcomes, planned, lambda planned: kill(bench, planned))


def kill_with_noise(bench: Bench, outcomes: Outcomes) -> None:
    """Kills the processes of those who charge, share and add, in a run with noise; then looks at every charge."""
    bench.start_run()
    for place, (kind, name) in enumerate(_WITH_NOISE):
        planned = Outcome(group="kill, with noise", fault="kill -9", target=kind, point=name)
        outcomes.add(kill(bench, planned, first=2 + 2 * place))
    bench.wait(lambda: bench.row()[0] == "done", "the end of the run", seconds=600)
    found = checks.look(bench, is_over=True)
    outcomes.add(Outcome(group="charges", fault="all of these", target="every ledger", seconds=0.0, problems=found))

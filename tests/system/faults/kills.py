"""kill -9 of each kind of process at each named point of a round, and of two at once."""

import itertools
import os
import random
import signal
import time
from contextlib import suppress

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
_AND = " and "
_STARTED_BY_US = ("coordinator", SITE, PARTY)  # a supervisor starts them again; the others have a parent that does


def kill(bench: Bench, planned: Outcome, *, first: int = 0) -> Outcome:
    """Kills the target, or both, at a point; a supervisor starts it again at once, unless its parent does."""
    reach(bench, BY_NAME[planned.point], first=first)
    before = bench.committed()
    pids = {KINDS[kind]: bench.pid(KINDS[kind]) for kind in planned.target.split(_AND)}
    for name, pid in pids.items():
        if pid is None:
            raise Missed(f"there is no {name}")
        with suppress(ProcessLookupError):  # the other one was its parent
            os.kill(pid, signal.SIGKILL)
    start = time.monotonic()
    for name in [name for name in pids if name in _STARTED_BY_US]:
        bench.federation.kill(name)  # which has ended
        bench.restart(name)
    return after(bench, planned, start, before)


def kill_everywhere(bench: Bench, outcomes: Outcomes) -> None:
    """Kills each kind at each point, one after the other in as few runs as it takes."""
    points = (*POINTS[::3], *POINTS[1::3], *POINTS[2::3])  # so that an end before the end has covered the whole round
    for point in points:
        for kind in KINDS:
            planned = Outcome(group="kill", fault="kill -9", target=kind, point=point.name)
            attempt(bench, outcomes, planned, lambda planned: kill(bench, planned))


def kill_two(bench: Bench, outcomes: Outcomes) -> None:
    """Kills each pair of kinds at once, at one point each, which chance names; the same ones every time."""
    chance = random.Random("confide pairs")
    for pair in itertools.combinations(KINDS, 2):
        target, point = _AND.join(pair), chance.choice(POINTS).name
        planned = Outcome(group="kill, two", fault="kill -9 of two", target=target, point=point)
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

"""Makes planned faults one after the other: what was done before is left out, and one that fails stops no other."""

import re
import time
from collections.abc import Callable
from dataclasses import replace

from confide.coordinator.errors import DemoFailed

from . import checks
from .bench import UNREADABLE, Bench, Missed, Stuck
from .outcomes import Outcome, Outcomes


def attempt(
    bench: Bench, outcomes: Outcomes, planned: Outcome, fault: Callable[[Outcome], Outcome], *, needs: int = 8
) -> None:
    """Makes a fault in a run with `needs` rounds left, and keeps what `fault` says of it.

    Args:
        planned: the outcome without what comes of it.
    """
    if outcomes.has(planned) or outcomes.is_enough(planned.group):
        return
    try:
        _ensure_run(bench, needs)
        outcomes.add(fault(planned))
    except Missed as err:
        outcomes.add(replace(planned, told=f"not done: {err}"))
        bench.mend()
    except (Stuck, DemoFailed, *UNREADABLE) as err:  # what does not come back is a problem of the fault
        outcomes.add(replace(planned, problems=[str(err)]))
        bench.mend()


def _ensure_run(bench: Bench, needs: int) -> None:
    try:
        bench.ensure_run(needs=needs)
    except (Stuck, DemoFailed, *UNREADABLE) as err:
        raise Missed(str(err)) from err


def after(bench: Bench, planned: Outcome, start: float, before: int) -> Outcome:
    """Waits for the first commit after round `before`, counts the seconds from `start`, and looks for problems."""
    seconds, problems = None, []
    try:
        bench.wait(lambda: bench.committed() > before, f"a commit after round {before}")
        seconds = time.monotonic() - start
    except Stuck as err:
        problems.append(str(err))
    problems += checks.look(bench)
    return replace(planned, seconds=seconds, problems=[*planned.problems, *problems])


def words_of(line: str) -> str:
    """What a line of a log says, without its time and level."""
    return re.sub(r"^\S+ \S+ (?:INFO|WARNING|ERROR) ", "", line)

"""Lets the orders of several runs reach the same aggregators one after the other.

An aggregator carries out one order at a time, and all three must be at the same one. Orders of two runs that reach them
in different order would each wait for a party that waits for the other. The turn is a lock on a file for each
aggregator. A driver that ends in whatever way gives it back.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from .context import RunContext

logger = logging.getLogger(__name__)

_POLL_S, _LOOK_S = 0.02, 0.5
FOLDER = "turns"  # under the coordinator's home


@contextmanager
def at_aggregators(run: RunContext) -> Iterator[None]:
    """Waits until no other run has an order at one of this run's aggregators, and keeps them until the end.

    After the study's deadline it goes on all the same: a driver that was halted must not halt all others. Orders that
    meet then fail and are given again.

    Raises:
        RunStopped: an operator stopped the run meanwhile.
    """
    folder = run.folder.path.parent.parent / FOLDER
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    deadline = time.monotonic() + run.study.draft.rounds.deadline_s
    with ExitStack() as held:
        for name in sorted(run.parties):  # in one order everywhere, so that two runs never wait for each other
            descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600)
            held.callback(os.close, descriptor)
            if not _lock(run, descriptor, deadline):
                logger.warning("run %s: another run has an order at %s for too long; going on", run.id, name)
        yield


def _lock(run: RunContext, descriptor: int, deadline: float) -> bool:
    look = 0.0
    while time.monotonic() < deadline:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= look:  # reading the database each time would cost more than all else
                run.stop_if_asked()
                look = time.monotonic() + _LOOK_S
            time.sleep(_POLL_S)
        else:
            return True
    return False

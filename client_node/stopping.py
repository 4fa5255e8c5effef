"""Ends a daemon soon after it was told to, whatever it does just then.

The work runs in a thread of its own, and the main thread waits: so a signal is heeded also while modules are imported,
a step is computed, or a party waits for another one. Work that does not end within `GRACE_S` is cut off as by a power
cut, which ledger and journals are written to survive: what was charged stays charged, and nothing is answered twice.
"""

import logging
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

logger = logging.getLogger(__name__)

GRACE_S = 3.5
_LOOK_S = 0.2
_LAST_S = 0.7  # for the last words


def run_until(stop: threading.Event, work: Callable[[], int], live: Callable[[], None] = lambda: None) -> int:
    """Runs `work` until it ends, or for `GRACE_S` longer than until `stop` is set; then ends this process with code 0.

    Args:
        live: called again and again meanwhile, by the thread that waits.

    Returns:
        The exit code that `work` returned; what it raises is raised here.
    """
    ended = _Work(work)
    ended.start()
    while ended.is_alive() and not stop.is_set():
        ended.join(_LOOK_S)  # a signal's handler runs between two of these
        live()
    ended.join(GRACE_S)
    if ended.is_alive():
        _cut_off()
    if ended.error is not None:
        raise ended.error
    return ended.code


class _Work(threading.Thread):
    def __init__(self, work: Callable[[], int]) -> None:
        super().__init__(name="confide-work", daemon=True)
        self._work = work
        self.code = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.code = self._work()
        except BaseException as err:
            self.error = err


def _cut_off() -> None:
    """Ends this process and those that it started, without waiting for the work."""
    sys.setswitchinterval(1e-4)  # each file of /proc waits for the work's thread once, by default 5 ms
    last = threading.Timer(_LAST_S, os._exit, (0,))  # whoever reads what this process writes may be stuck
    last.daemon = True
    last.start()
    with suppress(Exception):  # nothing may keep this process alive
        import psutil

        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    logger.warning("stopped in the middle of its work; what was charged stands, and the rest is asked for again")
    logging.shutdown()
    sys.stderr.flush()
    os._exit(0)

"""Signs of life of the loops that a process must not lose."""

import threading
import time
from collections.abc import Callable


class Pulse:
    """Notes which loops live. Any thread may beat and look.

    A loop that rests is not missed: what it does then may take as long as it takes, and nothing tells how long.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: dict[str, float] = {}
        self._mutex = threading.Lock()

    def beat(self, loop: str, *, within_s: float) -> None:
        """Notes a sign of life; the next one of this loop is due within so many seconds."""
        with self._mutex:
            self._due[loop] = self._clock() + within_s

    def rest(self, loop: str) -> None:
        """Expects nothing of a loop until it beats again."""
        with self._mutex:
            self._due.pop(loop, None)

    def stuck(self) -> list[str]:
        """Lists loops whose sign of life is overdue."""
        now = self._clock()
        with self._mutex:
            return sorted(loop for loop, due in self._due.items() if now > due)

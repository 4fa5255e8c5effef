"""Writes the log `confide.gate`: who was turned away and why, under 1 MiB an hour whatever is sent.

Strangers have a few lines a minute for each reason, so that a flood of one kind hides no other; what is not listed is
counted, and the counts are logged. Keys of the register, revoked ones too, never compete with strangers: the first
line of a key for a reason is always written, later ones after a pause that grows from a minute to an hour, a few a
minute for all keys together.
"""

import asyncio
import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

logger = logging.getLogger("confide.gate")

_MINUTE = 60.0
_LONGEST_PAUSE_S = 3600.0
_LINES = 3  # a minute for each reason of strangers; there are fifteen, and a line has some 200 bytes
_REPEATS = 10  # a minute for all keys that do again what they have a line for


@dataclass(slots=True)
class _Known:
    """State of one key for one reason."""

    due: float  # when the next line may be written
    pause: float = _MINUTE
    silent: int = 0  # not listed since the last line


@dataclass(slots=True)
class _Strangers:
    """The current minute of one reason."""

    listed: set[str] = field(default_factory=set)
    silent: int = 0


class RefusalLog:
    """Log of refused parties, with a budget for each reason."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._strangers: dict[str, _Strangers] = {}  # by reason
        self._known: dict[tuple[str, str], _Known] = {}  # (reason, key); as many as the register has keys
        self._repeats = 0  # lines of this minute

    def stranger(self, reason: str, party: str, text: str, *args: object) -> None:
        """Logs a party without an enrolled key: once a minute, while its reason has lines left; counts it otherwise."""
        minute = self._strangers.setdefault(reason, _Strangers())
        if party in minute.listed or len(minute.listed) >= _LINES:
            minute.silent += 1
            return
        minute.listed.add(party)
        logger.warning("turned away: " + text, *args)

    def known(self, reason: str, key: str, text: str, *args: object) -> None:
        """Logs a key of the register; at once if the reason is new for it, else at the end of its pause."""
        now, state = self._clock(), self._known.get((reason, key))
        if state is None:
            self._known[reason, key] = _Known(now + _MINUTE)
        elif not self._may_repeat(state):
            state.silent += 1
            return
        else:
            text, args = text + " (%d more like this before)", (*args, state.silent)
            self._note_line(state)
        logger.warning("turned away: " + text, *args)

    def failed(self, what: str, err: Exception) -> None:
        """Logs an error of the gate's own; its traceback once for each place in the code, later ones are counted."""
        frame = traceback.extract_tb(err.__traceback__)[-1]
        place = f"{type(err).__name__}, {frame.filename}:{frame.lineno}"
        if (what, place) not in self._known:  # forgotten two hours later; what comes meanwhile is counted
            logger.error("%s", what, exc_info=err)
            self._known[what, place] = _Known(self._clock() + _LONGEST_PAUSE_S, _LONGEST_PAUSE_S)
        else:
            self._known[what, place].silent += 1

    def passed(self, text: str, *args: object) -> None:
        """Logs a rare success, such as an enrolment."""
        logger.info(text, *args)

    def report(self) -> None:
        """Logs how many refusals of this minute are not listed, and begins the next minute."""
        counts = [f"{minute.silent} {reason}" for reason, minute in self._strangers.items() if minute.silent]
        self._strangers.clear()
        self._repeats = 0
        if counts:
            logger.warning("turned away and not listed in the last minute: %s", ", ".join(counts))
        for (reason, key), state in list(self._known.items()):
            if state.silent and self._may_repeat(state):
                logger.warning("not listed: %d more of %s, %s", state.silent, reason, key[:40])
                self._note_line(state)
            elif not state.silent and self._clock() >= state.due + _LONGEST_PAUSE_S:
                del self._known[reason, key]

    async def keep_reporting(self) -> None:
        """Reports once a minute until cancelled."""
        while True:
            await asyncio.sleep(_MINUTE)
            self.report()

    def _may_repeat(self, state: _Known) -> bool:
        return self._clock() >= state.due and self._repeats < _REPEATS

    def _note_line(self, state: _Known) -> None:
        self._repeats += 1
        state.pause = min(2 * state.pause, _LONGEST_PAUSE_S)
        state.due, state.silent = self._clock() + state.pause, 0

"""Writes the log `confide.gate`: who was turned away and why, under 1 MiB an hour whatever is sent.

Strangers have a few lines a minute for each reason, so that a flood of one kind hides no other; what is not listed is
counted, and the counts are logged. Keys of the register, revoked ones too, never compete with strangers: the first
line of a key for a reason is always written, later ones after a pause that grows from a minute to an hour, a few a
minute for all keys together. The first lines that are about different parties, such as the victims of one key, are
written as well, some hundreds an hour for all keys. So are successes of a key, which it can repeat at will.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from ...mpc.crash import TextLeftOut, place

logger = logging.getLogger("confide.gate")

_MINUTE, _HOUR = 60.0, 3600.0
_LONGEST_PAUSE_S = _HOUR
_LINES = 3  # a minute for each reason of strangers; there are fifteen, and a line has some 200 bytes
_PARTIES = 16  # named at once, for one key and reason; the others share a count
_FURTHER = 256  # an hour: lines for parties beyond the first of a key and reason
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
        self._known: dict[tuple[str, str], dict[str, _Known]] = {}  # (reason, key), then party; the register bounds it
        self._further, self._hour_ends = 0, clock() + _HOUR
        self._repeats = 0  # lines of this minute
        self.counts: Counter[str] = Counter()  # refused parties by reason, listed or not

    def stranger(self, reason: str, party: str, text: str, *args: object) -> None:
        """Logs a party without an enrolled key: once a minute, while its reason has lines left; counts it otherwise."""
        self.counts[reason] += 1
        minute = self._strangers.setdefault(reason, _Strangers())
        if party in minute.listed or len(minute.listed) >= _LINES:
            minute.silent += 1
            return
        minute.listed.add(party)
        logger.warning("turned away: " + text, *args)

    def known(self, reason: str, key: str, text: str, *args: object, about: str = "") -> None:
        """Logs a key of the register; at once if the reason, or whom it is `about`, is new for it, else seldom."""
        self.counts[reason] += 1
        self._keyed(logging.WARNING, (reason, key), about, "turned away: " + text, *args)

    def passed(self, reason: str, key: str, text: str, *args: object, about: str = "") -> None:
        """Logs a success of a key of the register, such as an enrolment; within the same bounds as a refusal."""
        self._keyed(logging.INFO, (reason, key), about, text, *args)

    def failed(self, what: str, err: Exception) -> None:
        """Logs an error of the gate's own; its traceback once for each place in the code, later ones are counted.

        Its text is left out: it may hold what was sent, an invitation code among it.
        """
        where = place(err)
        if (what, where) not in self._known:  # forgotten two hours later; what comes meanwhile is counted
            logger.error("%s", what, exc_info=TextLeftOut.of(err))
            self._known[what, where] = {"": _Known(self._clock() + _LONGEST_PAUSE_S, _LONGEST_PAUSE_S)}
        else:
            self._known[what, where][""].silent += 1

    def report(self) -> None:
        """Logs how much of this minute is not listed, and begins the next minute."""
        counts = [f"{minute.silent} {reason}" for reason, minute in self._strangers.items() if minute.silent]
        self._strangers.clear()
        self._repeats = 0
        if counts:
            logger.warning("turned away and not listed in the last minute: %s", ", ".join(counts))
        for (reason, key), states in list(self._known.items()):
            for about, state in list(states.items()):
                if state.silent and self._may_repeat(state):
                    named = f"{key[:40]}, {about}" if about else key[:40]
                    logger.warning("not listed: %d more of %s, %s", state.silent, reason, named)
                    self._note_line(state)
                elif not state.silent and self._clock() >= state.due + _LONGEST_PAUSE_S:
                    del states[about]
            if not states:
                del self._known[reason, key]

    def _keyed(self, level: int, reason_and_key: tuple[str, str], about: str, text: str, *args: object) -> None:
        states = self._known.setdefault(reason_and_key, {})
        if about not in states and len(states) >= _PARTIES:
            about = ""
        state = states.get(about)
        if state is None:
            if states and not self._may_name_further():
                states[about] = _Known(self._clock(), silent=1)  # the next report names it
                return
            states[about] = _Known(self._clock() + _MINUTE)
        elif not self._may_repeat(state):
            state.silent += 1
            return
        else:
            text, args = text + " (%d more like this before)", (*args, state.silent)
            self._note_line(state)
        logger.log(level, text, *args)

    async def keep_reporting(self) -> None:
        """Reports once a minute until cancelled."""
        while True:
            await asyncio.sleep(_MINUTE)
            self.report()

    def _may_name_further(self) -> bool:
        if self._clock() >= self._hour_ends:
            self._further, self._hour_ends = 0, self._clock() + _HOUR
        self._further += 1
        return self._further <= _FURTHER

    def _may_repeat(self, state: _Known) -> bool:
        return self._clock() >= state.due and self._repeats < _REPEATS

    def _note_line(self, state: _Known) -> None:
        self._repeats += 1
        state.pause = min(2 * state.pause, _LONGEST_PAUSE_S)
        state.due, state.silent = self._clock() + state.pause, 0

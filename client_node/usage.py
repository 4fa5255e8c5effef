"""Counts the rounds that a node begins in a day, and the bytes that leave it, against the limits of its [schedule].

Both counts are on disk, in `usage.json` under the home, before the round begins or the bytes leave; so a restart gives
nothing back. Refusals have bytes of their own, a fixed part of the limit, so that a coordinator that asks all day takes
nothing from the answers.

A day is one of UTC, and its number never falls: a clock that is set back goes on counting the day that was reached, and
one that was ahead by a week allows nothing more until it catches up. Only a clock that is set forward begins a day
early.

Rounds and bytes follow from the messages of the coordinator and the sizes that a study fixes, never from a record.
"""

import datetime as dt
import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from ..models.strict import StrictModel
from .errors import FileDamaged, PolicyInvalid, SiteAway, SiteNotReady
from .files import locked, read_json, write_private
from .policy import site_policy
from .ruling import Ruling, require

logger = logging.getLogger(__name__)

FILE = "usage.json"
FOR_REFUSALS = 2**16  # bytes of a day's limit for refusals alone; the others are for answers
_DAY_S = 86_400
_MOST_ROUNDS = 1_000_000
_MOST_BYTES = 2**28
_REMEDY = (
    "It counts what this node did today. Restore it from a backup, or delete it: the rounds and bytes of today are "
    "then counted from nothing"
)

_Round = tuple[Annotated[str, Field(max_length=256)], Annotated[int, Field(ge=0)]]


class _Day(StrictModel):
    format: Literal[1] = 1
    day: int = Field(ge=0, le=10**7)  # since 1970, UTC
    bytes: int = Field(default=0, ge=0, le=2**62)  # of answers
    refusals: int = Field(default=0, ge=0, le=2**62)  # bytes of refusals
    rounds: Annotated[tuple[_Round, ...], Field(max_length=_MOST_ROUNDS)] = ()


_FORM = TypeAdapter(_Day)


class Usage:
    """The rounds and bytes of the current day of the node at `home`; safe for several threads and processes."""

    def __init__(self, home: Path, clock: Callable[[], float] = time.time) -> None:
        self._home, self._path, self._clock, self._lock = home, home / FILE, clock, threading.Lock()

    def rulings(self, *, run: str | None = None, round_number: int | None = None) -> list[Ruling]:
        """Rules on the hours, and on one more round of today; for None on a round that has not begun.

        Raises:
            PolicyInvalid: site.toml or decisions.json is unreadable or invalid.
            FileDamaged: the count of today is damaged.
        """
        schedule = site_policy.load_node_policy(self._home).schedule
        now = dt.datetime.fromtimestamp(self._clock(), dt.UTC)
        found = []
        if schedule.hours or schedule.days:
            until = "" if schedule.is_open(now) else schedule.next_opening(now).isoformat(timespec="minutes")
            why = f"outside the hours of this node; it goes on at {until}" if until else "inside the hours of this node"
            key = "schedule.hours" if schedule.hours else "schedule.days"
            found.append(Ruling("hours", not until, key, why, SiteAway))
        most = schedule.rounds_a_day
        if most is not None:
            rounds = self._today().rounds
            has_room = (run, round_number) in rounds or len(rounds) < most
            why = f"{len(rounds)} of {most} rounds of today have begun" + ("" if has_room else self._goes_on())
            found.append(Ruling("rounds a day", has_room, "schedule.rounds_a_day", why, SiteAway))
        return found

    def bytes_rulings(self, size: int = 0) -> list[Ruling]:
        """Rules on sending `size` bytes more today; an empty list without a limit. Raises as `rulings`."""
        most = site_policy.load_node_policy(self._home).schedule.bytes_a_day
        if most is None:
            return []
        today, usable = self._today(), most - FOR_REFUSALS
        if size > usable:
            why = f"an answer of {size} bytes leaves on no day: schedule.bytes_a_day is {most}; raise it"
            return [Ruling("bytes a day", False, "schedule.bytes_a_day", why, SiteNotReady)]
        fits = today.bytes + size <= usable and today.bytes < usable
        why = f"{today.bytes} of {usable} bytes for answers of today were sent" + ("" if fits else self._goes_on())
        return [Ruling("bytes a day", fits, "schedule.bytes_a_day", why, SiteAway)]

    def begin_round(self, run: str, round_number: int) -> None:
        """Counts a round, durably, before it begins; one that was counted today changes nothing.

        Raises:
            SiteAway: outside the hours, or the rounds of today are used up.
        """
        if site_policy.load_node_policy(self._home).schedule.rounds_a_day is None:
            return require(self.rulings(), about="away")
        with self._lock, locked(self._path):
            require(self.rulings(run=run, round_number=round_number), about="away")
            today = self._today()
            if (run, round_number) not in today.rounds:
                self._write(today.model_copy(update={"rounds": (*today.rounds, (run, round_number))}))

    def send(self, size: int) -> None:
        """Counts an answer of `size` bytes, durably, before it leaves.

        Raises:
            SiteAway: it does not fit in what is left of today; it is not counted, and must not leave.
        """
        if site_policy.load_node_policy(self._home).schedule.bytes_a_day is None:
            return
        with self._lock, locked(self._path):
            require(self.bytes_rulings(size), about="away")
            today = self._today()
            self._write(today.model_copy(update={"bytes": today.bytes + size}))

    def may_refuse(self, size: int) -> bool:
        """Counts a refusal of `size` bytes, which has bytes of its own; False if it must not leave.

        Where the policy cannot be read, so that nothing else leaves, the coordinator is still told that.
        """
        try:
            most = site_policy.load_node_policy(self._home).schedule.bytes_a_day
        except PolicyInvalid:
            return True
        if most is None:
            return True
        try:
            with self._lock, locked(self._path):
                today = self._today()
                has_room = today.refusals + size <= FOR_REFUSALS and today.bytes + today.refusals + size <= most
                if has_room:
                    self._write(today.model_copy(update={"refusals": today.refusals + size}))
        except (FileDamaged, OSError) as err:
            logger.error("nothing leaves this node until this is mended: %s", err)
            return False
        return has_room

    def require_open(self) -> None:
        """Raises `SiteAway` outside the hours, or once the rounds or bytes of today are used up."""
        require([*self.rulings(), *self.bytes_rulings()], about="away")

    def _today(self) -> _Day:
        found, day = read_json(self._path, _FORM, remedy=_REMEDY, max_bytes=_MOST_BYTES), self._day()
        return found if found is not None and found.day >= day else _Day(day=day)

    def _day(self) -> int:
        return max(0, int(self._clock() // _DAY_S))

    def _goes_on(self) -> str:
        begins = dt.datetime.fromtimestamp((self._today().day + 1) * _DAY_S, dt.UTC)
        return f"; this node goes on at {begins.isoformat(timespec='minutes')}"

    def _write(self, day: _Day) -> None:
        write_private(self._path, json.dumps(day.model_dump(mode="json")).encode())

"""The times at which a node takes part in new rounds, and the most that it does in a day: [schedule] of site.toml.

All of it is a function of the clock and of public sizes. Nothing here knows a record.
"""

import datetime as dt
import re
from typing import Annotated, Literal, Self, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, model_validator

from ...models.strict import StrictModel, Unique, contradictions, rule

_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]"
_MINUTE = dt.timedelta(minutes=1)


def _is_span(value: str) -> str:
    if not re.fullmatch(rf"{_CLOCK}-({_CLOCK}|24:00)", value) or value[:5] == value[6:]:
        raise rule("two different times of day, such as 22:00-06:00 or 08:00-24:00")
    return value


def _is_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as err:
        raise rule("a time zone that this machine knows, such as Europe/Berlin or UTC") from err
    return value


Span = Annotated[str, AfterValidator(_is_span)]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = get_args(Day)


class SchedulePolicy(StrictModel):
    """The hours of this node, and its rounds and bytes of a day; a node without any of them answers at any time."""

    hours: Annotated[tuple[Span, ...], Field(max_length=24), Unique] = ()  # of the wall clock; none: all day
    days: Annotated[tuple[Day, ...], Field(max_length=7), Unique] = ()  # on which hours begin; none: every day
    timezone: Annotated[str, Field(max_length=64), AfterValidator(_is_zone)] = "UTC"
    rounds_a_day: int | None = Field(default=None, ge=1, le=1_000_000)  # new rounds of all runs together
    bytes_a_day: int | None = Field(default=None, ge=2**20, le=2**60)  # of all messages to the coordinator

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.timezone != "UTC" and not (self.hours or self.days):
            raise contradictions(["schedule.timezone is set without hours or days; remove it, or set schedule.hours"])
        return self

    def is_open(self, now: dt.datetime) -> bool:
        """True if `now`, an aware time, lies in the hours; an end is outside, and midnight may lie between."""
        local = now.astimezone(ZoneInfo(self.timezone))
        today, clock = local.weekday(), local.strftime("%H:%M")
        for begin, end in self._spans():
            is_over_midnight = end < begin
            if self._is_day(today) and begin <= clock and (clock < end or is_over_midnight):
                return True
            if is_over_midnight and self._is_day((today - 1) % 7) and clock < end:
                return True
        return False

    def next_opening(self, now: dt.datetime) -> dt.datetime:
        """Finds the first whole minute from `now` on at which the hours are open, in the policy's time zone.

        A clock change can skip the minute at which hours would begin; then it is the first one after.
        """
        minute = now.astimezone(dt.UTC).replace(second=0, microsecond=0) + _MINUTE
        if self.is_open(now):
            return now.astimezone(ZoneInfo(self.timezone))
        while not self.is_open(minute):  # every week has some, but for one that a clock change takes away
            minute += _MINUTE
        return minute.astimezone(ZoneInfo(self.timezone))

    def _spans(self) -> list[tuple[str, str]]:
        return [(span[:5], span[6:]) for span in self.hours] or [("00:00", "24:00")]

    def _is_day(self, weekday: int) -> bool:
        return not self.days or DAYS[weekday] in self.days

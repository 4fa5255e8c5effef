"""Counts what passes between a node and its coordinator, by day and kind of message, for the people of the site.

The counts are in `traffic.json` under the home, for the last `DAYS` days on which anything passed. A message is counted
when it has come, an answer before it leaves, by the size of its contents, and so is the node's own word on decisions;
Flower's wrapping, polls and the daemon's other requests come on top. None of the sizes follows from a record: a study
fixes those of answers, a word lists decisions of people, and a failure has the name of its error, or a text that quotes
no record.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from ..models.strict import StrictModel
from .diary import Diary
from .errors import FileDamaged
from .files import locked, read_json, stamp, write_private
from .vitals import KINDS

logger = logging.getLogger(__name__)

FILE = "traffic.json"
DAYS = 400
TOLD = "decisions"  # the node's own word (`decision_teller`), which answers no message
_DAY_S = 86_400
_MOST_BYTES = 2**22
_REMEDY = "It counts what passed between this node and its coordinator. Delete it: it is counted anew from then on"
_BEYOND = "{} would hold a number that does not fit: look at this machine's clock, or delete the file"
_Count = Annotated[int, Field(ge=0, le=2**62)]


class Passed(StrictModel):
    """Counts messages of one kind on one day, and their answers; sizes in bytes."""

    came: _Count = 0  # messages
    came_bytes: _Count = 0
    answered: _Count = 0
    failed: _Count = 0  # answers that say that it failed here
    left_bytes: _Count = 0  # of both

    def __add__(self, other: "Passed") -> "Passed":
        return Passed(**{name: getattr(self, name) + getattr(other, name) for name in Passed.model_fields})


Day = Mapping[Annotated[str, Field(max_length=32)], Passed]  # by kind


class _File(StrictModel):
    format: Literal[1] = 1
    days: Annotated[dict[Annotated[int, Field(ge=0, le=10**7)], dict[str, Passed]], Field(max_length=DAYS + 1)]


_FORM = TypeAdapter(_File)


class Traffic:
    """The counts of the node at `home`; safe for several threads and processes."""

    def __init__(self, home: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock, self._lock, self._diary = home / FILE, clock, threading.Lock(), Diary(logger)
        self._kept: tuple[object, dict[int, dict[str, Passed]]] = None, {}  # what the file holds, and its stamp

    def note(self, kind: str, passed: Passed) -> None:
        """Counts what passed in a message of that kind. What cannot be counted is logged, and passes all the same."""
        try:
            with self._lock, locked(self._path):
                days = self._read_again()
                day = days.setdefault(int(self._clock() // _DAY_S), {})
                kind = kind if kind in (*KINDS, TOLD) else "other"
                day[kind] = day.get(kind, Passed()) + passed
                for old in sorted(days)[:-DAYS]:
                    del days[old]
                write_private(self._path, _File(days=days).model_dump_json().encode())
                self._kept = stamp(self._path), days
        except ValidationError:  # of a sum, or of a day before 1970
            self._diary.note("what passes is not counted: %s", _BEYOND.format(self._path), level=logging.WARNING)
        except (FileDamaged, OSError) as err:
            self._diary.note("what passes is not counted: %s", err, level=logging.WARNING)

    def days(self) -> Mapping[int, Day]:
        """Reads the counts by day since 1970 (UTC), the newest first, and by kind.

        Raises:
            FileDamaged: the file is damaged.
        """
        found = self._read()
        return {day: found[day] for day in sorted(found, reverse=True)}

    def _read_again(self) -> dict[int, dict[str, Passed]]:
        """Reads the file if another process has written it since: a year of days takes longer than to add one up.

        What was read is forgotten until `note` has written it whole.
        """
        (known, days), self._kept = self._kept, (None, {})
        return days if known is not None and known == stamp(self._path) else self._read()

    def _read(self) -> dict[int, dict[str, Passed]]:
        found = read_json(self._path, _FORM, remedy=_REMEDY, max_bytes=_MOST_BYTES)
        return {} if found is None else found.days

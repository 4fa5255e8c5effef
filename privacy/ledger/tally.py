"""A count of equal releases about one data set: all that accounting needs, without a walk through a long ledger.

Counts are kept while entries are applied, so that a charge after 10,000 others is admitted in the time that one after
ten takes. The order of charges is kept too, in 12 bytes each, for the course of spending over time.
"""

from array import array
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import numpy as np

from ..accounting import Release

Purpose = Literal["update", "prototype", "evaluation"]


class Kind(NamedTuple):
    """A kind of charge: all that equal charges have in common."""

    study: str  # hash of the study
    purpose: Purpose
    is_settled: bool
    release: Release  # as it is accounted for: over the set really summed once that is known


@dataclass(slots=True)
class Tally:
    """The charges on one data set and unit, counted by kind."""

    _numbers: dict[Kind, int] = field(default_factory=dict)  # of kinds, in order of appearance
    _counts: list[int] = field(default_factory=list)  # by number
    _order: "array[int]" = field(default_factory=lambda: array("I"))  # number of each charge's kind, in ledger order
    _times: "array[int]" = field(default_factory=lambda: array("q"))  # when each was reserved, seconds of Unix time

    def add(self, kind: Kind, time: str) -> int:
        """Counts one more charge, reserved at `time` (`chain.Time`), and returns its place in the order.

        Raises:
            ValueError: there is no such time.
        """
        self._times.append(int(datetime.fromisoformat(time).timestamp()))
        self._order.append(self._number(kind))
        self._counts[self._order[-1]] += 1
        return len(self._order) - 1

    def change(self, place: int, kind: Kind) -> None:
        """Makes the charge at `place` one of another kind."""
        self._counts[self._order[place]] -= 1
        self._order[place] = self._number(kind)
        self._counts[self._order[place]] += 1

    def __len__(self) -> int:
        return len(self._order)

    def kinds(self) -> dict[Kind, int]:
        """Counts the charges of each kind, in the order of their first charges."""
        order = np.asarray(self._order)
        first = np.full(len(self._counts), len(order))
        first[order[::-1]] = np.arange(len(order))[::-1]  # the last one written is the first charge
        named = sorted(self._numbers.items(), key=lambda item: first[item[1]])
        return {kind: self._counts[number] for kind, number in named if self._counts[number]}

    def releases(self) -> Counter[Release]:
        """Counts equal releases, across studies."""
        return self._summed(self._counts)

    def first(self, charges: int) -> Counter[Release]:
        """The releases of the first `charges` charges, as they are accounted for today."""
        order = np.asarray(self._order)[:charges]
        return self._summed(np.bincount(order, minlength=len(self._counts)).tolist())

    def time(self, place: int) -> str:
        """The time at which the charge at `place` was reserved."""
        reserved = datetime.fromtimestamp(self._times[place], UTC)
        return reserved.replace(tzinfo=None).isoformat() + "Z"  # strftime writes years below 1000 with fewer digits

    def _number(self, kind: Kind) -> int:
        number = self._numbers.setdefault(kind, len(self._numbers))
        if number == len(self._counts):
            self._counts.append(0)
        return number

    def _summed(self, counts: list[int]) -> Counter[Release]:
        total: Counter[Release] = Counter()
        for kind, count in zip(self._numbers, counts, strict=True):
            if count:
                total[kind.release] += count
        return total

"""Outcomes of faults, one line of JSON each, so that a page is made of what many calls have measured."""

import dataclasses
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One fault and what came of it."""

    group: str  # of faults: kill, damage, ...
    fault: str
    target: str
    point: str = ""
    seconds: float | None = None  # to the next commit; None if there was none without a person
    told: str = ""  # the sentence with which it stopped
    mended: str = ""  # what a person did then
    problems: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    load: float | None = None  # average of the machine, over the minute before

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells this fault from any other."""
        return self.group, self.fault, self.target, self.point

    @property
    def is_done(self) -> bool:
        """False if the fault could not be made at all, as its moment was missed."""
        return not self.told.startswith("not done")


class Outcomes:
    """The outcomes that are kept in one file."""

    def __init__(self, path: Path, *, most: int | None = None) -> None:
        """Opens the file; `most` is the number of faults of each group to make now, all if it is None."""
        self._path, self._most = path, most
        self._made = Counter[str]()

    def is_enough(self, group: str) -> bool:
        """True if no more faults of the group are to be made now."""
        return self._most is not None and self._made[group] >= self._most

    def add(self, outcome: Outcome) -> None:
        """Appends an outcome, and prints it."""
        self._made[outcome.group] += 1
        outcome = dataclasses.replace(outcome, load=round(os.getloadavg()[0], 1))
        with self._path.open("a") as out:
            out.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
        seconds = "" if outcome.seconds is None else f"{outcome.seconds:5.1f} s"
        told = " ".join((outcome.told, *(f"PROBLEM: {problem}" for problem in outcome.problems)))
        print(f"{outcome.fault:24} {outcome.target:18} {outcome.point:42} {seconds} {told}", flush=True)

    def has(self, planned: Outcome) -> bool:
        """True if the fault was done before."""
        return any(each.key == planned.key for each in self.read() if each.is_done)

    def read(self) -> list[Outcome]:
        """Reads them all, the newest of each fault."""
        if not self._path.exists():
            return []
        found = [Outcome(**json.loads(line)) for line in self._path.read_text().splitlines()]
        newest = {each.key: each for each in found}
        return list(newest.values())

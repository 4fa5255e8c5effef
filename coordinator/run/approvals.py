"""Tells who has approved a study, by what its nodes have told; for people before they start a run.

A node tells only if its own policy says so, and one of an earlier version never does: silence is no refusal. A node
that is asked by a run judges by its own decisions, whatever it has told.
"""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..store import Store
from ..store.tables import DecisionRow, StudyRow

MOST_NAMED = 8  # in a sentence

Says = Literal["approved", "used up", "expired", "refused", "has not said"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartyDecision:
    """A party of a study, with what its node has told."""

    name: str
    part: Literal["site", "aggregator", "site and aggregator"]
    says: Says  # used up: all runs that the approval covers have begun
    runs_left: int | None  # that may still begin; None where there is no approval
    until: str | None  # the last day of an approval, UTC
    since: float | None  # when the coordinator was told, seconds since 1970


@dataclass(frozen=True, slots=True)
class Approvals:
    """All parties of a study, sites first."""

    parties: tuple[PartyDecision, ...]

    @property
    def approved(self) -> int:
        """Counts the parties that have told that a run may begin."""
        return sum(each.says == "approved" for each in self.parties)

    @property
    def counts(self) -> dict[str, int]:
        """Counts those that have approved, and all, for programs."""
        return {"approved": self.approved, "parties": len(self.parties)}

    @property
    def is_told(self) -> bool:
        """True if a party has told anything."""
        return any(each.says != "has not said" for each in self.parties)

    @property
    def is_complete(self) -> bool:
        """True if all parties have approved."""
        return 0 < len(self.parties) == self.approved

    @property
    def sentence(self) -> str:
        """Says who has approved, and what each other party has told."""
        if self.is_complete:
            return f"approved by all {len(self.parties)}"
        others = [_other(each) for each in self.parties if each.says not in ("approved", "has not said")]
        silent = [each.name for each in self.parties if each.says == "has not said"]
        told = _some(others)
        if silent:
            told += [f"{', '.join(_some(silent))} {'has' if len(silent) == 1 else 'have'} not said"]
        return f"approved by {self.approved} of {len(self.parties)}: {'; '.join(told)}"

    @property
    def against(self) -> str:
        """Says who does not let a run go on that is under way; "" if nobody has told so."""
        return "; ".join(_some([_other(each) for each in self.parties if each.says in ("refused", "expired")]))

    @property
    def warning(self) -> str:
        """Says why a new run may not begin; "" if all have approved, or where nobody tells, so that nothing follows."""
        return self.sentence if self.is_told and not self.is_complete else ""


def approvals(store: Store, row: StudyRow) -> Approvals:
    """Looks at who has approved the study of a row."""
    return _look(row, store.decisions(row.hash))


def every_approval(store: Store, rows: Sequence[StudyRow]) -> dict[str, Approvals]:
    """Looks at who has approved each of the studies, by hash."""
    told: dict[str, list[DecisionRow]] = {}
    for each in store.decisions(*(row.hash for row in rows)) if rows else ():
        told.setdefault(each.study, []).append(each)
    return {row.hash: _look(row, told.get(row.hash, ())) for row in rows}


def _look(row: StudyRow, told: Iterable[DecisionRow]) -> Approvals:
    rows = {each.site: each for each in told}
    sites, aggregators = row.parties
    names = dict.fromkeys((*sites, *aggregators))
    return Approvals(tuple(_decision(name, name in sites, name in aggregators, rows.get(name)) for name in names))


def _decision(name: str, trains: bool, adds_up: bool, row: DecisionRow | None) -> PartyDecision:
    part: Literal["site", "aggregator", "site and aggregator"] = "site" if trains else "aggregator"
    if trains and adds_up:
        part = "site and aggregator"
    if row is None or row.verdict == "revoked":
        says: Says = "has not said" if row is None else "refused"
        since = None if row is None else row.since
        return PartyDecision(name=name, part=part, says=says, runs_left=None, until=None, since=since)
    says = "approved" if row.runs_left else "used up"
    if row.until is not None and dt.datetime.now(dt.UTC).date().isoformat() > row.until:
        says = "expired"
    return PartyDecision(name=name, part=part, says=says, runs_left=row.runs_left, until=row.until, since=row.since)


def _some(told: list[str]) -> list[str]:
    """Cuts a list for a sentence; the page and `--approvals` have all of it."""
    return told if len(told) <= MOST_NAMED else [*told[:MOST_NAMED], f"{len(told) - MOST_NAMED} more"]


def _other(each: PartyDecision) -> str:
    """Says what a party has told that has not approved."""
    if each.says == "used up":
        return f"the approval of {each.name} covers no further run"
    if each.says == "expired":
        return f"the approval of {each.name} was until {each.until}"
    day = "" if each.since is None else f" since {dt.datetime.fromtimestamp(each.since, dt.UTC):%Y-%m-%d}"
    return f"{each.name} refuses{day}"

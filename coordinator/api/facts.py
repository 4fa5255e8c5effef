"""Answers of the API that no function of the federation gives in this form already."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ..oversight.roles import Role
from ..run.approvals import PartyDecision
from ..run.glance import MemberStanding
from ..run.overview import OpenedRound
from ..store.states import RunState
from ..studies.summary import StudySummary

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a list."""

    items: list[T]
    next: str | None  # the cursor of what follows; None at the end


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundsPage:
    """A part of the rounds that a run has opened, in their order."""

    items: list[OpenedRound]
    too_long: Mapping[int, tuple[str, ...]]  # by round, sites whose vectors were left out; of the whole run
    next: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """A run as it stands."""

    run: str
    study: str
    study_hash: str
    state: RunState
    step: str  # of its driver; its state if it has none
    rounds: int  # committed
    rounds_planned: int
    epsilon: float | None  # of the sums opened so far, by PLD; None without privacy
    epsilon_planned: float | None  # of all rounds
    bytes_per_site: int  # sealed bytes that one site has sent
    started: float  # seconds since 1970
    ended: float | None
    seconds_left: float | None  # None if nobody can tell yet, or if it is over
    is_silent: bool  # its driver shows no sign of life
    orders: list[str]  # that a person may give now: stop, resume, abandon
    error: str | None  # that ended it

    @property
    def is_over(self) -> bool:
        """True if it goes on no more by itself."""
        return self.state.is_over


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedStudy:
    """A study in a list."""

    name: str
    hash: str
    words: str  # that spell the hash, for the telephone
    created: float  # seconds since 1970
    approved: int = 0  # parties that have told that a run may begin
    parties: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyFacts:
    """A study with its text, as sites approve it."""

    summary: StudySummary
    words: str  # that spell its hash
    created: float  # seconds since 1970
    canonical: str  # JSON, byte by byte what is hashed and signed
    signature: str  # of the coordinator, Ed25519 in hex
    approvals: list[PartyDecision] = field(default_factory=list)  # who has approved it, as far as nodes have told


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """One account of a site's ledger, beside its cap."""

    site: str
    dataset: str
    unit: str
    guaranteed: float | None  # epsilon; None if nothing bounds it
    cap: float | None  # epsilon; None if none was ever set
    filled: float  # 0 to 1; 1 if nothing more may be charged


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteFacts:
    """A site, with the accounts of its ledger that are read so far."""

    member: MemberStanding
    accounts: list[Account]


@dataclass(frozen=True, kw_only=True, slots=True)
class StartedRun:
    """A run that was started."""

    run: str
    warning: str = ""  # who has not approved the study, as far as nodes have told; the run is started all the same


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangedRun:
    """A run whose state was changed."""

    run: str
    state: RunState


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumedRun:
    """A run that goes on."""

    run: str
    state: RunState
    round: int  # the next one


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangedSite:
    """A site that was turned out, or has left."""

    name: str
    state: str


@dataclass(frozen=True, kw_only=True, slots=True)
class NewToken:
    """An operator's new token, which is shown once and kept nowhere."""

    name: str
    role: Role
    token: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangedOperator:
    """An operator who was turned out."""

    name: str
    state: str

"""The outcome of a simulation: what was simulated, its learning curve, what each site has of it."""

from dataclasses import asdict, dataclass
from typing import Any

from ...privacy.accounting import Mode

FORMAT = 1
CAUTION = (
    "Simulated on records that must be public or synthetic: nothing here was charged to anybody, neither the rounds "
    "nor the looks at held-out records."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """The sites that fail in a simulation; who, and when, follows from its seed."""

    dropouts: float = 0.0  # chance that a site is away in a round, in [0, 1)
    slow: float = 0.0  # share of the sites, always the same ones, that answer late
    slow_s: float = 60.0  # mean of the exponential time after which a slow site answers
    malicious: int = 0  # sites that send a vector against the others', in every round
    length: float = 10.0  # of such a vector, in lengths of the longest honest one


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The way in which a study is simulated; nothing of it is a term of the study."""

    sites: int | None = None  # simulated sites; None: the study's own, each with the records of its own folder
    split: str | None = None  # of units: "iid", "dirichlet:ALPHA" or "by-column:NAME"; None: iid, if `sites` is given
    seed: int = 0  # of the split and the faults; of a draft in mode "none", with its hash, of who is sampled too
    faults: Faults = Faults()
    secret_sharing: bool = False  # True to split every vector in three shares, with the same sum
    evaluate_every: int = 1  # rounds between two looks at the held-out records; 0: only after the last one
    max_rows: int = 256  # that a site computes at once; the default is that of a site.toml
    workers: int | None = None  # processes; None: one a core

    @property
    def divided(self) -> str | None:
        """The way in which units are divided; None: they are where their folders have them."""
        return "iid" if self.split is None and self.sites is not None else self.split


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The terms of a simulated study, and how it was simulated."""

    study: str  # name
    study_hash: str  # of the whole study, or of what is there of one if it was a draft
    sites: int
    split: str | None  # None: as the folders of records are
    seed: int
    mode: Mode
    noise_multiplier: float
    clip_norm: float
    sample_rate: float
    delta: float
    collusion: int
    rank: int
    lr: float
    head_lr: float | None  # None without a head
    rounds: int
    trained: int  # numbers
    faults: Faults
    secret_sharing: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundOutcome:
    """One simulated round."""

    number: int
    asked: int  # sites
    summed: int  # of these
    away: tuple[str, ...] = ()  # sites that were dropped
    late: tuple[str, ...] = ()  # that missed the deadline
    refused: tuple[str, ...] = ()  # that the norm check has left out
    waited: bool = False  # True if too few were there at the deadline, and the sum waited for some of the others
    epsilon: float | None  # of all rounds so far, of a unit whose site was in every sum; None: no bound
    metric: float | None = None  # on all held-out records; None where it was not looked at or is not defined
    seconds: float  # of this machine


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteOutcome:
    """One simulated site, and what the final model is worth on its own held-out records."""

    name: str
    units: int
    records: int
    held_out: int  # records
    rounds: int  # sums that it was in
    metric: float | None  # None where it is not defined: none held out, or of one class alone
    is_malicious: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulation:
    """A simulated study, as far as it came."""

    settings: Settings
    metric: str  # its name, e.g. "auc"
    rounds: tuple[RoundOutcome, ...]  # all that are done, those of earlier invocations included
    sites: tuple[SiteOutcome, ...]  # in the study's order; empty as long as rounds are left
    final: dict[str, Any]  # metrics with 95 % intervals on all held-out records; empty as long as rounds are left
    epsilon: float | None  # of all rounds done; None: no bound
    epsilon_planned: float | None  # of a whole real run, rounds after the last update included; None: no bound
    state: str | None  # SHA-256 of the last checkpoint, as a real run names its own; None before the first round
    workers: int  # processes

    @property
    def is_done(self) -> bool:
        """True if no round is left."""
        return len(self.rounds) == self.settings.rounds

    @property
    def value(self) -> float | None:
        """The metric after the last round that was looked at."""
        return next((each.metric for each in reversed(self.rounds) if each.metric is not None), None)

    def to_dict(self) -> dict[str, Any]:
        """Returns it as plain JSON values."""
        return {"format": FORMAT, **asdict(self), "is_done": self.is_done, "value": self.value, "caution": CAUTION}

"""The outcome of a sweep: its trials, those on the Pareto front, and how often held-out records were looked at."""

from dataclasses import asdict, dataclass
from typing import Any

from ..comparison.figures import CONFIDENCE
from .axes import Settings
from .outcome import CAUTION
from .trials import Count

FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Some settings of a study: the mean over the runs that are done."""

    number: int  # from 1, in the sweep's order
    settings: Settings
    epsilon: float | None  # of all rounds, the largest of its runs; None: no bound
    epsilon_planned: float | None  # of a whole real run, with what follows the last update; None: no bound
    noise_multiplier: float
    value: float
    seeds: int  # that are done
    spread: tuple[float, float] | None  # Student's 95 % interval of the mean over seeds; None of a single one
    over_records: tuple[float, float]  # 95 % interval for other records, its ends averaged over seeds
    worst_tenth: float | None  # of the sites
    seconds: float  # of a run
    is_on_front: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A trial that cannot be."""

    settings: Settings
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """A sweep as far as it came."""

    study: str
    unit: str
    metric: str
    delta: float
    collusion: int
    sites: int
    split: str | None
    held_out: int  # records
    held_out_digest: str
    names: tuple[str, ...]  # of the settings that are tried
    planned: int  # trials in all
    seeds: int  # of each
    trials: tuple[Trial, ...]
    left_out: tuple[LeftOut, ...]
    tried: Count

    @property
    def front(self) -> list[Trial]:
        """The trials that no other beats, by rising epsilon."""
        found = [trial for trial in self.trials if trial.is_on_front]
        return sorted(found, key=lambda each: (each.epsilon is None, each.epsilon or 0.0))

    @property
    def lines(self) -> tuple[str, ...]:
        """Cautions for everybody who chooses by these figures."""
        return (
            f"Looked at so far in this folder: {self.tried}, all on the same {self.held_out:,} held-out records "
            f"(SHA-256 {self.held_out_digest[:12]}).",
            f"The front is chosen on these records: the best of {len(self.trials)} trials looks better than it is, "
            "since chance chose it, too. Judge what you take on records that no trial was judged on.",
            CAUTION,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values, with a number of their format."""
        return {
            "format": FORMAT,
            **asdict(self),
            "front": [trial.number for trial in self.front],
            "confidence": CONFIDENCE,
            "notes": list(self.lines),
        }


def half_spread(trial: Trial) -> str:
    """Writes half the width of Student's interval over seeds; nothing for a single seed."""
    return "" if trial.spread is None else f"± {(trial.spread[1] - trial.spread[0]) / 2:.3f}"

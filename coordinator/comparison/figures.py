"""Sums up the cells of a comparison: a row for each rung, a point for each epsilon, with the spread over seeds."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import t

from .ladder import NONE, OWN, RUNGS, Ladder, Setting
from .tried import Cell, Count, Tried

FORMAT = 1  # of the JSON
CONFIDENCE = 0.95
CAUTION = (
    "The figures depend on every record that was read. Records must be public or synthetic; if they are private, each "
    "look at them is a release that has to be charged, and this command charges nothing."
)


@dataclass(frozen=True, slots=True)
class Point:
    """A rung at one noise: the mean over its seeds."""

    asked: str  # "study", "none", or an epsilon
    epsilon: float | None  # of all rounds; None: no bound
    noise_multiplier: float
    site: str | None  # the one that did best, of the rung of one site alone
    value: float
    seeds: int
    spread: tuple[float, float] | None  # Student's 95 % interval of the mean over seeds; None of a single one
    over_records: tuple[float, float]  # 95 % interval for other records, its ends averaged over seeds
    seconds: float  # of a run


@dataclass(frozen=True, slots=True)
class Row:
    """A rung of the ladder."""

    rung: str
    name: str
    left_out: str | None  # why there is no point
    points: tuple[Point, ...]

    def at(self, asked: str) -> Point | None:
        """Returns the point of a setting; a constant, which is never trained, is the same in all."""
        if self.rung == "constant" and self.points:
            return self.points[0]
        return next((point for point in self.points if point.asked == asked), None)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The ladder of one study on one set of held-out records."""

    study: str
    unit: str
    metric: str
    delta: float | None
    collusion: int
    rounds: int
    held_out: int  # records
    asked: tuple[str, ...]  # settings, in order
    rows: tuple[Row, ...]
    tried: Count

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values, with a number of their format."""
        return {"format": FORMAT, **asdict(self), "caution": CAUTION, "confidence": CONFIDENCE}

    def epsilon(self, asked: str) -> float | None:
        """Finds the epsilon of a setting, as its points have it."""
        return next((point.epsilon for row in self.rows for point in row.points if point.asked == asked), None)

    def heading(self, asked: str) -> str:
        """Names a setting for people."""
        if asked == NONE:
            return "no privacy"
        epsilon = self.epsilon(asked)
        if asked == OWN:
            return "the study's" if epsilon is None else f"the study's ε {epsilon:.2f}"
        return f"ε {asked}"


def sum_up(
    ladder: Ladder, tried: Tried, rungs: Sequence[str], settings: Sequence[Setting], cells: Iterable[Cell]
) -> Comparison:
    """Sums up the cells that `climb` returned for these rungs and settings."""
    cells, draft = list(cells), ladder.draft
    rows = []
    for rung in rungs:
        own = [cell for cell in cells if cell.rung == rung]
        asked = [setting.asked for setting in settings] if rung != "constant" else [NONE]
        points = [_best([cell for cell in own if cell.asked == each]) for each in asked]
        rows.append(Row(rung, RUNGS[rung], ladder.left_out(rung), tuple(point for point in points if point)))
    return Comparison(
        study=draft.name,
        unit=draft.data.unit,
        metric=ladder.metric,
        delta=draft.privacy.delta,
        collusion=draft.privacy.collusion,
        rounds=draft.rounds.rounds,
        held_out=ladder.task.held_out_records,
        asked=tuple(setting.asked for setting in settings),
        rows=tuple(rows),
        tried=tried.count(ladder.task.held_out_digest),
    )


def said(point: Point) -> str:
    """Writes a point's mean, with the site that it is of."""
    return f"{point.value:.3f}" + (f" ({point.site})" if point.site else "")


def spread(point: Point) -> str:
    """Writes half the width of Student's interval over seeds; nothing for a single seed."""
    return "" if point.spread is None else f"± {(point.spread[1] - point.spread[0]) / 2:.3f}"


def student(values: Sequence[float]) -> tuple[float, float] | None:
    """Computes Student's 95 % interval of the mean; None of fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    half = float(t.ppf(0.5 + CONFIDENCE / 2, n - 1) * np.std(values, ddof=1) / n**0.5)
    mean = float(np.mean(values))
    return mean - half, mean + half


def _best(cells: Sequence[Cell]) -> Point | None:
    """The point of the cells of one setting; of those of several sites, the site with the best mean."""
    by_site: dict[str | None, list[Cell]] = {}
    for cell in cells:
        by_site.setdefault(cell.site, []).append(cell)
    points = [_point(own) for own in by_site.values()]
    return max(points, key=lambda point: point.value, default=None)


def _point(cells: Sequence[Cell]) -> Point:
    first = cells[0]
    return Point(
        asked=first.asked,
        epsilon=first.epsilon,
        noise_multiplier=first.noise_multiplier,
        site=first.site,
        value=float(np.mean([cell.value for cell in cells])),
        seeds=len(cells),
        spread=student([cell.value for cell in cells]),
        over_records=(float(np.mean([cell.low for cell in cells])), float(np.mean([cell.high for cell in cells]))),
        seconds=float(np.mean([cell.seconds for cell in cells])),
    )

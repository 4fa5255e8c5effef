"""Sums up how evenly a model serves the sites of a simulation."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from .outcome import SiteOutcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Fairness:
    """The metric's distribution over sites, each site counting once; of sites for which it is defined."""

    sites: int
    lowest: float
    worst_tenth: float  # mean of the lowest tenth of the sites, of one at least
    median: float
    highest: float
    held_out: float  # records of the median site: the fewer, the more do sites differ by chance alone


def fairness(sites: Iterable[SiteOutcome]) -> Fairness | None:
    """Sums up the sites; None if the metric is defined for none. Malicious sites do not count."""
    judged = [(each.metric, each.held_out) for each in sites if each.metric is not None and not each.is_malicious]
    if not judged:
        return None
    values = sorted(value for value, _ in judged)
    worst = values[: worst_count(len(values))]
    return Fairness(
        sites=len(values),
        lowest=values[0],
        worst_tenth=sum(worst) / len(worst),
        median=median(values),
        highest=values[-1],
        held_out=median(records for _, records in judged),
    )


def worst_count(sites: int) -> int:
    """Number of sites in the worst tenth: rounded up."""
    return math.ceil(sites / 10)

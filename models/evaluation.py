"""How good a score is, with how far chance alone could have moved it.

Metrics depend on records: inside a federation they stay at the site unless they are released under their own charge.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm, rankdata
from sklearn.metrics import roc_auc_score

from .errors import MetricUndefined


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric on a sample and an interval that covers the population's value with the stated confidence."""

    value: float
    low: float
    high: float
    confidence: float


def auc(scores: np.ndarray, labels: np.ndarray, *, confidence: float = 0.95) -> Estimate:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    The interval is DeLong's variance (DeLong et al. 1988) on the logit scale, which keeps it inside [0, 1]. When every
    positive is above every negative that variance is 0, and a one-sided bound from independent pairs takes its place.

    Raises:
        MetricUndefined: lengths differ, an entry is not finite, labels are not 0/1 or of one kind only.
    """
    scores, labels = _checked(scores, labels)
    positive, negative = scores[labels == 1], scores[labels == 0]
    if not len(positive) or not len(negative):
        raise MetricUndefined("AUC needs labels of both kinds")
    value = float(roc_auc_score(labels, scores))
    if value in (0.0, 1.0):
        # With n independent pairs all on one side, the true chance is at least (1 - confidence)**(1/n).
        bound = (1 - confidence) ** (1 / min(len(positive), len(negative)))
        low, high = (bound, 1.0) if value else (0.0, 1 - bound)
        return Estimate(value, low, high, confidence)
    ranks = rankdata(scores)
    # Placement of every positive among the negatives, and the other way round.
    above = (ranks[labels == 1] - rankdata(positive)) / len(negative)
    below = 1 - (ranks[labels == 0] - rankdata(negative)) / len(positive)
    variance = _variance(above) / len(positive) + _variance(below) / len(negative)
    half = norm.ppf(0.5 + confidence / 2) * variance**0.5 / (value * (1 - value))
    low, high = expit(logit(value) - half), expit(logit(value) + half)
    return Estimate(value, float(low), float(high), confidence)


def accuracy(scores: np.ndarray, labels: np.ndarray, *, threshold: float = 0.0, confidence: float = 0.95) -> Estimate:
    """Share of records on the right side of `threshold` (0 for logits), with Wilson's interval.

    Raises:
        MetricUndefined: as `auc`, or no record at all.
    """
    scores, labels = _checked(scores, labels)
    n = len(labels)
    if not n:
        raise MetricUndefined("accuracy needs at least one record")
    share = float(np.mean((scores > threshold) == (labels == 1)))
    z = float(norm.ppf(0.5 + confidence / 2))
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half), confidence)


def _variance(placements: np.ndarray) -> float:
    return float(placements.var(ddof=1)) if len(placements) > 1 else 0.25  # of [0, 1], the largest possible


def _checked(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise MetricUndefined(f"need one score a label, got shapes {scores.shape} and {labels.shape}")
    if not np.isfinite(scores).all():
        raise MetricUndefined("a score is not finite")
    if not np.isin(labels, (0, 1)).all():
        raise MetricUndefined("labels must be 0 or 1")
    return scores, labels

"""Metrics of a score, each with an interval for how far chance alone could have moved it.

Metrics depend on records: inside a federation they stay at the site unless they are released under their own charge.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, ndtri, stdtrit

from ..errors import MetricUndefined

_DRAWS = 1000  # of chance, in the interval of a calibration error
_HALVINGS = 20
_LEAST_IN_BIN = 20


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
    from scipy.stats import rankdata
    from sklearn.metrics import roc_auc_score  # imports pandas as well; a site that trains needs none of these

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
    half = ndtri(0.5 + confidence / 2) * variance**0.5 / (value * (1 - value))
    low, high = expit(logit(value) - half), expit(logit(value) + half)
    return Estimate(value, float(low), float(high), confidence)


def accuracy(scores: np.ndarray, labels: np.ndarray, *, threshold: float = 0.0, confidence: float = 0.95) -> Estimate:
    """Share of records on the right side of `threshold` (0 for logits), with Wilson's interval.

    Raises:
        MetricUndefined: as `auc`, or no record at all.
    """
    scores, labels = _checked(scores, labels)
    if not len(labels):
        raise MetricUndefined("accuracy needs at least one record")
    return _share(float(np.mean((scores > threshold) == (labels == 1))), len(labels), confidence)


def brier_score(scores: np.ndarray, labels: np.ndarray, *, confidence: float = 0.95) -> Estimate:
    """Mean squared distance of the probability from the label (Brier 1950); scores are logits. 0 is perfect.

    The interval is Student's for a mean, cut to [0, 1]. Where all records are equally far off, one record alone for
    instance, it is Wilson's, which holds for a mean of anything in [0, 1]: no variance is larger than that of a share.

    Raises:
        MetricUndefined: as `accuracy`.
    """
    scores, labels = _checked(scores, labels)
    n = len(labels)
    if not n:
        raise MetricUndefined("a Brier score needs at least one record")
    errors = (expit(scores) - labels) ** 2
    value = float(errors.mean())
    if np.ptp(errors) == 0:
        return _share(value, n, confidence)
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * float(errors.std(ddof=1)) / n**0.5
    return Estimate(value, max(0.0, value - half), min(1.0, value + half), confidence)


def calibration_error(scores: np.ndarray, labels: np.ndarray, *, bins: int = 15, confidence: float = 0.95) -> Estimate:
    """Expected calibration error (ECE, Naeini et al. 2015): distance of a bin's mean probability from its positives.

    Scores are logits. Bins hold equally many records, at least 20 if there are as many, and equal scores the same bin:
    none is nearly empty as with bins of equal width, and chance adds less (Nguyen & O'Connor 2015, arXiv:1508.05154;
    Roelofs et al. 2022, arXiv:2012.08668). What it still adds is taken off again: see `miscalibration`.

    Raises:
        MetricUndefined: as `accuracy`.
    """
    scores, labels = _checked(scores, labels)
    n = len(labels)
    if not n:
        raise MetricUndefined("a calibration error needs at least one record")
    bins = max(1, min(bins, n // _LEAST_IN_BIN))
    edges = np.quantile(scores, np.arange(1, bins) / bins, method="inverted_cdf")
    bin_N = np.searchsorted(np.unique(edges), scores)  # a score on an edge belongs below it, with all its equals

    def by_bin(values: np.ndarray) -> np.ndarray:
        return np.bincount(bin_N, values, bins)

    off = labels - expit(scores)
    excess, records = by_bin(off), by_bin(np.ones(n))
    share = (by_bin(labels) + 0.5) / (records + 1)  # never 0 or 1: a bin of one kind is not sure to stay one
    variance = np.maximum(by_bin(off**2) - excess**2 / n, records * share * (1 - share))
    return miscalibration(excess, np.sqrt(variance), n, confidence)


def miscalibration(
    excess: npt.NDArray[np.float64], std: npt.NDArray[np.float64], total: float, confidence: float
) -> Estimate:
    """Sum of |excess| of all bins over the total, freed of what chance adds to it.

    Absolute values make chance look like miscalibration, so the observed sum is compared with what chance would make of
    the observed pattern at other sizes: stated are the sizes of which the observed sum is the median and the outer
    quantiles.

    Args:
        excess: [bins], positives of a bin less those that its probabilities promise.
        std: [bins], of `excess`.
        total: number of records.
    """
    observed = float(np.abs(excess).sum())
    if not observed:
        return Estimate(0.0, 0.0, 0.0, confidence)
    pattern = excess / observed
    chance = std * np.random.default_rng(0).standard_normal((_DRAWS, len(std)))  # of a sum, not of a record

    def size(quantile: float) -> float:
        """The sum of |excess| at which the observed one is that quantile; 0 if chance alone makes more."""
        place = round(quantile * (_DRAWS - 1))

        def made(sum_of_excess: float) -> float:
            return float(np.partition(np.abs(sum_of_excess * pattern + chance).sum(1), place)[place])

        return _where(made, observed, upper=2 * observed + 6 * float(std.sum()))

    quantiles = (0.5, 0.5 + confidence / 2, 0.5 - confidence / 2)
    value, low, high = (min(1.0, size(quantile) / total) for quantile in quantiles)
    return Estimate(value, low, high, confidence)


def exact_match(is_exact: Sequence[bool], *, confidence: float = 0.95) -> Estimate:
    """Share of answers that are word for word what they should be, with Wilson's interval.

    Raises:
        MetricUndefined: there is no answer.
    """
    if not len(is_exact):
        raise MetricUndefined("exact match needs at least one answer")
    return _share(sum(map(bool, is_exact)) / len(is_exact), len(is_exact), confidence)


def mean_share(shares: np.ndarray, *, confidence: float = 0.95) -> Estimate:
    """Mean of shares that are right, one of each record, with Student's interval; one alone says nothing of others.

    Raises:
        MetricUndefined: there is no share, or one is not in [0, 1].
    """
    shares = np.asarray(shares, dtype=np.float64)
    if shares.ndim != 1 or not len(shares) or not ((shares >= 0) & (shares <= 1)).all():
        raise MetricUndefined("a mean share needs one share or more, each in [0, 1]")
    return _student(shares, confidence, most=1.0)


def mean_absolute_error(errors: np.ndarray, *, confidence: float = 0.95) -> Estimate:
    """Mean absolute error of answers that are numbers, with Student's interval; one alone says nothing of others.

    Raises:
        MetricUndefined: there is no error, or one is not finite.
    """
    sizes = np.abs(np.asarray(errors, dtype=np.float64))
    if sizes.ndim != 1 or not len(sizes) or not np.isfinite(sizes).all():
        raise MetricUndefined("a mean error needs one finite error or more")
    return _student(sizes, confidence, most=float("inf"))


def _student(numbers: np.ndarray, confidence: float, most: float) -> Estimate:
    """Mean of numbers from 0 to `most`, with Student's interval."""
    value = float(numbers.mean())
    if len(numbers) == 1:
        return Estimate(value, 0.0, most, confidence)
    half = float(stdtrit(len(numbers) - 1, 0.5 + confidence / 2)) * float(numbers.std(ddof=1)) / len(numbers) ** 0.5
    return Estimate(value, max(0.0, value - half), min(most, value + half), confidence)


def perplexity(losses: np.ndarray, tokens: np.ndarray, *, confidence: float = 0.95) -> Estimate:
    """Perplexity of held-out texts: exp of all negative log-likelihood over all predicted tokens.

    Tokens of one text are no independent sample, so the interval is for other texts (clustered standard errors, Miller
    2024, arXiv:2411.00640): the jackknife's variance of the mean loss of a token, which leaves out one text after
    another and is right for a ratio of two sums (Cochran 1977, chapter 6), with Student's quantile, on the scale of the
    logarithm. One text alone says nothing of others: its interval is [1, inf].

    Args:
        losses: [N], negative log-likelihood of each text in nats, summed over its tokens; if a unit has several texts,
            theirs together, so that the interval is for other units.
        tokens: [N], how many tokens that sum is over, at least one.

    Raises:
        MetricUndefined: lengths differ, there is no text, a loss is negative or not finite, a text has no token.
    """
    losses, tokens = np.asarray(losses, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    if losses.ndim != 1 or losses.shape != tokens.shape or not len(losses):
        raise MetricUndefined(f"need one loss and number of tokens a text, got shapes {losses.shape}, {tokens.shape}")
    if not (np.isfinite(losses).all() and (losses >= 0).all() and np.isfinite(tokens).all() and (tokens >= 1).all()):
        raise MetricUndefined("a loss is negative or not finite, or a text has no token")
    n, mean = len(losses), float(losses.sum() / tokens.sum())
    if n == 1:
        return Estimate(float(np.exp(mean)), 1.0, float("inf"), confidence)
    without = (losses.sum() - losses) / (tokens.sum() - tokens)
    std = ((n - 1) / n * float(((without - mean) ** 2).sum())) ** 0.5
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * std
    value, low, high = (float(np.exp(size)) for size in (mean, max(0.0, mean - half), mean + half))
    return Estimate(value, low, high, confidence)


def _share(share: float, n: int, confidence: float) -> Estimate:
    """With Wilson's interval (Wilson 1927)."""
    z = float(ndtri(0.5 + confidence / 2))
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half), confidence)


def _where(rising: Callable[[float], float], target: float, *, upper: float) -> float:
    """Solves for the place at which a rising function on [0, upper] reaches `target`; 0 if it begins above."""
    if rising(0.0) >= target:
        return 0.0
    low, high = 0.0, upper
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return high


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

"""Metrics of a classifier from a histogram of its scores whose counts carry known noise.

A histogram counts records by label and by bin of the score. Its noise is Gaussian, independent between counts, of one
known std, and is taken as it comes: a negative count stays negative. Cutting counts at 0 would lift every empty bin and
with it the metrics, by an amount that depends on the records; left alone, noise averages out in every sum below. Only
what is finally stated is cut, to the range that the metric has: that moves it towards the truth and never away.

Intervals count both chances: another sample of records, and another draw of noise. Only a rounded score is measured:
records in one bin are ties, and a bin's centre stands for the scores in it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, ndtri

from ..errors import MetricUndefined
from .metrics import Estimate, miscalibration

Floats = npt.NDArray[np.float64]

_LEAST_SIGNAL = 4.0  # a total of fewer standard deviations of its own noise is no denominator


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """One bin of the score: what the classifier says there, and what is so."""

    low: float  # probability at the edges
    high: float
    share: Estimate  # of all records
    positives: Estimate | None  # share of positive records in the bin; None where noise hides how many records it has


@dataclass(frozen=True, slots=True)
class BinnedMetrics:
    """The metrics that a noised histogram tells. None: noise hides it."""

    records: Estimate  # the interval is for the noise alone
    auc: Estimate | None
    auc_tied: float | None  # share of pairs in one bin: the AUC of the scores themselves is within half of it
    accuracy: Estimate | None  # at probability one half
    prevalence: Estimate | None  # share of positive records
    calibration_error: Estimate | None  # expected distance of a bin's centre from its share of positives (ECE)
    reliability: tuple[ReliabilityBin, ...]


def bin_edges(bins: int) -> Floats:
    """The [bins - 1] inner edges of the score, in logits, public and fixed: equal steps of sigmoid(logit / 2).

    Where scores will lie cannot be known before. Equal steps of probability put most scores of a rare label into one
    bin, equal steps of the logit waste bins on what rarely occurs and end somewhere. These widen slowly with the
    distance from one half: with 20 bins the innermost are 0.4 wide, and the outermost begin at 5.9, probability 0.003.
    Over calibrated Gaussian logits of mean 0 to -5 and std 0.5 to 4, 20 of them cost at most 0.012 of AUC, where equal
    steps of probability cost 0.127 and those of the logit, up to 6, 0.018. Scores shrunk to 0.3 of their size lose
    0.033, and 0.010 and 0.083 with the others.

    Raises:
        MetricUndefined: `bins` is not even and positive, so one half would be no edge.
    """
    if bins < 2 or bins % 2:
        raise MetricUndefined(f"need an even number of bins, got {bins}")
    edges: Floats = 2 * logit(np.arange(1, bins) / bins)
    return edges


def bin_of(scores: npt.ArrayLike, bins: int) -> npt.NDArray[np.int64]:
    """The bin of every score (a logit), 0 to bins - 1; the upper half means positive. NaN has the last one."""
    return np.searchsorted(bin_edges(bins), np.asarray(scores, dtype=np.float64), side="right").astype(np.int64)


def binned_metrics(counts: npt.ArrayLike, *, noise_std: float, confidence: float = 0.95) -> BinnedMetrics:
    """Metrics of a histogram.

    Args:
        counts: [2, bins], by label and bin, noised; bins as `bin_of` gives them.
        noise_std: of the noise in each count; 0 for none.

    Raises:
        MetricUndefined: the counts are not finite or not of that shape, or noise_std is negative.
    """
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 2 or len(table) != 2 or not np.isfinite(table).all() or not 0 <= noise_std < np.inf:
        raise MetricUndefined(f"need finite counts [2, bins] and noise_std >= 0, got {table.shape} and {noise_std}")
    negative, positive = table
    bins, z = len(negative), float(ndtri(0.5 + confidence / 2))
    edges, total = bin_edges(bins), float(table.sum())
    sum_std = noise_std * bins**0.5  # of the noise in a sum over one label
    low, high = np.r_[0.0, expit(edges)], np.r_[expit(edges), 1.0]
    is_counted = total > max(0.0, _LEAST_SIGNAL * 2**0.5 * sum_std)
    has_both = min(negative.sum(), positive.sum()) > _LEAST_SIGNAL * sum_std
    right = float(negative[: bins // 2].sum() + positive[bins // 2 :].sum())
    half = z * 2**0.5 * sum_std

    def share(part: float, whole: float, part_std: float, rest_std: float, of: float) -> Estimate:
        return _share(part, whole, part_std=part_std, rest_std=rest_std, sample=of, confidence=confidence)

    def reliability(index: int) -> ReliabilityBin:
        here = float(positive[index] + negative[index])
        rest_std = noise_std * (2 * bins - 2) ** 0.5
        is_seen = here > max(0.0, _LEAST_SIGNAL * 2**0.5 * noise_std)
        return ReliabilityBin(
            low=float(low[index]),
            high=float(high[index]),
            share=share(here, total, 2**0.5 * noise_std, rest_std, total),
            positives=share(float(positive[index]), here, noise_std, noise_std, here) if is_seen else None,
        )

    return BinnedMetrics(
        records=Estimate(max(0.0, total), max(0.0, total - half), max(0.0, total + half), confidence),
        auc=_auc(negative, positive, noise_std, confidence) if has_both else None,
        auc_tied=_tied(negative, positive) if has_both else None,
        accuracy=share(right, total, sum_std, sum_std, total) if is_counted else None,
        prevalence=share(float(positive.sum()), total, sum_std, sum_std, total) if is_counted else None,
        calibration_error=_calibration_error(negative, positive, noise_std, confidence) if is_counted else None,
        reliability=tuple(reliability(index) for index in range(bins)) if is_counted else (),
    )


def _auc(negative: Floats, positive: Floats, noise_std: float, confidence: float) -> Estimate:
    """Chance that a positive record lies in a higher bin than a negative one, ties counting half.

    The numerator is bilinear in two independent noises, so it is unbiased. Its variance is DeLong's (DeLong et al.
    1988) for the records and the exact one of the bilinear form for the noise, both freed of the bias that they get
    from being computed from noised counts.
    """
    pairs = float(positive.sum() * negative.sum())
    order = np.tril(np.ones((len(positive), len(negative))), -1) + 0.5 * np.eye(len(positive))  # [positive, negative]
    value = float(positive @ order @ negative) / pairs
    centred, noise = order - value, noise_std**2
    by_positive, by_negative = centred @ negative, positive @ centred
    rows, columns = (centred**2).sum(1), (centred**2).sum(0)
    sampling = positive @ (by_positive**2 - noise * rows) + negative @ (by_negative**2 - noise * columns)
    second_order = noise**2 * rows.sum()
    from_noise = max(noise * float(by_positive @ by_positive + by_negative @ by_negative) - second_order, second_order)
    half = float(ndtri(0.5 + confidence / 2)) * (max(0.0, float(sampling)) + from_noise) ** 0.5 / pairs
    return _within(value, value - half, value + half, confidence)


def _tied(negative: Floats, positive: Floats) -> float:
    """Share of pairs of one positive and one negative record that lie in one bin."""
    return float(np.clip(positive @ negative / (positive.sum() * negative.sum()), 0.0, 1.0))


def _share(
    part: float, whole: float, *, part_std: float, rest_std: float, sample: float, confidence: float
) -> Estimate:
    """`part` of `whole`, with Wilson's interval (Wilson 1927) widened by the noise in the part and in the rest."""
    value, z = part / whole, float(ndtri(0.5 + confidence / 2))
    noise = ((1 - value) ** 2 * part_std**2 + value**2 * rest_std**2) / whole**2
    # The shares s with (value - s)^2 <= z^2 (s (1 - s) / sample + noise).
    a, b, c = 1 + z * z / sample, 2 * value + z * z / sample, value**2 - z * z * noise
    root = max(0.0, b * b - 4 * a * c) ** 0.5
    return _within(value, (b - root) / (2 * a), (b + root) / (2 * a), confidence)


def _calibration_error(negative: Floats, positive: Floats, noise_std: float, confidence: float) -> Estimate:
    """Expected calibration error of the score rounded to its bin's centre (Naeini et al. 2015, ECE).

    That is the sum over bins of |positives - centre * records|, over all records, freed of what chance and noise add.
    """
    total = float(negative.sum() + positive.sum())
    steps = (np.arange(len(negative)) + 0.5) / len(negative)  # sigmoid(logit / 2) at the centre
    centre = steps**2 / (steps**2 + (1 - steps) ** 2)
    excess = (1 - centre) * positive - centre * negative
    sampling = np.maximum(0.0, (1 - centre) ** 2 * positive + centre**2 * negative - excess**2 / total)
    std = np.sqrt(sampling + noise_std**2 * ((1 - centre) ** 2 + centre**2))
    return miscalibration(excess, std, total, confidence)


def _within(value: float, low: float, high: float, confidence: float) -> Estimate:
    """An estimate cut to [0, 1], where every metric here lies."""
    value, low, high = (float(np.clip(number, 0.0, 1.0)) for number in (value, low, high))
    return Estimate(value, low, high, confidence)

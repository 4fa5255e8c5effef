import dataclasses

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binom, norm

from confide.models.errors import MetricUndefined
from confide.models.evaluation.binned import bin_edges, bin_of, binned_metrics
from confide.models.evaluation.metrics import accuracy, auc

METRICS = ("auc", "accuracy", "prevalence", "calibration_error")
REPETITIONS = 200


def sample(seed, n, *, mean=-2.0, std=2.5):
    """Logits of a calibrated classifier, and labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(mean, std, n)
    return logits, (rng.random(n) < expit(logits)).astype(int)


def histogram(logits, labels, bins):
    return np.bincount(labels * bins + bin_of(logits, bins), minlength=2 * bins).reshape(2, bins).astype(float)


def population(mean, std, scale, bins):
    """Probability of every (label, bin) for scores that are `scale` times a calibrated Gaussian logit."""
    grid = np.linspace(mean - 8 * std, mean + 8 * std, 200_001)
    weight = norm.pdf(grid, mean, std)
    weight /= weight.sum()
    where = bin_of(scale * grid, bins)
    return np.stack([np.bincount(where, weight * chance, bins) for chance in (1 - expit(grid), expit(grid))])


def by_definition(cells):
    """Each metric of a population of rounded scores, pair by pair and bin by bin."""
    negative, positive = cells
    bins = len(negative)
    pairs = [(p * n, float(a < b) + 0.5 * (a == b)) for b, p in enumerate(positive) for a, n in enumerate(negative)]
    steps = [(b + 0.5) / bins for b in range(bins)]
    centres = [step**2 / (step**2 + (1 - step) ** 2) for step in steps]
    return {
        "auc": sum(weight * order for weight, order in pairs) / sum(weight for weight, _ in pairs),
        "accuracy": sum(negative[: bins // 2]) + sum(positive[bins // 2 :]),
        "prevalence": sum(positive),
        "calibration_error": sum(
            abs(p - centre * (p + n)) for p, n, centre in zip(positive, negative, centres, strict=True)
        ),
    }


def test_edges_are_symmetric_rising_and_have_one_half_in_the_middle():
    for bins in (2, 10, 20):
        edges = bin_edges(bins)
        assert (np.diff(edges) > 0).all()
        np.testing.assert_allclose(edges, -edges[::-1], atol=1e-12)
        assert edges[bins // 2 - 1] == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(expit(bin_edges(20) / 2), np.arange(1, 20) / 20)


def test_a_score_has_the_bin_whose_edges_it_lies_between_and_any_score_has_one():
    assert bin_of([-100.0, -0.001, 0.0, 0.39, 0.41, 100.0, np.inf, np.nan], 20).tolist() == [
        0,
        9,
        10,
        10,
        11,
        19,
        19,
        19,
    ]


@pytest.mark.parametrize("bins", [0, 1, 7])
def test_bins_without_one_half_as_an_edge_are_refused(bins):
    with pytest.raises(MetricUndefined):
        bin_edges(bins)


def test_without_noise_the_auc_of_rounded_scores_comes_out_with_delongs_interval():
    logits, labels = sample(1, 3000)
    found = binned_metrics(histogram(logits, labels, 20), noise_std=0.0)
    exact = auc(bin_of(logits, 20).astype(float), labels)
    assert found.auc.value == pytest.approx(exact.value, abs=1e-12)
    assert found.auc.high - found.auc.low == pytest.approx(exact.high - exact.low, rel=0.02)  # exact is on logit scale


def test_without_noise_accuracy_is_that_of_the_scores_themselves():
    logits, labels = sample(2, 500)
    found = binned_metrics(histogram(logits, labels, 20), noise_std=0.0)
    exact = accuracy(logits, labels)
    assert dataclasses.astuple(found.accuracy) == pytest.approx(dataclasses.astuple(exact), abs=1e-12)
    assert found.prevalence.value == pytest.approx(labels.mean())
    assert found.records.value == found.records.low == 500


@pytest.mark.parametrize("bins", [10, 20, 40])
def test_rounding_costs_no_more_auc_than_half_of_the_tied_pairs(bins):
    for seed, mean, std in ((1, -2.0, 2.5), (2, 0.0, 1.0), (3, -4.0, 1.5)):
        logits, labels = sample(seed, 4000, mean=mean, std=std)
        found = binned_metrics(histogram(logits, labels, bins), noise_std=0.0)
        assert abs(found.auc.value - auc(logits, labels).value) <= found.auc_tied / 2


@pytest.mark.parametrize(
    ("mean", "std", "bound"),
    [(0.0, 1.0, 0.004), (-2.0, 1.0, 0.005), (-2.0, 2.0, 0.002), (-4.0, 2.0, 0.004), (-5.0, 1.5, 0.0125)],
)
def test_twenty_bins_lose_little_of_a_calibrated_scores_auc(mean, std, bound):
    fine, coarse = (by_matrix(population(mean, std, 1.0, bins)) for bins in (2000, 20))
    assert 0 <= fine - coarse < bound


def by_matrix(cells):
    negative, positive = cells
    below = np.cumsum(negative) - negative / 2
    return positive @ below / (positive.sum() * negative.sum())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mean", "std", "scale", "records", "noise_std", "bins"),
    [(-2.5, 3.0, 1.0, 2283, 4.6, 10), (0.0, 1.0, 2.0, 2283, 4.6, 20), (-2.0, 1.0, 1.0, 20_000, 10.0, 20)],
    ids=["rare and sharp, as thyroid", "overconfident", "many records, much noise"],
)
def test_intervals_cover_the_truth_about_as_often_as_they_say(mean, std, scale, records, noise_std, bins):
    cells = population(mean, std, scale, bins)
    truth, rng = by_definition(cells), np.random.default_rng(7)
    hits, errors = dict.fromkeys(METRICS, 0), {name: [] for name in METRICS}
    for _ in range(REPETITIONS):
        counts = rng.multinomial(records, cells.ravel()).reshape(2, bins) + rng.normal(0, noise_std, (2, bins))
        found = binned_metrics(counts, noise_std=noise_std)
        for name in METRICS:
            estimate = getattr(found, name)
            hits[name] += estimate.low <= truth[name] <= estimate.high
            errors[name].append(estimate.value - truth[name])
    low, high = binom.ppf([1e-4, 1 - 1e-4], REPETITIONS, 0.95)
    assert all(low <= hits[name] <= high for name in METRICS), hits
    for name in ("auc", "accuracy", "prevalence"):  # noise biases none of them
        assert abs(np.mean(errors[name])) < 4 * np.std(errors[name]) / REPETITIONS**0.5


def test_cutting_negative_counts_would_bias_what_leaving_them_does_not():
    cells = population(-2.5, 3.0, 1.0, 20)
    truth, rng = by_definition(cells)["auc"], np.random.default_rng(8)
    noised = [1000 * cells + rng.normal(0, 6, cells.shape) for _ in range(100)]
    left, cut = (
        np.mean([binned_metrics(counts, noise_std=6.0).auc.value for counts in tables]) - truth
        for tables in (noised, [np.maximum(counts, 0) for counts in noised])
    )
    assert abs(left) < 0.01 < abs(cut)


def test_noise_that_hides_the_records_leaves_metrics_unstated():
    found = binned_metrics(np.full((2, 20), 3.0), noise_std=50.0)
    assert [getattr(found, name) for name in METRICS] == [None] * 4
    assert found.records.low == 0
    assert found.reliability == ()


def test_labels_of_one_kind_have_no_auc_but_an_accuracy():
    counts = np.zeros((2, 10))
    counts[0, 2] = 40
    found = binned_metrics(counts, noise_std=0.0)
    assert (found.auc, found.accuracy.value, found.prevalence.value) == (None, 1.0, 0.0)


def test_reliability_tells_bin_by_bin_what_was_said_and_what_was_so():
    logits, labels = sample(5, 4000)
    found = binned_metrics(histogram(logits, labels, 10), noise_std=0.0)
    where = bin_of(logits, 10)
    assert sum(each.share.value for each in found.reliability) == pytest.approx(1)
    for index, each in enumerate(found.reliability):
        inside = where == index
        assert each.low <= expit(logits[inside]).min() <= expit(logits[inside]).max() <= each.high
        assert each.positives.value == pytest.approx(labels[inside].mean())
        assert each.positives.low <= each.high  # calibrated: what is so overlaps what was said
        assert each.positives.high >= each.low


@pytest.mark.parametrize(
    ("counts", "noise_std"),
    [(np.zeros(20), 1.0), (np.zeros((3, 20)), 1.0), (np.full((2, 4), np.nan), 1.0), (np.ones((2, 4)), -1.0),
     (np.ones((2, 5)), 1.0)],
    ids=["flat", "three labels", "not finite", "negative noise", "odd bins"],
)  # fmt: skip
def test_what_is_no_histogram_is_refused(counts, noise_std):
    with pytest.raises(MetricUndefined):
        binned_metrics(counts, noise_std=noise_std)

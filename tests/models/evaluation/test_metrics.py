import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from confide.models.errors import MetricUndefined
from confide.models.evaluation.metrics import accuracy, auc, brier_score, calibration_error, exact_match, perplexity

from ..tiny import random_ids, tiny_deepseek


def sample(seed, n, shift=1.0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(int)
    return rng.normal(size=n) + shift * labels, labels


def test_auc_is_the_share_of_pairs_in_order():
    scores, labels = sample(1, 60)
    scores = scores.round(1)  # with ties
    pairs = [np.sign(p - n) / 2 + 0.5 for p in scores[labels == 1] for n in scores[labels == 0]]
    assert auc(scores, labels).value == pytest.approx(np.mean(pairs), abs=1e-12)


def test_auc_interval_has_the_width_of_delongs_definition():
    scores, labels = sample(2, 80)
    positive, negative = scores[labels == 1], scores[labels == 0]
    psi = (positive[:, None] > negative[None, :]) + 0.5 * (positive[:, None] == negative[None, :])
    variance = psi.mean(1).var(ddof=1) / len(positive) + psi.mean(0).var(ddof=1) / len(negative)
    estimate = auc(scores, labels)
    logits = np.log(np.array([estimate.low, estimate.high]) / (1 - np.array([estimate.low, estimate.high])))
    value = estimate.value
    assert np.diff(logits)[0] == pytest.approx(2 * 1.959964 * variance**0.5 / (value * (1 - value)), rel=1e-6)


def test_auc_interval_covers_the_truth_about_as_often_as_it_says():
    truth = 0.76025  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt(2))
    intervals = [auc(*sample(seed, 150)) for seed in range(300)]
    covered = np.mean([e.low <= truth <= e.high for e in intervals])
    assert 0.91 < covered < 0.99  # 0.95 +- 3 standard errors of 300 trials


def test_a_perfect_score_still_has_an_interval():
    estimate = auc(np.array([0.0, 1, 2, 3]), np.array([0, 0, 1, 1]))
    assert (estimate.value, estimate.high) == (1.0, 1.0)
    assert estimate.low < 0.5


def test_accuracy_is_the_share_on_the_right_side_with_wilsons_interval():
    estimate = accuracy(np.array([1.0] * 8 + [-1.0] * 2), np.ones(10, dtype=int))
    assert estimate.value == 0.8
    assert (estimate.low, estimate.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson 1927, 8 of 10


@pytest.mark.parametrize(
    ("scores", "labels"),
    [([1.0, 2.0], [1, 1]), ([1.0], [1, 0]), ([np.nan, 1.0], [0, 1]), ([1.0, 2.0], [0, 2])],
)
def test_what_has_no_auc_is_refused(scores, labels):
    with pytest.raises(MetricUndefined):
        auc(np.array(scores), np.array(labels))


def test_accuracy_of_nothing_is_refused():
    with pytest.raises(MetricUndefined):
        accuracy(np.array([]), np.array([]))


def miscalibrated(seed, n, slope=1.0, shift=0.0):
    """Scores and labels of a classifier whose logits ought to be slope * score + shift."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 1.5, n)
    return scores, (rng.random(n) < expit(slope * scores + shift)).astype(int)


def population(slope, shift):
    """Calibration error in 15 bins and Brier score of `miscalibrated`, over 1.5 million scores."""
    scores = np.sort(np.random.default_rng(9).normal(0, 1.5, 1_500_000))
    says, is_so = expit(scores), expit(slope * scores + shift)
    error = np.abs((is_so - says).reshape(15, -1).mean(1)).mean()
    return error, (is_so * (1 - says) ** 2 + (1 - is_so) * says**2).mean()


def test_a_brier_score_is_scikit_learn_s():
    scores, labels = miscalibrated(1, 300, slope=0.5)
    assert brier_score(scores, labels).value == pytest.approx(brier_score_loss(labels, expit(scores)), rel=1e-12)


def test_records_that_are_equally_far_off_have_wilsons_interval():
    estimate = brier_score(np.zeros(10), np.array([0, 1] * 5))
    wilson = binomtest(5, 20).proportion_ci(0.95, "wilson")  # 5 of 20 is 0.25 too; half as many records are less sure
    assert estimate.value == 0.25
    assert estimate.low < wilson.low < 0.25 < wilson.high < estimate.high
    one = brier_score(np.array([3.0]), np.array([1]))
    assert (one.low, one.high) == pytest.approx((0.0, 0.794), abs=3e-3)  # Wilson's of 0 of 1 is [0, 0.793]


def test_a_calibration_error_of_many_records_is_the_one_by_definition():
    scores, labels = miscalibrated(2, 40_000, slope=0.4, shift=-0.5)
    is_so, says = calibration_curve(labels, expit(scores), n_bins=15, strategy="quantile")
    assert calibration_error(scores, labels).value == pytest.approx(np.abs(is_so - says).mean(), abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("slope", "shift"), [(1.0, 0.0), (0.6, 0.0), (2.0, 0.0)])
def test_intervals_of_calibration_and_brier_score_cover_the_truth_about_as_often_as_they_say(slope, shift):
    error, brier = population(slope, shift)
    samples = [miscalibrated(seed, 300, slope, shift) for seed in range(200)]
    for metric, truth in ((calibration_error, error), (brier_score, brier)):
        found = [metric(*sample) for sample in samples]
        assert np.mean([e.low <= truth <= e.high for e in found]) > 0.9  # 0.95 less 3 standard errors of 200 trials
    errors = [calibration_error(*sample) for sample in samples]
    assert np.median([e.value for e in errors]) == pytest.approx(error, abs=0.012)
    assert np.mean([e.high - e.low for e in errors]) < 0.13


def test_a_calibrated_classifier_is_not_blamed_for_chance():
    scores, labels = miscalibrated(3, 300)
    is_so, says = calibration_curve(labels, expit(scores), n_bins=15, strategy="quantile")
    assert np.abs(is_so - says).mean() > 0.03  # what chance makes of 20 records a bin
    assert calibration_error(scores, labels).low == 0.0
    assert calibration_error(scores, labels).value < 0.02


def test_calibration_does_not_depend_on_the_order_of_records_and_ties_share_a_bin():
    scores, labels = miscalibrated(4, 400, slope=0.5)
    scores = scores.round(0)
    order = np.random.default_rng(0).permutation(400)
    assert calibration_error(scores, labels) == calibration_error(scores[order], labels[order])
    tied = calibration_error(np.full(400, 0.2), labels)
    assert tied.value == pytest.approx(abs(labels.mean() - expit(0.2)), abs=5e-3)


def test_one_record_leaves_calibration_open():
    estimate = calibration_error(np.array([2.0]), np.array([1]))
    assert estimate.low == 0.0
    assert estimate.high > 0.5


def test_an_exact_match_is_a_share_with_wilsons_interval():
    estimate = exact_match([True, True, False, True])
    wilson = binomtest(3, 4).proportion_ci(0.95, "wilson")
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.75, wilson.low, wilson.high))


def texts(seed, n):
    """Losses and lengths of texts that differ in length and in how hard they are."""
    rng = np.random.default_rng(seed)
    tokens, hardness = rng.integers(5, 200, n), np.exp(rng.normal(0, 0.5, n))
    return rng.gamma(3 * tokens, hardness / 3), tokens


def test_perplexity_is_exp_of_transformers_loss():
    model, rows = tiny_deepseek(), random_ids(5)
    with torch.no_grad():
        losses = [float(model(row[None], labels=row[None]).loss) * 11 for row in rows]  # means over 11 next tokens
        whole = float(model(rows, labels=rows).loss)
    assert perplexity(np.array(losses), np.full(5, 11)).value == pytest.approx(np.exp(whole), rel=1e-5)


def test_perplexity_has_the_interval_of_leaving_out_one_text_after_another():
    losses, tokens = texts(0, 12)
    each = [np.delete(losses, i).sum() / np.delete(tokens, i).sum() for i in range(12)]
    mean = losses.sum() / tokens.sum()
    half = 2.200985 * (11 / 12 * np.sum((np.array(each) - mean) ** 2)) ** 0.5  # Student's 0.975 with 11 degrees
    estimate = perplexity(losses, tokens)
    assert (estimate.low, estimate.high) == pytest.approx((np.exp(mean - half), np.exp(mean + half)), rel=1e-6)


def test_the_interval_of_a_perplexity_covers_the_truth_about_as_often_as_it_says():
    truth = np.exp(np.exp(0.5**2 / 2))  # mean loss of a token: that of the hardness, which length knows nothing of
    found = [perplexity(*texts(seed, 40)) for seed in range(400)]
    assert 0.9 < np.mean([e.low <= truth <= e.high for e in found]) < 0.98


def test_a_single_text_has_a_perplexity_and_says_nothing_of_others():
    estimate = perplexity(np.array([6.0]), np.array([3]))
    assert (estimate.value, estimate.low, estimate.high) == (pytest.approx(np.exp(2)), 1.0, np.inf)


@pytest.mark.parametrize(
    ("losses", "tokens"), [([], []), ([1.0], [1, 2]), ([np.nan], [1]), ([-1.0], [1]), ([1.0], [0]), ([[1.0]], [[1]])]
)
def test_what_has_no_perplexity_is_refused(losses, tokens):
    with pytest.raises(MetricUndefined):
        perplexity(np.array(losses), np.array(tokens))


@pytest.mark.parametrize("metric", [brier_score, calibration_error])
def test_calibration_of_nothing_is_refused(metric):
    with pytest.raises(MetricUndefined):
        metric(np.array([]), np.array([]))
    with pytest.raises(MetricUndefined):
        exact_match([])

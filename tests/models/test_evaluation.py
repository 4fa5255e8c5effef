import numpy as np
import pytest

from confide.models.errors import MetricUndefined
from confide.models.evaluation import accuracy, auc


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

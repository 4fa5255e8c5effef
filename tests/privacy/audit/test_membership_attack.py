import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_curve

from confide.privacy.audit.membership_attack import attack_auc, calibrated, likelihood_ratios, logit_confidence, roc
from confide.privacy.errors import BatchMalformed


def test_confidence_is_the_logit_of_the_true_label_s_probability():
    logits = np.array([2.0, -1.0, 0.5])
    probability = 1 / (1 + np.exp(-logits))
    true = np.array([probability[0], 1 - probability[1], probability[2]])
    np.testing.assert_allclose(logit_confidence(logits, [1, 0, 1]), np.log(true / (1 - true)))


def test_scores_are_log_ratios_of_two_gaussians_record_by_record():
    rng = np.random.default_rng(0)
    shadows, had = rng.normal(size=(64, 5)), np.arange(64)[:, None] % 2 == np.zeros(5)
    attacked = rng.normal(size=5)
    for record in range(5):
        inside, outside = shadows[had[:, record], record], shadows[~had[:, record], record]
        want = norm(inside.mean(), inside.std(ddof=1)).logpdf(attacked[record])
        want -= norm(outside.mean(), outside.std(ddof=1)).logpdf(attacked[record])
        assert likelihood_ratios(attacked, shadows, had)[record] == pytest.approx(want)


def test_few_shadows_share_one_spread():
    shadows = np.array([[0.0, 10.0], [2.0, 14.0], [1.0, 0.0], [1.0, 6.0]])
    had = np.array([[True, True], [True, True], [False, False], [False, False]])
    pooled_in, pooled_out = np.sqrt((2 + 8) / 2), np.sqrt((0 + 18) / 2)
    attacked = np.array([1.5, 9.0])
    want = norm.logpdf(attacked, [1, 12], pooled_in) - norm.logpdf(attacked, [1, 3], pooled_out)
    np.testing.assert_allclose(likelihood_ratios(attacked, shadows, had), want)


def test_a_record_no_shadow_had_is_scored_by_how_far_it_is_from_those_without():
    shadows, had = np.array([[0.0, 0.0], [2.0, 2.0]]), np.zeros((2, 2), dtype=bool)
    scores = likelihood_ratios(np.array([1.0, 9.0]), shadows, had)
    np.testing.assert_allclose(scores, -norm.logsf([1.0, 9.0], 1.0, np.sqrt(2)))


def test_calibration_takes_off_what_was_easy_before_training():
    """Members got a little surer: how hard a record is hides that, unless it is taken off."""
    rng, is_member = np.random.default_rng(0), np.arange(400) < 200
    untrained = 3 * rng.normal(size=400)
    attacked = untrained + 0.5 * is_member + 0.1 * rng.normal(size=400)
    scores = calibrated(attacked, untrained)
    np.testing.assert_array_equal(scores, attacked - untrained)
    assert attack_auc(scores, is_member).value > 0.99
    assert attack_auc(attacked, is_member).value < 0.65
    with pytest.raises(BatchMalformed, match="do not fit together"):
        calibrated(attacked, untrained[1:])


def test_the_roc_is_that_of_another_library():
    rng = np.random.default_rng(1)
    is_member = rng.random(300) < 0.4
    scores = np.round(rng.normal(size=300) + is_member, 1)  # with ties
    found = roc(scores, is_member)
    false, true, _ = roc_curve(is_member, scores, drop_intermediate=False)
    np.testing.assert_allclose(found.false_positive_rate, false)
    np.testing.assert_allclose(found.true_positive_rate, true)


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_known_gaussians_give_their_own_roc(shift):
    rng, size = np.random.default_rng(2), 20_000
    is_member = np.arange(2 * size) < size
    scores = rng.normal(size=2 * size) + shift * is_member
    for rate in (0.01, 0.1):
        found = roc(scores, is_member).true_positives_at(rate, confidence=0.999)
        want = norm.sf(norm.isf(rate) - shift)
        slack = 4 * norm.pdf(norm.isf(rate) - shift) / norm.pdf(norm.isf(rate)) * (rate / size) ** 0.5
        assert found.low - slack < want < found.high + slack  # the threshold is a sample's too
    area = attack_auc(scores, is_member, confidence=0.999)
    assert area.low < norm.cdf(shift / 2**0.5) < area.high


def test_shadows_find_the_members_of_a_model_that_remembers_and_of_no_other():
    rng, records, shadow_count = np.random.default_rng(3), 2000, 32
    hardness, is_member = 3 * rng.normal(size=records), rng.random(records) < 0.5
    had = rng.random((shadow_count, records)) < 0.5
    for memory, low, high in ((0.0, 0.45, 0.55), (2.0, 0.88, 0.95)):  # Phi(2 / sqrt 2) = 0.921, less for fitted means
        shadows = hardness + memory * had + rng.normal(size=had.shape)
        attacked = hardness + memory * is_member + rng.normal(size=records)
        area = attack_auc(likelihood_ratios(attacked, shadows, had), is_member).value
        assert low < area < high
    assert attack_auc(attacked, is_member).value < 0.7  # the ratio, not the confidence, does the work


def test_points_begin_at_nothing_end_at_everything_and_never_fall():
    rng = np.random.default_rng(4)
    is_member = rng.random(5000) < 0.5
    curve = roc(rng.normal(size=5000) + is_member, is_member)
    points = curve.points(60)
    assert len(points) <= 60
    assert points[0][0] == 0
    assert points[-1] == (1.0, 1.0)
    assert points == sorted(points)
    assert all(true == curve.true_positive_rate[curve.false_positive_rate <= false].max() for false, true in points)


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(BatchMalformed):
        likelihood_ratios(np.zeros(3), np.zeros((4, 2)), np.zeros((4, 2), dtype=bool))
    with pytest.raises(BatchMalformed):
        roc(np.zeros(3), np.ones(3, dtype=bool))

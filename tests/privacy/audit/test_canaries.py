import numpy as np
import pytest

from confide.privacy.accounting import composition
from confide.privacy.audit.canaries import AuditDesign, AuditedStep, _clipped, _gradients, _scores, run_audit
from confide.privacy.audit.engine_checks import unit_gradients
from confide.privacy.errors import InvalidPrivacyParameter
from confide.privacy.mechanism.site_round import ReleaseTerms, private_release

from ...models.tiny import VOCABULARY, random_ids
from ..loops import adapted_tiny, completing_tiny, labels_for
from ..sabotage import ENGINES

NOISE = composition.site_noise(2.25, 0.5, 4, 0, 1, 17, "distributed")
TERMS = ReleaseTerms(
    mode="distributed", clip_norm=0.5, sample_rate=0.2, site_noise_int=NOISE, scale_bits=17, max_rows_per_batch=64,
    max_records_per_unit=1,
)  # fmt: skip
STEP = AuditedStep(terms=TERMS, sites=4, colluding=1, delta=1e-5)
DESIGN = AuditDesign(canaries=200, canaries_per_step=20, guesses=60)


@pytest.mark.slow
def test_the_true_engine_keeps_its_claim():
    adapted = adapted_tiny()
    before = adapted.state()
    found = run_audit(private_release, adapted, VOCABULARY, STEP, design=DESIGN)
    assert found.holds
    assert found.lower_bound < found.claim < found.reach
    assert found.right_unprotected == DESIGN.guesses  # the same auditor finds everybody where nothing protects
    np.testing.assert_array_equal(adapted.state(), before)


@pytest.mark.slow
def test_the_true_engine_keeps_its_claim_on_completions_and_one_without_noise_does_not():
    adapted = completing_tiny()
    assert run_audit(private_release, adapted, VOCABULARY, STEP, design=DESIGN).holds
    assert not run_audit(ENGINES["no noise"][0](), adapted, VOCABULARY, STEP, design=DESIGN).holds


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no noise", "no clipping"])
def test_a_step_without_noise_or_bound_breaks_its_claim(name):
    found = run_audit(ENGINES[name][0](), adapted_tiny(), VOCABULARY, STEP, design=DESIGN)
    assert not found.holds


def test_the_claim_is_one_gaussian_s_for_who_knows_one_site_s_noise():
    dim = 5000
    release = composition.Release(
        mode="distributed", site_noise_int=NOISE, scale_bits=17, clip_norm=0.5, dim=dim, sample_rate=1.0, sites=4
    )
    assert STEP.claim(dim) == composition.epsilon_pld([release], 1e-5, 1)
    assert 1.7 < STEP.claim(dim) < 1.8  # 1.75 for a Gaussian of multiplier 2.25 (Balle & Wang 2018)


@pytest.mark.parametrize(("sites", "colluding", "parts"), [(4, 1, 3), (4, 0, 4), (30, 2, 4)])
def test_the_parts_of_the_noise_make_up_what_the_observer_does_not_know(sites, colluding, parts):
    step = AuditedStep(terms=TERMS, sites=sites, colluding=colluding, delta=1e-5)
    stds = [terms.site_noise_int for terms in step.site_terms()]
    assert len(stds) == parts
    assert np.sqrt(np.sum(np.square(stds))) == pytest.approx(NOISE * (sites - colluding) ** 0.5, rel=1e-5)


def test_local_noise_is_one_site_s_own():
    local = AuditedStep(
        terms=ReleaseTerms(
            mode="local", clip_norm=0.5, sample_rate=0.2, site_noise_int=7, scale_bits=17, max_rows_per_batch=64,
            max_records_per_unit=1,
        ),
        sites=4, colluding=1, delta=1e-5,
    )  # fmt: skip
    assert [terms.site_noise_int for terms in local.site_terms()] == [7]


def test_the_auditor_s_gradients_are_plain_autograd_s_clipped():
    adapted, ids, labels = adapted_tiny(), random_ids(5).numpy(), labels_for(5).numpy().astype(np.int64)
    each = unit_gradients(adapted, ids, labels)
    norms = np.linalg.norm(each, axis=1, keepdims=True)
    want = each * np.minimum(1, 0.5 / norms)
    assert (norms > 0.5).any()
    np.testing.assert_allclose(_clipped(_gradients(adapted, ids, labels), TERMS), want, atol=2e-5 * 0.5)


def test_scores_recover_every_coin_of_a_sum_without_noise():
    rng = np.random.default_rng(0)
    gradients, is_in = rng.normal(size=(30, 400)), rng.random(30) < 0.5
    scores = _scores(gradients, is_in @ gradients)
    np.testing.assert_allclose(scores, is_in - 0.5, atol=1e-6)


def test_scores_are_the_best_linear_estimate():
    rng = np.random.default_rng(1)
    gradients, is_in = rng.normal(size=(8, 20_000)) / 100, rng.random(8) < 0.5
    opened = is_in @ gradients + 0.7 * rng.normal(size=20_000)
    precision = gradients @ gradients.T / 0.7**2 + 4 * np.eye(8)  # of coins with variance 1/4, given the sum
    want = np.linalg.solve(precision, gradients @ (opened - gradients.sum(0) / 2) / 0.7**2)
    np.testing.assert_allclose(_scores(gradients, opened), want, rtol=0.05, atol=1e-3)


def test_a_large_adapter_gets_a_smaller_audit():
    assert AuditDesign().within(16_513, 3) == AuditDesign()
    large = AuditDesign().within(1_000_000, 4)
    assert (large.steps, large.canaries, large.guesses) == (1, 100, 12)


@pytest.mark.parametrize(
    "bad", [{"guesses": 61}, {"guesses": 0}, {"guesses": 802}, {"canaries": 801}, {"confidence": 1.0}]
)
def test_a_design_that_cannot_be_run_is_refused(bad):
    with pytest.raises(InvalidPrivacyParameter):
        AuditDesign(**bad)

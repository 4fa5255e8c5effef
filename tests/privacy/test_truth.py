import numpy as np
import pytest

from confide.privacy.steps import ReleaseTerms, private_release
from confide.privacy.truth import CHECKS, _binomial_problems, blocks, check_engine, unit_gradients, wrong_labels

from ..models.tiny import VOCABULARY, random_ids
from .loops import adapted_tiny, clipped_loop, labels_for
from .sabotage import ENGINES

TERMS = ReleaseTerms(
    mode="distributed", clip_norm=0.5, sample_rate=0.2, site_noise_int=150_000, scale_bits=17, max_rows_per_batch=64,
    max_records_per_unit=1,
)  # fmt: skip


SAMPLING = ("poisson-sampling",)
OTHERS = tuple(name for name in CHECKS if name not in SAMPLING)


@pytest.fixture(scope="module")
def adapted():
    return adapted_tiny()


@pytest.fixture(scope="module")
def head():
    """Few numbers: sampling takes a hundred steps."""
    return adapted_tiny("head")


def test_the_true_engine_passes_every_check_in_every_block(adapted):
    before = adapted.state()
    found = check_engine(private_release, adapted, VOCABULARY, TERMS)
    assert found.findings == ()
    assert found.checks == tuple(CHECKS)
    assert found.reached == found.blocks == len(blocks(adapted.layout))
    np.testing.assert_array_equal(adapted.state(), before)


@pytest.mark.parametrize("name", ENGINES)
def test_a_sabotaged_engine_is_caught_by_name(adapted, head, name):
    make, want = ENGINES[name]
    found = [
        *check_engine(make(), adapted, VOCABULARY, TERMS, checks=OTHERS).findings,
        *check_engine(make(), head, VOCABULARY, TERMS, checks=SAMPLING).findings,
    ]
    assert {finding.check for finding in found} == want


def test_the_one_unclipped_expert_is_named(adapted):
    found = check_engine(ENGINES["one expert unclipped"][0](), adapted, VOCABULARY, TERMS, checks=("clipping",))
    (finding,) = found.findings
    assert finding.detail.startswith("model.layers.1.mlp.experts.gate_up_proj.lora_B[3]: one unit moves it by")


def test_blocks_are_the_layout_with_experts_apart(adapted):
    parts = blocks(adapted.layout)
    assert sum(name.startswith("model.layers.1.mlp.experts.down_proj.lora_B[") for name in parts) == 4
    covered = np.concatenate([np.arange(part.start, part.stop) for part in parts.values()])
    np.testing.assert_array_equal(np.sort(covered), np.arange(adapted.layout.dim))


def test_unit_gradients_are_those_of_the_loop(adapted):
    ids, labels = random_ids(3), labels_for(3)
    rows = unit_gradients(adapted, ids.numpy(), labels.numpy().astype(np.int64))
    for row in range(3):
        want, _ = clipped_loop(adapted, ids[row : row + 1], labels[row : row + 1], np.array([0]), 1e9)
        flat = np.concatenate([want[name].numpy().ravel() for name in adapted.layout.names])
        np.testing.assert_allclose(rows[row], flat, rtol=1e-3, atol=1e-5 * np.abs(flat).max())


def test_wrong_labels_are_the_ones_the_model_finds_less_likely(adapted):
    ids = random_ids(6)
    logits = adapted.classify(ids).detach().numpy()
    assert (logits[wrong_labels(adapted, ids.numpy()) == 1] < 0).all()
    assert (logits[wrong_labels(adapted, ids.numpy()) == 0] >= 0).all()


def coins(rate, steps=120, units=32, seed=0):
    return np.random.default_rng(seed).random((steps, units)) < rate


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5])
def test_independent_coins_pass_a_hundred_times(rate):
    assert [list(_binomial_problems(coins(rate, seed=seed), rate)) for seed in range(100)] == [[]] * 100


def test_what_is_not_an_independent_coin_is_told():
    together, unlucky, sticky = coins(0.2), coins(0.2), coins(0.2)
    together[:, 1] = together[:, 0]
    unlucky[:, 0] = False
    for step in range(1, len(sticky)):
        stays = np.random.default_rng(step).random(32) < 0.5
        sticky[step, stays] = sticky[step - 1, stays]
    assert "together" in "".join(_binomial_problems(together, 0.2))
    assert "a unit is drawn in 0 of 120" in "".join(_binomial_problems(unlucky, 0.2))
    assert "in two steps running" in "".join(_binomial_problems(sticky, 0.2))
    assert "batch sizes" in "".join(_binomial_problems(coins(0.3), 0.2))

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from confide.models.heads.objectives import BinaryLabel, OneClass, PointOnScale, SeveralLabels, SeveralTasks, Task
from confide.privacy.audit import engine_checks
from confide.privacy.audit.engine_checks import (
    _ALPHA,
    CHECKS,
    _binomial_problems,
    _tails,
    blocks,
    check_engine,
    site_round,
    unit_gradients,
    unlikely_targets,
    wrong_labels,
)
from confide.privacy.mechanism.batches import states_when_asked
from confide.privacy.mechanism.site_round import LocalSteps, ReleaseTerms

from ...models.tiny import VOCABULARY, random_ids
from ..loops import adapted_tiny, clipped_loop, completing_tiny, labels_for, writing_tiny
from ..sabotage import ADAPTIVE_ENGINES, ENGINES, noise_in_one_local_step

TASKS = SeveralTasks(
    (Task("a", BinaryLabel()), Task("b", OneClass(("x", "y", "z")), 0.5), Task("c", PointOnScale(0.0, 9.0), 2.0))
)
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


@pytest.fixture(scope="module")
def attention():
    """Some thousand numbers: looking at the noise takes few steps."""
    return adapted_tiny("attention")


def probes():
    """The same records and states at each run: a mistake in one expert is seen only by records that reach it."""
    return np.random.default_rng(0)


@pytest.mark.slow
def test_the_true_engine_passes_every_check_in_every_block(adapted):
    before = adapted.state()
    found = check_engine(site_round, adapted, VOCABULARY, TERMS)
    assert found.findings == ()
    assert found.checks == tuple(CHECKS)
    assert found.reached == found.blocks == len(blocks(adapted))
    np.testing.assert_array_equal(adapted.state(), before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [OneClass(("a", "b", "c")), SeveralLabels(("x", "y")), PointOnScale(0.0, 1.0), TASKS],
    ids=["classes", "labels", "number", "tasks"],
)
def test_the_true_engine_passes_whatever_a_head_learns_of_states_read_apart(objective):
    adapted = adapted_tiny("head", objective=objective, reads=(0, 2))
    found = check_engine(site_round, adapted, VOCABULARY, TERMS)
    assert found.findings == ()
    assert found.checks == tuple(CHECKS)
    assert found.reached == found.blocks


@pytest.mark.slow
def test_the_true_engine_passes_where_a_text_is_written_behind_what_a_head_reads():
    found = check_engine(site_round, writing_tiny(), VOCABULARY, TERMS)
    assert found.findings == ()
    assert found.reached == found.blocks


class SumOfRows(OneClass):
    """A loss that is divided by the batch, as a plain trainer's is."""

    def losses(self, outputs, targets_R):
        return super().losses(outputs, targets_R) / max(1, len(targets_R))


def test_a_loss_that_training_defines_otherwise_than_torch_is_caught():
    adapted = adapted_tiny("head", objective=SumOfRows(("a", "b", "c")), reads=(0, 2))
    found = check_engine(site_round, adapted, VOCABULARY, TERMS, checks=OTHERS)
    assert found.findings != ()


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_a_sabotaged_engine_is_caught_by_name(adapted, head, name):
    make, want = ENGINES[name]
    found = [
        *check_engine(make(), adapted, VOCABULARY, TERMS, checks=OTHERS, rng=probes()).findings,
        *check_engine(make(), head, VOCABULARY, TERMS, checks=SAMPLING, rng=probes()).findings,
    ]
    assert {finding.check for finding in found} == want


ADAPTIVE = replace(TERMS, clipping="adaptive")
LOCAL = replace(TERMS, mode="local", local=LocalSteps(steps=9, lr=0.3, head_lr=0.3, batch_units=5))


@pytest.mark.slow
@pytest.mark.parametrize("terms", [ADAPTIVE, LOCAL])
def test_the_true_engine_passes_with_an_adaptive_clip_and_with_local_steps(attention, terms):
    before = attention.state()
    found = check_engine(site_round, attention, VOCABULARY, terms)
    assert found.findings == ()
    assert found.reached == found.blocks
    np.testing.assert_array_equal(attention.state(), before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTIVE_ENGINES)
def test_a_sabotaged_adaptive_engine_is_caught_by_name(attention, name):
    engine, want = ADAPTIVE_ENGINES[name]
    found = check_engine(engine, attention, VOCABULARY, ADAPTIVE, checks=OTHERS, rng=probes()).findings
    assert {finding.check for finding in found} == want


def test_local_steps_that_share_one_step_s_noise_are_caught(attention):
    found = check_engine(noise_in_one_local_step, attention, VOCABULARY, LOCAL, checks=OTHERS, rng=probes()).findings
    assert {finding.check for finding in found} == {"noise-std"}


def test_the_one_unclipped_expert_is_named(adapted):
    engine = ENGINES["one expert unclipped"][0]()
    found = check_engine(engine, adapted, VOCABULARY, TERMS, checks=("clipping",), rng=probes())
    (finding,) = found.findings
    assert finding.detail.startswith("model.layers.1.mlp.experts.gate_up_proj.lora_B[3]: one unit moves it by")


def test_blocks_are_the_layout_with_experts_apart(adapted):
    parts = blocks(adapted)
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


@pytest.mark.slow
def test_the_true_engine_passes_every_check_on_completions():
    found = check_engine(site_round, completing_tiny(), VOCABULARY, TERMS)
    assert found.findings == ()


FROM_STATES = ("clipping", "sensitivity", "float64-loop", "batch-independence")


@pytest.mark.slow
def test_a_model_whose_last_layers_are_trained_is_checked_from_the_states_that_enter_them(monkeypatch):
    adapted, begun, true_release = completing_tiny(layers=(1,)), [], engine_checks.round_release

    def noted(*args, entering, **kwargs):
        begun.append(entering is not None)
        return true_release(*args, entering=entering, **kwargs)

    monkeypatch.setattr(engine_checks, "round_release", noted)
    found = check_engine(site_round, adapted, VOCABULARY, TERMS, checks=FROM_STATES)
    assert found.findings == ()
    assert found.checks == FROM_STATES
    assert begun
    assert all(begun)


@pytest.mark.slow
def test_wrong_states_are_found(monkeypatch):
    def blank(*args, **kwargs):
        states_of = states_when_asked(*args, **kwargs)
        return lambda rows: [torch.zeros_like(states) for states in states_of(rows)]

    monkeypatch.setattr(engine_checks, "states_when_asked", blank)
    found = check_engine(site_round, completing_tiny(layers=(1,)), VOCABULARY, TERMS, checks=FROM_STATES)
    assert {finding.check for finding in found.findings} == {"float64-loop"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no noise", "no clipping", "one expert unclipped"])
def test_a_mistake_is_found_on_completions_too(name):
    engine, checks = ENGINES[name]
    found = check_engine(engine(), completing_tiny(), VOCABULARY, TERMS, checks=OTHERS, rng=probes())
    assert {finding.check for finding in found.findings} & {*checks}


def test_unlikely_targets_of_completions_are_all_words_but_the_first():
    assert unlikely_targets(completing_tiny(), random_ids(2, 4).numpy()).tolist() == [[False, True, True, True]] * 2


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


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("trials", [20, 100, 24 * 10, 24 * 50])
def test_a_binomial_count_is_called_unlikely_no_more_often_than_stated(trials, rate):
    """Over all counts, each with its own probability: nothing is left to luck."""
    counts = np.arange(trials + 1)
    chances, tails = binom.pmf(counts, trials, rate**2), _tails(counts, trials, rate**2)
    for level in (1e-2, 1e-4, _ALPHA, 1e-8):
        assert chances[tails < level].sum() <= level * (1 + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "steps"), [(0.05, 20), (0.2, 100)])
def test_true_coins_raise_no_more_false_alarms_than_stated(rate, steps, monkeypatch):
    """At a level where false alarms can be counted: one test in 500, of which there are four."""
    runs, level = 1500, 2e-3
    monkeypatch.setattr("confide.privacy.audit.engine_checks._ALPHA", level)
    drawn = np.random.default_rng(7).random((runs, steps, 24)) < rate
    alarms = [problem for present in drawn for problem in _binomial_problems(present, rate)]
    for words in ("batch sizes", "a unit is drawn", "together", "running"):
        assert binom.sf(sum(words in alarm for alarm in alarms) - 1, runs, level) > 1e-3, words


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

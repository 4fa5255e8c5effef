import os

import numpy as np
import pytest
import torch
from opacus.accountants import RDPAccountant

from confide.models.errors import StateMismatch
from confide.privacy.errors import BatchMalformed, InvalidPrivacyParameter, SourceRefused
from confide.privacy.mechanism.adaptive_clipping import COUNT_WEIGHT, SENSITIVITY
from confide.privacy.mechanism.sampling import SeededBytes
from confide.privacy.mechanism.site_round import LEAST_CLIP, LocalSteps, ReleaseTerms, private_release, round_release

from ...models.tiny import random_ids
from ..loops import BITS, PLAIN, C, adapted_tiny, clipped_loop, completing_tiny, given, kept_states, labels_for

PRIVATE = {**PLAIN, "mode": "distributed", "site_noise_int": 1 << 20}


LAYERS = pytest.mark.parametrize("layers", [None, (1,)], ids=["all layers", "from kept states"])


def release(adapted, ids, units, terms=None, **kwargs):
    """From kept states, if some layers are frozen."""
    ids, labels = ids.numpy(), labels_for(len(ids)).numpy()
    entering = kept_states(adapted, ids, labels)
    terms = ReleaseTerms(**{**PLAIN, **(terms or {})})
    return private_release(adapted, ids, labels, units, terms=terms, entering=given(entering), **kwargs)


def flat(adapted, total):
    return np.concatenate([total[name].numpy().ravel() for name in adapted.layout.names])


@LAYERS
@pytest.mark.usefixtures("bare_clip")
def test_release_is_the_rounded_clipped_sum_whatever_the_microbatches(layers):
    adapted, ids = adapted_tiny(dtype=torch.float64, layers=layers), random_ids(9)
    ids[3, 5:] = 0
    units = np.array(["b", "a", "b", "c", "d", "e", "b", "f", "a"])
    want = flat(adapted, clipped_loop(adapted, ids, labels_for(9), units, C)[0]) * 2**BITS
    for max_rows in (3, 4, 100):
        got = release(adapted, ids, units, {"max_rows_per_batch": max_rows})
        assert got.dtype == np.int64
        assert np.abs(got - want).max() <= 0.5 + 1e-3


@LAYERS
def test_no_bound_gives_the_plain_sum_of_means_over_units(layers):
    adapted, ids = adapted_tiny(dtype=torch.float64, layers=layers), random_ids(4)
    units = np.array([0, 1, 0, 2])
    want = flat(adapted, clipped_loop(adapted, ids, labels_for(4), units, 1e9)[0]) * 2**BITS
    assert np.abs(release(adapted, ids, units, {"clip_norm": None}) - want).max() <= 0.5 + 1e-3


@LAYERS
def test_step_without_noise_repeats_bit_for_bit_with_its_seed(layers):
    adapted, ids = adapted_tiny(freeze_a=False, layers=layers), random_ids(20)
    terms = {"sample_rate": 0.5, "max_rows_per_batch": 7}

    def once(seed):
        return release(adapted, ids, np.arange(20), terms, source=SeededBytes(seed))

    threads = torch.get_num_threads()
    first = once(b"one")
    try:
        torch.set_num_threads(threads + 1)
        assert once(b"one").tobytes() == first.tobytes()
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert once(b"one").tobytes() == first.tobytes()
    assert once(b"two").tobytes() != first.tobytes()


@LAYERS
def test_noise_has_the_agreed_std_and_sits_on_the_clipped_sum(layers):
    adapted, ids = adapted_tiny(rank=16, layers=layers), random_ids(6)
    without = release(adapted, ids, range(6))
    noise = release(adapted, ids, range(6), PRIVATE) - without
    assert noise.std() == pytest.approx(2**20, rel=0.04)  # over 7 standard errors
    assert abs(noise.mean()) < 7 * 2**20 / noise.size**0.5


@LAYERS
@pytest.mark.parametrize("rows", [0, 5])
def test_empty_sample_gives_noise_and_counts_one_step(rows, layers):
    adapted = adapted_tiny(rank=16, layers=layers)
    accountant = RDPAccountant()
    hook = accountant.get_optimizer_hook_fn(sample_rate=2.0**-60)
    got = release(adapted, random_ids(rows), range(rows), {**PRIVATE, "sample_rate": 2.0**-60}, on_step=hook)
    assert got.std() == pytest.approx(2**20, rel=0.04)  # over 7 standard errors
    assert [(rate, steps) for _, rate, steps in accountant.history] == [(2.0**-60, 1)]


def test_step_of_many_microbatches_counts_once():
    adapted, ids = adapted_tiny(), random_ids(9)
    accountant = RDPAccountant()
    release(adapted, ids, range(9), PRIVATE, on_step=accountant.get_optimizer_hook_fn(sample_rate=1.0))
    counted = ((1 << 40) - 16) ** 0.5  # less what smooths the integers
    [(multiplier, rate, steps)] = accountant.history
    assert (rate, steps) == (1.0, 1)
    assert multiplier == pytest.approx(counted / (2**BITS * C + adapted.layout.dim**0.5), rel=1e-12)


def test_unit_with_too_many_records_is_cut_at_random():
    adapted, ids = adapted_tiny("head"), random_ids(5)
    terms = {"max_records_per_unit": 1, "clip_norm": None}
    one_record = {
        private_release(
            adapted, ids[i : i + 1].numpy(), [i % 2], [0], terms=ReleaseTerms(**{**PLAIN, **terms})
        ).tobytes()
        for i in range(5)
    }
    seen = {release(adapted, ids, [7] * 5, terms, source=SeededBytes(bytes([i]))).tobytes() for i in range(30)}
    assert len(seen) == 5
    assert seen <= one_record


def test_units_not_records_are_sampled():
    adapted, ids = adapted_tiny("head"), random_ids(6)
    units = np.array([0, 0, 0, 1, 1, 1])
    labels = labels_for(6).numpy()
    possible = {
        private_release(adapted, ids[s].numpy(), labels[s], units[s], terms=ReleaseTerms(**PLAIN)).tobytes()
        for s in (slice(0), slice(3), slice(3, 6), slice(6))
    }
    seen = {
        release(adapted, ids, units, {"sample_rate": 0.5}, source=SeededBytes(bytes([i]))).tobytes() for i in range(20)
    }
    assert len(seen) == 4
    assert seen == possible


@LAYERS
def test_model_is_left_as_it_was(layers):
    adapted, ids = adapted_tiny(layers=layers), random_ids(4)
    before, modules = adapted.state(), list(adapted.modules())
    release(adapted, ids, range(4), PRIVATE)
    assert list(adapted.modules()) == modules
    np.testing.assert_array_equal(adapted.state(), before)
    assert all(p.grad is None for p in adapted.trained.values())


@LAYERS
def test_step_runs_inside_no_grad(layers):
    adapted, ids = adapted_tiny(layers=layers), random_ids(4)
    with torch.no_grad():
        assert release(adapted, ids, range(4)).any()


@pytest.mark.parametrize("mode", ["distributed", "local"])
@pytest.mark.parametrize("source", [SeededBytes(b"s"), lambda size: os.urandom(size)])
def test_protection_takes_no_source_but_the_operating_system(mode, source):
    with pytest.raises(SourceRefused):
        release(adapted_tiny(), random_ids(2), range(2), {**PRIVATE, "mode": mode}, source=source)


def test_failed_step_leaves_nothing_behind():
    adapted, ids = adapted_tiny(), random_ids(8)
    want = release(adapted, ids, range(8))
    broken = ids.clone()
    broken[6, 0] = 1 << 40  # no such token; met in the second microbatch
    with pytest.raises(IndexError):
        release(adapted, broken, range(8))
    assert all(p.summed_grad is None for p in adapted.trained.values())
    assert release(adapted, ids, range(8)).tobytes() == want.tobytes()


def test_records_that_do_not_fit_together_are_refused():
    with pytest.raises(BatchMalformed):
        release(adapted_tiny(), random_ids(3), range(2))


@pytest.mark.parametrize(
    "bad",
    [
        {"mode": "off"},
        {"clip_norm": None},
        {"clip_norm": 0.0},
        {"clip_norm": 1e-319},  # where a factor clip_norm / norm has no digits left
        {"clip_norm": float("nan")},
        {"sample_rate": 0.0},
        {"sample_rate": float("nan")},
        {"site_noise_int": 0},  # a private mode that adds nothing
        {"mode": "none"},  # and noise that protects nothing
        {"scale_bits": 60},
        {"clipping": "automatic"},
        {"local": LocalSteps(steps=2)},  # a copy trained on a share of the noise
        {"max_records_per_unit": 0},
        {"max_rows_per_batch": 2},  # smaller than a unit
    ],
)
def test_terms_out_of_range_are_refused(bad):
    with pytest.raises(InvalidPrivacyParameter):
        ReleaseTerms(**{**PRIVATE, **bad})


ADAPTIVE = {"clipping": "adaptive", "clip_norm": C}


@LAYERS
@pytest.mark.parametrize("clip_norm", [C, LEAST_CLIP])
@pytest.mark.parametrize("log_clip", [-1e6, -3.0, 0.0, 2.0, 1e6])
def test_one_unit_moves_an_adaptive_release_by_at_most_a_constant_whatever_clip_is_sent(clip_norm, log_clip, layers):
    adapted, ids = adapted_tiny(dtype=torch.float64, layers=layers), random_ids(6)
    for unit in range(6):
        own = ids[unit : unit + 1]
        moved = (
            release(adapted, own, [unit], {**ADAPTIVE, "clip_norm": clip_norm, "scale_bits": 40}, log_clip=log_clip)
            / 2**40
        )
        assert moved.shape == (adapted.layout.dim + 1,)
        assert np.linalg.norm(moved[:-1]) <= 1 + adapted.layout.dim**0.5 * 2**-41  # rounding moves each by half a unit
        assert abs(moved[-1]) == pytest.approx(COUNT_WEIGHT / 2, abs=2**-40)
        assert np.linalg.norm(moved) <= SENSITIVITY + adapted.layout.dim**0.5 * 2**-41
    assert not release(adapted, ids[:0], [], ADAPTIVE, log_clip=log_clip).any()


@pytest.mark.usefixtures("bare_clip")
def test_an_adaptive_release_is_the_clipped_sum_in_clip_units_and_a_count_of_units_below():
    adapted, ids = adapted_tiny(dtype=torch.float64), random_ids(9)
    units = np.array([0, 1, 0, 2, 3, 4, 0, 5, 1])
    _, norms = clipped_loop(adapted, ids, labels_for(9), units, 1.0)
    threshold = float(norms.sort().values[2]) * (1 + 1e-9)  # three of the six units are at or below
    total, _ = clipped_loop(adapted, ids, labels_for(9), units, threshold)
    got = release(adapted, ids, units, ADAPTIVE, log_clip=np.log(threshold / C))
    assert np.abs(got[:-1] - flat(adapted, total) / threshold * 2**BITS).max() <= 0.5 + 1e-3
    assert got[-1] == 0
    above = release(adapted, ids, units, {**ADAPTIVE, "max_rows_per_batch": 4}, log_clip=-9.0)
    assert above[-1] == round(-6 * COUNT_WEIGHT / 2 * 2**BITS)


def test_a_unit_without_a_finite_gradient_counts_as_above_and_adds_nothing_else():
    adapted, ids = adapted_tiny("head"), random_ids(1)
    adapted.head.whiten.fill_(float("nan"))
    got = release(adapted, ids, [0], ADAPTIVE)
    assert not got[:-1].any()
    assert got[-1] == round(-COUNT_WEIGHT / 2 * 2**BITS)


def test_the_count_gets_the_noise_of_every_other_entry():
    adapted = adapted_tiny("head")
    terms = {**PRIVATE, **ADAPTIVE, "sample_rate": 2.0**-60}
    counts = np.array([release(adapted, random_ids(1), [0], terms)[-1] for _ in range(400)])
    assert counts.std() == pytest.approx(2**20, rel=0.25)  # 7 standard errors


def test_a_failed_adaptive_step_leaves_no_count_behind():
    adapted, ids = adapted_tiny(), random_ids(8)
    want = release(adapted, ids, range(8), ADAPTIVE)
    broken = ids.clone()
    broken[6, 0] = 1 << 40
    with pytest.raises(IndexError):
        release(adapted, broken, range(8), ADAPTIVE)
    assert release(adapted, ids, range(8), ADAPTIVE).tobytes() == want.tobytes()


def for_round(adapted, state, ids, terms, **kwargs):
    ids, labels = ids.numpy(), labels_for(len(ids)).numpy()
    terms, entering = ReleaseTerms(**{**PLAIN, **terms}), kept_states(adapted, ids, labels)
    return round_release(
        adapted, state, ids, labels, np.arange(len(ids)), terms=terms, entering=given(entering), **kwargs
    )


@LAYERS
def test_one_step_of_a_round_is_a_private_release_at_its_state(layers):
    adapted, ids = adapted_tiny(layers=layers), random_ids(6)
    state = 0.5 * adapted.state()
    got = for_round(adapted, state, ids, {"sample_rate": 0.5}, source=SeededBytes(b"s"))
    np.testing.assert_array_equal(adapted.state(), state)
    want = release(adapted, ids, range(6), {"sample_rate": 0.5}, source=SeededBytes(b"s"))
    np.testing.assert_array_equal(got, want)


def test_the_last_entry_of_an_adaptive_state_sets_the_clip():
    adapted, ids = adapted_tiny(), random_ids(6)
    state = np.append(adapted.state(), np.float32(0.75))
    want = release(adapted, ids, range(6), ADAPTIVE, log_clip=0.75)
    np.testing.assert_array_equal(for_round(adapted, state, ids, ADAPTIVE), want)
    with pytest.raises(StateMismatch, match="clip's logarithm"):
        for_round(adapted, state[:-1], ids, ADAPTIVE)


@pytest.mark.parametrize("entry", [0, -1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_is_refused_wherever_it_is_not(entry, value):
    adapted, ids = adapted_tiny(), random_ids(6)
    state = np.append(adapted.state(), np.float32(0.75))
    state[entry] = value
    with pytest.raises(StateMismatch, match="not finite"):
        for_round(adapted, state, ids, ADAPTIVE)


LOCAL = LocalSteps(steps=3, lr=0.4, head_lr=2.0, batch_units=5.0)


@LAYERS
def test_local_steps_give_the_sum_of_what_moved_the_copy(layers):
    adapted, ids = adapted_tiny(layers=layers), random_ids(8)
    state, source = adapted.state(), SeededBytes(b"coins")
    got = for_round(adapted, state, ids, {"local": LOCAL, "sample_rate": 0.7}, source=SeededBytes(b"coins"))
    rates = np.full(len(state), 0.4)
    rates[adapted.layout.head_slice] = 2.0
    copy, total = state.astype(np.float64), 0
    for _ in range(3):  # every step on a sample of its own, from where the last one led
        adapted.load_state(copy)
        one = release(adapted, ids, range(8), {"sample_rate": 0.7}, source=source)
        copy -= rates * one / 2**BITS / (5.0 * C)
        total = total + one
    np.testing.assert_array_equal(got, total)
    np.testing.assert_allclose((state - copy) / rates * (5.0 * C), got / 2**BITS, atol=1e-6)


def test_each_local_step_carries_the_whole_noise_and_moves_the_copy_by_it():
    adapted = adapted_tiny(rank=16)
    terms = {**PRIVATE, "mode": "local", "local": LOCAL, "sample_rate": 2.0**-60}
    state = adapted.state()
    got = for_round(adapted, state, random_ids(4), terms)
    assert got.std() == pytest.approx(3**0.5 * 2**20, rel=0.04)  # over 7 standard errors
    rest = slice(adapted.layout.head_slice.stop, None)
    moved = (adapted.state() - state)[rest]  # by two of the three
    assert moved.std() == pytest.approx(2**0.5 * 0.4 * 2**20 / 2**BITS / (5.0 * C), rel=0.04)


def test_local_steps_on_an_adaptive_clip_add_up_their_counts():
    adapted, ids = adapted_tiny(), random_ids(6)
    state = np.append(adapted.state(), np.float32(-20.0))
    got = for_round(adapted, state, ids, {**ADAPTIVE, "local": LOCAL})
    assert got[-1] == 3 * round(-6 * COUNT_WEIGHT / 2 * 2**BITS)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"lr": 0.0}, {"head_lr": float("nan")}, {"batch_units": float("inf")}])
def test_local_steps_out_of_range_are_refused(bad):
    with pytest.raises(InvalidPrivacyParameter):
        LocalSteps(**bad)


@LAYERS
@pytest.mark.parametrize("clipping", ["fixed", "adaptive"])
def test_sum_is_projected_onto_the_ball_before_it_is_rounded(clipping, layers):
    adapted, ids = adapted_tiny(layers=layers), random_ids(6)
    terms = {"clipping": clipping}
    free = release(adapted, ids, range(6), terms) / 2**BITS
    radius = float(np.linalg.norm(free)) / 3
    found = release(adapted, ids, range(6), {**terms, "max_norm": radius}) / 2**BITS
    np.testing.assert_allclose(found, free / 3, atol=2.0**-BITS)  # the count of an adaptive clip as well
    wide = release(adapted, ids, range(6), {**terms, "max_norm": 3.001 * radius})
    np.testing.assert_array_equal(wide, np.rint(free * 2**BITS))


@pytest.mark.parametrize("clipping", ["fixed", "adaptive"])
def test_a_weight_multiplies_the_clipped_sum_and_never_the_noise(clipping):
    adapted, ids = adapted_tiny(), random_ids(6)
    free = release(adapted, ids, range(6), {"clipping": clipping}) / 2**BITS
    light = release(adapted, ids, range(6), {"clipping": clipping, "weight": 0.25}) / 2**BITS
    np.testing.assert_allclose(light, free / 4, atol=2.0**-BITS)
    radius = float(np.linalg.norm(free)) / 3  # of a ball that the weighed sum is inside
    held = release(adapted, ids, range(6), {"clipping": clipping, "weight": 0.25, "max_norm": radius}) / 2**BITS
    np.testing.assert_array_equal(held, light)
    noised = release(adapted, ids, range(6), {**PRIVATE, "clipping": clipping, "weight": 0.25})
    assert np.std(noised) == pytest.approx(PRIVATE["site_noise_int"], rel=0.1)


@pytest.mark.parametrize("weight", [0.0, -1.0, 1.001, float("nan")])
def test_a_weight_that_would_widen_the_sensitivity_is_refused(weight):
    with pytest.raises(InvalidPrivacyParameter, match="weight must be in"):
        ReleaseTerms(**PLAIN, weight=weight)


@pytest.mark.slow
@pytest.mark.parametrize("terms", [{}, {"clipping": "adaptive"}])
@pytest.mark.parametrize("share", [0.1, 0.7, 0.95, 2.0])
def test_neighbours_stay_within_the_clip_whatever_the_ball(terms, share):
    adapted, ids = adapted_tiny(), random_ids(6)
    unit, apart = (1.0, SENSITIVITY) if terms else (C, C)
    terms = {**terms, "max_norm": share * 5 * unit}
    with_unit = release(adapted, ids, range(6), terms)
    for left_out in range(6):
        kept = [i for i in range(6) if i != left_out]
        labels = labels_for(6).numpy()[kept]
        without = private_release(
            adapted, ids[kept].numpy(), labels, range(5), terms=ReleaseTerms(**{**PLAIN, **terms})
        )
        assert np.linalg.norm(with_unit - without) <= apart * 2**BITS + len(without) ** 0.5


def test_noise_is_added_to_the_projected_sum():
    adapted, ids = adapted_tiny(rank=16), random_ids(6)
    terms = {"max_norm": C / 2}
    noise = release(adapted, ids, range(6), {**PRIVATE, **terms}) - release(adapted, ids, range(6), terms)
    assert noise.std() == pytest.approx(2**20, rel=0.04)  # over 7 standard errors


def test_every_local_step_is_projected():
    adapted, ids = adapted_tiny(), random_ids(8)
    got = for_round(adapted, adapted.state(), ids, {"local": LOCAL, "max_norm": C / 100})
    assert np.linalg.norm(got) <= 3 * (C / 100 * 2**BITS + len(got) ** 0.5)


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan"), float("inf")])
def test_ball_out_of_range_is_refused(max_norm):
    with pytest.raises(InvalidPrivacyParameter, match="max_norm"):
        ReleaseTerms(**{**PLAIN, "max_norm": max_norm})


def completion_loop(adapted, ids, mask, units, clip_norm):
    """Each unit's gradient by plain autograd on the whole logits, clipped and added."""
    total = 0
    for unit in np.unique(units):
        losses = []
        for row in np.flatnonzero(units == unit):
            tokens = torch.from_numpy(ids[row : row + 1])
            logits = adapted.model(input_ids=tokens).logits[0, :-1][mask[row, 1:]]
            losses.append(torch.nn.functional.cross_entropy(logits, tokens[0, 1:][mask[row, 1:]]))
        grads = torch.autograd.grad(torch.stack(losses).mean(), list(adapted.trained.values()))
        flat_ = np.concatenate([grad.numpy().ravel() for grad in grads])
        total = total + flat_ * min(1, clip_norm / np.linalg.norm(flat_))
    return total


@LAYERS
@pytest.mark.usefixtures("bare_clip")
def test_release_of_completions_is_the_clipped_sum_of_losses_on_completions_alone(layers):
    adapted, ids = completing_tiny(dtype=torch.float64, layers=layers), random_ids(7).numpy()
    mask = np.zeros(ids.shape, dtype=np.bool_)
    for row in range(7):
        mask[row, 3 + row : 6 + row] = True
    ids[0, 6:] = 0
    units = np.array([0, 1, 0, 2, 3, 4, 1])
    want = completion_loop(adapted, ids, mask, units, C) * 2**BITS
    for max_rows in (3, 100):
        terms = ReleaseTerms(**{**PLAIN, "max_rows_per_batch": max_rows})
        got = private_release(adapted, ids, mask, units, terms=terms, entering=given(kept_states(adapted, ids, mask)))
        assert np.abs(got - want).max() <= 0.5 + 1e-3
    assert np.abs(want).max() > 2**BITS * C / 100


@pytest.mark.parametrize("shape", [(), (3,), (4, 11), (4, 12, 1)])
def test_targets_that_do_not_fit_the_records_are_refused(shape):
    with pytest.raises(BatchMalformed):
        private_release(
            completing_tiny(), random_ids(4).numpy(), np.zeros(shape, bool), np.arange(4), terms=ReleaseTerms(**PLAIN)
        )


def test_the_sum_over_sites_of_different_ranks_is_the_sum_of_their_products():
    """Secure aggregation adds B factors with zeros at their ends; times the A that all share, that is the same."""
    adapted, ranks = adapted_tiny(dtype=torch.float64, rank=4), (1, 3, None)
    sites = [
        release(adapted, random_ids(8, seed=site), range(8), {"trained_rank": rank, "max_rows_per_batch": 8})
        for site, rank in enumerate(ranks)
    ]
    factors_A = {
        f"{name}.{leaf.replace('lora_A', 'lora_B')}": factor.detach().numpy()
        for name, adapter in adapted.adapters.items()
        for leaf, factor in adapter.named_factors().items()
        if leaf.endswith("lora_A")
    }
    total, own = sum(sites), [adapted.layout.slices[name] for name in factors_A]
    assert all(np.abs(site[part]).max() > 1000 for site in sites for part in own)
    for name, lora_A in factors_A.items():
        part, shape = adapted.layout.slices[name], adapted.layout.shapes[name]
        products = 0
        for site, rank in zip(sites, ranks, strict=True):
            products = products + site[part].reshape(shape)[..., :rank] @ lora_A[..., :rank, :]
        np.testing.assert_allclose(total[part].reshape(shape) @ lora_A, products, rtol=1e-12, atol=1e-6)


def test_noise_is_on_components_that_a_site_does_not_train_too():
    adapted, ids = adapted_tiny(rank=4), random_ids(6)
    noised = release(adapted, ids, range(6), {**PRIVATE, "trained_rank": 1}, source=os.urandom)
    name = "model.layers.1.mlp.experts.gate_up_proj.lora_B"
    idle = noised[adapted.layout.slices[name]].reshape(adapted.layout.shapes[name])[..., 1:]
    assert idle.size == 576
    assert idle.std() == pytest.approx(1 << 20, rel=0.21)  # 7 standard errors

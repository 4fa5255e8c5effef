import os

import numpy as np
import pytest
import torch
from opacus.accountants import RDPAccountant

from confide.privacy.errors import BatchMalformed, InvalidPrivacyParameter, SourceRefused
from confide.privacy.sampling import SeededBytes
from confide.privacy.steps import ReleaseTerms, private_release

from ..models.tiny import random_ids
from .loops import adapted_tiny, clipped_loop, labels_for

C, BITS = 0.05, 24
PLAIN = {
    "mode": "none",
    "clip_norm": C,
    "sample_rate": 1.0,
    "site_noise_int": 0,
    "scale_bits": BITS,
    "max_rows_per_batch": 3,
    "max_records_per_unit": 3,
}
PRIVATE = {**PLAIN, "mode": "distributed", "site_noise_int": 1 << 20}


def release(adapted, ids, units, terms=None, **kwargs):
    labels = labels_for(len(ids)).numpy()
    return private_release(
        adapted, ids.numpy(), labels, units, terms=ReleaseTerms(**{**PLAIN, **(terms or {})}), **kwargs
    )


def flat(adapted, total):
    return np.concatenate([total[name].numpy().ravel() for name in adapted.layout.names])


def test_release_is_the_rounded_clipped_sum_whatever_the_microbatches():
    adapted, ids = adapted_tiny(dtype=torch.float64), random_ids(9)
    ids[3, 5:] = 0
    units = np.array(["b", "a", "b", "c", "d", "e", "b", "f", "a"])
    want = flat(adapted, clipped_loop(adapted, ids, labels_for(9), units, C)[0]) * 2**BITS
    for max_rows in (3, 4, 100):
        got = release(adapted, ids, units, {"max_rows_per_batch": max_rows})
        assert got.dtype == np.int64
        assert np.abs(got - want).max() <= 0.5 + 1e-3


def test_no_bound_gives_the_plain_sum_of_means_over_units():
    adapted, ids = adapted_tiny(dtype=torch.float64), random_ids(4)
    units = np.array([0, 1, 0, 2])
    want = flat(adapted, clipped_loop(adapted, ids, labels_for(4), units, 1e9)[0]) * 2**BITS
    assert np.abs(release(adapted, ids, units, {"clip_norm": None}) - want).max() <= 0.5 + 1e-3


def test_step_without_noise_repeats_bit_for_bit_with_its_seed():
    adapted, ids = adapted_tiny(freeze_a=False), random_ids(20)
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


def test_noise_has_the_agreed_std_and_sits_on_the_clipped_sum():
    adapted, ids = adapted_tiny(rank=16), random_ids(6)
    without = release(adapted, ids, range(6))
    noise = release(adapted, ids, range(6), PRIVATE) - without
    assert noise.std() == pytest.approx(2**20, rel=0.04)  # over 5 standard errors
    assert abs(noise.mean()) < 5 * 2**20 / noise.size**0.5


@pytest.mark.parametrize("rows", [0, 5])
def test_empty_sample_gives_noise_and_counts_one_step(rows):
    adapted = adapted_tiny(rank=16)
    accountant = RDPAccountant()
    hook = accountant.get_optimizer_hook_fn(sample_rate=2.0**-60)
    got = release(adapted, random_ids(rows), range(rows), {**PRIVATE, "sample_rate": 2.0**-60}, on_step=hook)
    assert got.std() == pytest.approx(2**20, rel=0.04)  # over 5 standard errors
    assert [(rate, steps) for _, rate, steps in accountant.history] == [(2.0**-60, 1)]


def test_step_of_many_microbatches_counts_once():
    adapted, ids = adapted_tiny(), random_ids(9)
    accountant = RDPAccountant()
    release(adapted, ids, range(9), PRIVATE, on_step=accountant.get_optimizer_hook_fn(sample_rate=1.0))
    assert accountant.history == [((1 << 20) / (2**BITS * C + adapted.layout.dim**0.5), 1.0, 1)]


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


def test_model_is_left_as_it_was():
    adapted, ids = adapted_tiny(), random_ids(4)
    before = adapted.state()
    release(adapted, ids, range(4), PRIVATE)
    np.testing.assert_array_equal(adapted.state(), before)
    assert all(p.grad is None for p in adapted.trained.values())


def test_step_runs_inside_no_grad():
    adapted, ids = adapted_tiny(), random_ids(4)
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
        {"clip_norm": float("nan")},
        {"sample_rate": 0.0},
        {"sample_rate": float("nan")},
        {"site_noise_int": 0},  # a private mode that adds nothing
        {"mode": "none"},  # and noise that protects nothing
        {"scale_bits": 60},
        {"max_records_per_unit": 0},
        {"max_rows_per_batch": 2},  # smaller than a unit
    ],
)
def test_terms_out_of_range_are_refused(bad):
    with pytest.raises(InvalidPrivacyParameter):
        ReleaseTerms(**{**PRIVATE, **bad})

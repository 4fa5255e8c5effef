import numpy as np
import pytest
import torch
from opacus.accountants import RDPAccountant

from confide.privacy.accounting.composition import Release
from confide.privacy.errors import ClipperMisused, InvalidPrivacyParameter, UnprotectedGradient
from confide.privacy.mechanism.clipping import PerUnitClipper
from confide.privacy.mechanism.opacus_optimizer import LoRADPOptimizer, RingNoise
from confide.privacy.mechanism.sampling import SeededBytes

from ...models.tiny import random_ids
from ..loops import adapted_tiny, clipped_loop, labels_for, unit_loss

C, BITS = 0.05, 24


def optimizer_for(adapted, sigma=0, lr=1.0, clip_norm=C, expected=4):
    clipper = PerUnitClipper(adapted)
    sgd = torch.optim.SGD(list(adapted.trained.values()), lr=lr)
    noise = RingNoise(sigma=sigma, scale_bits=BITS, source=SeededBytes(b"test"))
    return LoRADPOptimizer(sgd, clipper, clip_norm=clip_norm, noise=noise, expected_batch_size=expected)


def backward(optimizer, adapted, ids, units):
    with optimizer.clipper.microbatch(units, ids.shape[1]):
        unit_loss(adapted, ids, labels_for(len(ids)), np.asarray(units)).backward()


def accountant_of(optimizer, sample_rate=0.1):
    accountant = RDPAccountant()
    optimizer.attach_step_hook(accountant.get_optimizer_hook_fn(sample_rate))
    return accountant


def test_microbatches_of_a_batch_add_up_and_count_one_step():
    adapted, ids = adapted_tiny(dtype=torch.float64), random_ids(6).clamp_min(2)
    units = np.array([0, 0, 1, 2, 3, 3])
    want, _ = clipped_loop(adapted, ids, torch.tensor([0, 1, 0, 0, 0, 1]), units, C)
    optimizer = optimizer_for(adapted)
    accountant = accountant_of(optimizer)
    for rows in ([0, 1, 2], [3], [4, 5]):
        backward(optimizer, adapted, ids[rows], units[rows])
        optimizer.accumulate()
    released = optimizer.release()
    flat = np.concatenate([want[name].numpy().ravel() for name in adapted.layout.names])
    assert np.abs(released - flat * 2**BITS).max() <= 0.5 + 1e-2  # the model rounds its rotary angles to float32
    assert accountant.history == [(0.0, 0.1, 1)]


def test_empty_batch_is_a_counted_noise_step():
    adapted = adapted_tiny(rank=16)
    sigma = round(1.7 * C * 2**BITS)
    optimizer = optimizer_for(adapted, sigma)
    accountant = accountant_of(optimizer)
    released = optimizer.release() / 2**BITS
    assert released.size == adapted.layout.dim > 10_000
    assert released.std() == pytest.approx(1.7 * C, rel=0.025)  # 4 standard errors
    assert abs(released.mean()) < 4 * 1.7 * C / released.size**0.5
    [(multiplier, rate, steps)] = accountant.history
    assert (rate, steps) == (0.1, 1)
    assert multiplier == pytest.approx((sigma**2 - 16) ** 0.5 / (2**BITS * C + adapted.layout.dim**0.5), rel=1e-12)


def test_noise_is_added_once_for_all_microbatches():
    adapted, ids = adapted_tiny(rank=16), random_ids(4)
    optimizer = optimizer_for(adapted, sigma=round(2.0 * 2**BITS))  # the sum itself is 10 times smaller
    for row in range(4):
        backward(optimizer, adapted, ids[row : row + 1], [row])
        optimizer.accumulate()
    assert (optimizer.release() / 2**BITS).std() == pytest.approx(2.0, rel=0.025)


def test_release_leaves_the_model_alone():
    adapted, ids = adapted_tiny(), random_ids(2)
    before = adapted.state()
    optimizer = optimizer_for(adapted, sigma=1000)
    backward(optimizer, adapted, ids, [0, 1])
    optimizer.accumulate()
    optimizer.release()
    np.testing.assert_array_equal(adapted.state(), before)
    assert all(p.grad is None and p.summed_grad is None for p in adapted.trained.values())


def test_step_moves_by_the_release_over_the_expected_batch():
    adapted, ids = adapted_tiny(), random_ids(2)
    want, _ = clipped_loop(adapted, ids, labels_for(2), np.arange(2), C)
    before = {name: p.detach().clone() for name, p in adapted.trained.items()}
    optimizer = optimizer_for(adapted)
    backward(optimizer, adapted, ids, [0, 1])
    optimizer.step()
    for name, parameter in adapted.trained.items():
        torch.testing.assert_close((before[name] - parameter).double(), want[name] / 4, rtol=1e-2, atol=1e-6)


def test_two_steps_are_two_entries():
    adapted = adapted_tiny()
    optimizer = optimizer_for(adapted, sigma=1000)
    accountant = accountant_of(optimizer)
    optimizer.release()
    optimizer.release()
    assert accountant.history[0][2] == 2


def test_a_step_leaves_no_count_to_the_next():
    adapted, ids = adapted_tiny("head"), random_ids(3)
    clipper = PerUnitClipper(adapted)
    sgd = torch.optim.SGD(list(adapted.trained.values()), lr=1.0)
    noise = RingNoise(sigma=0, scale_bits=BITS)
    optimizer = LoRADPOptimizer(sgd, clipper, clip_norm=C, noise=noise, count_weight=0.2)
    backward(optimizer, adapted, ids, range(3))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    assert not optimizer.release().any()


def test_opacus_counts_the_noise_that_the_ledger_counts():
    noise = RingNoise(sigma=12, scale_bits=4)
    charged = Release(
        mode="local", site_noise_int=12, scale_bits=4, clip_norm=C, dim=9, sample_rate=0.5, sites=1
    ).noise_multiplier(0)  # fmt: skip
    assert noise.noise_multiplier(C, 9) == pytest.approx(charged, rel=1e-12)


def test_unit_may_come_again_after_a_release():
    adapted, ids = adapted_tiny(), random_ids(2)
    optimizer = optimizer_for(adapted)
    for _ in range(2):
        backward(optimizer, adapted, ids, [0, 1])
        optimizer.accumulate()
        optimizer.release()


def test_release_of_a_skipped_step_is_refused():
    optimizer = optimizer_for(adapted_tiny())
    optimizer.signal_skip_step(True)
    with pytest.raises(ClipperMisused):
        optimizer.release()


def test_parameter_the_optimizer_does_not_hold_is_refused():
    adapted = adapted_tiny()
    some = torch.optim.SGD(list(adapted.trained.values())[1:], lr=1.0)
    with pytest.raises(UnprotectedGradient):
        LoRADPOptimizer(some, PerUnitClipper(adapted), clip_norm=C, noise=RingNoise(sigma=0, scale_bits=BITS))


def test_noise_without_a_bound_is_refused():
    with pytest.raises(InvalidPrivacyParameter, match="protects nothing"):
        optimizer_for(adapted_tiny(), sigma=5, clip_norm=None)


def test_rounded_neighbours_differ_by_at_most_the_stated_sensitivity():
    rng, dim, bits = np.random.default_rng(1), 500, 8
    ring, worst = RingNoise(sigma=0, scale_bits=bits), 0.0
    for _ in range(200):
        total, own = rng.normal(size=dim), rng.normal(size=dim)
        own /= np.linalg.norm(own)
        worst = max(worst, float(np.linalg.norm(ring.add_to(total + own) - ring.add_to(total))))
    sensitivity = 2**30 / RingNoise(sigma=2**30, scale_bits=bits).noise_multiplier(1.0, dim)
    assert 2**bits < worst <= sensitivity  # rounding does cost something, and no more than is charged


@pytest.mark.parametrize(("entry", "kept"), [(np.inf, 2**61), (-np.inf, -(2**61)), (2.0**38, 2**61), (np.nan, 0)])
def test_sum_that_does_not_fit_the_ring_is_cut_and_tells_nobody(entry, kept):
    assert RingNoise(sigma=0, scale_bits=24).add_to(np.array([1.0, entry])).tolist() == [2**24, kept]


@pytest.mark.parametrize("bad", [{"sigma": -1}, {"scale_bits": -1}, {"scale_bits": 49}])
def test_ring_out_of_range_is_refused(bad):
    with pytest.raises(InvalidPrivacyParameter):
        RingNoise(**{"sigma": 1, "scale_bits": 24, **bad})

from fractions import Fraction

import numpy as np
import pytest

from confide.coordinator.errors import InvalidOptimizer
from confide.coordinator.optimizer import ServerOptimizer

HEAD = slice(0, 2)
NO_HEAD = slice(0, 0)


def vectors(*seeds, dim=5):
    return [np.random.default_rng(seed).normal(size=dim).astype(np.float32) for seed in seeds]


def test_without_momentum_it_is_plain_gradient_descent_with_two_rates():
    state, update = vectors(1, 2)
    new, velocity = ServerOptimizer(lr=0.5, head_lr=2.0, momentum=0.0).step(state, np.zeros_like(state), update, HEAD)
    np.testing.assert_allclose(new[:2], state[:2] - 2.0 * update[:2], rtol=1e-6)
    np.testing.assert_allclose(new[2:], state[2:] - 0.5 * update[2:], rtol=1e-6)
    np.testing.assert_array_equal(velocity, update)


def test_velocity_is_the_geometric_sum_of_past_updates():
    optimizer = ServerOptimizer(lr=1.0, head_lr=1.0, momentum=0.5)
    state = velocity = np.zeros(1, dtype=np.float32)
    for update in (1.0, 1.0, 1.0):
        state, velocity = optimizer.step(state, velocity, np.array([update]), NO_HEAD)
    assert Fraction(float(velocity[0])) == Fraction(7, 4)  # 1 + 1/2 + 1/4
    assert Fraction(float(state[0])) == -(1 + Fraction(3, 2) + Fraction(7, 4))


def test_a_run_that_goes_through_disk_ends_bit_for_bit_like_one_that_does_not(tmp_path):
    optimizer = ServerOptimizer(lr=0.3, head_lr=10.0, momentum=0.9)
    state, *updates = vectors(*range(6))
    straight = resumed = (state, np.zeros_like(state))
    for update in updates:
        straight = optimizer.step(*straight, update, HEAD)
        np.save(tmp_path / "kept.npy", np.stack(optimizer.step(*resumed, update, HEAD)))
        kept = np.load(tmp_path / "kept.npy")
        resumed = kept[0], kept[1]
    assert straight[0].tobytes() == resumed[0].tobytes()
    assert straight[1].tobytes() == resumed[1].tobytes()


def test_step_leaves_its_arguments_alone():
    arrays = vectors(1, 2, 3)
    before = [array.copy() for array in arrays]
    ServerOptimizer(lr=0.1, head_lr=1.0, momentum=0.9).step(*arrays, HEAD)
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_state_and_velocity_stay_float32_when_the_update_is_float64():
    state, velocity = vectors(1, 2)
    for array in ServerOptimizer(lr=0.1, head_lr=1.0, momentum=0.9).step(state, velocity, np.ones(5), HEAD):
        assert array.dtype == np.float32


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])  # the last is finite in float64 only
def test_a_step_that_is_not_finite_is_refused(bad):
    state, velocity = vectors(1, 2)
    update = np.zeros(5)
    update[3] = bad
    with pytest.raises(InvalidOptimizer, match="not finite"):
        ServerOptimizer(lr=0.1, head_lr=1.0, momentum=0.9).step(state, velocity, update, HEAD)


def test_vectors_of_different_length_are_refused():
    state, velocity = vectors(1, 2)
    with pytest.raises(InvalidOptimizer, match="shapes differ"):
        ServerOptimizer(lr=0.1, head_lr=1.0, momentum=0.9).step(state, velocity, np.zeros(4), HEAD)


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"head_lr": -1.0}, {"momentum": 1.0}, {"lr": float("nan")}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidOptimizer, match="need finite lr"):
        ServerOptimizer(**{"lr": 0.1, "head_lr": 1.0, "momentum": 0.9, **wrong})

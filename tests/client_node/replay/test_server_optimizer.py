import math
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch

from confide.client_node.errors import InvalidOptimizer
from confide.client_node.replay.checkpoint import Checkpoint
from confide.client_node.replay.server_optimizer import ServerOptimizer, _power, server_step
from confide.client_node.study.terms import load_draft
from confide.coordinator.store.run_folder import RunFolder
from confide.privacy.mechanism.adaptive_clipping import COUNT_WEIGHT

from ...client_node.conftest import STUDY_TOML, changed

HEAD = slice(0, 2)
NO_HEAD = slice(0, 0)
KINDS = {
    "momentum": ServerOptimizer(lr=0.3, head_lr=10.0, momentum=0.9),
    "adam": ServerOptimizer(kind="adam", lr=0.03, head_lr=0.3, momentum=0.9),
    "corrected adam": ServerOptimizer(kind="adam", lr=0.03, head_lr=0.3, momentum=0.9, noise_std=0.5),
    "momentum, averaged": ServerOptimizer(lr=0.3, head_lr=10.0, momentum=0.9, ema_decay=0.7),
    "adam, averaged": ServerOptimizer(kind="adam", lr=0.03, head_lr=0.3, momentum=0.0, beta2=0.0, ema_decay=0.7),
}


def vectors(*seeds, dim=5):
    return [np.random.default_rng(seed).normal(size=dim).astype(np.float32) for seed in seeds]


def run(optimizer, start, updates, head=HEAD):
    found = [Checkpoint.beginning(start)]
    for update in updates:
        found.append(optimizer.step(found[-1], update, head))
    return found


def test_without_momentum_it_is_plain_gradient_descent_with_two_rates():
    state, update = vectors(1, 2)
    after = ServerOptimizer(lr=0.5, head_lr=2.0, momentum=0.0).step(Checkpoint.beginning(state), update, HEAD)
    np.testing.assert_allclose(after.state[:2], state[:2] - 2.0 * update[:2], rtol=1e-6)
    np.testing.assert_allclose(after.state[2:], state[2:] - 0.5 * update[2:], rtol=1e-6)
    np.testing.assert_array_equal(after.velocity, update)


def test_velocity_is_the_geometric_sum_of_past_updates():
    optimizer = ServerOptimizer(lr=1.0, head_lr=1.0, momentum=0.5)
    last = run(optimizer, np.zeros(1, dtype=np.float32), [np.ones(1)] * 3, NO_HEAD)[-1]
    assert Fraction(float(last.velocity[0])) == Fraction(7, 4)  # 1 + 1/2 + 1/4
    assert Fraction(float(last.state[0])) == -(1 + Fraction(3, 2) + Fraction(7, 4))


def test_adam_steps_as_torch_does():
    start, *updates = vectors(*range(13))
    head, rest = (torch.nn.Parameter(torch.from_numpy(part.astype(np.float64))) for part in (start[:2], start[2:]))
    groups = [{"params": [head], "lr": 0.3}, {"params": [rest], "lr": 0.03}]
    theirs = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-3)
    ours = run(ServerOptimizer(kind="adam", lr=0.03, head_lr=0.3, momentum=0.9), start, updates)
    for update, checkpoint in zip(updates, ours[1:], strict=True):
        head.grad, rest.grad = (torch.from_numpy(part.astype(np.float64)) for part in (update[:2], update[2:]))
        theirs.step()
        want = torch.cat([head, rest]).detach().numpy()
        np.testing.assert_allclose(checkpoint.state, want, rtol=1e-5, atol=1e-6)  # ours is kept in float32


def test_corrected_adam_is_a_loop_over_the_formula_of_dp_adambc():
    optimizer = KINDS["corrected adam"]
    start, *updates = vectors(*range(9))
    ours = run(optimizer, start, updates)
    for i in range(len(start)):
        rate, theta, m, v = 0.3 if i < 2 else 0.03, float(start[i]), 0.0, 0.0
        for t, update in enumerate(updates, start=1):
            g = float(update[i])
            m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
            theta -= rate * (m / (1 - 0.9**t)) / (math.sqrt(max(v / (1 - 0.99**t) - 0.25, 0.0)) + 1e-3)
            assert ours[t].state[i] == pytest.approx(theta, rel=1e-4, abs=1e-5)


def test_of_pure_noise_the_correction_leaves_half_the_coordinates_without_a_second_moment():
    rng = np.random.default_rng(0)
    plain, corrected = (
        run(ServerOptimizer(kind="adam", lr=1.0, head_lr=1.0, momentum=0.0, beta2=0.99, noise_std=std),
            np.zeros(2000, np.float32), rng.normal(0, 0.5, (300, 2000)), NO_HEAD)
        for std in (0.0, 0.5)
    )  # fmt: skip
    biased = [(run[-1].second_moment / (1 - 0.99**300)).mean() for run in (plain, corrected)]
    np.testing.assert_allclose(biased, 0.25, rtol=0.02)
    left = corrected[-1].second_moment / (1 - 0.99**300) - 0.25
    assert abs(left.mean()) < 0.005 * 1.5
    assert 0.4 < (left < 0).mean() < 0.7  # a chi-square leans a little below its mean


def test_the_average_weights_each_state_by_the_decay_to_the_power_of_its_age():
    start, *updates = vectors(*range(8))
    found = run(KINDS["momentum, averaged"], start, updates)
    for number in range(1, len(found)):
        weights = np.array([0.7 ** (number - s) for s in range(1, number + 1)])
        states = np.stack([one.state for one in found[1 : number + 1]]).astype(np.float64)
        np.testing.assert_allclose(found[number].exported, weights @ states / weights.sum(), rtol=1e-5, atol=1e-5)
    assert found[0].exported is found[0].state


def test_averaging_changes_no_state_and_without_it_the_state_is_exported():
    start, *updates = vectors(*range(8))
    averaged, plain = (run(KINDS[kind], start, updates) for kind in ("momentum, averaged", "momentum"))
    for one, other in zip(averaged, plain, strict=True):
        np.testing.assert_array_equal(one.state, other.state)
        assert other.exported is other.state


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_goes_through_disk_ends_bit_for_bit_like_one_that_does_not(tmp_path, kind):
    start, *updates = vectors(*range(6))
    straight, folder = run(KINDS[kind], start, updates)[-1], RunFolder(tmp_path, "run-1")
    resumed = Checkpoint.beginning(start)
    for update in updates:
        after = KINDS[kind].step(resumed, update, HEAD)
        resumed = folder.load(after.round, folder.save(after))
    assert folder.save(resumed) == folder.save(straight)  # the hash of every array
    assert resumed.exported.tobytes() == straight.exported.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_step_leaves_its_arguments_alone_and_keeps_float32(kind):
    start, update = vectors(1, 2)
    before = run(KINDS[kind], start, vectors(3, 4))[-1]
    arrays = [before.state, before.velocity, before.second_moment, before.average, update]
    copies = [None if array is None else array.copy() for array in arrays]
    after = KINDS[kind].step(before, update.astype(np.float64), HEAD)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    for array in (after.state, after.velocity, after.second_moment, after.average):
        assert array is None or array.dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])  # the last is finite in float64 only
def test_a_step_that_is_not_finite_is_refused(kind, bad):
    update = np.zeros(5)
    update[3] = bad
    with pytest.raises(InvalidOptimizer, match="not finite"):
        KINDS[kind].step(Checkpoint.beginning(*vectors(1)), update, HEAD)


def test_vectors_of_different_length_are_refused():
    with pytest.raises(InvalidOptimizer, match="shapes differ"):
        KINDS["momentum"].step(Checkpoint.beginning(*vectors(1)), np.zeros(4), HEAD)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0},
        {"head_lr": -1.0},
        {"momentum": 1.0},
        {"lr": float("nan")},
        {"beta2": 1.0},
        {"eps": 0.0},
        {"noise_std": float("inf")},
        {"ema_decay": 1.0},
        {"kind": "adagrad"},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidOptimizer, match="need"):
        ServerOptimizer(**{"lr": 0.1, "head_lr": 1.0, "momentum": 0.9, **wrong})


def make_draft(tmp_path, *changes):
    (tmp_path / "study.toml").write_text(changed(STUDY_TOML, changes))
    return load_draft(tmp_path / "study.toml")


ADAPTIVE = (
    "clip_norm = 1.0",
    'clip_norm = 0.5\nclipping = "adaptive"\ntarget_quantile = 0.6\nclip_learning_rate = 0.1',
)


def test_the_sum_is_divided_by_expected_units_and_clip_norm(tmp_path):
    draft = make_draft(tmp_path, ("clip_norm = 1.0", "clip_norm = 0.5"))
    start, total = vectors(1, 2)
    after = server_step(draft, Checkpoint.beginning(start), total, HEAD)
    np.testing.assert_allclose(after.velocity, total / (1374 * 0.5), rtol=1e-6)


def test_an_adaptive_clip_moves_by_the_counted_share_and_the_rest_is_in_clip_units_already(tmp_path):
    draft = make_draft(tmp_path, ADAPTIVE)
    start, total = vectors(1, 2)
    start[-1], total[-1] = 0.25, COUNT_WEIGHT / 2 * (1000 - 374)  # 1000 of 1374 units at or below the clip
    after = server_step(draft, Checkpoint.beginning(start), total, HEAD)
    assert after.state[-1] == pytest.approx(0.25 - 0.1 * (1000 / 1374 - 0.6), rel=1e-6)
    assert after.velocity[-1] == 0
    np.testing.assert_allclose(after.velocity[:-1], total[:-1] / 1374, rtol=1e-6)


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_no_optimizer_moves_the_clip_by_itself(tmp_path, kind):
    draft = make_draft(tmp_path, ADAPTIVE, ("momentum = 0.9", f'momentum = 0.9\nkind = "{kind}"\naveraging = "ema"'))
    checkpoint = Checkpoint.beginning(*vectors(1))
    even = np.ones(5)
    even[-1] = COUNT_WEIGHT * 1374 * (0.6 - 0.5)  # exactly the wanted share
    for _ in range(3):
        after = server_step(draft, checkpoint, even, HEAD)
        assert after.state[-1] == pytest.approx(checkpoint.state[-1], abs=1e-6)
        checkpoint = after


def test_several_local_steps_count_as_their_mean(tmp_path):
    mode = ('mode = "distributed"', 'mode = "local"')
    one = make_draft(tmp_path, mode)
    four = make_draft(
        tmp_path, mode, ("collusion = 1", "collusion = 1\nlocal_steps = 4"), ("lr = 0.3", "lr = 0.3\nlocal_lr = 0.1")
    )
    start, total = vectors(1, 2)
    found = [server_step(d, Checkpoint.beginning(start), n * total, HEAD) for d, n in ((one, 1), (four, 4))]
    np.testing.assert_array_equal(found[0].state, found[1].state)
    assert four.noise_std == 2 * one.noise_std


def test_the_correction_takes_off_the_variance_that_noise_alone_gives(tmp_path):
    adam = ("momentum = 0.9", 'momentum = 0.9\nkind = "adam"\nnoise_correction = true')
    draft = make_draft(tmp_path, adam)
    # four sites, each with a third of the variance: one may collude
    assert ServerOptimizer.of(draft).noise_std == pytest.approx(1.19 * (4 / 3) ** 0.5 / 1374)
    assert ServerOptimizer.of(replace_optimizer(draft, noise_correction=False)).noise_std == 0


def replace_optimizer(draft, **terms):
    return draft.model_copy(update={"optimizer": draft.optimizer.model_copy(update=terms)})


def narrow(value: float) -> float:
    """The float32 nearest to a float64, through its four bytes."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_is_that_of_python_s_own_floats(kind):
    """Another implementation, one number at a time: what a site on another machine must come to."""
    optimizer = KINDS[kind]
    start, *updates = vectors(*range(30))
    ours = run(optimizer, start, updates)[-1]
    for i in range(len(start)):
        rate = optimizer.head_lr if i < 2 else optimizer.lr
        state, velocity, second, average = float(start[i]), 0.0, 0.0, None
        m = b = e = 1.0
        for update in updates:
            g = float(update[i])
            m, b, e = m * optimizer.momentum, b * optimizer.beta2, e * (optimizer.ema_decay or 0.0)
            if optimizer.kind == "momentum":
                velocity = direction = narrow(optimizer.momentum * velocity + g)
            else:
                velocity = narrow(optimizer.momentum * velocity + (1 - optimizer.momentum) * g)
                second = narrow(optimizer.beta2 * second + (1 - optimizer.beta2) * (g * g))
                signal = second / (1 - b) - optimizer.noise_std * optimizer.noise_std
                direction = velocity / (1 - m) / (math.sqrt(max(signal, 0.0)) + optimizer.eps)
            state = narrow(state - rate * direction)
            if optimizer.ema_decay is not None:
                last = state if average is None else average
                average = narrow(last + (1 - optimizer.ema_decay) / (1 - e) * (state - last))
        assert (float(ours.state[i]), float(ours.velocity[i])) == (state, velocity)
        assert float(ours.exported[i]) == (state if average is None else average)


def test_powers_are_products_which_every_machine_rounds_alike():
    assert _power(0.99, 3) == 0.99 * 0.99 * 0.99
    assert _power(0.9, 0) == 1.0
    assert any(_power(0.99, number) != 0.99**number for number in range(100))  # so pow is something else

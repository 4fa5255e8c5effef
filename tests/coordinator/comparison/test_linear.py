"""Private linear models against a loop over units that is too simple to be wrong."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from confide.coordinator.comparison.linear import HASHED, hashed_inputs, private_linear
from confide.models.heads.objectives import BinaryLabel, OneClass, PointOnScale, SeveralLabels, SeveralTasks, Task

from ..demo.test_baselines import NO_NOISE, TINY, make_draft

CLASSES, WIDTH = 4, 3
TASKS = SeveralTasks((Task("a", BinaryLabel(), 2.0), Task("b", OneClass(("x", "y", "z")), 0.5)))
CLIP = ("clip_norm = 1.0", "clip_norm = 0.4")


def records(rows, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, WIDTH)) / 2, rng.integers(0, CLASSES, rows)


def gradient(x, label, weight):
    """Of the negative log-likelihood of one record, [width][classes], by its definition."""
    powers = [np.exp(sum(x[i] * weight[i][k] for i in range(WIDTH))) for k in range(CLASSES)]
    chances = [power / sum(powers) for power in powers]
    return np.array([[x[i] * (chances[k] - (k == label)) for k in range(CLASSES)] for i in range(WIDTH)])


def by_hand(sites, *, rounds, lr, clip_norm, batch):
    """Heavy-ball descent on the sum over units of their mean gradients, each clipped as one vector."""
    weight, velocity, lengths = np.zeros((WIDTH, CLASSES)), np.zeros((WIDTH, CLASSES)), []
    for _ in range(rounds):
        total = np.zeros_like(weight)
        for x, y, units in sites:
            for unit in set(units.tolist()):
                own = [gradient(x[row], y[row], weight) for row in np.flatnonzero(units == unit)]
                mean = sum(own) / len(own)
                length = (mean**2).sum() ** 0.5
                lengths.append(length)
                total += mean * min(1.0, clip_norm / length)
        velocity = 0.9 * velocity + total / (batch * clip_norm)
        weight = weight - lr * velocity
    return weight, lengths


def test_several_classes_without_noise_are_descent_on_units_clipped_over_all_weights(tmp_path):
    draft = make_draft(tmp_path, *TINY, *NO_NOISE, CLIP)
    units = [np.array([0, 1, 1, 2]), np.array([5, 5, 3, 4, 4, 7])]  # at most two records of a unit, as the study says
    sites = [(*records(len(own), seed), own) for seed, own in enumerate(units)]
    want, lengths = by_hand(sites, rounds=2, lr=2.0, clip_norm=0.4, batch=8)
    assert min(lengths) < 0.4 < max(lengths)
    found = private_linear(
        draft, [x for x, _, _ in sites], [y for _, y, _ in sites], np.eye(WIDTH), lr=2.0, scale_bits=24,
        rng=np.random.default_rng(0), units=units, objective=OneClass(tuple("abcde"[:CLASSES])),
    )  # fmt: skip
    np.testing.assert_allclose(found, want, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("objective", [BinaryLabel(), SeveralLabels(("a", "b")), PointOnScale(0.0, 9.0), TASKS])
def test_each_objective_without_noise_is_descent_on_its_own_loss(tmp_path, objective):
    draft = make_draft(tmp_path, *TINY, *NO_NOISE, CLIP)
    units = [np.array([0, 1, 1, 2]), np.array([5, 5, 3, 4, 4, 7])]
    sites = [(*records(len(own), seed), own) for seed, own in enumerate(units)]
    if objective == BinaryLabel():
        sites = [(x, y % 2, own) for x, y, own in sites]
    if isinstance(objective, PointOnScale):
        sites = [(x, (y + 1) / CLASSES, own) for x, y, own in sites]
    if objective == TASKS:  # all, some or none of the tasks are told
        sites = [(x, np.array([0, 1, 7, 11, 5, 3])[: len(y)], own) for x, y, own in sites]
    weight = velocity = torch.zeros(WIDTH, *filter(None, [objective.outputs]), dtype=torch.float64)
    for _ in range(2):
        total = torch.zeros_like(weight)
        for x, y, own in sites:
            for unit in set(own.tolist()):
                rows, trained = own == unit, weight.clone().requires_grad_()
                losses = objective.losses(torch.from_numpy(x[rows]) @ trained, torch.from_numpy(y[rows]))
                (mean,) = torch.autograd.grad(losses.mean(), trained)
                total += mean * 0.4 / max(0.4, float(mean.norm()))
        velocity = 0.9 * velocity + total / (8 * 0.4)
        weight = weight - 2.0 * velocity
    found = private_linear(
        draft, [x for x, _, _ in sites], [y for _, y, _ in sites], np.eye(WIDTH), lr=2.0, scale_bits=24,
        rng=np.random.default_rng(0), units=units, objective=objective,
    )  # fmt: skip
    np.testing.assert_allclose(found, weight.numpy(), rtol=1e-9)


@pytest.mark.parametrize("objective", [BinaryLabel(), OneClass(tuple("abcd")), PointOnScale(0.0, 1.0)])
def test_sparse_inputs_give_what_dense_ones_give(tmp_path, objective):
    draft = make_draft(tmp_path, *TINY)
    x, y = records(6, 0)
    labels = y % 2 if objective == BinaryLabel() else y

    def scores(inputs):
        rng = np.random.default_rng(3)
        return private_linear(
            draft, [inputs], [labels], inputs, lr=1.0, scale_bits=24, rng=rng, objective=objective
        )  # fmt: skip

    np.testing.assert_allclose(scores(csr_array(x)), scores(x), rtol=1e-12)


def test_every_weight_of_every_class_gets_the_noise_of_every_site(tmp_path):
    draft = make_draft(tmp_path, *TINY, ("\nrounds = 2", "\nrounds = 1"))
    nothing, width = [np.zeros((1, 300))] * 4, 300
    found = private_linear(
        draft, nothing, [np.zeros(1, dtype=int)] * 4, np.eye(width), lr=8.0, scale_bits=24,
        rng=np.random.default_rng(0), objective=OneClass(tuple("abcde")),
    )  # fmt: skip
    assert found.shape == (width, 5)
    # four sites, each with a third of the variance: one may collude; 0.1 is over five standard errors of 1,500 numbers
    np.testing.assert_allclose(found.std(), 1.19 * (4 / 3) ** 0.5, rtol=0.1)
    assert abs(np.corrcoef(found[:, 0], found[:, 1])[0, 1]) < 0.2


@pytest.mark.parametrize("reading", HASHED)
def test_hashed_texts_have_a_constant_and_unit_length(reading):
    found = hashed_inputs(["a broken arm", "", "cough, cough and fever"], reading).toarray()
    assert found.shape == (3, HASHED[reading][0])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)
    assert (found[:, 0] > 0).all()
    assert np.flatnonzero(found[1]).tolist() == [0]  # nothing but the constant


def test_equal_words_fall_into_one_column_whatever_stands_around_them():
    first, other = hashed_inputs(["fever", "Fever! rash"], "words").toarray()
    column = np.flatnonzero(first[1:]) + 1
    assert len(column) == 1
    assert other[column] != 0

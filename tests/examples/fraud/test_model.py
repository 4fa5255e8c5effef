import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def slowly(fraud, features, labels, weights):
    """The gradient's sum from its definition, in Python's whole numbers."""
    one = 2**fraud.model.ONE_BITS
    total = [0] * len(weights)
    for row, label in zip(features.tolist(), labels.tolist(), strict=True):
        logit = sum(x * w for x, w in zip(row, weights.tolist(), strict=True))  # 4 z in units of a probability
        residual = min(max(one // 2 + logit, 0), one) - label * one
        total = [t + x * residual for t, x in zip(total, row, strict=True)]
    return total


def some(seed, people=50, dim=6, size=6_000):
    rng = np.random.default_rng(seed)
    return rng.integers(-size, size, (people, dim)), rng.integers(0, 2, people), rng.integers(-size, size, dim)


def test_gradient_is_that_of_its_definition(fraud):
    case = some(1)
    assert fraud.model.gradient_in_the_clear(*case).tolist() == slowly(fraud, *case)


def test_units_are_those_of_the_sigmoid(fraud):
    features, labels, weights = some(2)
    x, w = features / 2**fraud.columns.SCALE_BITS, weights / 2**fraud.model.WEIGHT_BITS
    expected = x.T @ (np.clip(0.5 + x @ w / 4, 0, 1) - labels)
    found = fraud.model.gradient_in_the_clear(features, labels, weights) * 2.0**-fraud.model.GRADIENT_BITS
    assert np.allclose(found, expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(
    row=st.lists(st.integers(-(2**14), 2**14), min_size=21, max_size=21),
    weights=st.lists(st.integers(-(2**26), 2**26), min_size=21, max_size=21),
    label=st.integers(0, 1),
)
def test_no_person_moves_the_sum_by_more_than_one(fraud, row, weights, label):
    length = math.isqrt(sum(x * x for x in row) - 1) + 1 if any(row) else 1
    short = [x if length <= 2**14 else int(x * 2**14 / length) for x in row]
    assert sum(x * x for x in short) <= 2**28
    gradient = fraud.model.gradient_in_the_clear(np.array([short]), np.array([label]), np.array(weights))
    assert gradient.tolist() == slowly(
        fraud, np.array([short]), np.array([label]), np.array(weights)
    )  # nothing wrapped
    assert sum(int(g) ** 2 for g in gradient) <= 2 ** (2 * fraud.model.GRADIENT_BITS)


def test_a_person_can_move_it_by_as_much(fraud):
    row, label = np.array([[2**14, 0]]), np.array([1])
    gradient = fraud.model.gradient_in_the_clear(row, label, np.array([-(2**20), 0]))
    assert gradient.tolist() == [-(2**fraud.model.GRADIENT_BITS), 0]


def test_training_without_noise_minimises_the_convex_loss(fraud):
    rng = np.random.default_rng(3)
    features = rng.integers(-8_000, 8_000, (400, 3))
    labels = (features @ np.array([3, -2, 1]) + rng.normal(0, 8_000, 400) > 0).astype(np.int64)
    optimizer = fraud.model.Optimizer(steps=400, learning_rate=10.0, momentum=0.5, expected_people=400)
    weights = optimizer.train(lambda at: fraud.model.gradient_in_the_clear(features, labels, at), 3)
    left = fraud.model.gradient_in_the_clear(features, labels, weights) * 2.0**-fraud.model.GRADIENT_BITS
    assert np.abs(left).max() < 0.05  # of 400 people; weights are rounded to 2**-10


def test_weights_that_run_away_are_refused(fraud):
    optimizer = fraud.model.Optimizer(steps=3, learning_rate=1e9, momentum=0.0, expected_people=1)
    with pytest.raises(ValueError, match="lower the learning rate"):
        optimizer.train(lambda at: np.array([2**40]), 1)

import math

import pytest
import torch

from confide.models.errors import InvalidAdapter
from confide.models.heads.objectives import BinaryLabel, OneClass, PointOnScale, SeveralLabels

OBJECTIVES = {
    "label": BinaryLabel(),
    "class": OneClass(("a", "b", "c")),
    "labels": SeveralLabels(("x", "y")),
    "number": PointOnScale(0.0, 30.0),
}
TARGETS = {"label": [0, 1, 1, 0], "class": [2, 0, 1, 2], "labels": [0, 3, 1, 2], "number": [-1.0, 0.25, 1.0, 0.0]}


def outputs_of(name, rows=4, *, dtype=torch.float64, seed=0):
    shape = (rows,) if OBJECTIVES[name].outputs is None else (rows, OBJECTIVES[name].outputs)
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_definition(name, outputs, target):
    """The loss of one record, from the definition, in Python's floats."""
    if name == "number":
        return (outputs - target) ** 2 / 2
    if name == "label":
        return math.log(1 + math.exp(-outputs if target else outputs))
    if name == "class":
        return math.log(sum(math.exp(logit) for logit in outputs)) - outputs[target]
    return sum(by_definition("label", logit, target >> place & 1) for place, logit in enumerate(outputs))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_are_those_of_the_definition(name):
    outputs, targets = outputs_of(name), TARGETS[name]
    got = OBJECTIVES[name].losses(outputs, torch.tensor(targets))
    want = [by_definition(name, row, target) for row, target in zip(outputs.tolist(), targets, strict=True)]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_large_outputs_give_finite_losses_and_gradients(name):
    outputs = (1e4 * outputs_of(name, dtype=torch.float32)).requires_grad_()
    losses = OBJECTIVES[name].losses(outputs, torch.tensor(TARGETS[name]))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert outputs.grad.isfinite().all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_record_s_loss_and_gradient_are_the_same_bits_in_any_place_of_any_batch(name):
    objective, seen = OBJECTIVES[name], set()
    record = outputs_of(name, 1, dtype=torch.float32, seed=9)
    for rows in (1, 2, 3, 7, 16, 33, 64, 65, 130):
        for place in {0, rows // 2, rows - 1}:
            batch = outputs_of(name, rows, dtype=torch.float32, seed=rows)
            batch[place] = record[0]
            batch.requires_grad_()
            targets = torch.tensor([TARGETS[name][1]] * rows)
            losses = objective.losses(batch, targets)
            losses.sum().backward()
            seen.add((losses[place].detach().numpy().tobytes(), batch.grad[place].numpy().tobytes()))
    assert len(seen) == 1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_target_is_less_likely_than_the_unlikely_one(name):
    objective, outputs = OBJECTIVES[name], outputs_of(name, 50)
    worst = objective.losses(outputs, objective.unlikely(outputs))
    for target in {"label": (0, 1), "class": range(3), "labels": range(4), "number": (-1.0, 1.0)}[name]:
        assert (worst >= objective.losses(outputs, torch.full((50,), target)) - 1e-12).all()


def test_labels_are_read_from_bits():
    labels = SeveralLabels(tuple("abc"))
    assert labels.labels_of(torch.tensor([0b101, 0b010])).tolist() == [[1, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize(("make", "names"), [(OneClass, ("a",)), (SeveralLabels, ()), (SeveralLabels, ("a",) * 63)])
def test_too_few_or_too_many_outputs_are_refused(make, names):
    with pytest.raises(InvalidAdapter):
        make(names)


def test_a_meaning_tells_apart_what_differs_and_is_one_line():
    assert OneClass(("a, b", "c")).meaning != OneClass(("a", "b, c")).meaning
    assert PointOnScale(20240101.0, 20240199.0).meaning != PointOnScale(20240120.0, 20240211.0).meaning
    assert "\n" not in OneClass(("a\n## Privacy", "b")).meaning

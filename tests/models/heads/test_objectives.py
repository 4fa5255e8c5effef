import itertools
import math

import numpy as np
import pytest
import torch

from confide.models.errors import InvalidAdapter
from confide.models.heads.objectives import BinaryLabel, OneClass, PointOnScale, SeveralLabels, SeveralTasks, Task
from confide.models.records.tasks import TaskTerms


def joined(tasks, told):
    """The target of one record that tells these, None being nothing."""
    targets = [np.array([0 if each is None else each]) for each in told]
    return int(tasks.joined(targets, [np.array([each is not None]) for each in told])[0])


TASKS = SeveralTasks(
    (
        Task("sick", BinaryLabel()),
        Task("which", OneClass(("a", "b", "c")), 0.5),
        Task("signs", SeveralLabels(("x", "y"))),
        Task("stay", PointOnScale(0.0, 30.0), 2.0),
    )
)
OBJECTIVES = {
    "label": BinaryLabel(),
    "class": OneClass(("a", "b", "c")),
    "labels": SeveralLabels(("x", "y")),
    "number": PointOnScale(0.0, 30.0),
    "tasks": TASKS,
}
TOLD = [(1, 2, 0, 0.5), (None, 1, 3, None), (0, None, None, -1.0), (None, None, None, None)]  # of each record
TARGETS = {
    "tasks": [joined(TASKS, told) for told in TOLD],
    "label": [0, 1, 1, 0],
    "class": [2, 0, 1, 2],
    "labels": [0, 3, 1, 2],
    "number": [-1.0, 0.25, 1.0, 0.0],
}


def outputs_of(name, rows=4, *, dtype=torch.float64, seed=0):
    shape = (rows,) if OBJECTIVES[name].outputs is None else (rows, OBJECTIVES[name].outputs)
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_definition(name, outputs, target):
    """The loss of one record, from the definition, in Python's floats."""
    if name == "tasks":
        first, total = 0, 0.0
        for task, kind, told in zip(
            TASKS.tasks, ("label", "class", "labels", "number"), TOLD[TARGETS[name].index(target)], strict=True
        ):
            own = outputs[first : first + task.width] if task.objective.outputs else outputs[first]
            first += task.width
            total += 0 if told is None else task.weight * by_definition(kind, own, told)
        return total
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
    every = [joined(TASKS, told) for told in itertools.product((None, 0, 1), range(3), range(4), (None, -1.0, 1.0))]
    for target in {"label": (0, 1), "class": range(3), "labels": range(4), "number": (-1.0, 1.0), "tasks": every}[name]:
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


def test_tasks_are_read_from_digits():
    apart = TASKS.apart(torch.tensor(TARGETS["tasks"]))
    for place, (targets, is_told) in enumerate(apart):
        assert is_told.tolist() == [told[place] is not None for told in TOLD]
        want = [told[place] for told in TOLD if told[place] is not None]
        np.testing.assert_allclose(targets[is_told].numpy(), want, atol=2**-16)


def test_what_a_record_does_not_tell_has_no_gradient_at_all():
    outputs = outputs_of("tasks", dtype=torch.float32).requires_grad_()
    TASKS.losses(outputs, torch.tensor(TARGETS["tasks"])).sum().backward()
    widths = [task.width for task in TASKS.tasks]
    for row, told in zip(outputs.grad, TOLD, strict=True):
        has = [bool(part.any()) for part in row.split(widths)]
        assert has == [each is not None for each in told]


def test_a_task_by_itself_is_its_objective_times_its_weight():
    for task, kind in zip(TASKS.tasks, ("label", "class", "labels", "number"), strict=True):
        alone, outputs = SeveralTasks((task,)), outputs_of(kind)
        told = [joined(alone, (target,)) for target in TARGETS[kind]]
        want = task.weight * task.objective.losses(outputs, torch.tensor(TARGETS[kind]))
        found = alone.losses(outputs.reshape(4, -1), torch.tensor(told))
        torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)  # a number is rounded to 2^-16 of its scale


def test_all_62_bits_of_a_target_are_told_apart():
    tasks = SeveralTasks(
        (
            *(Task(f"n{place}", PointOnScale(0.0, 1.0)) for place in range(3)),
            Task("b", OneClass(tuple(map(str, range(2000))))),
        )
    )
    targets = [np.array([1.0, -1.0, 0.0])] * 3 + [np.array([1999, 0, 7])]
    found = tasks.joined(targets, [np.ones(3, dtype=bool)] * 4)
    assert found.max() > 2**58
    for (got, is_told), want in zip(tasks.apart(torch.from_numpy(found)), targets, strict=True):
        assert is_told.all()
        np.testing.assert_array_equal(got.numpy(), want)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_first_made_up_target_depends_on_every_output(name):
    objective, outputs = OBJECTIVES[name], outputs_of(name, 3).requires_grad_()
    targets = objective.made_up(3)
    assert targets[0] == targets[2] != targets[1]
    objective.losses(outputs, targets)[0].backward()
    assert (outputs.grad[0] != 0).all()
    assert not outputs.grad[1:].any()


def test_terms_count_what_objectives_tell_apart():
    for terms in ({"label": "a"}, {"label": "a", "classes": ("x", "y", "z")},
                  {"number": {"column": "a", "low": 0.0, "high": 1.0, "within": 0.1}}):  # fmt: skip
        task = TaskTerms.model_validate(terms)
        assert task.digits == task.outcome.objective().digits


@pytest.mark.parametrize(
    "tasks",
    [
        (),
        (Task("a", BinaryLabel()), Task("a", BinaryLabel())),
        tuple(Task(f"n{place}", PointOnScale(0.0, 1.0)) for place in range(4)),
    ],
)
def test_tasks_without_a_name_of_their_own_or_too_many_to_tell_are_refused(tasks):
    with pytest.raises(InvalidAdapter, match=r"name of its own|at most 62 fit"):
        SeveralTasks(tasks)

import math

import numpy as np
import pytest
import torch

from confide.client_node.replay.checkpoint import Checkpoint
from confide.client_node.replay.server_optimizer import ServerOptimizer
from confide.client_node.study.terms import StudyDraft, load_draft
from confide.coordinator.studies.learning_rates import (
    ADAPTER_WALK,
    CLASS_WALK,
    HEAD_WALK,
    NUMBER_WALK,
    head_rate,
    with_rates,
)
from confide.models.heads.objectives import BinaryLabel, OneClass, PointOnScale, SeveralLabels, SeveralTasks, Task

from ...client_node.conftest import STUDY_TOML, changed

NO_RATES = ("lr = 0.3\nhead_lr = 10.0\n", "")


def make_draft(tmp_path, *changes) -> StudyDraft:
    (tmp_path / "study.toml").write_text(changed(STUDY_TOML, changes))
    return load_draft(tmp_path / "study.toml")


@pytest.mark.parametrize("rounds", [1, 10, 60])
@pytest.mark.parametrize("momentum", ["0.0", "0.9"])
def test_noise_alone_moves_a_weight_of_the_head_as_far_as_the_rule_says(tmp_path, rounds, momentum):
    draft = make_draft(
        tmp_path,
        ("rounds = 40", f"rounds = {rounds}"),
        ("momentum = 0.9", f"momentum = {momentum}"),
        ("noise_multiplier = 1.19", "noise_multiplier = 900.0"),  # far below the limit of stability
    )
    optimizer = ServerOptimizer(lr=head_rate(draft), head_lr=1.0, momentum=draft.optimizer.momentum)
    checkpoint, rng = Checkpoint.beginning(np.zeros(4000, np.float32)), np.random.default_rng(0)
    for _ in range(rounds):
        noise = rng.normal(0, draft.noise_std / draft.update_divisor, 4000)
        checkpoint = optimizer.step(checkpoint, noise, slice(0, 0))
    assert checkpoint.state.std() == pytest.approx(HEAD_WALK, rel=0.06)  # over 5 standard errors


def test_without_noise_the_rate_is_below_what_heavy_ball_descent_bears(tmp_path):
    quiet = ('"distributed"', '"none"'), ("noise_multiplier = 1.19\n", ""), ("delta = 1e-5\n", "")
    rate = head_rate(make_draft(tmp_path, *quiet))
    curvature = 1 / 8  # a logistic loss whose inputs put half of their square length in one direction
    companion = np.array([[1 + 0.9 - rate * curvature * 0.999, -0.9], [1.0, 0.0]])
    assert max(abs(np.linalg.eigvals(companion))) < 1
    assert head_rate(make_draft(tmp_path, *quiet, ("clip_norm = 1.0", "clip_norm = 0.5"))) == rate / 2


def test_adam_s_rate_keeps_the_distance_whatever_the_noise(tmp_path):
    adam = ("momentum = 0.9", 'momentum = 0.0\nkind = "adam"')
    rates = {head_rate(make_draft(tmp_path, adam, ("= 1.19", f"= {sigma}"))) for sigma in (1.0, 9.0)}
    assert rates == {HEAD_WALK / math.sqrt(40)}


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_noise_alone_moves_the_adapters_together_as_far_as_the_rule_says(tmp_path, kind):
    draft = make_draft(
        tmp_path, NO_RATES, ("momentum = 0.9", f'momentum = 0.9\nkind = "{kind}"'), ("= 1.19", "= 900.0")
    )
    optimizer = ServerOptimizer.of(with_rates(draft, 4000))
    checkpoint, rng = Checkpoint.beginning(np.zeros(4000, np.float32)), np.random.default_rng(0)
    for _ in range(40):
        noise = rng.normal(0, draft.noise_std / draft.update_divisor, 4000)
        checkpoint = optimizer.step(checkpoint, noise, slice(0, 0))
    # rates have two digits; Adam's first few rounds know little of the second moment
    assert np.linalg.norm(checkpoint.state) == pytest.approx(ADAPTER_WALK, rel=0.2 if kind == "adam" else 0.08)


def test_only_what_the_draft_leaves_out_is_chosen(tmp_path):
    stated = make_draft(tmp_path)
    assert with_rates(stated, 1000) == stated
    lr, head_lr = with_rates(make_draft(tmp_path, ("lr = 0.3\nhead_lr", "head_lr")), 10).optimizer.rates
    assert (lr, head_lr) == (pytest.approx(0.03 * 10.0), 10.0)  # so few adapters that the head sets the limit
    assert with_rates(make_draft(tmp_path, NO_RATES), 10**8).optimizer.rates[0] < 0.003 * head_lr


@pytest.mark.parametrize(
    ("objective", "walk", "curvature"),
    [
        (BinaryLabel(), HEAD_WALK, 1 / 4),
        (SeveralLabels(("a", "b")), HEAD_WALK, 1 / 4),
        (OneClass(("a", "b", "c")), CLASS_WALK, 1 / 2),
        (PointOnScale(0.0, 1.0), NUMBER_WALK, 1),
        (SeveralTasks((Task("a", BinaryLabel(), 3.0), Task("b", OneClass(("a", "b"))))), CLASS_WALK, 3 / 4),
    ],
)
def test_a_rate_goes_by_what_the_head_learns(tmp_path, objective, walk, curvature):
    loud = make_draft(tmp_path, ("= 1.19", "= 50.0"))
    assert head_rate(loud, objective) == pytest.approx(head_rate(loud) * walk / HEAD_WALK)
    quiet = make_draft(tmp_path, ("= 1.19", "= 1e-9"))
    momentum, largest = quiet.optimizer.momentum, 1 / 2  # eigenvalue of the inputs' second moment
    limit = 2 * (1 + momentum) / (curvature * largest) * quiet.privacy.clip_norm
    assert head_rate(quiet, objective) == pytest.approx(limit)
    # The curvature is the most that the loss can have by its outputs.
    outputs = torch.zeros((1,) if objective.outputs is None else (1, objective.outputs), dtype=torch.float64)
    target = 4.0 if isinstance(objective, SeveralTasks) else 0.0  # of several tasks: all that can be told is
    second = torch.autograd.functional.hessian(
        lambda given: objective.losses(given, torch.full((1,), target)).sum(), outputs
    ).reshape(outputs.numel(), -1)
    assert torch.linalg.eigvalsh(second).max() <= curvature + 1e-9

import numpy as np
import pytest
import torch

from confide.coordinator.membership import Attacked, Pool, attack
from confide.coordinator.references import head_inputs, private_linear, untrained
from confide.coordinator.results import held_out_policy
from confide.models.head import pooled
from confide.privacy.membership import logit_confidence
from confide.privacy.report_format import membership_facts

from .test_results import RUN, with_run

HEADER = "patient_id,age,TSH,sex,sick,diagnosis\n"


def rows(rng, people):
    return "".join(
        f"p{person},{rng.integers(1, 99)},{rng.random() * 12:.1f},{'FM'[person % 2]},{person % 3 % 2},"
        f"{rng.integers(2)}\n"
        for person in people
    )


@torch.no_grad()
def whiten(adapted, ids):
    """Gives the tiny backbone's head moments of these records, so that it can tell them apart."""
    states = pooled(adapted.model, torch.from_numpy(ids))
    values, vectors = torch.linalg.eigh(torch.cov(states.T) + 1e-4 * torch.eye(states.shape[1]))
    adapted.head.center.copy_(states.mean(0))
    adapted.head.whiten.copy_((vectors / values.sqrt()) @ vectors.T)


@pytest.fixture
def pool(federation):
    rng, study = np.random.default_rng(0), with_run(federation, ("batch_units = 1374", "batch_units = 20"))
    policies = []
    for name, people in (("train.csv", range(100)), ("heldout.csv", range(100, 200))):
        (federation.home / name).write_text(HEADER + rows(rng, people))
        policies.append([held_out_policy(federation.home / name, study, "patient_id")])
    return study, Pool.read(study, *policies)


def test_a_pool_knows_whom_the_study_trained_on(pool):
    _, found = pool
    assert found.is_member[0].tolist() == [True] * 100 + [False] * 100
    assert len(found.labels) == len(found.sites[0][0]) == 200


def test_an_attack_finds_whom_a_model_remembers_and_is_kept(federation, pool):
    study, found = pool
    untouched, is_member = untrained(study.draft, federation.backbone), found.is_member[0]
    whiten(untouched, found.sites[0][0])
    inputs = head_inputs(untouched, found.sites[0][0])
    without_noise = study.draft.model_copy(update={"privacy": study.draft.privacy.model_copy(update={"mode": "none"})})
    scores = private_linear(  # labels are coins: whoever is right about them has seen them
        without_noise, [inputs[is_member]], [found.labels[is_member]], inputs, lr=10.0, scale_bits=24,
        rng=np.random.default_rng(1),
    )  # fmt: skip
    attacked = [
        Attacked("a head that remembers", "none", logit_confidence(scores, found.labels)),
        Attacked("a head that knows nobody", "distributed", np.random.default_rng(2).normal(size=200)),
    ]
    facts = attack(federation.store, RUN, study, found, untouched, attacked)
    assert [one.is_private for one in facts] == [False, True]
    assert facts[0].auc > 0.7
    assert facts[0].tpr_at_1_percent_fpr > 0.02
    assert 0.3 < facts[1].auc < 0.7  # five standard errors
    assert (facts[0].members, facts[0].nonmembers, facts[0].shadows) == (100, 100, 16)
    kept = federation.store.privacy_tests(RUN, "membership")
    assert [membership_facts(text) for text in kept] == facts

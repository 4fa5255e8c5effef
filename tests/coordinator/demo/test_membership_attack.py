import numpy as np
import pytest

from confide.coordinator.comparison.federated import untrained
from confide.coordinator.demo.membership_attack import Attacked, Pool, _facts, attack
from confide.coordinator.studies.held_out import held_out_policy
from confide.privacy.audit.membership_attack import likelihood_ratios
from confide.privacy.report.schema import membership_facts

from ..results.test_export import RUN, with_run

HEADER = "patient_id,age,TSH,sex,sick,diagnosis\n"


def rows(rng, people):
    return "".join(
        f"p{person},{rng.integers(1, 99)},{rng.random() * 12:.1f},{'FM'[person % 2]},{person % 3 % 2},"
        f"{rng.integers(2)}\n"
        for person in people
    )


@pytest.fixture
def pool(federation):
    rng, study = np.random.default_rng(0), with_run(federation)
    policies = []
    for name, people in (("train.csv", range(100)), ("heldout.csv", range(100, 200))):
        (federation.home / name).write_text(HEADER + rows(rng, people))
        policies.append([held_out_policy(federation.home / name, study, "patient_id")])
    return study, Pool.read(study, *policies)


def test_a_pool_knows_whom_the_study_trained_on(pool):
    _, found = pool
    assert found.is_member[0].tolist() == [True] * 100 + [False] * 100
    assert len(found.labels) == len(found.sites[0][0]) == 200


def test_a_model_that_remembers_is_found_out_and_one_that_does_not_is_not(pool):
    study, found = pool
    rng, is_member = np.random.default_rng(1), found.is_member[0]
    hardness, had = 3 * rng.normal(size=200), rng.random((16, 200)) < 0.5
    for memory, mode, low, high in ((3.0, "none", 0.9, 1.0), (0.0, "distributed", 0.3, 0.7)):  # 5 standard errors
        shadows = hardness + memory * had + rng.normal(size=had.shape)
        own = hardness + memory * is_member + rng.normal(size=200)
        scores = likelihood_ratios(own, shadows, had)
        facts = _facts(RUN, study, is_member, Attacked("a model", mode, own), scores, shadows=16, shadow_model="heads")
        assert low < facts.auc < high
        assert facts.is_private == (mode == "distributed")
        assert (facts.tpr_at_1_percent_fpr > 0.2) == (memory > 0)
        assert facts.roc[-1].true_positive_rate == facts.roc[-1].false_positive_rate == 1


def test_an_attack_trains_its_own_shadows_and_keeps_what_it_finds(federation, pool):
    study, found = pool
    untouched = untrained(study.draft, federation.backbone)
    nothing = np.random.default_rng(2).normal(size=200)
    attacked = [Attacked("a model", "none", nothing), Attacked("another", "distributed", nothing)]
    facts = attack(federation.store, RUN, study, found, untouched, attacked)
    assert [one.attacked for one in facts] == ["a model", "another"]
    assert all(0.2 < one.auc < 0.8 for one in facts)  # 7 standard errors
    assert (facts[0].members, facts[0].nonmembers, facts[0].shadows) == (100, 100, 16)
    kept = federation.store.privacy_tests(RUN, "membership")
    assert [membership_facts(text) for text in kept] == facts

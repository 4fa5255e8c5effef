import pytest

from confide.client_node.study.cost import whole_cost
from confide.coordinator.studies.summary import summary

UNPROTECTED = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))
TARGET = ("noise_multiplier = 1.19", "target_epsilon = 3.0")


def test_a_study_states_what_a_whole_run_of_it_costs(federation):
    study = federation.create()
    found = summary(study)
    assert (found.name, found.hash, found.dim) == ("thyroid", study.study_hash, study.dim)
    assert (found.lr, found.head_lr) == study.draft.optimizer.rates
    assert found.epsilon == whole_cost(study)


def test_a_target_is_kept_by_the_noise_that_was_solved_for_it(federation):
    found = summary(federation.create(TARGET))
    assert found.target_epsilon == 3.0
    assert found.epsilon == pytest.approx(3.0, rel=1e-2)
    assert found.epsilon <= 3.0
    assert found.noise_multiplier > 1.19


def test_a_study_without_privacy_has_no_cost(federation):
    assert summary(federation.create(*UNPROTECTED)).epsilon is None

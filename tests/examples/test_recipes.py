import pytest

from confide.client_node.study.cost import releases_of_draft
from confide.client_node.study.terms import load_draft
from confide.privacy.accounting.composition import epsilon_pld, epsilon_rdp

from .conftest import EXAMPLES

DIM = 16_513


@pytest.mark.parametrize("example", ["loans", "rand"])
def test_the_recipe_is_that_of_thyroid_untouched(example):
    own, thyroid = (load_draft(EXAMPLES / name / "study.toml") for name in (example, "thyroid"))
    assert own.privacy == thyroid.privacy
    assert own.optimizer == thyroid.optimizer
    assert own.evaluation == thyroid.evaluation
    assert own.rounds.rounds == thyroid.rounds.rounds
    assert own.adapter.model_copy(update={"seed": thyroid.adapter.seed}) == thyroid.adapter


@pytest.mark.parametrize("example", ["loans", "rand", "thyroid", "diagnoses"])
def test_a_whole_run_costs_less_than_3_by_both_accountants(example):
    draft = load_draft(EXAMPLES / example / "study.toml")
    spent = releases_of_draft(draft, DIM)
    assert epsilon_pld(spent, draft.privacy.delta, 1) < epsilon_rdp(spent, draft.privacy.delta, 1) < 3

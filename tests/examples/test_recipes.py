import pytest

from confide.client_node.study.cost import releases_of_draft
from confide.client_node.study.terms import load_draft
from confide.coordinator.demo import demo
from confide.privacy.accounting import renyi
from confide.privacy.accounting.composition import epsilon_guaranteed, epsilon_pld, epsilon_rdp

from .conftest import EXAMPLES

DIM = 4_737


@pytest.mark.parametrize(("example", "head_lr"), [("loans", 10.0), ("rand", 2.5), ("fhir", 10.0)])
def test_the_recipe_is_that_of_thyroid_but_for_rand_s_rate(example, head_lr):
    own, thyroid = (load_draft(EXAMPLES / name / "study.toml") for name in (example, "thyroid"))
    assert own.privacy == thyroid.privacy
    assert own.optimizer == thyroid.optimizer.model_copy(update={"head_lr": head_lr})
    assert own.evaluation == thyroid.evaluation
    assert own.rounds.rounds == thyroid.rounds.rounds
    assert own.adapter.model_copy(update={"seed": thyroid.adapter.seed}) == thyroid.adapter


@pytest.mark.parametrize(
    "example",
    ["loans", "rand", "outlook", "histories", "thyroid", "diagnoses", "chapters", "derivations", "code", "fhir"],
)
def test_a_whole_run_costs_less_than_3_by_both_accountants_and_fits_under_the_demo_s_cap(example):
    draft = load_draft(EXAMPLES / example / "study.toml")
    delta, planned = draft.privacy.delta, releases_of_draft(draft, DIM)
    assert epsilon_pld(planned, delta, 1) < epsilon_rdp(planned, delta, 1) < 3
    cap = demo.BUDGET
    assert epsilon_guaranteed(planned, delta, draft.privacy.collusion, renyi.filter_order(cap, delta)) <= cap

import pytest

from confide.client_node.approval.charges import (
    charge,
    open_ledger,
    planned_charges,
    record_budget,
    require_run,
    reserve,
    reserved_charges,
    standing,
)
from confide.client_node.approval.run_reservations import RunReservations
from confide.client_node.enrolment import Enrolment
from confide.client_node.errors import ChargeRefused
from confide.client_node.policy.decisions import approve
from confide.client_node.policy.site_policy import load_policy
from confide.client_node.study.cost import planned_releases, whole_cost
from confide.privacy.accounting import composition, renyi

from ..conftest import EVALUATION, PATIENTS_CSV, Site


@pytest.fixture
def evaluated(site: Site):
    """An approved study with an evaluation, at a site that holds records out."""
    (site.home / "held-out.csv").write_text(PATIENTS_CSV)
    site.write(('path = "patients.csv"', 'path = "patients.csv"\nheldout_path = "held-out.csv"'))
    study = site.keep(site.study(EVALUATION))
    approve(site.home, study.study_hash)
    return study


@pytest.fixture
def ledger(site: Site):
    with open_ledger(site.home, site.identity, Enrolment.load(site.home)) as found:
        yield found


def test_all_that_a_study_opens_is_what_its_rounds_are_charged(site, evaluated):
    policy = load_policy(site.home)
    one_by_one = [charge(evaluated, policy, run="r", round_number=number).release for number in range(1, 42)]
    planned = planned_releases(evaluated)
    assert [count for _, count in planned] == [40, 1]
    assert [release for release, count in planned for _ in range(count)] == one_by_one
    assert [(made.release, count) for made, count in planned_charges(evaluated, policy, run="r")] == planned


def test_what_was_charged_and_what_is_reserved_add_up_to_the_whole_run(site, evaluated, ledger):
    policy = load_policy(site.home)
    RunReservations(site.home).note("run-1", evaluated.study_hash)
    for number in (1, 2):
        reserve(ledger, evaluated, policy, run="run-1", round_number=number)
    stands = standing(site.home, policy, planned_charges(evaluated, policy, run="run-1"))
    assert (stands.spent.total(), stands.reserved.total(), stands.coming.total()) == (2, 0, 39)
    stands = standing(site.home, policy)
    assert (stands.spent.total(), stands.reserved.total(), stands.runs) == (2, 39, ("run-1",))
    whole = dict(planned_releases(evaluated))
    order = renyi.filter_order(policy.budget.epsilon, policy.budget.delta)
    assert stands.quote().would_be == composition.epsilon_guaranteed(whole, 1e-5, 1, order)
    assert stands.planned(planned_charges(evaluated, policy, run="r")) == whole_cost(evaluated)
    assert reserved_charges(site.home, policy, besides=["run-1"]) == {}


def test_a_run_that_does_not_fit_beside_another_is_refused_and_nothing_charged(site, evaluated, ledger):
    policy = load_policy(site.home)
    require_run(site.home, ledger, evaluated, policy, run="run-1")
    RunReservations(site.home).note("run-1", evaluated.study_hash)
    require_run(site.home, ledger, evaluated, policy, run="run-1")  # a run does not stand in its own way
    with pytest.raises(ChargeRefused, match=r"41 rounds .* with what is held for run-1; nothing is charged"):
        require_run(site.home, ledger, evaluated, policy, run="run-2")
    assert [entry.kind for entry in ledger.walk()] == ["open", "budget"]


def test_a_charge_counts_under_the_cap_of_the_policy_as_it_is_now(site, evaluated, ledger):
    record_budget(ledger, load_policy(site.home))
    site.write(("epsilon = 10.0", "epsilon = 0.01"))
    with pytest.raises(ChargeRefused, match=r"round 1: .* the cap is epsilon 0\.01"):
        reserve(ledger, evaluated, load_policy(site.home), run="run-1", round_number=1)
    assert ledger.budget("patients", "patient").epsilon == 0.01
    assert not ledger.is_open("run-1", 1)

import json

import pytest
from typer.testing import CliRunner

from confide.client_node.approval import budget_planning
from confide.client_node.approval.budget_planning import plan
from confide.client_node.approval.run_reservations import RunReservations
from confide.client_node.cli.main import app
from confide.client_node.errors import StudyInvalid
from confide.client_node.policy.decisions import approve
from confide.client_node.study.cost import provisional, releases_of_draft, with_noise, with_rounds
from confide.client_node.study.terms import load_draft
from confide.privacy.accounting import composition, renyi
from confide.privacy.ledger.charges import Budget

DIM = 1000
NOISY = ("noise_multiplier = 1.19", "noise_multiplier = 4.0")  # small losses are composed faster
EVALUATED = ("[rounds]", "[evaluation]\nnoise_multiplier = 8.0\n[rounds]")


def cap(epsilon: float, collusion: int = 1) -> Budget:
    return Budget(dataset="patients", unit="patient", epsilon=epsilon, delta=1e-5, collusion=collusion)


@pytest.fixture
def draft(write_draft):
    return load_draft(write_draft(EVALUATED, NOISY))


def cost(draft, more=None, collusion=1):
    return composition.epsilon_pld(releases_of_draft(draft, DIM) + (more or budget_planning.NOTHING), 1e-5, collusion)


def guaranteed(draft, epsilon, more=None):
    """By the filter of a cap."""
    releases = releases_of_draft(draft, DIM) + (more or budget_planning.NOTHING)
    return composition.epsilon_guaranteed(releases, 1e-5, 1, renyi.filter_order(epsilon, 1e-5))


@pytest.mark.slow
def test_costs_are_those_of_the_whole_run_for_every_number_of_colluders(draft):
    found = plan(provisional(draft, DIM), cap(8.0, collusion=2))
    assert [each.colluding for each in found.costs] == [0, 1, 2]
    for each in found.costs:
        assert each.pld == each.pld_after == cost(draft, collusion=each.colluding) <= each.rdp
        assert each.rdp <= each.guaranteed_after
    assert found.spent == 0


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.9, 3.0], ids=["fewer than planned", "more than planned"])
def test_the_rounds_that_fit_are_the_most_that_fit(draft, epsilon):
    found = plan(provisional(draft, DIM), cap(epsilon))
    assert found.rounds_left == found.rounds_from_zero
    more, fewer = (with_rounds(draft, found.rounds_left + step) for step in (1, 0))
    assert guaranteed(fewer, epsilon) <= epsilon < guaranteed(more, epsilon)


def test_what_is_spent_and_reserved_leaves_fewer_rounds(draft):
    spent, reserved = releases_of_draft(with_rounds(draft, 5), DIM), releases_of_draft(with_rounds(draft, 3), DIM)
    found = plan(provisional(draft, DIM), cap(1.5), spent=spent, reserved=reserved)
    before = spent + reserved
    assert found.spent == composition.epsilon_pld(before, 1e-5, 1)
    assert guaranteed(with_rounds(draft, found.rounds_left), 1.5, before) <= 1.5
    assert guaranteed(with_rounds(draft, found.rounds_left + 1), 1.5, before) > 1.5
    assert found.rounds_left < found.rounds_from_zero
    assert found.costs[1].pld_after == cost(draft, before)
    assert found.costs[1].guaranteed_after == guaranteed(draft, 1.5, before)


def test_with_the_noise_that_is_needed_all_rounds_fit(draft):
    found = plan(provisional(draft, DIM), cap(1.0))
    needed = found.noise_multiplier_needed
    assert 0.99 <= guaranteed(with_noise(draft, needed), 1.0) <= 1.0
    assert needed > found.noise_multiplier == 4.0


def test_a_spent_budget_leaves_nothing_and_no_noise_helps(draft):
    found = plan(provisional(draft, DIM), cap(1.0), spent=releases_of_draft(draft, DIM))
    assert (found.rounds_left, found.noise_multiplier_needed) == (0, None)
    assert found.rounds_from_zero > 0
    assert found.spent > 1.0


def test_a_study_without_privacy_has_no_plan(write_draft):
    bare = (("distributed", "none"), ("noise_multiplier = 1.19\n", ""), ("delta = 1e-5\n", ""))
    with pytest.raises(StudyInvalid, match="no cost that could be counted"):
        plan(provisional(load_draft(write_draft(*bare)), DIM), cap(1.0))


def told(site, *words):
    result = CliRunner().invoke(app, ["budget", "plan", *words, "--home", str(site.home), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.slow
def test_a_draft_is_planned_without_a_federation(site, write_draft):
    (site.home / "enrolment.json").unlink()
    path = write_draft(("noise_multiplier = 1.19", "target_epsilon = 1.0"), ("rounds = 40", "rounds = 10"))
    found = told(site, str(path))
    assert found["dim_is_assumed"]
    assert 0.99 <= found["costs"][1]["PLD"] <= 1.0
    assert found["all_rounds_fit"]
    assert (found["cap"], found["spent_or_held"]) == (10.0, 0)
    assert not (site.home / "ledger.db").exists()


@pytest.mark.slow
def test_the_length_of_the_vector_can_be_told(site, write_draft):
    found = told(site, str(write_draft(NOISY)), "--dim", "5000")
    assert (found["dim"], found["dim_is_assumed"]) == (5000, False)


def test_a_known_study_is_planned_with_what_its_ledger_and_other_runs_leave(site):
    study = site.keep(site.study(NOISY))
    approve(site.home, study.study_hash)
    CliRunner().invoke(app, ["budget", "set", "--epsilon", "2", "--delta", "1e-5", "--home", str(site.home)])
    alone = told(site, "thyroid")
    assert (alone["dim"], alone["dim_is_assumed"], alone["cap"]) == (1000, False, 2.0)
    RunReservations(site.home).note("run-1", study.study_hash)
    beside = told(site, study.study_hash[:12])
    assert beside["spent_or_held"] == alone["costs"][1]["PLD"]
    assert beside["rounds_that_fit_in_what_is_left"] < alone["rounds_that_fit_in_what_is_left"]


def test_a_plan_is_a_table_for_people(site, write_draft):
    result = CliRunner().invoke(
        app, ["budget", "plan", str(write_draft(NOISY)), "--home", str(site.home)], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0
    assert "rounds that fit in what is left" in result.stdout
    assert "PLD with all before" in result.stdout

import json
import math
from pathlib import Path

import pytest
from scipy.stats import poisson
from typer.testing import CliRunner

from confide.client_node.approval import budget_planning
from confide.client_node.approval.budget_planning import plan, provisional, releases, ring_of, with_noise, with_rounds
from confide.client_node.approval.run_reservations import Holds
from confide.client_node.cli.main import app
from confide.client_node.errors import StudyInvalid
from confide.client_node.policy.decisions import approve
from confide.client_node.study.study import Study
from confide.client_node.study.terms import AggregationTerms, load_draft
from confide.mpc.sharing.sketch import largest_bound
from confide.privacy.accounting import composition
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
    return composition.epsilon_pld(releases(draft, DIM) + (more or budget_planning.NOTHING), 1e-5, collusion)


def test_a_provisional_study_releases_what_the_real_one_does(make_study):
    study = make_study(EVALUATED)
    found = provisional(study.draft, study.dim)
    assert found.last_round == study.last_round == 41
    for number in (1, 41):
        ours, real = found.planned_round(number), study.planned_round(number)
        assert (ours.dim, ours.clip_norm, ours.sample_rate) == (real.dim, real.clip_norm, real.sample_rate)
        assert ours.noise_multiplier == real.noise_multiplier
    assert found.quorum == study.quorum


EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize("name", sorted(path.parent.name for path in EXAMPLES.glob("*/study.toml")))
@pytest.mark.parametrize("noise_multiplier", [0.5, 4.0])  # theirs are solved: about 2.4
@pytest.mark.parametrize("dim", [16_513, 100_000])
def test_every_example_is_summed_in_32_bits(name, noise_multiplier, dim):
    draft = with_noise(load_draft(EXAMPLES / name / "study.toml"), noise_multiplier)
    assert ring_of(draft, dim).bits == 32


@pytest.mark.parametrize("batch_units", [0.001, 1.0, 5.0, 40.0, 1374.0, 1e6])
def test_the_clipped_units_of_a_step_are_fewer_than_the_ring_is_planned_for(draft, batch_units):
    """Exactly, for the Poisson limit of samples of that mean, which has the heaviest tail of them all."""
    rounds = draft.rounds.model_copy(update={"batch_units": batch_units})
    quiet = draft.model_copy(update={"rounds": rounds, "privacy": draft.privacy.model_copy(update={"mode": "none"})})
    quiet = quiet.model_copy(update={"aggregation": AggregationTerms(norm_check=False)})
    most = quiet.largest_total / quiet.privacy.clip_unit
    assert poisson.sf(most - 1, batch_units) < 1e-28


def test_every_mode_s_noise_is_in_the_largest_total(write_draft):
    """The std of the opened sum by definition: three of four sites make up the multiplier, or each of them alone."""
    for mode, variance in (("distributed", 1.19**2 * 4 / 3), ("local", 4 * 1.19**2), ("none", 0.0)):
        change = {"mode": mode, "collusion": 1}
        draft = load_draft(write_draft())
        draft = draft.model_copy(update={"privacy": draft.privacy.model_copy(update=change)})
        assert draft.largest_total == pytest.approx(4 * draft.max_norm + 10 * math.sqrt(variance))
        unchecked = draft.model_copy(update={"aggregation": AggregationTerms(norm_check=False)})
        assert unchecked.largest_total == pytest.approx(4 * 1374 + 30 + 10 * math.sqrt(variance))


def test_a_study_whose_sum_could_wrap_is_refused(make_study):
    """One bit more of scale than the ring was planned for at the very edge."""
    study = make_study(("[participants]", "[aggregation]\nnorm_check = false\n[participants]"))
    most = int(math.log2(2**31 / study.draft.largest_total))
    fields = {name: getattr(study, name) for name in Study.model_fields} | {"ring_bits": 32}
    Study(**fields | {"scale_bits": most})
    with pytest.raises(ValueError, match="wrap"):
        Study(**fields | {"scale_bits": most + 1})


@pytest.mark.parametrize("dim", [100, 16_514, 10**6])
@pytest.mark.parametrize("terms", ["max_norm = 2", "max_norm = 2000", "norm_check = false"])
@pytest.mark.parametrize("dropouts", ["over-provision", "top-up"])
def test_ring_of_a_draft_is_large_enough_to_check_a_norm(write_draft, dim, terms, dropouts):
    """Of an update, and of the longest top-up: two sites' for four."""
    draft = load_draft(
        write_draft(
            ("[participants]", f"[aggregation]\n{terms}\n[participants]"),
            ("min_sites = 3", "min_sites = 2"),
            ("max_dropouts = 0", f'max_dropouts = 2\ndropouts = "{dropouts}"'),
        )
    )
    ring, study = ring_of(draft, dim), provisional(draft, dim)
    bounds = [study.planned_round(1).bound_units, *(study.planned_topup(1, sites).bound_units for sites in (2, 3))]
    assert all(bound is None or bound <= largest_bound(ring.bits) for bound in bounds)
    assert math.ldexp(draft.largest_total, ring.scale_bits) + 4 < 2 ** (ring.bits - 1)
    assert math.sqrt(dim) * 2.0**-ring.scale_bits <= (1e-2 if ring.bits == 32 else 1e-3)


@pytest.mark.slow
def test_costs_are_those_of_the_whole_run_for_every_number_of_colluders(draft):
    found = plan(provisional(draft, DIM), cap(8.0, collusion=2))
    assert [each.colluding for each in found.costs] == [0, 1, 2]
    for each in found.costs:
        assert each.pld == each.pld_after == cost(draft, collusion=each.colluding) <= each.rdp
    assert found.spent == 0


@pytest.mark.parametrize("epsilon", [0.9, 3.0], ids=["fewer than planned", "more than planned"])
def test_the_rounds_that_fit_are_the_most_that_fit(draft, epsilon):
    found = plan(provisional(draft, DIM), cap(epsilon))
    assert found.rounds_left == found.rounds_from_zero
    assert cost(with_rounds(draft, found.rounds_left)) <= epsilon < cost(with_rounds(draft, found.rounds_left + 1))


def test_what_is_spent_and_held_leaves_fewer_rounds(draft):
    spent, held = releases(with_rounds(draft, 5), DIM), releases(with_rounds(draft, 3), DIM)
    found = plan(provisional(draft, DIM), cap(1.5), spent=spent, held=held)
    before = spent + held
    assert found.spent == composition.epsilon_pld(before, 1e-5, 1)
    assert cost(with_rounds(draft, found.rounds_left), before) <= 1.5
    assert cost(with_rounds(draft, found.rounds_left + 1), before) > 1.5
    assert found.rounds_left < found.rounds_from_zero
    assert found.costs[1].pld_after == cost(draft, before)


def test_with_the_noise_that_is_needed_all_rounds_fit(draft):
    found = plan(provisional(draft, DIM), cap(1.0))
    needed = found.noise_multiplier_needed
    assert 0.99 <= cost(with_noise(draft, needed)) <= 1.0
    assert needed > found.noise_multiplier == 4.0


def test_a_spent_budget_leaves_nothing_and_no_noise_helps(draft):
    found = plan(provisional(draft, DIM), cap(1.0), spent=releases(draft, DIM))
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
    assert (found["cap"], found["spent_or_held"]) == (8.0, 0)
    assert not (site.home / "ledger.db").exists()


def test_the_length_of_the_vector_can_be_told(site, write_draft):
    found = told(site, str(write_draft(NOISY)), "--dim", "5000")
    assert (found["dim"], found["dim_is_assumed"]) == (5000, False)


def test_a_known_study_is_planned_with_what_its_ledger_and_other_runs_leave(site):
    study = site.keep(site.study(NOISY))
    approve(site.home, study.study_hash)
    CliRunner().invoke(app, ["budget", "set", "--epsilon", "2", "--delta", "1e-5", "--home", str(site.home)])
    alone = told(site, "thyroid")
    assert (alone["dim"], alone["dim_is_assumed"], alone["cap"]) == (1000, False, 2.0)
    Holds(site.home).keep("run-1", study.study_hash)
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


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ([("[rounds]", "[evaluation]\nnoise_multiplier = 1.0\n[rounds]")], "raise evaluation.noise_multiplier"),
        ([("delta = 1e-5", "delta = 1e-12"), ("rounds = 40", "rounds = 90000")], "plan fewer rounds"),
    ],
    ids=["by the evaluation", "by the rounds"],
)
def test_a_target_out_of_reach_names_what_puts_it_there(write_draft, changes, remedy):
    hopeless = load_draft(write_draft(("noise_multiplier = 1.19", "target_epsilon = 0.01"), *changes))
    with pytest.raises(StudyInvalid, match="target_epsilon is 0.01.*or " + remedy):
        budget_planning.solve(hopeless, DIM)

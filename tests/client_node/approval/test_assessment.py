import json

import pytest

from confide.client_node.approval.assessment import assess
from confide.client_node.approval.charges import LEDGER_FILE, charge, open_ledger, record_budget
from confide.client_node.approval.confirmed_sites import fingerprint
from confide.client_node.approval.run_reservations import RunReservations
from confide.client_node.approval.study_decisions import approve_study, propose
from confide.client_node.enrolment import Enrolment
from confide.client_node.policy.decisions import confirm_sites
from confide.client_node.policy.site_policy import load_policy
from confide.client_node.study.cost import planned_releases
from confide.models.rounding import rounded_up
from confide.privacy.accounting import renyi
from confide.privacy.accounting.composition import epsilon_guaranteed, epsilon_pld

from ..conftest import EVALUATION, PATIENTS_CSV, Site, changed

HELD_OUT = ('path = "patients.csv"', 'path = "patients.csv"\nheldout_path = "held-out.csv"')


def guaranteed(releases):
    """By the filter of the site's cap."""
    return epsilon_guaranteed(releases, 1e-5, 1, renyi.filter_order(10.0, 1e-5))


@pytest.fixture
def evaluated(site: Site):
    """A study with an evaluation, at a site that holds records out."""
    (site.home / "held-out.csv").write_text(PATIENTS_CSV)
    site.write(HELD_OUT)
    return site.keep(site.study(EVALUATION))


def approve(home, study_hash, *, unprotected=False):
    approve_study(home, propose(home, study_hash, unprotected=unprotected))


def test_an_approval_quotes_updates_and_evaluation_together(site, evaluated):
    assessment = assess(site.home, evaluated)
    quote = assessment.quote
    assert quote is not None
    assert assessment.evaluates is True
    releases = [release for release, count in planned_releases(evaluated) for _ in range(count)]
    assert quote.would_be == guaranteed(releases) > guaranteed(releases[:-1])
    assert assessment.planned == epsilon_pld(releases, 1e-5, 1) < quote.would_be


def test_a_site_that_holds_nothing_out_is_quoted_the_updates_alone(site, evaluated):
    site.write()
    assessment = assess(site.home, evaluated)
    quote = assessment.quote
    assert quote is not None
    assert assessment.evaluates is False
    updates = [planned_releases(evaluated)[0][0]] * 40
    assert (assessment.planned, quote.would_be) == (epsilon_pld(updates, 1e-5, 1), guaranteed(updates))


def test_held_out_records_that_do_not_fit_speak_against_an_approval(site, evaluated):
    (site.home / "held-out.csv").write_text(changed(PATIENTS_CSV, (("p1,34", "p1,old"),)))
    reasons = assess(site.home, evaluated).reasons
    assert len(reasons) == 1
    assert "held-out.csv has 1 problem" in reasons[0]
    site.write()
    assert assess(site.home, evaluated).reasons == ()


def ledger_of(site):
    return open_ledger(site.home, site.identity, Enrolment.load(site.home))


def test_assessing_starts_no_ledger(site, evaluated):
    assessment = assess(site.home, evaluated)
    assert assessment.spent == assessment.quote.guaranteed == 0
    assert not (site.home / LEDGER_FILE).exists()


def test_assessing_leaves_the_ledger_as_it_was_byte_for_byte(site, evaluated):
    """Also where the policy's budget is another than the one in force, under which it quotes all the same."""
    with ledger_of(site) as ledger:
        record_budget(ledger, load_policy(site.home))
        ledger.reserve(charge(evaluated, load_policy(site.home), run="earlier", round_number=1))
    before = (site.home / LEDGER_FILE).read_bytes()
    site.write(HELD_OUT, ("epsilon = 10.0", "epsilon = 12.5"))
    assessment = assess(site.home, evaluated)
    quote = assessment.quote
    assert (quote.cap, quote.guaranteed > assessment.spent > 0) == (12.5, True)
    assert (site.home / LEDGER_FILE).read_bytes() == before


def test_a_plan_that_pld_would_let_pass_is_refused_with_both_figures(site, evaluated):
    planned = assess(site.home, evaluated).planned
    cap = round(planned + 0.1, 1)
    site.write(HELD_OUT, ("epsilon = 10.0", f"epsilon = {cap}"))
    assessment = assess(site.home, evaluated)
    (reason,) = assessment.reasons
    assert assessment.planned == planned < cap < assessment.quote.would_be
    assert f"from 0.00 to {rounded_up(assessment.quote.would_be)}, the cap is {cap:g}" in reason
    assert f"the study costs {rounded_up(planned)}" in reason


def test_what_other_runs_reserve_counts_with_a_ledger_and_without(site, evaluated):
    approve(site.home, evaluated.study_hash)
    RunReservations(site.home).note("run-1", evaluated.study_hash)
    quoted = assess(site.home, evaluated)
    assert "with what is held for run-1" in quoted.reasons[0]
    assert "all 41 rounds" in quoted.reasons[0]
    (site.home / LEDGER_FILE).rename(site.home / "lost.db")
    assert assess(site.home, evaluated) == quoted


def test_an_approval_puts_the_policy_s_budget_in_force_first(site, evaluated):
    approve(site.home, evaluated.study_hash)
    approve(site.home, evaluated.study_hash)
    with ledger_of(site) as ledger:
        assert [entry.kind for entry in ledger.walk()] == ["open", "budget"]
        assert ledger.budget("patients", "patient").epsilon == 10.0
    assert load_policy(site.home).permits(evaluated)


def test_an_approval_without_privacy_or_of_a_node_that_only_aggregates_sets_no_budget(site):
    bare = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))
    approve(site.home, site.keep(site.study(*bare)).study_hash, unprotected=True)
    enrolment = json.loads((site.home / "enrolment.json").read_text())
    (site.home / "enrolment.json").write_text(json.dumps(enrolment | {"name": "agg-a", "roles": ["aggregate"]}))
    added_up = site.keep(site.study(named="agg-a"))
    confirm_sites(site.home, {party.name: fingerprint(party.identity) for party in added_up.sites})
    approve(site.home, added_up.study_hash)
    assert not (site.home / LEDGER_FILE).exists()

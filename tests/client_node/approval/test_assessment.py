import pytest

from confide.client_node.approval.assessment import assess, charge, planned_charges
from confide.client_node.policy.site_policy import load_policy
from confide.client_node.study.cost import planned_releases
from confide.privacy.accounting.composition import epsilon_pld

from ..conftest import EVALUATION, PATIENTS_CSV, Site, changed

HELD_OUT = ('path = "patients.csv"', 'path = "patients.csv"\nheldout_path = "held-out.csv"')


@pytest.fixture
def evaluated(site: Site):
    """A study with an evaluation, at a site that holds records out."""
    (site.home / "held-out.csv").write_text(PATIENTS_CSV)
    site.write(HELD_OUT)
    return site.keep(site.study(EVALUATION))


def test_all_that_a_study_opens_is_what_its_rounds_are_charged(site, evaluated):
    policy = load_policy(site.home)
    one_by_one = [charge(evaluated, policy, run="r", round_number=number).release for number in range(1, 42)]
    planned = planned_releases(evaluated)
    assert [count for _, count in planned] == [40, 1]
    assert [release for release, count in planned for _ in range(count)] == one_by_one
    assert [(made.release, count) for made, count in planned_charges(evaluated, policy, run="r")] == planned


def test_an_approval_quotes_updates_and_evaluation_together(site, evaluated):
    assessment = assess(site.home, evaluated)
    quote = assessment.quote
    assert quote is not None
    assert assessment.evaluates is True
    releases = [release for release, count in planned_releases(evaluated) for _ in range(count)]
    assert quote.would_be == epsilon_pld(releases, 1e-5, 1) > epsilon_pld(releases[:-1], 1e-5, 1)


def test_a_site_that_holds_nothing_out_is_quoted_the_updates_alone(site, evaluated):
    site.write()
    assessment = assess(site.home, evaluated)
    quote = assessment.quote
    assert quote is not None
    assert assessment.evaluates is False
    assert quote.would_be == epsilon_pld([planned_releases(evaluated)[0][0]] * 40, 1e-5, 1)


def test_held_out_records_that_do_not_fit_speak_against_an_approval(site, evaluated):
    (site.home / "held-out.csv").write_text(changed(PATIENTS_CSV, (("p1,34", "p1,old"),)))
    reasons = assess(site.home, evaluated).reasons
    assert len(reasons) == 1
    assert "held-out.csv has 1 problem" in reasons[0]
    site.write()
    assert assess(site.home, evaluated).reasons == ()

import datetime as dt

import pytest

from confide.client_node.approval.charges import open_ledger, planned_charges, reserve
from confide.client_node.approval.run_reservations import RunReservations
from confide.client_node.approval.study_decisions import (
    Fetched,
    approval,
    approve_study,
    fetch,
    fetch_unless_known,
    overview,
    propose,
    revoke_study,
    to_revoke,
    whole_hash,
)
from confide.client_node.enrolment import Enrolment
from confide.client_node.errors import ApprovalRefused, CoordinatorUnreachable, StudyUnknown
from confide.client_node.policy import decision_log, decisions
from confide.client_node.policy.site_policy import load_policy
from confide.client_node.spoken_hash import words
from confide.client_node.study import cost
from confide.privacy.accounting import composition, renyi

FETCH = "confide.client_node.approval.catalogue.fetch_studies"
UNPROTECTED = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))


def approve(home, study_hash, *, by=None, **terms):
    approve_study(home, propose(home, study_hash, **terms), by=by)


def away(home):
    raise CoordinatorUnreachable("nobody answers")


def test_a_forged_study_is_turned_away_and_the_others_are_kept(site, monkeypatch):
    good, bad = site.study(), site.offer(site.study(("rounds = 40", "rounds = 41"))) | {"signature": "00" * 64}
    monkeypatch.setattr(FETCH, lambda home: [bad, site.offer(good)])
    (line,) = fetch(site.home).turned_away
    assert "signature does not hold" in line
    assert [known.study for known in overview(site.home)] == [good]


def test_a_coordinator_that_is_away_is_told_and_raises_nothing(site, monkeypatch):
    monkeypatch.setattr(FETCH, away)
    assert fetch(site.home) == Fetched(unreachable="nobody answers")


def test_a_known_study_is_not_fetched_again(site, monkeypatch):
    study = site.keep(site.study())
    monkeypatch.setattr(FETCH, away)
    assert fetch_unless_known(site.home, study.study_hash[:8]) == Fetched()
    assert fetch_unless_known(site.home, "another").unreachable


def test_decisions_show_in_the_overview_until_they_are_taken_back(site):
    study = site.keep(site.study())
    decided = []
    for decide in (
        lambda: None,
        lambda: approve(site.home, study.study_hash),
        lambda: revoke_study(site.home, study.study_hash),
    ):
        decide()
        decided += [(known.roles, known.decision) for known in overview(site.home)]
    assert decided == [(("train",), None), (("train",), "approved"), (("train",), "revoked")]
    assert not load_policy(site.home).permits(study)


def test_a_study_that_site_toml_names_counts_as_approved(site):
    study = site.keep(site.study())
    site.write(("[backbone]", f'[studies]\napproved = ["{study.study_hash}"]\n[backbone]'))
    assert [known.decision for known in overview(site.home)] == ["approved"]


def test_a_node_named_by_no_part_of_a_study_has_no_role_in_it(site):
    site.keep(site.study(('"svi"', '"third"'), named="nobody"))
    assert [known.roles for known in overview(site.home)] == [()]


def test_a_study_is_approved_without_privacy_only_where_it_has_none(site):
    for changes in ((), UNPROTECTED):
        study = site.keep(site.study(*changes))
        approve(site.home, study.study_hash, unprotected=True)
        assert (study.study_hash in load_policy(site.home).studies.unprotected) is bool(changes)


def test_a_refused_study_is_not_approved_and_all_reasons_are_named(site):
    site.write(("epsilon = 10.0", "epsilon = 0.5"))
    study = site.keep(site.study())
    with pytest.raises(ApprovalRefused, match=r"nothing left this site:\n  .*the cap is 0\.5"):
        propose(site.home, study.study_hash)
    assert not load_policy(site.home).permits(study)


def test_what_is_revoked_may_be_named_shortly_and_a_whole_hash_also_where_no_such_study_is_known(site):
    study = site.keep(site.study())
    spoken = " ".join(words(study.study_hash))
    for text in ("thyroid", study.study_hash[:8], study.study_hash, spoken):
        assert to_revoke(site.home, text) == (study.study_hash, ())
    assert to_revoke(site.home, "ab" * 32) == ("ab" * 32, ())
    with pytest.raises(StudyUnknown):
        to_revoke(site.home, "ab" * 31)
    site.keep(site.study(("rank = 4", "rank = 5")))
    with pytest.raises(StudyUnknown, match="2 studies"):
        to_revoke(site.home, "thyroid")


def test_a_name_or_the_beginning_of_a_hash_means_no_study_to_be_approved(site):
    """Whoever writes studies can give two the same name, and find one whose hash begins as another's in hours."""
    study = site.keep(site.study())
    for text in ("thyroid", study.study_hash[:8], study.study_hash[:63], " ".join(words(study.study_hash)[:23])):
        with pytest.raises(ApprovalRefused, match=r"Ask the operator, by telephone, .* compare .* and type them"):
            whole_hash(text)
    assert whole_hash(study.study_hash) == whole_hash(" ".join(words(study.study_hash))) == study.study_hash


def ledger_of(site):
    return open_ledger(site.home, site.identity, Enrolment.load(site.home))


def begin(site, study, run, rounds):
    """What a daemon does in a run of that many rounds so far."""
    decisions.count_run(site.home, study.study_hash, run, allowed=1)
    RunReservations(site.home).note(run, study.study_hash)
    with ledger_of(site) as ledger:
        for number in range(1, rounds + 1):
            reserve(ledger, study, load_policy(site.home), run=run, round_number=number)


def guaranteed(site, releases):
    """The filter's figure for these releases, by the order that follows from the site's cap."""
    budget = load_policy(site.home).budget
    return composition.epsilon_guaranteed(releases, 1e-5, 1, renyi.filter_order(budget.epsilon, budget.delta))


def test_approving_twice_says_what_is_left_and_that_it_stands(site):
    study = site.keep(site.study())  # 7.73 of a budget of 10, so that two runs never fit
    assert approval(site.home, study.study_hash) is None
    approve(site.home, study.study_hash, until=dt.date(2999, 12, 31))
    known = approval(site.home, study.study_hash)
    assert (known.runs, known.used, known.until) == (1, (), dt.date(2999, 12, 31))
    begin(site, study, "thyroid-1", rounds=3)
    assert approval(site.home, study.study_hash).used == ("thyroid-1",)  # the run's own hold does not stand in its way


def test_a_used_approval_whose_run_has_ended_is_given_anew(site):
    site.write(("epsilon = 10.0", "epsilon = 30.0"))
    study = site.keep(site.study())
    approve(site.home, study.study_hash)
    begin(site, study, "thyroid-1", rounds=3)
    RunReservations(site.home).end("thyroid-1")
    assert approval(site.home, study.study_hash) is None
    approve(site.home, study.study_hash)
    known = approval(site.home, study.study_hash)
    assert (known.runs, known.used) == (1, ())


def test_a_run_goes_on_after_revoke_and_approve_and_its_charges_count_once(site):
    study = site.keep(site.study())  # 40 rounds lift the filter to 7.7 of 10; 40 more would pass it
    approve(site.home, study.study_hash)
    begin(site, study, "thyroid-1", rounds=36)
    revoke_study(site.home, study.study_hash)
    assert to_revoke(site.home, study.study_hash)[1] == ("thyroid-1",)
    proposal = propose(site.home, study.study_hash)
    assert (proposal.runs, proposal.under_way) == (1, ("thyroid-1",))
    assert proposal.assessment.planned == cost.whole_cost(study)
    assert proposal.assessment.quote.would_be == guaranteed(site, dict(cost.planned_releases(study)))
    approve_study(site.home, proposal)
    assert approval(site.home, study.study_hash).used == ("thyroid-1",)
    with pytest.raises(ApprovalRefused, match=r"the 44 rounds that are left of 2 runs"):
        propose(site.home, study.study_hash, runs=2)


def test_an_approval_of_several_runs_is_quoted_for_all_of_them(site):
    site.write(("epsilon = 10.0", "epsilon = 30.0"))
    study = site.keep(site.study())
    ((charge, count),) = planned_charges(study, load_policy(site.home), run="r")
    quote = propose(site.home, study.study_hash, runs=3).assessment.quote
    assert quote.would_be == guaranteed(site, {charge.release: 3 * count})
    approve(site.home, study.study_hash, runs=3)
    begin(site, study, "thyroid-1", rounds=1)
    begin_again = propose(site.home, study.study_hash, runs=2)
    assert begin_again.under_way == ("thyroid-1",)


def test_runs_under_way_cannot_be_left_out_of_the_count(site):
    site.write(("epsilon = 10.0", "epsilon = 30.0"))
    study = site.keep(site.study())
    approve(site.home, study.study_hash, runs=2)
    for run in ("thyroid-1", "thyroid-2"):
        RunReservations(site.home).note(run, study.study_hash)
    assert propose(site.home, study.study_hash).runs == 2
    with pytest.raises(ApprovalRefused, match=r"2 runs of it are under way \(thyroid-1, thyroid-2\)"):
        propose(site.home, study.study_hash, runs=1)


def test_an_approval_expires_at_the_end_of_its_day(site):
    study = site.keep(site.study())
    day = decisions.today()
    with pytest.raises(ApprovalRefused, match="is over"):
        propose(site.home, study.study_hash, until=day - dt.timedelta(days=1))
    approve(site.home, study.study_hash, until=day)
    assert load_policy(site.home).permits(study)
    decisions.approve(site.home, study.study_hash, until=day - dt.timedelta(days=1))
    assert not load_policy(site.home).permits(study)
    assert [known.decision for known in overview(site.home)] == ["expired"]
    assert approval(site.home, study.study_hash) is None


def test_who_decided_is_noted_by_the_name_given_and_the_account(site):
    study = site.keep(site.study())
    approve(site.home, study.study_hash, by="Dr. Ada")
    revoke_study(site.home, study.study_hash)
    (first, second), unread = decision_log.read(site.home)
    assert ([first.decision, second.decision], unread) == (["approve", "revoke"], [])
    assert first.about == second.about == study.study_hash
    assert (first.by, second.by) == ("Dr. Ada", second.login)

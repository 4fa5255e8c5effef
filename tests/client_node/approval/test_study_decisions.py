import pytest

from confide.client_node.approval.study_decisions import (
    Fetched,
    approve_study,
    fetch,
    fetch_unless_known,
    overview,
    revoke_study,
)
from confide.client_node.errors import ApprovalRefused, CoordinatorUnreachable, StudyUnknown
from confide.client_node.policy.site_policy import load_policy

FETCH = "confide.client_node.approval.catalogue.fetch_studies"
UNPROTECTED = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))


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
        lambda: approve_study(site.home, "thyroid"),
        lambda: revoke_study(site.home, "thyroid"),
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
        approve_study(site.home, study.study_hash, unprotected=True)
        assert (study.study_hash in load_policy(site.home).studies.unprotected) is bool(changes)


def test_a_refused_study_is_not_approved_and_all_reasons_are_named(site):
    site.write(("epsilon = 10.0", "epsilon = 0.5"))
    study = site.keep(site.study())
    with pytest.raises(ApprovalRefused, match=r"nothing left this site:\n  .*the cap is 0\.5"):
        approve_study(site.home, study.study_hash)
    assert not load_policy(site.home).permits(study)


def test_a_whole_hash_is_revoked_even_where_no_such_study_is_known(site):
    assert revoke_study(site.home, "ab" * 32) == "ab" * 32
    with pytest.raises(StudyUnknown):
        revoke_study(site.home, "ab" * 31)

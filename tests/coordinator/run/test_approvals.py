import datetime as dt
import json
import time

import pytest

from confide.coordinator.run.approvals import approvals, every_approval
from confide.coordinator.store.tables import DecisionRow, StudyRow

from ..conftest import PARTIES, SITES


def today():
    return dt.datetime.now(dt.UTC).date()


@pytest.fixture
def study(federation):
    return federation.create()


def tell(store, study, *sites, verdict="approved", runs_left=1, until=None):
    about = {"verdict": verdict, "runs_left": runs_left, "until": until, "since": time.time()}
    with store.session() as session:
        session.add_all(DecisionRow(site=site, study=study.study_hash, **about) for site in sites)


def look(store, study):
    return approvals(store, store.study(study.study_hash))


def test_before_a_node_tells_nobody_has_said_and_nothing_is_warned_of(federation, study):
    found = look(federation.store, study)
    assert [(each.name, each.says) for each in found.parties] == [(name, "has not said") for name in (*SITES, *PARTIES)]
    assert (found.is_told, found.is_complete, found.warning, found.against) == (False, False, "", "")


def test_who_has_not_approved_is_named_with_what_is_known(federation, study):
    store = federation.store
    tell(store, study, "other", "rest", "agg-a", "agg-b")
    tell(store, study, "svi", verdict="revoked", runs_left=0)
    tell(store, study, "svhc", until=(today() - dt.timedelta(days=1)).isoformat())
    found, ended = look(store, study), today() - dt.timedelta(days=1)
    assert found.sentence == (
        f"approved by 4 of 7: svi refuses since {today()}; the approval of svhc was until {ended}; agg-c has not said"
    )
    assert found.warning == found.sentence
    assert found.against.startswith("svi refuses since")
    assert "agg-c" not in found.against


@pytest.mark.parametrize(("until", "runs_left", "says"), [(0, 1, "approved"), (-1, 1, "expired"), (9, 0, "used up")])
def test_an_approval_holds_to_the_end_of_its_last_day_and_for_so_many_runs(federation, study, until, runs_left, says):
    tell(federation.store, study, "svi", runs_left=runs_left, until=(today() + dt.timedelta(days=until)).isoformat())
    (svi,) = (each for each in look(federation.store, study).parties if each.name == "svi")
    assert svi.says == says


def test_an_approval_by_all_warns_of_nothing(federation, study):
    tell(federation.store, study, *SITES, *PARTIES)
    found = look(federation.store, study)
    assert (found.sentence, found.warning, found.is_complete) == ("approved by all 7", "", True)


def test_of_a_large_federation_the_sentence_names_some(federation):
    text = json.dumps({"sites": [{"name": f"clinic-{number}"} for number in range(100)], "aggregators": []}).encode()
    row = StudyRow(hash="ab" * 32, name="large", canonical=text, signature="", created_at=0.0)
    sentence = every_approval(federation.store, [row])["ab" * 32].sentence
    assert sentence.startswith("approved by 0 of 100: clinic-0, clinic-1")
    assert sentence.endswith("clinic-7, 92 more have not said")


def test_a_node_of_both_parts_is_one_party(federation):
    text = b'{"sites": [{"name": "svi"}, {"name": "rest"}], "aggregators": [{"name": "svi"}]}'
    row = StudyRow(hash="ab" * 32, name="both", canonical=text, signature="", created_at=0.0)
    found = every_approval(federation.store, [row])["ab" * 32]
    assert [(each.name, each.part) for each in found.parties] == [("svi", "site and aggregator"), ("rest", "site")]


def test_a_study_that_cannot_be_read_has_no_parties_and_hides_no_other(federation, study):
    store, broken = federation.store, StudyRow(hash="0" * 64, name="old", canonical=b"{", signature="", created_at=0.0)
    tell(store, study, "svi")
    found = every_approval(store, [broken, store.study(study.study_hash)])
    assert (found["0" * 64].parties, found["0" * 64].is_complete) == ((), False)
    assert found[study.study_hash].approved == 1

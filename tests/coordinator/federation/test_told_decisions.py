"""A node's words in each database; `client_node/test_decision_teller.py` sends them through the gate."""

import datetime as dt
import json

import pytest

from confide.client_node.wire.decisions import DecisionsWord, ToldDecision
from confide.coordinator.errors import EnrolmentInvalid
from confide.coordinator.federation.told_decisions import take
from confide.coordinator.store.tables import NodeRow, Run, StudyRow

from ..conftest import identity_of, logged

OURS, OTHERS, COORDINATOR = "ab" * 32, "cd" * 32, "ef" * 32


@pytest.fixture
def store(any_store):
    with any_store.session() as session:
        session.add(NodeRow(name="svi", roles="train", identity=identity_of("svi"), enrolled_at=0.5))
        for study, site in ((OURS, "svi"), (OTHERS, "rest")):
            text = json.dumps({"sites": [{"name": site}], "aggregators": [{"name": "agg-a"}]}).encode()
            session.add(StudyRow(hash=study, name="thyroid", canonical=text, signature="", created_at=0.0))
    return any_store


def tell(store, at, *decisions, **changed):
    said = {"identity": identity_of("svi"), "timestamp": at, "nonce": "12" * 16, "coordinator": COORDINATOR}
    take(store, DecisionsWord(**(said | {"decisions": decisions} | changed)), {COORDINATOR})


def approved(study, runs_left=1):
    return ToldDecision(study=study, verdict="approved", runs_left=runs_left, until=dt.date(2099, 12, 31))


def test_the_last_word_is_what_stands_and_each_change_is_in_the_log_once(store):
    tell(store, 1.0, approved(OURS), approved(OTHERS), approved("12" * 32))
    (row,) = store.decisions()
    assert (row.site, row.study, row.verdict, row.runs_left, row.until) == ("svi", OURS, "approved", 1, "2099-12-31")
    assert [each.hash for each in store.unbegun_studies(9)] == [OURS]
    since = row.since
    tell(store, 3.0, approved(OURS, runs_left=0))
    (row,) = store.decisions(OURS)
    assert (row.runs_left, row.since) == (0, since)
    with pytest.raises(EnrolmentInvalid, match="something newer"):
        tell(store, 2.0)
    with pytest.raises(EnrolmentInvalid, match="another coordinator"):
        tell(store, 9.0, coordinator="12" * 32)
    tell(store, 5.0)
    assert store.decisions() == []
    about = {"site": "svi", "hash": OURS}
    assert logged(store) == [
        ("site.decision", about | {"decision": "approved", "until": "2099-12-31"}),
        ("site.decision", about | {"decision": "withdrawn", "until": None}),
    ]


def test_a_study_waits_for_its_first_run_no_more_once_that_is_started(store):
    tell(store, 1.0, approved(OURS))
    with store.session() as session:
        session.add(Run(id="run-1", study=OURS, state="pending", created_at=0.0))
    assert store.unbegun_studies(9) == []


@pytest.mark.parametrize("column", ["revoked_at", "identity"])
def test_a_node_that_was_revoked_or_has_another_key_tells_nothing(store, column):
    with store.session() as session:
        setattr(session.get(NodeRow, "svi"), column, {"revoked_at": 1.0, "identity": identity_of("rest")}[column])
    with pytest.raises(EnrolmentInvalid, match="does not know this node"):
        tell(store, 1.0, approved(OURS))
    assert store.decisions() == []

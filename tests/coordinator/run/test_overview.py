import json

import pytest

from confide.coordinator.errors import NotFound
from confide.coordinator.run.overview import opened_rounds, run_standings
from confide.coordinator.store.tables import Evaluation, Run

from ...client_node.conftest import EVALUATION
from ..conftest import SITES, committed_round, put_in_state


@pytest.fixture
def store(federation):
    """A store with a pending run, run-1, of a study that evaluates."""
    study = federation.create(EVALUATION)
    with federation.store.session() as session:
        session.add(Run(id="run-1", study=study.study_hash, state="pending", created_at=7.0, step="asks sites"))
    return federation.store


def test_a_run_shows_its_step_until_it_is_over_and_its_error_when_it_failed(store):
    found = []
    for state, error in (("pending", None), ("running", None), ("failed", "sites are missing")):
        put_in_state(store, "run-1", state, error=error)
        (standing,) = run_standings(store)
        found.append((standing.state, standing.step))
    assert found == [("pending", "asks sites"), ("running", "asks sites"), ("failed", "sites are missing")]


def test_a_run_counts_its_committed_rounds(store):
    lease = store.acquire_lease("run-1")
    for number in (1, 2):
        store.commit_round(committed_round(number, lease=lease))
    (standing,) = run_standings(store)
    assert (standing.run, standing.rounds, standing.started) == ("run-1", 2, 7.0)


def test_every_site_of_a_round_is_summed_too_long_or_missing(store):
    first, second, *others = SITES
    lease = store.acquire_lease("run-1")
    store.leave_out("run-1", lease, 1, [first])
    row = committed_round(1, lease=lease, sent=1000)
    row.sites = json.dumps(others)
    store.commit_round(row)
    store.leave_out("run-1", lease, 3, [second])
    found = opened_rounds(store, "run-1")
    (opened,) = found.rounds
    assert (opened.summed, opened.too_long, opened.missing) == (tuple(others), (first,), (second,))
    assert (opened.purpose, opened.bytes_per_site) == ("update", 1000)
    assert found.too_long == {1: (first,), 3: (second,)}
    assert found.unopened == [3]


def test_an_evaluation_is_the_last_round_that_is_opened(store):
    lease = store.acquire_lease("run-1")
    facts = {"sites": "[]", "evidence": "[]", "counts": "[]", "seconds": 1.0, "bytes_per_site": 1, "committed_at": 0.0}
    store.commit_round(committed_round(1, lease=lease))
    store.commit_round(Evaluation(run="run-1", number=41, lease=lease, **facts))
    assert [(each.round, each.purpose) for each in opened_rounds(store, "run-1").rounds] == [
        (1, "update"),
        (41, "evaluation"),
    ]


def test_a_run_that_is_not_there_has_opened_nothing(store):
    with pytest.raises(NotFound):
        opened_rounds(store, "nothing")

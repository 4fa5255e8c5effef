import pytest

from confide.coordinator.errors import Conflict, NotFound
from confide.coordinator.run.control import resume_run, start_run, stop_run
from confide.coordinator.store.tables import Run, StudyRow

from ..conftest import committed_round, put_in_state

HASH = "ab" * 32


@pytest.fixture
def store(empty_store):
    """A store with one study, and one run of it called run-1."""
    with empty_store.session() as session:
        session.add(StudyRow(hash=HASH, name="thyroid", canonical=b"", signature="", created_at=0.0))
    with empty_store.session() as session:
        session.add(Run(id="run-1", study=HASH, state="pending", created_at=0.0))
    return empty_store


@pytest.mark.parametrize("study", ["thyroid", HASH[:8]])
def test_a_run_starts_pending_and_is_named_after_its_study(store, study):
    run = start_run(store, study)
    assert run.startswith("thyroid-")
    assert (store.run(run).study, store.run(run).state) == (HASH, "pending")
    assert start_run(store, study) != run


def test_no_run_starts_of_a_study_that_is_not_there(store):
    with pytest.raises(NotFound):
        start_run(store, "nothing")
    assert [run.id for run in store.runs()] == ["run-1"]


def test_a_stopped_run_goes_on_after_its_last_committed_round(store):
    store.commit_round(committed_round(1, lease=store.acquire_lease("run-1")))
    stop_run(store, "run-1")
    assert store.run("run-1").state == "stopping"
    put_in_state(store, "run-1", "stopped")
    assert resume_run(store, "run-1") == 2
    assert store.run("run-1").state == "pending"


@pytest.mark.parametrize("state", ["stopping", "stopped", "done", "failed"])
def test_what_does_not_run_is_not_stopped(store, state):
    put_in_state(store, "run-1", state)
    with pytest.raises(Conflict, match=f"is {state}, there is nothing to stop"):
        stop_run(store, "run-1")
    assert store.run("run-1").state == state


@pytest.mark.parametrize("state", ["pending", "running", "stopping", "done"])
def test_only_what_was_stopped_or_failed_goes_on(store, state):
    put_in_state(store, "run-1", state)
    with pytest.raises(Conflict, match="only a stopped or failed run is resumed"):
        resume_run(store, "run-1")
    assert store.run("run-1").state == state

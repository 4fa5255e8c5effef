from concurrent.futures import ThreadPoolExecutor

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
    put_in_state(store, "run-1", "done")
    run = start_run(store, study)
    assert run.startswith("thyroid-")
    assert (store.run(run).study, store.run(run).state) == (HASH, "pending")
    assert start_run(store, study, again=True) != run


@pytest.mark.parametrize("state", ["pending", "running", "stopping", "stopped", "failed"])
def test_a_study_with_a_run_that_is_not_done_is_started_again_only_if_asked(store, state):
    put_in_state(store, "run-1", state)
    with pytest.raises(Conflict, match=r"run-1.* --again starts another one, which each site must have approved") as no:
        start_run(store, HASH)
    assert (f"is {state}" in str(no.value), "run resume run-1" in str(no.value)) == (
        True,
        state in ("stopped", "failed"),
    )
    assert [run.id for run in store.runs()] == ["run-1"]
    start_run(store, HASH, again=True)
    assert len(store.runs()) == 2


def test_a_run_of_another_study_stands_in_nobody_s_way(store):
    with store.session() as session:
        session.add(StudyRow(hash="cd" * 32, name="heart", canonical=b"", signature="", created_at=0.0))
    assert start_run(store, "heart").startswith("heart-")


def test_of_two_starts_at_once_one_is_refused(store):
    put_in_state(store, "run-1", "done")

    def start(_):
        try:
            return start_run(store, HASH)
        except Conflict:
            return None

    with ThreadPoolExecutor(4) as pool:
        started = list(pool.map(start, range(4)))
    assert sum(run is not None for run in started) == 1


def test_a_name_that_two_studies_have_starts_neither(store):
    with store.session() as session:
        session.add(StudyRow(hash="cd" * 32, name="thyroid", canonical=b"", signature="", created_at=1.0))
    with pytest.raises(Conflict, match="2 studies are called 'thyroid'") as no:
        start_run(store, "thyroid")
    assert HASH in str(no.value)
    assert start_run(store, "cd" * 32).startswith("thyroid-")
    assert len(store.runs()) == 2


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

from concurrent.futures import ThreadPoolExecutor

import pytest

from confide.client_node.errors import StudyOutdated
from confide.coordinator.errors import Conflict, LeaseLost, NotFound
from confide.coordinator.run.control import abandon_run, resume_run, start_run, stop_run
from confide.coordinator.run.overview import SILENCE_S
from confide.coordinator.store.tables import Run, StudyRow

from ...client_node.conftest import STUDY_TOML, build_study
from ..conftest import committed_round, put_in_state


@pytest.fixture
def study(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY_TOML)
    return build_study(tmp_path / "study.toml", {})


@pytest.fixture
def store(any_store, study):
    """A store with one study, and one run of it called run-1."""
    keep(any_store, study)
    with any_store.session() as session:
        session.add(Run(id="run-1", study=study.study_hash, state="pending", created_at=0.0))
    return any_store


def keep(store, study):
    row = StudyRow(hash=study.study_hash, name=study.name, canonical=study.canonical(), signature="", created_at=0.0)
    with store.session() as session:
        session.add(row)


def named(study, name):
    return study.model_copy(update={"draft": study.draft.model_copy(update={"name": name})})


def test_a_run_starts_pending_and_is_named_after_its_study(store, study):
    for name in ("thyroid", study.study_hash[:8]):
        for known in store.runs():
            put_in_state(store, known.id, "done")
        run = start_run(store, name)
        assert run.startswith("thyroid-")
        assert (store.run(run).study, store.run(run).state) == (study.study_hash, "pending")
        assert start_run(store, name, again=True) != run


@pytest.mark.parametrize("state", ["pending", "running", "stopping", "stopped", "failed"])
def test_a_study_with_a_run_that_is_not_done_is_started_again_only_if_asked(store, study, state):
    put_in_state(store, "run-1", state)
    with pytest.raises(Conflict, match=r"run-1.* --again starts another one, which each site must have approved") as no:
        start_run(store, study.study_hash)
    assert (f"is {state}" in str(no.value), "run resume run-1" in str(no.value)) == (
        True,
        state in ("stopped", "failed"),
    )
    assert [run.id for run in store.runs()] == ["run-1"]
    start_run(store, study.study_hash, again=True)
    assert len(store.runs()) == 2


def test_a_run_of_another_study_stands_in_nobody_s_way(store, study):
    keep(store, named(study, "heart"))
    assert start_run(store, "heart").startswith("heart-")


def test_of_two_starts_at_once_one_is_refused(store, study):
    put_in_state(store, "run-1", "done")

    def start(_):
        try:
            return start_run(store, study.study_hash)
        except Conflict:
            return None

    with ThreadPoolExecutor(4) as pool:
        started = list(pool.map(start, range(4)))
    assert sum(run is not None for run in started) == 1


def test_a_name_that_two_studies_have_starts_neither(store, study):
    other = study.model_copy(update={"dim": study.dim + 1})
    keep(store, other)
    with pytest.raises(Conflict, match="2 studies are called 'thyroid'") as no:
        start_run(store, "thyroid")
    assert study.study_hash in str(no.value)
    assert start_run(store, other.study_hash).startswith("thyroid-")
    assert len(store.runs()) == 2


def test_no_run_starts_of_a_study_that_states_no_start(empty_store, study):
    keep(empty_store, study.model_copy(update={"format": 4, "start": None}))
    with pytest.raises(StudyOutdated, match=r"study thyroid was made by an earlier version .* create it again"):
        start_run(empty_store, "thyroid")
    assert empty_store.runs() == []


def test_no_run_starts_of_a_study_that_is_not_there(store):
    with pytest.raises(NotFound):
        start_run(store, "nothing")
    assert [run.id for run in store.runs()] == ["run-1"]


def drive(store, *, silent_s=0.0):
    """Puts run-1 into the hands of a driver that has been silent for `silent_s` seconds; returns its lease."""
    lease = store.acquire_lease("run-1")
    store.begin_driving("run-1", lease)
    with store.session() as session:
        session.get(Run, "run-1").heartbeat -= silent_s
    return lease


def test_a_stopped_run_goes_on_after_its_last_committed_round(store):
    store.commit_round(committed_round(1, lease=drive(store)))
    assert stop_run(store, "run-1") == "stopping"
    assert store.run("run-1").state == "stopping"
    put_in_state(store, "run-1", "stopped")
    assert resume_run(store, "run-1") == 2
    assert store.run("run-1").state == "pending"


def test_a_run_that_nobody_drives_yet_is_stopped_at_once(store):
    assert stop_run(store, "run-1") == "stopped"
    with pytest.raises(Conflict, match="there is nothing to drive"):
        store.begin_driving("run-1", store.acquire_lease("run-1"))


@pytest.mark.parametrize("asked_before", [False, True], ids=["first order", "second order"])
def test_a_run_whose_driver_is_silent_is_stopped_at_once_and_the_driver_shut_out(store, asked_before):
    lease = drive(store, silent_s=0.0 if asked_before else SILENCE_S + 1)
    if asked_before:
        assert stop_run(store, "run-1") == "stopping"
        with pytest.raises(Conflict, match="is stopping, there is nothing to stop"):
            stop_run(store, "run-1")
        with store.session() as session:
            session.get(Run, "run-1").heartbeat -= SILENCE_S + 1
    assert stop_run(store, "run-1") == "stopped"
    with pytest.raises(LeaseLost):
        store.beat("run-1", lease)
    assert resume_run(store, "run-1") == 1


@pytest.mark.parametrize("state", ["pending", "running", "stopping", "stopped", "failed"])
def test_a_run_is_abandoned_for_good_and_no_longer_in_the_way_of_another(store, study, state):
    put_in_state(store, "run-1", state)
    assert abandon_run(store, "run-1") == "abandoning"
    with pytest.raises(Conflict, match="only a stopped or failed run is resumed"):
        resume_run(store, "run-1")
    with pytest.raises(Conflict, match="is abandoning, there is nothing to abandon"):
        abandon_run(store, "run-1")
    assert start_run(store, study.study_hash) != "run-1"


def test_a_run_that_is_done_is_not_abandoned(store):
    put_in_state(store, "run-1", "done")
    with pytest.raises(Conflict, match="is done, there is nothing to abandon"):
        abandon_run(store, "run-1")


@pytest.mark.parametrize("state", ["stopped", "done", "failed", "abandoned"])
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

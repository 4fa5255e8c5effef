"""What may become of a run, on a real database: every change from every state, by whom, and two at once."""

import threading

import pytest

from confide.coordinator.errors import Conflict, LeaseLost, NotFound, TransitionRefused
from confide.coordinator.store.states import (
    ABANDON,
    BEGIN,
    CUT,
    FAIL,
    FINISH,
    RESUME,
    STOP,
    TRANSITIONS,
    RunState,
    Transition,
)
from confide.coordinator.store.store import Store
from confide.coordinator.store.tables import Run, StudyRow

from ..conftest import logged, put_in_state

RUN = "thyroid-0001"
# What each change makes of a run, state by state, in the order of `RunState`; a dash where it is refused.
EXPECTED = {
    "stop": "stopped stopping - - - - - -",
    "cut": "- - stopped - - - - -",
    "abandon": "abandoning abandoning abandoning abandoning - abandoning - -",
    "resume": "- - - pending - pending - -",
    "begin": "running running stopping - - - abandoning -",
    "halt": "- - stopped - - - - -",
    "finish": "- done done - - - - -",
    "fail": "- failed failed - - - abandoned -",
    "leave": "- - - - - - abandoned -",
}
PAIRS = [
    pytest.param(each, state, after, id=f"{each.name} {state}")
    for each in TRANSITIONS
    for state, after in zip(RunState, EXPECTED[each.name].split(), strict=True)
]


@pytest.fixture
def store(empty_store: Store) -> Store:
    """A store with one pending run."""
    with empty_store.session() as session:
        session.add(StudyRow(hash="ab" * 32, name="thyroid", canonical=b"{}", signature="", created_at=0.0))
    with empty_store.session() as session:
        session.add(Run(id=RUN, study="ab" * 32, state=RunState.PENDING, created_at=0.0))
    return empty_store


def make(store: Store, transition: Transition, lease: int, error: str | None = None) -> None:
    """Makes the change as who may make it does."""
    if transition is BEGIN:
        store.begin_driving(RUN, lease)
    else:
        store.move_run(RUN, transition, lease=lease if transition.by == "driver" else None, error=error)


@pytest.mark.parametrize(("transition", "state", "after"), PAIRS)
def test_a_change_leads_where_the_table_says_or_is_refused_and_changes_nothing(store, transition, state, after):
    put_in_state(store, RUN, state, "as it was")
    lease = store.acquire_lease(RUN)
    if after == "-":
        with pytest.raises(TransitionRefused, match=f"run {RUN} is {state}, {transition.refusal}") as refused:
            make(store, transition, lease)
        assert refused.value.state is state
        assert (store.run(RUN).state, store.run(RUN).error) == (state, "as it was")
        assert logged(store) == []
    else:
        make(store, transition, lease)
        run = store.run(RUN)
        assert (run.state, run.error) == (after, None)
        assert (run.ended_at is not None) == run.state.is_over


@pytest.mark.parametrize(
    "transition", [each for each in TRANSITIONS if each.by == "driver"], ids=lambda each: each.name
)
@pytest.mark.parametrize("state", list(RunState))
@pytest.mark.slow
def test_an_overtaken_driver_changes_nothing_and_hears_that_its_lease_is_lost(store, transition, state):
    put_in_state(store, RUN, state)
    old = store.acquire_lease(RUN)
    store.acquire_lease(RUN)
    with pytest.raises(LeaseLost, match=f"another driver has taken over from lease {old}"):
        make(store, transition, old)
    assert store.run(RUN).state is state


@pytest.mark.parametrize("transition", TRANSITIONS, ids=lambda each: each.name)
def test_a_run_that_is_not_there_is_not_found(store, transition):
    with pytest.raises(NotFound, match="no run is called 'thyroid-0002'"):
        store.move_run("thyroid-0002", transition, lease=1 if transition.by == "driver" else None)


def test_states_that_are_over_are_those_that_no_driver_begins_with():
    assert {state for state in RunState if state.is_over} == {state for state in RunState if not BEGIN.allows(state)}


@pytest.mark.parametrize("transition", [CUT, ABANDON], ids=lambda each: each.name)
def test_a_driver_that_hangs_writes_nothing_once_it_comes_round(store, transition):
    lease = store.acquire_lease(RUN)
    store.begin_driving(RUN, lease)
    put_in_state(store, RUN, "stopping")
    store.move_run(RUN, transition)
    with pytest.raises(LeaseLost):
        store.beat(RUN, lease)
    with pytest.raises(LeaseLost):
        store.move_run(RUN, FINISH, lease=lease)


@pytest.mark.parametrize("end", [FINISH, FAIL], ids=["done", "failed"])
def test_a_run_that_is_over_is_neither_stopped_nor_driven_again(store, end):
    """An order to stop that was given while the run was on its last question comes after its end."""
    lease = store.acquire_lease(RUN)
    store.begin_driving(RUN, lease)
    store.move_run(RUN, end, lease=lease, error="as it ended")
    ended = store.run(RUN)
    with pytest.raises(Conflict, match="there is nothing to stop"):
        store.move_run(RUN, STOP)
    with pytest.raises(Conflict, match="there is nothing to drive"):
        store.begin_driving(RUN, store.acquire_lease(RUN))
    run = store.run(RUN)
    assert (run.state, run.error, run.ended_at) == (ended.state, "as it ended", ended.ended_at)


@pytest.mark.parametrize("attempt", range(5))
def test_of_an_order_to_stop_and_an_end_at_one_time_the_end_stands(store, tmp_path, attempt):
    """Two processes' connections; whichever comes first, the run is done and nobody drives it again."""
    lease, together, refused = store.acquire_lease(RUN), threading.Barrier(2), []
    store.begin_driving(RUN, lease)

    def stop() -> None:
        operator = Store.open(tmp_path)
        together.wait()
        try:
            operator.move_run(RUN, STOP)
        except TransitionRefused as err:
            refused.append(err.state)
        operator.close()

    thread = threading.Thread(target=stop)
    thread.start()
    together.wait()
    store.move_run(RUN, FINISH, lease=lease)
    thread.join()
    assert store.run(RUN).state is RunState.DONE
    first = [] if refused else [("run.stop", {"run": RUN, "state": "stopping", "error": None})]
    assert logged(store) == [*first, ("run.finish", {"run": RUN, "state": "done", "error": None})]
    assert refused in ([], [RunState.DONE])


def test_every_change_but_a_driver_s_beginning_is_audited_in_order(store):
    lease = store.acquire_lease(RUN)
    store.begin_driving(RUN, lease)
    store.move_run(RUN, FAIL, lease=lease, error="sites are missing")
    store.move_run(RUN, RESUME)
    assert logged(store) == [
        ("run.fail", {"run": RUN, "state": "failed", "error": "sites are missing"}),
        ("run.resume", {"run": RUN, "state": "pending", "error": None}),
    ]
    run = store.run(RUN)
    assert (run.error, run.ended_at) == (None, None)

"""Starts, stops, resumes and abandons runs for an operator. A driver follows an order between two questions."""

import secrets
import time

from sqlalchemy import select

from ..errors import Conflict, TransitionRefused
from ..store import Store
from ..store.states import ABANDON, CUT, RESUME, STOP, RunState
from ..store.tables import Run
from ..studies.catalogue import load_study
from .overview import is_silent


def start_run(store: Store, study: str, *, again: bool = False, newest: str | None = None) -> str:
    """Adds a pending run of the study of that name or hash and returns its id.

    Args:
        again: True to start another run of a study although one is not done; it spends the sites' budgets again.
        newest: the study's newest run as whoever decided saw it, "" for none: if another was started since, as by a
            form that is sent twice, nothing is. None if nobody looked.

    Raises:
        Conflict: a run of the study is not done, another was started since, or several studies have that name.
        NotFound: there is no such study.
        StudyOutdated: an earlier version made the study.
    """
    row = store.study(study)
    load_study(row).require_start()
    run_id = f"{row.name}-{secrets.token_hex(4)}"
    with store.alone("the runs") as session:  # of two commands at once one sees the other's run
        session.add(Run(id=run_id, study=row.hash, state=RunState.PENDING, created_at=time.time()))
        others = select(Run).where(Run.study == row.hash, Run.id != run_id).order_by(Run.created_at.desc()).limit(1)
        last = session.scalars(others).first()
        if newest is not None and last is not None and last.id != newest:
            raise Conflict(f"run {last.id} of study {row.name} was started meanwhile; look at it first")
        unsettled = Run.state.not_in([state for state in RunState if state.is_settled])
        other = session.scalars(others.where(unsettled)).first()
        if other is not None and not again:
            raise Conflict(_unfinished(row.name, other))
        store.log_action(session, "run.start", run=run_id, hash=row.hash)
    return run_id


def _unfinished(study: str, run: Run) -> str:
    another = "--again starts another one, which each site must have approved"
    if RESUME.allows(run.state):
        resume = f"`coordinator run resume {run.id}` goes on with it"
        return f"study {study} has run {run.id}, which is {run.state}; {resume}; {another}"
    return f"study {study} is {run.state} as {run.id}; {another}"


def stop_run(store: Store, run_id: str) -> RunState:
    """Stops a run after the question in progress, at once if nobody drives it; committed rounds stay.

    Returns:
        The run's state: stopping while a driver still has to obey.

    Raises:
        Conflict: the run is in no state in which it can be stopped.
        NotFound: there is no such run.
    """
    run = store.run(run_id)
    if run.state != RunState.STOPPING:
        store.move_run(run_id, STOP)
        run = store.run(run_id)
    elif not is_silent(run):
        raise TransitionRefused(run_id, run.state, STOP.refusal)
    if run.state == RunState.STOPPING and is_silent(run):
        return store.move_run(run_id, CUT)
    return run.state


def abandon_run(store: Store, run_id: str) -> RunState:
    """Gives a run up for good; what is charged stays charged, committed rounds stay, and nobody resumes it.

    While `coordinator serve` runs, the nodes are told, so that they keep nothing for it. They forget it by themselves
    after a day.

    Raises:
        Conflict: the run is done, or abandoned already.
        NotFound: there is no such run.
    """
    return store.move_run(run_id, ABANDON)


def resume_run(store: Store, run_id: str) -> int:
    """Resumes a stopped or failed run after its last committed round, and returns the next round's number.

    Raises:
        Conflict: the run was not stopped and did not fail.
        NotFound: there is no such run.
    """
    store.move_run(run_id, RESUME)
    return store.last_round(run_id).number + 1

"""Starts, stops and resumes runs for an operator. A run's driver follows an order between two questions."""

import secrets
import time

from sqlalchemy import select

from ..errors import Conflict
from ..store import Store
from ..store.states import RESUME, STOP, RunState
from ..store.tables import Run
from ..studies.catalogue import load_study


def start_run(store: Store, study: str, *, again: bool = False) -> str:
    """Adds a pending run of the study of that name or hash and returns its id.

    Args:
        again: True to start another run of a study although one is not done; it spends the sites' budgets again.

    Raises:
        Conflict: a run of the study is not done, or several studies have that name.
        NotFound: there is no such study.
        StudyOutdated: an earlier version made the study.
    """
    row = store.study(study)
    load_study(row).require_start()
    run_id = f"{row.name}-{secrets.token_hex(4)}"
    with store.session() as session:
        session.add(Run(id=run_id, study=row.hash, state=RunState.PENDING, created_at=time.time()))
        session.flush()  # the database is ours from here on, so of two commands at once one sees the other's run
        others = select(Run).where(Run.study == row.hash, Run.id != run_id, Run.state != RunState.DONE)
        other = session.scalars(others.order_by(Run.created_at.desc()).limit(1)).first()
        if other is not None and not again:
            raise Conflict(_unfinished(row.name, other))
        store.log_action(session, f"run {run_id} of study {row.hash} started")
    return run_id


def _unfinished(study: str, run: Run) -> str:
    another = "--again starts another one, which each site must have approved"
    if RESUME.allows(run.state):
        resume = f"`coordinator run resume {run.id}` goes on with it"
        return f"study {study} has run {run.id}, which is {run.state}; {resume}; {another}"
    return f"study {study} is {run.state} as {run.id}; {another}"


def stop_run(store: Store, run_id: str) -> None:
    """Stops a run after the question in progress; committed rounds stay.

    Raises:
        Conflict: the run is in no state in which it can be stopped.
        NotFound: there is no such run.
    """
    store.move_run(run_id, STOP)


def resume_run(store: Store, run_id: str) -> int:
    """Resumes a stopped or failed run after its last committed round, and returns the next round's number.

    Raises:
        Conflict: the run was not stopped and did not fail.
        NotFound: there is no such run.
    """
    store.move_run(run_id, RESUME)
    return store.last_round(run_id).number + 1

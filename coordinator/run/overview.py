"""Lists all runs with their progress, and the rounds that a run has opened."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from ..store import Store
from ..store.tables import Run

SILENCE_S = 20.0  # without a heartbeat; a driver beats every second


@dataclass(frozen=True, slots=True)
class RunStanding:
    """A run's state, and its progress so far."""

    run: str
    state: str
    rounds: int  # committed
    step: str  # what it does or waits for; if it is over, the error that ended it
    started: float  # seconds since 1970
    heartbeat: float | None  # of its driver, seconds since 1970; None if it has none


@dataclass(frozen=True, slots=True)
class OpenedRound:
    """One sum that a run has opened."""

    round: int
    purpose: str  # update, prototype or evaluation
    summed: tuple[str, ...]  # whose updates it holds
    too_long: tuple[str, ...]  # whose vectors were left out for their length
    missing: tuple[str, ...]  # other sites of the study
    seconds: float
    bytes_per_site: int  # sealed bytes that one site sent
    committed: float  # seconds since 1970


@dataclass(frozen=True, slots=True)
class OpenedRounds:
    """All sums that a run has opened, and by round the sites whose vectors were too long, also before its opening."""

    rounds: tuple[OpenedRound, ...]
    too_long: Mapping[int, tuple[str, ...]]

    @property
    def unopened(self) -> list[int]:
        """Rounds from which sites were left out and which are not opened yet, in order."""
        return sorted(self.too_long.keys() - {each.round for each in self.rounds})


def run_standings(store: Store) -> list[RunStanding]:
    """Lists every run with its progress, oldest first."""
    return [run_standing(store, run) for run in store.runs()]


def run_standing(store: Store, run: Run) -> RunStanding:
    """Looks at a run's progress."""
    return RunStanding(
        run=run.id,
        state=run.state,
        rounds=store.last_round(run.id).number,
        step=(run.error or "") if run.state.is_over else run.step,
        started=run.created_at,
        heartbeat=None if run.state.is_over or not run.heartbeat else run.heartbeat,
    )


def is_silent(run: Run) -> bool:
    """True if the run's driver has shown no heartbeat for `SILENCE_S`, or one that is still to come.

    A clock that was put back makes nobody alive.
    """
    return abs(time.time() - run.heartbeat) > SILENCE_S


def opened_rounds(store: Store, run_id: str) -> OpenedRounds:
    """Lists the rounds that a run has opened, those after the last update included. Raises `NotFound`."""
    from ..studies.catalogue import load_study  # imports numpy and all terms of a study, which `status` does not need

    study = load_study(store.study(store.run(run_id).study))
    left_out, found = store.left_out(run_id), []
    for row in store.opened(run_id):
        summed, too_long = row.summed, left_out.get(row.number, ())
        found.append(
            OpenedRound(
                round=row.number,
                purpose=study.planned_round(row.number).purpose,
                summed=summed,
                too_long=too_long,
                missing=tuple(site for site in study.site_names() if site not in summed and site not in too_long),
                seconds=row.seconds,
                bytes_per_site=row.bytes_per_site,
                committed=row.committed_at,
            )
        )
    return OpenedRounds(tuple(found), left_out)

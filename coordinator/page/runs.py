"""Runs: the list, one run with its rounds, and the orders that a person may give."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.responses import Response

from ...client_node.study import Study
from ..errors import Conflict, TransitionRefused
from ..results.metrics import Measurement, measurement
from ..run import control
from ..run.driver import LOG_FILE
from ..run.overview import OpenedRound, is_silent, opened_rounds, run_standings
from ..run.progress import Event, event_of, time_left
from ..store import Store
from ..store.run_folder import RunFolder
from ..store.states import ABANDON, RESUME, STOP, RunState
from ..store.tables import Run
from ..studies.catalogue import load_study
from . import charts
from .visits import Visit

ROUNDS_A_PAGE = 25
_LOG_BYTES = 32 << 10


@dataclass(frozen=True, slots=True)
class LiveRun:
    """A run as it stands, for people who look at it."""

    run: Run
    study: Study
    event: Event
    seconds_left: float | None  # None if nobody can tell, or if it is over
    is_silent: bool  # its driver shows no sign of life

    @property
    def share(self) -> float:
        """Part of the updates that are committed, 0 to 1."""
        return self.event.rounds / self.event.rounds_planned

    @property
    def orders(self) -> list[str]:
        """Names what a person may do with it now."""
        able = {"stop": STOP.allows(self.run.state), "resume": RESUME.allows(self.run.state)}
        able |= {"abandon": ABANDON.allows(self.run.state)}
        return [name for name, is_able in able.items() if is_able]


def live_run(store: Store, run_id: str) -> LiveRun:
    """Looks at a run. Raises `NotFound`."""
    run = store.run(run_id)
    study = load_study(store.study(run.study))
    event = event_of(store, study, run_id)
    silent = run.state == RunState.RUNNING and is_silent(run)
    left = None if run.state.is_over or silent else time_left(store.rounds(run_id), event.rounds_planned)
    return LiveRun(run, study, event, left, silent)


def show_all(visit: Visit) -> Response:
    """Shows every run, the newest first."""
    standings = run_standings(visit.store)[::-1]
    names = {row.hash: row.name for row in visit.store.studies()}
    studies = {run.id: names.get(run.study, "") for run in visit.store.runs()}
    return visit.render("runs.html", runs=standings, studies=studies)


def show(visit: Visit) -> Response:
    """Shows one run: how far it is, what it has cost, and each of its rounds."""
    run_id = visit.part("run")
    live, found = live_run(visit.store, run_id), opened_rounds(visit.store, run_id)
    newest, pages = found.rounds[::-1], max(1, -(-len(found.rounds) // ROUNDS_A_PAGE))
    asked = visit.asked("page", "1")
    page = min(max(1, int(asked) if asked.isdecimal() else 1), pages)
    return visit.render(
        "run.html", live=live, rounds=newest[(page - 1) * ROUNDS_A_PAGE : page * ROUNDS_A_PAGE], page=page,
        pages=pages, unopened=found.unopened, too_long=found.too_long, chart=charts.rounds(found.rounds),
        typical=_typical(found.rounds), measured=_measured(visit.store, live), log=_log(visit, run_id),
    )  # fmt: skip


def ask(order: str) -> Callable[[Visit], Response]:
    """Makes the page that asks whether a run shall be stopped, resumed or abandoned."""

    def asked(visit: Visit) -> Response:
        live = live_run(visit.store, visit.part("run"))
        if order not in live.orders and not (order == "stop" and live.run.state == RunState.STOPPING):
            raise TransitionRefused(live.run.id, live.run.state, f"nobody can {order} it now")
        return visit.render("order.html", live=live, order=order)

    return asked


def stop(visit: Visit) -> Response:
    """Stops a run, as `coordinator run stop` does."""
    run_id = visit.part("run")
    state = control.stop_run(visit.store, run_id)
    doing = "stops after the question in progress" if state == RunState.STOPPING else "is stopped"
    return visit.go("runs", run_id, notice=f"The run {doing}. Resume goes on with it.")


def resume(visit: Visit) -> Response:
    """Goes on with a run, as `coordinator run resume` does."""
    run_id = visit.part("run")
    number = control.resume_run(visit.store, run_id)
    return visit.go("runs", run_id, notice=f"The run goes on from round {number}.")


def abandon(visit: Visit) -> Response:
    """Gives a run up, as `coordinator run abandon` does, if its id was typed."""
    run_id = visit.part("run")
    if visit.form.get("typed", "").strip() != run_id:
        raise Conflict("the run's name was not typed as it is, so nothing was done")
    control.abandon_run(visit.store, run_id)
    return visit.go("runs", run_id, notice="The run is given up. What sites were charged stays charged.")


def _typical(rounds: Sequence[OpenedRound]) -> dict[str, float] | None:
    if not rounds:
        return None
    seconds, sizes = sorted(each.seconds for each in rounds), [each.bytes_per_site for each in rounds]
    return {"seconds": seconds[len(seconds) // 2], "slowest": seconds[-1], "bytes": sizes[-1]}


def _measured(store: Store, live: LiveRun) -> Measurement | str | None:
    """Returns what the run's evaluation found; why there is none; None where the study asks for none."""
    if live.study.draft.evaluation is None:
        return None
    try:
        return measurement(store, live.run.id)
    except Conflict as err:
        return str(err)


def _log(visit: Visit, run_id: str) -> str | None:
    """Reads the end of the driver's log, for who may also stop the run."""
    if not visit.may("run stop"):
        return None
    path = RunFolder(visit.home, run_id).path / LOG_FILE
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_BYTES))
            data = file.read(_LOG_BYTES)
    except FileNotFoundError:
        return ""
    text = data.decode("utf-8", "replace")
    return text.partition("\n")[2] if len(data) == _LOG_BYTES else text

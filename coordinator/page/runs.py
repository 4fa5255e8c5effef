"""Runs: the list, one run with its rounds, and the orders that a person may give."""

from collections.abc import Callable, Sequence

from starlette.responses import Response

from ..errors import Conflict, TransitionRefused
from ..results.metrics import Measurement, measurement
from ..run import control
from ..run.driver import LOG_FILE
from ..run.overview import ABSENCES, OpenedRound, opened_rounds, run_standings
from ..run.progress import LiveRun, live_run
from ..store import Store
from ..store.run_folder import RunFolder
from ..store.states import RunState
from . import charts
from .visits import Visit

ROUNDS_A_PAGE = 25
_LOG_BYTES = 32 << 10


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
    rounds, page, pages = visit.page_of(found.rounds[::-1], ROUNDS_A_PAGE)
    return visit.render(
        "run.html", live=live, rounds=rounds, page=page,
        pages=pages, unopened=found.unopened, too_long=found.too_long, chart=charts.rounds(found.rounds),
        timeline=charts.timeline(rounds), step_names=charts.STEP_NAMES, absences=ABSENCES,
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
    """Finds what an update takes; prototype and evaluation, which are smaller, are none."""
    updates = [each for each in rounds if each.purpose == "update"]
    if not updates:
        return None
    seconds, sizes = sorted(each.seconds for each in updates), [each.bytes_per_site for each in updates]
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

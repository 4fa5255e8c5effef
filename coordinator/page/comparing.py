"""Runs side by side: terms that differ, rounds, cost and what was measured."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from starlette.responses import Response

from ...client_node.study import Study
from ...models.evaluation.metrics import Estimate
from ...models.records.kind import Judged
from ..errors import Conflict
from ..results.metrics import Measurement, measurement
from ..run.overview import RunStanding, opened_rounds
from ..run.progress import event_of
from ..store import Store
from ..studies.catalogue import load_study
from . import charts, terms
from .visits import Visit

FEWEST, MOST = 2, 4  # runs side by side
MOST_MEASURED = 12  # runs of one study in a chart
SHARES: dict[Judged, str] = {
    "labels": "Positive", "completions": "Exact match", "answers": "Right answers", "numbers": "Near enough",
    "programs": "Programs that parse", "tasks": "Tasks right",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Look:
    """One run as it is compared."""

    letter: str  # by which tables and chart name it
    run: str
    state: str
    study: Study
    rounds: int
    epsilon: float | None  # of what is opened, by PLD; None without privacy
    epsilon_planned: float | None
    seconds: float | None  # the middle round's
    bytes_per_site: int
    found: Measurement | None
    problem: str  # why nothing was measured
    metrics: dict[str, Estimate | None]  # by their names for people; None where noise hides them
    main: Estimate | None  # the one that the chart shows

    @property
    def main_name(self) -> str:
        """Name of what the chart shows."""
        return _main_name(self.study)


@dataclass(frozen=True, slots=True)
class Difference:
    """A term in which runs differ."""

    table: str
    name: str
    values: list[str]  # one a run


def show(visit: Visit) -> Response:
    """Compares the runs that the address names, or asks which."""
    asked = list(dict.fromkeys(visit.request.query_params.getlist("run")))
    if not FEWEST <= len(asked) <= MOST:
        told = f"{len(asked)} runs are chosen; two to four fit beside each other" if asked else ""
        return visit.render("compare_which.html", problem=told, runs=visit.store.runs()[::-1][:100], chosen=asked)
    found = looks(visit.store, [visit.store.run(run[:64]).id for run in asked])
    return visit.render(
        "compare.html", looks=found, differences=list(differences(found)), chart=charts.measured(found),
        names=list(dict.fromkeys(name for each in found for name in each.metrics)),
        is_one_study=len({each.study.study_hash for each in found}) == 1,
    )  # fmt: skip


def looks(store: Store, runs: Sequence[RunStanding | str]) -> list[Look]:
    """Looks at runs, by their ids. Raises `NotFound`."""
    return [_look(store, at, each if isinstance(each, str) else each.run) for at, each in enumerate(runs)]


def differences(found: Sequence[Look]) -> Iterator[Difference]:
    """Lists the terms in which the studies of runs differ; none of one study."""
    whole = [{(title, each.name): each.value for title, own in terms.tables(look.study).items() for each in own}
             for look in found]  # fmt: skip
    for key in dict.fromkeys(key for each in whole for key in each):
        values = [each.get(key, "–") for each in whole]
        if len({*values}) > 1:
            yield Difference(*key, values)


def _look(store: Store, at: int, run_id: str) -> Look:
    run = store.run(run_id)
    study = load_study(store.study(run.study))
    event, seconds = (
        event_of(store, study, run_id),
        sorted(each.seconds for each in opened_rounds(store, run_id).rounds),
    )
    found, problem = None, "its study asks for no evaluation"
    if study.draft.evaluation is not None:
        try:
            found = measurement(store, run_id)
        except Conflict as err:
            problem = str(err)
    metrics = {} if found is None else _metrics(found)
    return Look(
        letter=chr(ord("A") + at), run=run_id, state=run.state, study=study, rounds=event.rounds,
        epsilon=event.epsilon, epsilon_planned=event.epsilon_planned,
        seconds=seconds[len(seconds) // 2] if seconds else None, bytes_per_site=event.bytes_per_site, found=found,
        problem="" if found else problem, metrics=metrics, main=metrics.get(_main_name(study)),
    )  # fmt: skip


def _main_name(study: Study) -> str:
    judged = study.draft.data.judged
    return "AUC" if judged == "labels" else SHARES[judged]


def _metrics(found: Measurement) -> dict[str, Estimate | None]:
    """Lists the metrics that `run metrics` shows, under the same conditions."""
    metrics, judged = found.metrics, found.judged
    shown = {"AUC": metrics.auc, "Accuracy": metrics.accuracy} if judged == "labels" else {}
    shown[SHARES[judged]] = metrics.prevalence
    if judged not in ("numbers", "programs", "tasks"):  # which come with no chance of being right
        shown["Calibration error"] = metrics.calibration_error
    return {**shown, **{f"{task}, right": each for task, each in found.tasks.items()}, "Records": metrics.records}

"""Runs side by side: terms that differ, rounds, cost and what was measured."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from starlette.responses import Response

from ...client_node.study import Study
from ...models.evaluation.metrics import Estimate
from ...models.records.kind import Judged
from ..errors import Conflict
from ..results.metrics import Measurement, measurement
from ..run.progress import epsilon_of_rounds, planned_epsilon
from ..store import Store
from ..store.tables import Round, Run
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
class Point:
    """A run in the chart of what was measured."""

    letter: str  # by which tables and chart name it
    run: str
    name: str  # of what is shown of it
    main: Estimate
    epsilon: float | None  # that the run has cost, by PLD; None without privacy


@dataclass(frozen=True, slots=True)
class DatedPoint(Point):
    """The same, among the runs of one study."""

    at: float  # when it was measured
    spent: float | None  # by all runs of the study until then, by PLD; None without privacy


@dataclass(frozen=True, slots=True)
class Look:
    """One run as it is compared."""

    letter: str
    run: str
    state: str
    study: Study
    rounds: int
    epsilon: float | None  # of what is opened, by PLD; None without privacy
    epsilon_planned: float | None
    seconds: float | None  # the middle round's
    bytes_per_site: int
    problem: str  # why nothing was measured
    measured_at: float | None
    metrics: Mapping[str, Estimate | None]  # by their names for people; None where noise hides them

    @property
    def points(self) -> Iterator[Point]:
        """Yields the point that the chart has of it; none if nothing was measured."""
        main = self.metrics.get(main_name(self.study))
        if main is not None:
            yield Point(self.letter, self.run, main_name(self.study), main, self.epsilon)


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
    found = [_look(visit.store, at, visit.store.run(run[:64])) for at, run in enumerate(asked)]
    return visit.render(
        "compare.html", looks=found, differences=list(differences(found)),
        chart=charts.measured([point for each in found for point in each.points]),
        names=list(dict.fromkeys(name for each in found for name in each.metrics)),
        is_one_study=len({each.study.study_hash for each in found}) == 1,
    )  # fmt: skip


def points(store: Store, study: Study, runs: Sequence[str]) -> list[DatedPoint]:
    """Lists what runs of a study have measured, the oldest first, with what the study had cost by then.

    Nothing else was ever measured: a run is evaluated at most once, and its sites are charged for it. Noise may hide
    what was found.

    Args:
        runs: those of interest, of which the newest that have measured something are taken.
    """
    rows = [(row.committed_at, run) for run in runs if (row := store.evaluation(run)) is not None]
    found: list[tuple[float, str, Estimate]] = []
    for at, run in sorted(rows, reverse=True):
        main = _measured(store, study, run)[0].get(main_name(study))  # takes ms each
        if main is not None:
            found.append((at, run, main))
        if len(found) == MOST_MEASURED:
            break
    found.reverse()
    opened = store.openings_of(study.study_hash) if found else []
    return [
        DatedPoint(_letter(place), run, main_name(study), main, _planned(study), at, _spent(study, opened, at))
        for place, (at, run, main) in enumerate(found)
    ]


def _spent(study: Study, opened: Iterable[tuple[int, float]], until: float) -> float | None:
    """Computes what sums of a study's runs that were opened until a moment have cost together, by PLD."""
    privacy = study.draft.privacy
    if privacy.mode == "none":
        return None
    return epsilon_of_rounds(study, (number for number, at in opened if at <= until), colluding=privacy.collusion)


def differences(found: Sequence[Look]) -> Iterator[Difference]:
    """Lists the terms in which the studies of runs differ; none of one study."""
    whole = [{(title, each.name): each.value for title, own in terms.tables(look.study).items() for each in own}
             for look in found]  # fmt: skip
    for key in dict.fromkeys(key for each in whole for key in each):
        values = [each.get(key, "–") for each in whole]
        if len({*values}) > 1:
            yield Difference(*key, values)


def main_name(study: Study) -> str:
    """Names the metric of a study that the chart shows."""
    judged = study.draft.data.judged
    return "AUC" if judged == "labels" else SHARES[judged]


def _look(store: Store, at: int, run: Run) -> Look:
    study, rows = load_study(store.study(run.study)), store.opened(run.id, with_evidence=False)
    privacy, seconds = study.draft.privacy, sorted(row.seconds for row in rows)
    opened = [row.number for row in rows]
    metrics, problem = _measured(store, study, run.id)
    row = store.evaluation(run.id) if metrics else None
    return Look(
        letter=_letter(at), run=run.id, state=run.state, study=study,
        rounds=sum(isinstance(row, Round) for row in rows),
        epsilon=None if privacy.mode == "none" else epsilon_of_rounds(study, opened, colluding=privacy.collusion),
        epsilon_planned=_planned(study), seconds=seconds[len(seconds) // 2] if seconds else None,
        bytes_per_site=sum(row.bytes_per_site for row in rows), problem=problem,
        measured_at=None if row is None else row.committed_at, metrics=metrics,
    )  # fmt: skip


def _letter(at: int) -> str:
    return chr(ord("A") + at)


def _planned(study: Study) -> float | None:
    privacy = study.draft.privacy
    if privacy.mode == "none":
        return None
    return planned_epsilon(study, study.last_round, colluding=privacy.collusion)


def _measured(store: Store, study: Study, run: str) -> tuple[Mapping[str, Estimate | None], str]:
    """Returns what a run's evaluation found, or why there is nothing."""
    if study.draft.evaluation is None:
        return {}, "its study asks for no evaluation"
    try:
        return _metrics(measurement(store, run)), ""
    except Conflict as err:
        return {}, str(err)


def _metrics(found: Measurement) -> dict[str, Estimate | None]:
    """Lists the metrics that `run metrics` shows, under the same conditions."""
    metrics, judged = found.metrics, found.judged
    shown = {"AUC": metrics.auc, "Accuracy": metrics.accuracy} if judged == "labels" else {}
    shown[SHARES[judged]] = metrics.prevalence
    if judged not in ("numbers", "programs", "tasks"):  # which come with no chance of being right
        shown["Calibration error"] = metrics.calibration_error
    return {**shown, **{f"{task}, right": each for task, each in found.tasks.items()}, "Records": metrics.records}

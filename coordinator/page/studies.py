"""Studies: the list, one study with its terms, its cost and who takes part, and the start of its runs."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from ...client_node.spoken_hash import words
from ...client_node.study import Study, cost
from ...privacy.accounting import Release, epsilon_pld
from ..errors import StateDamaged
from ..federation.serving import read_serving
from ..run import control
from ..run.approvals import Approvals, approvals, every_approval
from ..run.overview import RunStanding, consents, run_standings
from ..store import Store
from ..store.tables import Run, StudyRow
from ..studies.catalogue import load_study
from ..studies.summary import expected
from . import charts, comparing, terms
from .visits import Visit

STUDIES_A_PAGE = RUNS_A_PAGE = 25
MOST_LOOKED_AT = 100  # runs, for what they have measured
_WORDS_A_LINE = 6


@dataclass(frozen=True, slots=True)
class Listed:
    """A study in the list."""

    row: StudyRow
    study: Study | None  # None if it cannot be read
    problem: str
    epsilon: float | None  # of a whole run; None without privacy
    runs: int
    newest: Run | None
    told: Approvals


@dataclass(frozen=True, slots=True)
class Price:
    """The cost of a part of a run, or of a whole one for other colluders."""

    part: str
    epsilon: float


def show_all(visit: Visit) -> Response:
    """Shows every study, the newest first."""
    rows = visit.store.studies()[::-1]
    part, page, pages = visit.page_of(rows, STUDIES_A_PAGE)
    runs = visit.store.runs()
    told = every_approval(visit.store, part)
    shown = [_listed(row, runs, told[row.hash]) for row in part]
    return visit.render("studies.html", studies=shown, page=page, pages=pages)


def show(visit: Visit) -> Response:
    """Shows one study: what it does, what it costs, who takes part, its runs, and every term."""
    row = visit.store.study(visit.part("study"))
    study = load_study(row)
    runs = runs_of(visit.store, study)
    shown, page, pages = visit.page_of(runs, RUNS_A_PAGE)
    spelt = words(study.study_hash)
    measured = comparing.points(
        visit.store, study, [each.run for each in runs if each.state == "done"][:MOST_LOOKED_AT]
    )
    told = approvals(visit.store, row)
    return visit.render(
        "study.html", study=study, row=row, sentences=list(terms.in_words(study)), tables=terms.tables(study),
        spelt=[" ".join(spelt[at : at + _WORDS_A_LINE]) for at in range(0, len(spelt), _WORDS_A_LINE)],
        expected=expected(study), consents=consents(visit.store, study), measured=measured, page=page, pages=pages,
        chart=charts.learned(measured), most_measured=comparing.MOST_MEASURED, refusal=_refusal(visit.store, runs),
        runs=shown, told=told, says={each.name: each for each in told.parties},
        **prices(study),
    )  # fmt: skip


def download(visit: Visit) -> Response:
    """Sends a study's canonical form, whose SHA-256 is its hash."""
    row = visit.store.study(visit.part("study"))
    name = f'attachment; filename="{row.name}-{row.hash[:12]}.json"'
    return Response(row.canonical, media_type="application/json", headers={"Content-Disposition": name})


def ask_start(visit: Visit) -> Response:
    """Asks whether a run of a study shall be started, and says what it costs."""
    row = visit.store.study(visit.part("study"))
    study = load_study(row)
    study.require_start()
    own = _rows(visit.store, study)
    unsettled = [run for run in own if not run.state.is_settled]
    return visit.render(
        "start.html", study=study, epsilon=planned(study), unsettled=unsettled[::-1], newest=own[-1].id if own else "",
        is_served=read_serving(visit.home) is not None, warning=approvals(visit.store, row).warning,
    )  # fmt: skip


def start(visit: Visit) -> Response:
    """Starts a run, as `coordinator run start` does, unless one was started since the form was shown."""
    row, is_again = visit.store.study(visit.part("study")), visit.form.get("again") == "yes"
    run = control.start_run(visit.store, row.hash, again=is_again, newest=visit.form.get("newest"))
    return visit.go("runs", run, notice="The run is started.")


def planned(study: Study) -> float | None:
    """Computes the epsilon of a whole run, as `study create` prints it; None without privacy."""
    return None if study.draft.privacy.mode == "none" else cost.whole_cost(study)


def prices(study: Study) -> dict[str, Any]:
    """Computes all that one study's page tells of its cost; composing it takes a while the first time."""
    return {"epsilon": planned(study), "parts": list(_parts(study)), "colluding": list(_by_colluders(study))}


def runs_of(store: Store, study: Study) -> list[RunStanding]:
    """Lists the runs of a study, the newest first."""
    own = {run.id for run in _rows(store, study)}
    return [each for each in run_standings(store)[::-1] if each.run in own]


def _rows(store: Store, study: Study) -> list[Run]:
    study_hash = study.study_hash  # computed anew each time
    return [run for run in store.runs() if run.study == study_hash]


def _listed(row: StudyRow, runs: Sequence[Run], told: Approvals) -> Listed:
    own = [run for run in runs if run.study == row.hash]
    newest = own[-1] if own else None
    try:
        study = load_study(row)
    except StateDamaged as err:
        return Listed(row, None, str(err), None, len(own), newest, told)
    return Listed(row, study, "", planned(study), len(own), newest, told)


def _parts(study: Study) -> Iterator[Price]:
    """Prices a run that is stopped after a part of its rounds, then all of it, then what follows the last round."""
    privacy, rounds = study.draft.privacy, study.draft.rounds.rounds
    if privacy.mode == "none":
        return
    (update, _), *closing = cost.planned_releases(study)
    opened: Counter[Release] = Counter()
    for done in sorted({max(1, rounds * quarter // 4) for quarter in (1, 2, 3, 4)}):
        opened[update] = done
        part = f"all {rounds} rounds" if done == rounds else f"{done} of {rounds} rounds"
        yield Price(part, epsilon_pld(opened, privacy.delta, privacy.collusion))
    for purpose, (release, _) in zip(study.draft.closing, closing, strict=True):
        opened[release] += 1
        yield Price(f"and the {purpose}", epsilon_pld(opened, privacy.delta, privacy.collusion))


def _by_colluders(study: Study) -> Iterator[Price]:
    """Prices a whole run for who knows the noise of fewer sites than the study allows for, or of one more."""
    privacy = study.draft.privacy
    if privacy.mode != "distributed":
        return
    releases = cost.releases_of_run(study)
    for colluding in range(max(0, privacy.collusion - 1), min(privacy.collusion + 2, study.quorum)):
        yield Price(str(colluding), epsilon_pld(releases, privacy.delta, colluding))


def _refusal(store: Store, runs: Sequence[RunStanding]) -> str:
    """Returns the words with which the newest run failed, if it has no round: a node's refusal as a rule."""
    if not runs or runs[0].state != "failed" or runs[0].rounds:
        return ""
    return store.run(runs[0].run).error or ""

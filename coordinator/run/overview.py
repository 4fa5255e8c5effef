"""Lists all runs with their progress, and the rounds that a run has opened."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import RunRefused
from ..store import Store
from ..store.tables import Absence, Run
from .laps import STEPS, Step

if TYPE_CHECKING:  # imports numpy and all terms of a study, which `status` does not need
    from ...client_node.study import Study

ABSENCES: Mapping[Absence, str] = {
    "revoked": "shut out, or has left", "abstains": "holds no records out", "offline": "not connected",
    "away": "away by its own hours", "behind": "lagged behind the run", "refused": "refuses",
    "failed": "an error there", "late": "no answer in time",
    "invalid": "its answer was not taken", "outdated": "an older copy of its ledger",
    "unopened": "its share does not open", "long": "its vector is too long",
}  # fmt: skip
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
    why: Mapping[str, Absence]  # of missing sites, why, as far as the driver that committed it knew
    steps: Mapping[Step, float]  # their seconds, in order: all but "apply" make up `seconds`; empty if not measured


@dataclass(frozen=True, slots=True)
class OpenedRounds:
    """All sums that a run has opened, and by round the sites whose vectors were too long, also before its opening."""

    rounds: tuple[OpenedRound, ...]
    too_long: Mapping[int, tuple[str, ...]]

    @property
    def unopened(self) -> list[int]:
        """Rounds from which sites were left out and which are not opened yet, in order."""
        return sorted(self.too_long.keys() - {each.round for each in self.rounds})


@dataclass(frozen=True, slots=True)
class Consent:
    """A party of a study, with what runs have shown of whether its people agree to it.

    A node answers when a run asks it, or refuses; what it has told before a run is in `approvals`.
    """

    name: str
    role: Literal["site", "aggregator"]
    standing: Literal["took part", "refuses", "awaited", "not known"]
    run: str | None  # that tells: the newest of those that do
    rounds: int  # of that run that it took part in


def consents(store: Store, study: "Study") -> list[Consent]:
    """Lists the parties of a study, sites first, each as the newest run that tells of it has it."""
    study_hash = study.study_hash  # computed anew each time
    runs = [run for run in store.runs() if run.study == study_hash][::-1]
    sums = store.sums_of(study_hash)

    def look(name: str, role: Literal["site", "aggregator"]) -> Consent:
        for run in runs:
            held = sum(n for of, sites, n in sums if of == run.id and (role == "aggregator" or name in sites))
            if not run.state.is_over and name in _awaited(run):
                return Consent(name, role, "awaited", run.id, held)
            if (run.error or "").startswith(f"{RunRefused.__name__}: {refusal_of(name)}"):
                return Consent(name, role, "refuses", run.id, held)
            if held:
                return Consent(name, role, "took part", run.id, held)
        return Consent(name, role, "not known", None, 0)

    sites = [look(name, "site") for name in study.site_names()]
    return [*sites, *(look(party.name, "aggregator") for party in study.aggregators)]


def waiting_for(kind: str, names: Iterable[str]) -> str:
    """Says for whose answers to a question a driver waits: its step."""
    return f"{kind}: waits for {', '.join(names)}"


def refusal_of(name: str) -> str:
    """Begins the sentence that says that a node refuses, with the error's name in brackets."""
    return f"{name} refuses ("


def _awaited(run: Run) -> tuple[str, ...]:
    """Names whom a run waits for before its first round; a name that the column cut is none of a node."""
    asked = waiting_for("prepare", ())
    return tuple(run.step.removeprefix(asked).split(", ")) if run.step.startswith(asked) else ()


def run_standings(store: Store) -> list[RunStanding]:
    """Lists every run with its progress, oldest first."""
    committed = store.last_rounds()  # before the runs: one that is new since has none
    return [_standing(run, committed.get(run.id, 0)) for run in store.runs()]


def run_standing(store: Store, run: Run) -> RunStanding:
    """Looks at a run's progress."""
    return _standing(run, store.last_round(run.id).number)


def _standing(run: Run, rounds: int) -> RunStanding:
    return RunStanding(
        run=run.id,
        state=run.state,
        rounds=rounds,
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
    left_out, found, sets = store.left_out(run_id), [], dict[tuple[str, tuple[str, ...]], _Set]()
    too_long = {
        number: sites
        for number, absent in left_out.items()
        if (sites := tuple(site for site, why in absent.items() if why == "long"))
    }
    for row in store.opened(run_id, with_evidence=False):
        long, absent = too_long.get(row.number, ()), left_out.get(row.number, {})
        if (key := (row.sites, long)) not in sets:  # a run's rounds have few different ones
            sets[key] = _Set.of(row.summed, long, study.site_names())
        is_update = 0 < row.number <= study.draft.rounds.rounds
        found.append(
            OpenedRound(
                round=row.number,
                purpose="update" if is_update else study.planned_round(row.number).purpose,
                summed=sets[key].summed,
                too_long=long,
                missing=sets[key].missing,
                seconds=row.seconds,
                bytes_per_site=row.bytes_per_site,
                committed=row.committed_at,
                why={site: absent[site] for site in sets[key].missing if site in absent},
                steps={step: each for step in STEPS if (each := getattr(row, f"{step}_s")) is not None},
            )
        )
    return OpenedRounds(tuple(found), too_long)


@dataclass(frozen=True, slots=True)
class _Set:
    """Who was in a sum, and who was neither in it nor too long."""

    summed: tuple[str, ...]
    missing: tuple[str, ...]

    @classmethod
    def of(cls, summed: tuple[str, ...], too_long: tuple[str, ...], names: Iterable[str]) -> "_Set":
        there = {*summed, *too_long}
        return cls(summed, tuple(name for name in names if name not in there))

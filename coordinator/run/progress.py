"""Follows a run in its store and shows it: rounds, time left, bytes, privacy spent."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ...client_node.study import Study
from ...client_node.study.cost import planned_releases
from ...models.rounding import rounded_up
from ...privacy.accounting import Release, epsilon_pld
from ..store import Store
from ..store.states import ABANDON, RESUME, STOP, RunState
from ..store.tables import Evaluation, Prototype, Round, Run
from ..studies.catalogue import load_study
from .overview import is_silent

_POLL_S = 0.25
_RECENT = 10  # rounds by which the rest is estimated


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a run that was followed."""

    state: RunState
    rounds: int
    error: str | None


@dataclass(frozen=True, slots=True)
class Event:
    """A run as it stands after a change of its rounds, its state or its driver's step."""

    run: str
    state: RunState
    step: str  # of its driver; its state if it has none
    rounds: int  # committed
    rounds_planned: int
    epsilon: float | None  # of the sums opened so far, by PLD; None without privacy
    epsilon_planned: float | None  # of all rounds
    bytes_per_site: int  # sealed bytes that one site has sent
    error: str | None  # that ended it


@dataclass(frozen=True, slots=True)
class LiveRun:
    """A run as it stands, for people who look at it."""

    run: Run
    study: Study
    event: Event
    seconds_left: float | None  # None if nobody can tell yet, or if it is over
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
    opened = store.opened(run_id, with_evidence=False)
    event = _event(study, run, opened)
    silent = run.state == RunState.RUNNING and is_silent(run)
    left = None if run.state.is_over or silent else time_left(_updates(opened), event.rounds_planned)
    return LiveRun(run, study, event, left, silent)


def watch(store: Store, run_id: str, console: Console, *, check: Callable[[], None] | None = None) -> Ended:
    """Follows the run until it is done, stopped or failed. `check` is called in between and may raise.

    The console shows a bar, or, if it is no terminal, a line for each round and each state.
    """
    with _bar(console) if console.is_terminal else _lines(console) as show:
        return follow(store, run_id, show, check=check)


def follow(
    store: Store, run_id: str, tell: Callable[[Event], None], *, check: Callable[[], None] | None = None
) -> Ended:
    """Tells of the run as it stands, then of every change, until it is over. `check` is called in between."""
    study = load_study(store.study(store.run(run_id).study))
    told: Event | None = None
    while True:
        event = event_of(store, study, run_id)
        if event != told:
            tell(event)
            told = event
        if event.state.is_over:
            return Ended(event.state, event.rounds, event.error)
        if check is not None:
            check()
        time.sleep(_POLL_S)


def event_of(store: Store, study: Study, run_id: str) -> Event:
    """Looks at a run of `study` as it stands."""
    return _event(study, store.run(run_id), store.opened(run_id, with_evidence=False))


def _event(study: Study, run: Run, opened: Sequence[Round | Prototype | Evaluation]) -> Event:
    rounds, privacy = _updates(opened), study.draft.privacy
    epsilon = planned = None
    if privacy.mode != "none":
        epsilon = epsilon_of_rounds(study, [row.number for row in opened], colluding=privacy.collusion)
        planned = planned_epsilon(study, study.last_round, colluding=privacy.collusion)
    return Event(
        run=run.id,
        state=run.state,
        step=step_text(run),
        rounds=len(rounds),
        rounds_planned=study.draft.rounds.rounds,
        epsilon=epsilon,
        epsilon_planned=planned,
        bytes_per_site=sum(row.bytes_per_site for row in rounds),
        error=run.error,
    )


def _updates(opened: Iterable[Round | Prototype | Evaluation]) -> list[Round]:
    return [row for row in opened if isinstance(row, Round)]


def time_left(rounds: Sequence[Round], planned: int) -> float | None:
    """Estimates the seconds that the missing rounds take, from the last ten; None before the second one."""
    newest = [row.committed_at for row in rounds[-_RECENT - 1 :]]
    if len(newest) < 2:
        return None
    each = median(later - earlier for earlier, later in pairwise(newest))
    return max(0.0, each) * max(0, planned - len(rounds))


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[Event], None]]:
    columns = (
        TextColumn("[bold]round[/]"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[spent]}"),
        TextColumn("[dim]{task.fields[sent]}[/]"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[step]}[/]"),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("rounds", total=None, spent="", sent="", step="")
        yield lambda event: progress.update(
            bar,
            total=event.rounds_planned,
            completed=event.rounds,
            spent=spent_text(event),
            sent=sent_text(event),
            step=escape(event.step),
        )


@contextmanager
def _lines(console: Console) -> Iterator[Callable[[Event], None]]:
    shown: tuple[object, ...] = ()

    def show(event: Event) -> None:
        nonlocal shown
        if (event.rounds, event.state) != shown:
            shown = event.rounds, event.state
            parts = (
                f"round {event.rounds} of {event.rounds_planned}",
                event.state,
                spent_text(event),
                sent_text(event),
            )
            at = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())
            console.print(f"{at} {event.run}: {', '.join(parts)}", highlight=False, soft_wrap=True)

    yield show


def planned_epsilon(study: Study, rounds: int, *, colluding: int) -> float:
    """Computes the epsilon by PLD of the study's first `rounds` rounds, see `epsilon_of_rounds`."""
    return epsilon_of_rounds(study, range(1, rounds + 1), colluding=colluding)


def epsilon_of_rounds(study: Study, numbers: Iterable[int], *, colluding: int) -> float:
    """Computes the epsilon by PLD of these rounds of the study, for a site that spent nothing before.

    Prototype and evaluation count as the last rounds. All sites are in every sum.
    """
    updates = study.draft.rounds.rounds
    (update, _), *closing = planned_releases(study, sites=len(study.sites))
    opened: Counter[Release] = Counter()
    for number in numbers:
        opened[update if number <= updates else closing[number - updates - 1][0]] += 1
    return epsilon_pld(opened, study.draft.privacy.delta, colluding)


def spent_text(event: Event) -> str:
    """Writes the epsilon of the rounds so far, and that of the whole plan."""
    if event.epsilon is None or event.epsilon_planned is None:
        return "[red]no privacy[/]"
    return f"ε {rounded_up(event.epsilon)} of {rounded_up(event.epsilon_planned)} planned"


def sent_text(event: Event) -> str:
    """Writes the number of sealed bytes that one site has sent."""
    return f"{event.bytes_per_site / 1e6:.1f} MB a site"


def step_text(run: Run) -> str:
    """Writes the driver's current step."""
    return run.step if run.state == RunState.RUNNING else run.state

"""Follows a run in its store and shows it: rounds, time left, bytes, privacy spent."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ...client_node.study import Study
from ...client_node.study.cost import planned_releases
from ...models.rounding import rounded_up
from ...privacy.accounting import Release, epsilon_pld
from ..store import Store
from ..store.states import RunState
from ..store.tables import Round, Run
from ..studies.catalogue import load_study

_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a run that was followed."""

    state: RunState
    rounds: int
    error: str | None


def watch(store: Store, run_id: str, console: Console, *, check: Callable[[], None] | None = None) -> Ended:
    """Follows the run until it is done, stopped or failed. `check` is called in between and may raise."""
    study = load_study(store.study(store.run(run_id).study))
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
        total = study.draft.rounds.rounds
        bar = progress.add_task("rounds", total=total, spent="", sent="", step="")
        while True:
            run, rounds = store.run(run_id), store.rounds(run_id)
            progress.update(
                bar,
                completed=len(rounds),
                spent=spent_text(study, len(store.opened(run_id))),
                sent=sent_text(rounds),
                step=step_text(run),
            )
            if run.state.is_over:
                return Ended(run.state, len(rounds), run.error)
            if check is not None:
                check()
            time.sleep(_POLL_S)


def planned_epsilon(study: Study, rounds: int, *, colluding: int) -> float:
    """Computes the epsilon by PLD of the study's first `rounds` rounds, for a site that spent nothing before.

    The evaluation counts as the last round. All sites are in every sum.
    """
    opened: Counter[Release] = Counter()
    for release, count in planned_releases(study, sites=len(study.sites)):
        opened[release] += min(count, rounds - opened.total())
    return epsilon_pld(opened, study.draft.privacy.delta, colluding)


def spent_text(study: Study, rounds: int) -> str:
    """Writes the epsilon of the rounds so far, and that of the whole plan."""
    privacy = study.draft.privacy
    if privacy.mode == "none":
        return "[red]no privacy[/]"
    now = planned_epsilon(study, rounds, colluding=privacy.collusion)
    whole = planned_epsilon(study, study.last_round, colluding=privacy.collusion)
    return f"ε {rounded_up(now)} of {rounded_up(whole)} planned"


def sent_text(rounds: list[Round]) -> str:
    """Writes the number of sealed bytes that one site has sent."""
    return f"{sum(row.bytes_per_site for row in rounds) / 1e6:.1f} MB a site"


def step_text(run: Run) -> str:
    """Writes the driver's current step."""
    return run.step if run.state == RunState.RUNNING else run.state

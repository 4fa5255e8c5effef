"""The commands `coordinator run`: start, follow, stop, resume, abandon and measure runs of studies."""

from typing import Annotated

import typer

from ...client_node.cli.application import FAILED, JsonOption, group
from ...client_node.cli.console import err, out, tell
from ..federation import opened_store
from .options import DEFAULT_HOME, HomeOption
from .tables import show_measurement, show_opened_rounds, show_runs, show_started_run

app = group("Executions of studies.")


@app.command("start")
def run_start(
    study: str,
    home: HomeOption = DEFAULT_HOME,
    again: Annotated[
        bool, typer.Option("--again", help="Start another run though one is not done; each site must have approved it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Start a run of a study; `coordinator serve` drives it."""
    from ..run.control import start_run

    with opened_store(home) as store:
        show_started_run(start_run(store, study, again=again), as_json)


@app.command("list")
def run_list(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show every run."""
    from ..run.overview import run_standings

    with opened_store(home) as store:
        show_runs(run_standings(store), as_json)


@app.command("rounds")
def run_rounds(run: str, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show what a run has opened so far: whose updates each sum holds, who is missing, whose vector was too long."""
    from ..run.overview import opened_rounds

    with opened_store(home) as store:
        show_opened_rounds(run, opened_rounds(store, run), as_json)


@app.command("watch")
def run_watch(run: str, home: HomeOption = DEFAULT_HOME) -> None:
    """Follow a run until it ends; leaving does not stop it."""
    from ..run.progress import watch
    from ..store.states import RunState

    with opened_store(home) as store:
        ended = watch(store, run, err)
        if ended.error:
            tell(ended.error)
        raise typer.Exit(0 if ended.state == RunState.DONE else FAILED)


@app.command("stop")
def run_stop(run: str, home: HomeOption = DEFAULT_HOME) -> None:
    """Stop a run after the question in progress; committed rounds stay."""
    from ..run.control import stop_run
    from ..store.states import RunState

    with opened_store(home) as store:
        ending = stop_run(store, run) == RunState.STOPPING
        out.print(
            f"Run {run} {'stops' if ending else 'is stopped'}; go on with it later by: coordinator run resume {run}"
        )


@app.command("abandon")
def run_abandon(run: str, home: HomeOption = DEFAULT_HOME) -> None:
    """Give a run up for good; what sites were charged stays charged, and committed rounds stay."""
    from ..run.control import abandon_run

    with opened_store(home) as store:
        abandon_run(store, run)
        out.print(f"Run {run} is given up. `coordinator serve` tells its nodes; they forget it by themselves in a day.")


@app.command("resume")
def run_resume(run: str, home: HomeOption = DEFAULT_HOME) -> None:
    """Go on with a stopped or failed run from its last committed round."""
    from ..run.control import resume_run

    with opened_store(home) as store:
        out.print(f"Run {run} goes on from round {resume_run(store, run)}.")


@app.command("metrics")
def run_metrics(run: str, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show how good a run's model is on records that its sites hold out, as far as noise and chance let one tell.

    The figures come from one noised histogram that the sites charged; they may be published.
    """
    from ..results.metrics import measurement

    with opened_store(home) as store:
        show_measurement(measurement(store, run), as_json)

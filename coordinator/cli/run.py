"""The commands `coordinator run`: start, follow, stop, resume, abandon and measure runs of studies."""

from dataclasses import asdict
from typing import Annotated

import typer

from ...client_node.cli.application import FAILED, JsonOption, epilog, group
from ...client_node.cli.console import agree, err, print_line, show_change, tell
from .options import DEFAULT_HOME, HomeOption, YesOption
from .tables import here, show_measurement, show_opened_rounds, show_runs, show_started_run

EventsOption = Annotated[
    bool, typer.Option("--json", help="Print a line of JSON on stdout whenever something changes.")
]

app = group("Executions of studies.", "coordinator run start thyroid")


@app.command("start", epilog=epilog("coordinator run start thyroid", "coordinator run start thyroid --again"))
def run_start(
    study: str,
    home: HomeOption = DEFAULT_HOME,
    again: Annotated[
        bool, typer.Option("--again", help="Start another run though one is not done; each site must have approved it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Start a run of a study; `coordinator serve` drives it."""
    from ..federation import opened_store
    from ..run.approvals import approvals
    from ..run.control import start_run

    with opened_store(home) as store:
        warning = approvals(store, store.study(study)).warning
        run = start_run(store, study, again=again)
        if warning:
            tell(f"! As far as nodes have told, the study is {warning}.")
        show_started_run(run, home, as_json)


@app.command("list", epilog=epilog("coordinator run list"))
def run_list(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show every run."""
    from ..federation import opened_store, serving
    from ..run.glance import of_versions
    from ..run.overview import run_standings

    with opened_store(home) as store:
        show_runs(run_standings(store), as_json)
    for worry in of_versions(serving.read_serving(home)):
        tell(f"! {worry}")


@app.command("rounds", epilog=epilog("coordinator run rounds RUN --json"))
def run_rounds(run: str, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show what a run has opened so far: whose updates each sum holds, who is missing and why, seconds of each step."""
    from ..federation import opened_store
    from ..run.overview import opened_rounds

    with opened_store(home) as store:
        show_opened_rounds(run, opened_rounds(store, run), as_json)


@app.command("watch", epilog=epilog("coordinator run watch RUN", "coordinator run watch RUN --json"))
def run_watch(run: str, home: HomeOption = DEFAULT_HOME, as_json: EventsOption = False) -> None:
    """Follow a run until it ends; leaving does not stop it. Where stderr is no terminal, a line a round.

    Exit code 1 if it ends stopped or failed.
    """
    from ..federation import opened_store
    from ..run.progress import follow, watch
    from ..store.states import RunState

    with opened_store(home) as store:
        ended = follow(store, run, lambda event: print_line(asdict(event))) if as_json else watch(store, run, err)
        if ended.error and not as_json:
            tell(ended.error)
        raise typer.Exit(0 if ended.state == RunState.DONE else FAILED)


@app.command("stop", epilog=epilog("coordinator run stop RUN"))
def run_stop(run: str, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Stop a run after the question in progress; committed rounds stay."""
    from ..federation import opened_store
    from ..run.control import stop_run
    from ..store.states import RunState

    with opened_store(home) as store:
        state = stop_run(store, run)
        doing = "stops" if state == RunState.STOPPING else "is stopped"
        said = f"Run {run} {doing}; go on with it later by: {here(home, f'run resume {run}')}"
        show_change({"run": run, "state": state}, as_json, said)


@app.command("abandon", epilog=epilog("coordinator run abandon RUN --yes"))
def run_abandon(run: str, home: HomeOption = DEFAULT_HOME, yes: YesOption = False, as_json: JsonOption = False) -> None:
    """Give a run up for good; what sites were charged stays charged, and committed rounds stay."""
    from ..federation import opened_store
    from ..run.control import abandon_run

    with opened_store(home) as store:
        store.run(run)
        agree(f"Nobody can resume run {run} afterwards. Abandon it?", yes=yes)
        said = f"Run {run} is given up. `coordinator serve` tells its nodes; they forget it by themselves in a day."
        show_change({"run": run, "state": abandon_run(store, run)}, as_json, said)


@app.command("resume", epilog=epilog("coordinator run resume RUN"))
def run_resume(run: str, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Go on with a stopped or failed run from its last committed round."""
    from ..federation import opened_store
    from ..run.control import resume_run

    with opened_store(home) as store:
        number = resume_run(store, run)
        facts = {"run": run, "state": store.run(run).state, "round": number}
        show_change(facts, as_json, f"Run {run} goes on from round {number}, while `{here(home, 'serve')}` runs.")


@app.command("metrics", epilog=epilog("coordinator run metrics RUN"))
def run_metrics(run: str, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show how good a run's model is on records that its sites hold out, as far as noise and chance let one tell.

    The figures come from one noised histogram that the sites charged; they may be published. In mode "none" it has no
    noise, and they may not.
    """
    from ..federation import opened_store
    from ..results.metrics import measurement

    with opened_store(home) as store:
        show_measurement(measurement(store, run), as_json)

"""The command `coordinator simulate`: a study with many sites on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ...client_node.cli.application import INTERRUPTED, JsonOption
from ...client_node.cli.console import err, out, print_json, table_of, tell
from ..errors import StudyRefused
from .sweeping import sweep_and_show

if TYPE_CHECKING:  # torch takes seconds to import
    from ...client_node.study import Study, StudyDraft
    from ..simulation import Simulation
    from ..simulation.engine import Watch
    from ..simulation.outcome import RoundOutcome

_SHOWN = 12  # rounds of the printed curve


def simulate(
    study: Annotated[Path, typer.Argument(help="study.toml, or a whole study as `study show --json` prints it.")],
    records: Annotated[
        Path,
        typer.Argument(help="PUBLIC or synthetic records: SITE/train.csv and SITE/heldout.csv, or both files in it."),
    ],
    sites: Annotated[
        int | None,
        typer.Option(min=2, max=1000, help="Simulated sites; left out, the study's own, each with its own folder."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Units among sites: iid (default), dirichlet:ALPHA over labels, by-column:NAME."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the split and of what fails.")] = 0,
    dropouts: Annotated[float, typer.Option(min=0, max=0.99, help="Chance that a site is away in a round.")] = 0.0,
    slow: Annotated[float, typer.Option(min=0, max=1, help="Share of the sites that answer late.")] = 0.0,
    slow_s: Annotated[float, typer.Option(min=0.001, help="Mean seconds, exponential, until they do.")] = 60.0,
    malicious: Annotated[int, typer.Option(min=0, max=1000, help="Sites that send a vector against the others'.")] = 0,
    length: Annotated[
        float, typer.Option(min=0.001, max=1e6, help="Of that vector, in lengths of the longest honest one.")
    ] = 10.0,
    secret_sharing: Annotated[
        bool, typer.Option("--secret-sharing", help="Split every vector in three shares; the sum is the same.")
    ] = False,
    evaluate_every: Annotated[
        int, typer.Option(min=0, help="Rounds between two looks at held-out records; 0: only after the last one.")
    ] = 1,
    rows: Annotated[int, typer.Option(min=1, help="Rows that a site computes at once, as in its site.toml.")] = 256,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default one a core.")] = None,
    backbone: Annotated[
        Path | None, typer.Option(help="Folder of the frozen model; by default the one that study.toml names.")
    ] = None,
    directory: Annotated[
        Path | None, typer.Option("--out", help="What is done is kept here; default simulation/NAME.")
    ] = None,
    unit_column: Annotated[str | None, typer.Option(help="Column that names the unit; default UNIT_id.")] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUES",
            help="Try values of a setting, as privacy.clip_norm=0.5,1,2; again for each: every combination is a trial.",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="Trials at random instead of every one; then NAME=LOW..HIGH, too."),
    ] = None,
    draw_seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of which trials are drawn.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Runs of each trial, with --seed and those after.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Simulate a study with many sites on this machine: the same code, the same noise, the same ε, no network.

    Records must be public or synthetic: nothing is charged here, neither a round nor a look at held-out records. In
    mode "none" a whole study ends in the very adapter of its real run. A simulation that was stopped is continued.
    """
    from ...client_node.study import Study
    from ..simulation import Faults, Plan
    from ..simulation import simulate as run

    tell("The records must be public or synthetic: nothing that is simulated is charged to anybody.")
    given = _study_in(study, sites)
    draft = given.draft if isinstance(given, Study) else given
    usual = study.parent / draft.model.backbone
    if not (backbone or usual).is_dir():
        raise StudyRefused(f"{backbone or usual}: there is no such folder; name that of the frozen model: --backbone")
    folder = directory or Path("simulation" if sweep is None else "sweep", draft.name)
    plan = Plan(
        sites=sites, split=split, seed=seed, secret_sharing=secret_sharing, evaluate_every=evaluate_every,
        max_rows=rows, workers=workers,
        faults=Faults(dropouts=dropouts, slow=slow, slow_s=slow_s, malicious=malicious, length=length),
    )  # fmt: skip
    if sweep:
        return sweep_and_show(
            given, records, folder, sweep=sweep, trials=trials, draw_seed=draw_seed, seeds=seeds, plan=plan,
            backbone=backbone or usual, unit_column=unit_column, as_json=as_json,
        )  # fmt: skip
    if trials is not None or seeds > 1:
        raise typer.BadParameter("they are those of a sweep: say --sweep NAME=VALUES", param_hint="--trials, --seeds")
    try:
        with watching() as watch:
            found = run(
                given, records, folder, plan=plan, backbone=backbone or usual, unit_column=unit_column, watch=watch
            )
    except KeyboardInterrupt:
        tell(f"Stopped. Rounds that are done are kept in {folder}; the same command goes on.")
        raise typer.Exit(INTERRUPTED) from None
    show_simulation(found, folder, as_json)


def show_simulation(found: "Simulation", folder: Path, as_json: bool) -> None:
    """Prints the learning curve, epsilon over rounds and how sites differ, or all of it as JSON."""
    from ..simulation.outcome import CAUTION

    if as_json:
        return print_json(found.to_dict())
    settings = found.settings
    title = f"{settings.study}: {settings.sites} simulated sites, {found.metric} on held-out records"
    out.print(table_of(escape(title), [_row(each) for each in shown(found.rounds)]), highlight=False)
    values = sorted(each.metric for each in found.sites if each.metric is not None)
    lines = [
        CAUTION,
        f"Page and figures: {folder / 'simulation.html'}, {folder / 'simulation.json'}",
        f"Adapter for PEFT: {folder / 'adapter'}",
    ]
    if values:
        tenth, middle = values[len(values) // 10], values[len(values) // 2]
        lines.insert(
            0,
            f"Sites by themselves: the worst {values[0]:.3f}, a tenth below {tenth:.3f}, half below {middle:.3f}, the "
            f"best {values[-1]:.3f}; {len(found.sites) - len(values)} have none.",
        )
    if found.epsilon_planned is not None:
        lines.insert(0, f"A whole real run is planned to cost epsilon {found.epsilon_planned:.3f}.")
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def shown(rounds: "tuple[RoundOutcome, ...]") -> "list[RoundOutcome]":
    """Picks some rounds, evenly, the last one among them."""
    step = -(-len(rounds) // _SHOWN)
    return [each for each in rounds if (len(rounds) - each.number) % max(step, 1) == 0]


@contextmanager
def watching() -> "Iterator[Watch]":
    """Shows on stderr which round is done, the metric and epsilon after it, and how long all will take."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("Simulating", total=None)

        def watch(done: int, total: int, newest: "RoundOutcome | None") -> None:
            parts = ["Round"]
            if newest is not None and newest.metric is not None:
                parts.append(f"metric {newest.metric:.3f}")
            if newest is not None and newest.epsilon is not None:
                parts.append(f"ε {newest.epsilon:.2f}")
            bar.update(task, completed=done, total=total, description=" ".join(parts))

        yield watch


def _study_in(path: Path, sites: int | None) -> "StudyDraft | Study":
    """Reads a draft, its sites replaced by so many, or a whole study in any spelling of its JSON."""
    import json

    from ...client_node.errors import StudyInvalid
    from ...client_node.study import Study, load_draft
    from ...client_node.study.toml import MAX_BYTES

    with path.open("rb") as source:
        data = source.read(MAX_BYTES + 1)
    if not data.lstrip().startswith(b"{"):
        return load_draft(path, sites=None if sites is None else [f"site-{number}" for number in range(1, sites + 1)])
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError):
        raise StudyInvalid(str(path), ("not JSON",)) from None
    return Study.parse(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode())


def _row(each: "RoundOutcome") -> dict[str, object]:
    return {
        "round": each.number,
        "summed": f"{each.summed} of {each.asked}" + (", waited" if each.waited else ""),
        "refused": len(each.refused) or "",
        "metric": "" if each.metric is None else f"{each.metric:.3f}",
        "epsilon": "" if each.epsilon is None else f"{each.epsilon:.3f}",
        "seconds": f"{each.seconds:.1f}",
    }

"""Prints what `coordinator simulate --sweep` does: progress with the time that is left, and the Pareto front."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from ...client_node.cli.application import INTERRUPTED
from ...client_node.cli.console import err, out, print_json, table_of, tell
from ..errors import StudyRefused

if TYPE_CHECKING:  # torch takes seconds to import
    from ...client_node.study import Study, StudyDraft
    from ..simulation import Plan
    from ..simulation.sweeping import Watch
    from ..simulation.swept import Sweep, Trial

_RATE_OVER_S = 3600  # seconds of the past by which the time left is foretold: runs take minutes


def sweep_and_show(
    study: "Study | StudyDraft",
    records: Path,
    folder: Path,
    *,
    sweep: Sequence[str],
    trials: int | None,
    draw_seed: int,
    seeds: int,
    plan: "Plan",
    backbone: Path,
    unit_column: str | None,
    as_json: bool,
) -> None:
    """Sweeps and prints what was found; Ctrl-C keeps what is done."""
    from ...client_node.study import Study
    from ..simulation import axes, sweeping

    if isinstance(study, Study):
        raise StudyRefused("a whole study has its settings for good: sweep its study.toml")
    asked = [axes.read_axis(each) for each in sweep]
    try:
        with watching() as watch:
            found = sweeping.sweep(
                study, records, folder, axes=asked, at_random=trials, draw_seed=draw_seed, seeds=seeds, plan=plan,
                backbone=backbone, unit_column=unit_column, watch=watch,
            )  # fmt: skip
    except KeyboardInterrupt:
        tell(f"Stopped. Runs and rounds that are done are kept in {folder}; the same command goes on.")
        raise typer.Exit(INTERRUPTED) from None
    show_sweep(found, folder, as_json)


@contextmanager
def watching() -> "Iterator[Watch]":
    """Shows on stderr which run is going on, and how long all will take."""
    from rich.progress import Progress

    bar = Progress(
        *Progress.get_default_columns(), console=err, transient=True, disable=not err.is_terminal,
        speed_estimate_period=_RATE_OVER_S,
    )  # fmt: skip
    with bar:
        task = bar.add_task("Sweeping", total=None)
        yield lambda done, total, name: bar.update(task, completed=done, total=total, description=escape(name))


def show_sweep(found: "Sweep", folder: Path, as_json: bool) -> None:
    """Prints the front as a table, and what was looked at; or all of it as JSON."""
    if as_json:
        return print_json(found.to_dict())
    from ..simulation.axes import said
    from ..simulation.run_page import metric_name

    name = metric_name(found.metric)
    title = f"{found.study}: the Pareto front of {len(found.trials)} trials, {name} against ε"
    out.print(table_of(escape(title), [_row(each, found, name) for each in found.front]), highlight=False)
    for left_out in found.left_out:
        tell(f"Left out, {said(left_out.settings)}: {left_out.why}")
    for line in (
        "Means over seeds, ± half of Student's 95 % interval; then the 95 % interval for other records.",
        *found.lines,
        f"Page and figures: {folder / 'sweep.html'}, {folder / 'sweep.json'}",
    ):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _row(trial: "Trial", found: "Sweep", name: str) -> dict[str, str]:
    from ..simulation.axes import shown
    from ..simulation.swept import half_spread

    return {
        "trial": str(trial.number),
        **{setting: shown(trial.settings[setting]) for setting in found.names},
        "ε": "none" if trial.epsilon is None else f"{trial.epsilon:.2f}",
        "whole run": "none" if trial.epsilon_planned is None else f"{trial.epsilon_planned:.2f}",
        name: f"{trial.value:.3f} {half_spread(trial)}".rstrip(),
        "other records": f"{trial.over_records[0]:.3f}–{trial.over_records[1]:.3f}",
        "worst tenth": "–" if trial.worst_tenth is None else f"{trial.worst_tenth:.3f}",
    }

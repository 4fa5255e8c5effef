"""The command `coordinator study compare`: what a study's records give by simpler means, and at other epsilons."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ...client_node.cli.application import JsonOption
from ...client_node.cli.console import err, out, print_json, table_of, tell
from ..errors import StudyRefused

if TYPE_CHECKING:  # torch takes seconds to import
    from ..comparison import Comparison
    from ..comparison.figures import Row
    from ..comparison.ladder import Watch


def study_compare(
    draft: Path,
    records: Annotated[
        Path, typer.Argument(help="Folder of PUBLIC or synthetic records: SITE/train.csv and SITE/heldout.csv.")
    ],
    backbone: Annotated[
        Path | None, typer.Option(help="Folder of the frozen model; by default the one that study.toml names.")
    ] = None,
    epsilon: Annotated[
        list[str] | None,
        typer.Option(help="An epsilon, study (its own noise) or none; again for each. Default: study 1 2 3 8 none."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each rung at each epsilon.")] = 5,
    adapter_seeds: Annotated[
        int | None, typer.Option(min=1, help="Runs of the adapters, which take minutes each; default as --seeds.")
    ] = None,
    rung: Annotated[
        list[str] | None,
        typer.Option(help="constant, site, words, ngrams, head or adapters; again for each. Default: all."),
    ] = None,
    directory: Annotated[
        Path | None, typer.Option("--out", help="What is done is kept here; default comparison/NAME.")
    ] = None,
    unit_column: Annotated[str | None, typer.Option(help="Column that names the unit; default UNIT_id.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train every rung of the ladder on public records: constant, one site, linear, head, adapters, each at several ε.

    Records must be public or synthetic: every look at private ones would have to be charged, and nothing is here.
    What was tried on the held-out records is counted in --out and told. An interrupted comparison is continued.
    """
    from ...client_node.study import load_draft
    from ..comparison import compare

    study = load_draft(draft)
    if backbone is not None and not backbone.is_dir():
        raise StudyRefused(f"--backbone {backbone}: there is no such folder")
    usual = draft.parent / study.model.backbone
    folder = directory or Path("comparison", study.name)
    with watching() as watch:
        found = compare(
            study, records, folder, backbone=backbone or (usual if usual.is_dir() else None),
            asked=epsilon or (), rungs=rung or (), seeds=seeds, adapter_seeds=adapter_seeds,
            unit_column=unit_column, watch=watch,
        )  # fmt: skip
    show_comparison(found, folder, as_json)


def show_comparison(found: "Comparison", folder: Path, as_json: bool) -> None:
    """Prints the ladder as one table, rungs by epsilons, and what was tried; or all of it as JSON."""
    from ..comparison.figures import CAUTION

    if as_json:
        return print_json(found.to_dict())
    title = f"{found.study}: {found.metric} on {found.held_out:,} held-out records"
    rows = [
        {"rung": row.name} | {found.heading(asked): _figure(row, asked) for asked in found.asked}
        for row in found.rows
        if row.left_out is None
    ]
    out.print(table_of(escape(title), rows), highlight=False)
    for row in found.rows:
        if row.left_out is not None:
            tell(f"Left out, {row.name}: {row.left_out}")
    for line in (
        "Means over seeds, ± half of Student's 95 % interval. Constant and site alone are the best on these records.",
        f"Tried on these held-out records so far: {found.tried}.",
        CAUTION,
        f"Page and figures: {folder / 'ladder.html'}, {folder / 'ladder.json'}",
    ):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def watching() -> "Iterator[Watch]":
    """Shows on stderr which run is going on, and how long all will take."""
    from rich.progress import Progress

    with Progress(*Progress.get_default_columns(), console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("Comparing", total=None)
        yield lambda done, total, name: bar.update(task, completed=done, total=total, description=name)


def _figure(row: "Row", asked: str) -> str:
    from ..comparison.figures import said, spread

    point = row.at(asked)
    return "" if point is None else f"{said(point)} {spread(point)}".rstrip()

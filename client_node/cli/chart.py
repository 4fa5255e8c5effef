"""The commands `client-node chart …`: charts are read at the site, by a reader that no record has taught."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from .application import PROBLEMS, JsonOption, epilog, group
from .console import err, print_json, tell

app = group(
    "Charts into figures and reports.",
    "client-node chart read albumin.png",
    "client-node chart build reader.safetensors",
)


@app.command(
    "read",
    epilog=epilog("client-node chart read albumin.png", "client-node chart read charts/*.png --json", codes=[PROBLEMS]),
)
def chart_read(
    charts: Annotated[list[Path], typer.Argument(help="PNG files of 320 x 192 pixels, in the form of docs/charts.md.")],
    reader: Annotated[
        Path | None, typer.Option(help="A reader that `chart build` wrote; by default the one that comes with confide.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read the values of charts and report them; nothing leaves this machine.

    A chart is refused where a check fails: a label that does not fit the others, a value too many, a kind never taught.
    """
    from ...models.charts.reader import load
    from ...models.strict import one_line

    network, digest = load(reader)
    found = [_read_one(network, path) for path in charts]
    if as_json:
        print_json({"reader": digest, "charts": found})
    else:
        for own in found:
            said = own["report"] if "report" in own else f"refused: {own['refused']}"
            print(one_line(f"{own['file']}: {said}"))
    raise typer.Exit(PROBLEMS if any("refused" in own for own in found) else 0)


@app.command("build", epilog=epilog("client-node chart build reader.safetensors"))
def chart_build(
    out: Annotated[Path, typer.Argument(help="File to write; refused if there is one.")],
    charts: Annotated[int, typer.Option(min=1, help="Charts to draw.")] = 7000,
    steps: Annotated[int, typer.Option(min=1, help="Steps of training, of 8 charts each.")] = 7000,
    seed: Annotated[int, typer.Option(min=0, help="Of charts, first weights and order.")] = 1,
) -> None:
    """Teach a reader from made-up charts; no record is used. Takes an hour and a half of one core by default."""
    from ...models.charts.reader import ReaderConfig, save
    from ...models.charts.training import ReaderTrainingConfig, train_reader
    from ...models.strict import one_line

    if out.exists() or not out.parent.is_dir():
        problem = "exists already" if out.exists() else "cannot be written: its folder is missing"
        raise typer.BadParameter(f"{one_line(str(out))} {problem}", param_hint="OUT")
    config = ReaderTrainingConfig(charts=charts, steps=steps, seed=seed)
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("drawing charts, then training", total=charts + steps)
        network = train_reader(ReaderConfig(), config, lambda done, _: progress.update(task, completed=done))
    save(network, out)
    tell(f"Wrote {out}. Read with it: client-node chart read CHART.png --reader {out}")


def _read_one(network: Any, path: Path) -> dict[str, Any]:
    from ...models.charts import reading, reports
    from ...models.errors import ChartRefused, InvalidPicture

    try:
        found = reading.read(network, reading.decode(_bytes(path)))
    except OSError as problem:
        return {"file": str(path), "refused": problem.strerror}
    except (ChartRefused, InvalidPicture) as problem:
        return {"file": str(path), "refused": str(problem)}
    name = reports.named(path.stem)
    return {
        "file": str(path),
        "values": [float(reports.said(float(value), found.pixel)) for value in found.values],
        "is_percent": found.is_percent,
        "pixel": float(f"{found.pixel:.3g}"),
        "report": reports.sentences(name, found),
        "given": reports.given(name, found),
    }


def _bytes(path: Path) -> bytes:
    """Reads a file, of one that is too long as much as shows that it is."""
    from ...models.errors import InvalidPicture
    from ...models.files import read_at_most
    from ...models.structure.pictures import MOST_BYTES

    file = read_at_most(path, MOST_BYTES + 1)
    if file is None:
        raise InvalidPicture("is no file with a picture in it")
    return file

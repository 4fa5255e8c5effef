"""Reads charts of real patients and loans, and counts what is wrong, what is refused, and what should have been.

    python benchmarks/charts.py [--charts 1500] [--reader FILE] [--backbone DIR] [--part read made-up foreign reports]
    python benchmarks/charts.py --quick           # does it run? 12 charts, and reports by the untrained model

`read` draws as many charts of the example's series as are asked for, each in a style of its own, reads them, and judges
values and reports by what was drawn. Beside it a guess: the mean of all values of that name. `made-up` reads charts
as those that taught the reader, by other draws: small bars of both signs are among them. `foreign` reads charts of
kinds that were never taught, all of which should be refused; with gnuplot installed also taught kinds drawn by it.
`reports` lets models write a report around what was read, in its form, and checks each by a program of its own.
Figures: docs/charts.md.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from confide.models.charts import drawing, reading, reports
from confide.models.charts.reader import ChartReader, load
from confide.models.charts.reading import Reading
from confide.models.errors import ChartRefused, InvalidPicture

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples" / "charts"))
import real_charts
from real_charts import Series

PARTS = ("read", "made-up", "foreign", "reports")
MADE_UP = 500
FOREIGN = 30  # series of which each foreign chart is drawn
MOST_GNUPLOT = 100


def chosen(charts: int) -> list[Series]:
    """So many series, all of them different while there are enough."""
    everything, rng = real_charts.series(), np.random.default_rng(1)
    order = rng.permutation(len(everything))
    return [everything[order[place % len(order)]] for place in range(charts)]


def read_real(network: ChartReader, charts: int) -> list[tuple[Series, Reading]]:
    """Prints the table of real charts, and returns what was read."""
    rng, found = np.random.default_rng(2), []
    guesses: dict[str, list[float]] = {}
    for own in real_charts.series():
        guesses.setdefault(own.name, []).append(float(own.values.mean()))
    print("| | charts | refused | values | within 1 px | within 0.5 px | median | p99 | a guess within 1 px |", end="")
    print(
        " number of values wrong | reports | with a wrong figure |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
    )
    reasons: Counter[str] = Counter()
    began = time.perf_counter()
    series = chosen(charts)
    for is_bar in (False, True):
        own_kind = [own for own in series if own.is_bar is is_bar]
        apart, guessed, refused, wrong, miscounted = [], [], 0, 0, 0
        for own in own_kind:
            chart = real_charts.drawn(own, rng)
            try:
                seen = reading.read(network, reading.decode(drawing.to_png(chart.picture)))
            except ChartRefused as err:
                refused += 1
                reasons[str(err)] += 1
                continue
            found.append((own, seen))
            verdict = real_charts.judged(own, chart, seen)
            wrong += verdict.has_wrong_figure
            miscounted += len(seen.values) != len(own.values)
            apart += verdict.apart.tolist()
            pixel = abs(np.polyfit(chart.places[:, 1], own.values, 1)[0])
            guessed += (np.abs(np.mean(guesses[own.name]) - own.values) / pixel).tolist()
            if verdict.has_wrong_figure:
                print(f"wrong: {own.name} {own.values.tolist()} read as {seen.values.tolist()}", file=sys.stderr)
        if not apart:
            print(f"all {len(own_kind)} were refused")
            continue
        errors, name = np.array(apart), "bars" if is_bar else "lines"
        print(
            f"| {name} | {len(own_kind)} | {refused} ({refused / max(len(own_kind), 1):.1%}) | "
            f"{len(errors)} | {np.mean(errors <= 1):.4f} | {np.mean(errors <= 0.5):.3f} | {np.median(errors):.2f} px | "
            f"{np.quantile(errors, 0.99):.2f} px | {np.mean(np.array(guessed) <= 1):.3f} | {miscounted} | "
            f"{len(own_kind) - refused} | {wrong} ({wrong / max(len(own_kind) - refused, 1):.2%}) |",
            flush=True,
        )
    print(f"\n{(time.perf_counter() - began) / max(len(series), 1) * 1000:.0f} ms a chart, drawn and read")
    for reason, count in reasons.most_common():
        print(f"{count:4d} refused: {reason}")
    return found


def read_made_up(network: ChartReader, charts: int) -> None:
    """Prints the table of made-up charts that neither the reader nor a threshold was made from."""
    apart: dict[bool, list[float]] = {False: [], True: []}
    counts = {is_bar: Counter[str]() for is_bar in apart}
    for number in range(charts):
        rng = np.random.default_rng([5, number])
        style = drawing.made_up_style(rng)
        values = drawing.made_up_values(rng, is_bar=style.is_bar)
        chart, count = drawing.draw(values.tolist(), style), counts[style.is_bar]
        count["charts"] += 1
        try:
            seen = reading.read(network, chart.picture)
        except ChartRefused:
            count["refused"] += 1
            continue
        if len(seen.values) != len(values):
            count["miscounted"] += 1
            continue
        errors = np.abs(seen.values - values) / abs(np.polyfit(chart.places[:, 1], values, 1)[0])
        apart[style.is_bar] += errors.tolist()
        count["wrong"] += bool((errors > 1.5).any())
    print(
        "\n| made up | charts | refused | values | within 1 px | p99 | number of values wrong | read, and a value off ",
        end="",
    )
    print("by more than 1.5 px |\n|---|---|---|---|---|---|---|---|")
    for is_bar, own in apart.items():
        count, errors = counts[is_bar], np.array(own or [np.nan])
        accepted = count["charts"] - count["refused"]
        print(
            f"| {'bars' if is_bar else 'lines'} | {count['charts']} | {count['refused'] / max(count['charts'], 1):.1%} "
            f"| {len(own)} | {np.mean(errors <= 1):.4f} | {np.quantile(errors, 0.99):.2f} px | {count['miscounted']} | "
            f"{count['wrong']} ({count['wrong'] / max(accepted, 1):.1%}) |"
        )


def read_foreign(network: ChartReader) -> None:
    """Prints how many charts of kinds that were never taught are refused."""
    rng, tally = np.random.default_rng(3), {}
    lines = [own for own in chosen(1500) if not own.is_bar][: 2 * FOREIGN]
    for own, other in zip(lines[::2], lines[1::2], strict=True):
        for kind, picture in real_charts.never_taught(own, other, rng).items():
            count = tally.setdefault(kind, [0, 0])
            count[0] += 1
            try:
                reading.read(network, picture)
            except ChartRefused:
                count[1] += 1
    print("\n| never taught | charts | refused |\n|---|---|---|")
    for kind, (charts, refused) in tally.items():
        print(f"| {kind} | {charts} | {refused} |")
    if shutil.which("gnuplot") is None:
        print("\ngnuplot is not installed; taught kinds drawn by it were not read")
        return
    refused = wrong = 0
    charts = 0
    for own, picture in by_gnuplot(chosen(1500)[:MOST_GNUPLOT]):
        charts += 1
        try:
            seen = reading.read(network, reading.decode(picture))
        except (ChartRefused, InvalidPicture):
            refused += 1
            continue
        far = len(seen.values) != len(own.values) or np.abs(seen.values - own.values).max() > 1.5 * seen.pixel
        wrong += bool(far)
    print(f"\n{charts} drawn by gnuplot: {refused} refused, {wrong} of the others with a value off by more than 1.5 px")


def by_gnuplot(some: list[Series]) -> Iterator[tuple[Series, bytes]]:
    """Draws series by another program, one PNG each, as grey or RGB without a palette."""
    from io import BytesIO

    from PIL import Image

    for own in some:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "chart.png")
            data = "\n".join(f"{place + 1} {value}" for place, value in enumerate(own.values))
            style = "boxes fs solid 0.6" if own.is_bar else "linespoints pt 7 ps 0.7"
            script = (
                f"set term pngcairo size 320,192 font 'Sans,8'; set output '{out}'; unset key; set boxwidth 0.6; "
                f"set xrange [0.5:{len(own.values) + 0.5}]; set xtics 1 out nomirror; set ytics out nomirror; "
                + ("set yrange [0:*]; " if own.is_bar else "")
                + f"plot '-' with {style} lc rgb 'navy'\n{data}\ne\n"
            )
            subprocess.run(["gnuplot"], input=script.encode(), check=True, capture_output=True)
            file = BytesIO()
            Image.open(out).convert("RGB").save(file, format="PNG")
            yield own, file.getvalue()


def write_reports(found: list[tuple[Series, Reading]], backbone: Path | None, directory: Path, *, quick: bool) -> None:
    """Lets models write a report around each reading, and counts those that are complete."""
    from forms import reports as written
    from serving import make_adapters, small_backbone

    from confide.models.backbones.smollm2 import import_smollm2
    from confide.models.serving.served import Served

    directory.mkdir(parents=True, exist_ok=True)
    backbone, small = backbone or directory / "smollm2", directory / "untrained"
    if not backbone.exists():
        import_smollm2(backbone)
    if not small.exists():
        small_backbone(backbone, small)
    models = {"untrained": Served(small, make_adapters(small, directory / "untrained-adapters"))}
    if not quick:
        models["SmolLM2, int8"] = Served(backbone, make_adapters(backbone, directory / "adapters"), frozen="int8")
    rows = [reports.given(own.name, seen) for own, seen in found]
    print("\n| model | reports | complete | tokens/s |\n|---|---|---|---|")
    for name, served in models.items():
        complete, count, rate, first = written(served, reports.TEMPLATE, rows)
        print(f"| {name} | {count} | {complete} | {rate:.0f} |\n\n{first}\n", flush=True)
        served.forms.close()


def main() -> None:
    """Reads the arguments and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--charts", type=int, default=1500)
    parser.add_argument("--reader", type=Path)
    parser.add_argument("--backbone", type=Path, help="a folder that `coordinator backbone import` wrote")
    parser.add_argument("--dir", type=Path, default=Path("serving"))
    parser.add_argument("--reports", type=int, default=1000)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    network, digest = load(args.reader)
    print(f"reader {digest[:16]}, {sum(p.numel() for p in network.parameters()):,} parameters, ", end="")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    charts = 12 if args.quick else args.charts
    found = read_real(network, charts) if {"read", "reports"} & set(args.part) else []
    if "made-up" in args.part:
        read_made_up(network, charts if args.quick else MADE_UP)
    if "foreign" in args.part:
        read_foreign(network)
    if "reports" in args.part:
        write_reports(found[: args.reports], args.backbone, args.dir, quick=args.quick)


if __name__ == "__main__":
    main()

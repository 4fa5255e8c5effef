"""Teaches a reader of charts from made-up charts alone.

Legend: `N` charts, `B` charts of a step, `H`, `W` pixels, `h`, `w` squares, `K` kinds of marks, `L` labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidChart
from .drawing import DrawnChart, letters, made_up_chart
from .reader import HEIGHT, KINDS, LETTERS, STRIDE, WIDTH, ChartReader, ReaderConfig, cut_label

_WARM_UP = 50  # steps
_LABELS = 64  # of a step
_JITTER = 0.6  # pixels: a label is cut where a tick was found, which is not quite where it is
_VALUE, _Y_TICK, _X_TICK, _MULTIPLIER = range(len(KINDS))


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderTrainingConfig:
    """Settings of a reader's training; equal settings give equal weights on one machine and one torch build."""

    charts: int = 7000  # drawn; they come again when there are no more
    steps: int = 7000
    batch: int = 8
    lr: float = 2e-3  # peak of AdamW's, after 50 steps of warm-up and before linear decay
    seed: int = 1

    def __post_init__(self) -> None:
        if min(self.charts, self.steps, self.batch) < 1 or not self.lr > 0:
            raise InvalidChart(f"need charts, steps, batch >= 1 and lr > 0, got {self}")


@dataclass(frozen=True, slots=True)
class Lesson:
    """Charts with what a reader should find in them."""

    charts_NHW: npt.NDArray[np.uint8]
    heat_NKhw: npt.NDArray[np.uint8]  # 1 where a mark of the kind is
    place_NK2hw: npt.NDArray[np.float16]  # x and y of the mark from the middle of the square, in squares
    near_NKhw: npt.NDArray[np.uint8]  # 1 where that is known: in the mark's square and beside it
    labels_LHW: npt.NDArray[np.uint8]
    letters: list[npt.NDArray[np.int64]]  # of each label, by their place in LETTERS


def train_reader(
    sizes: ReaderConfig,
    config: ReaderTrainingConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
    lesson: Lesson | None = None,
) -> ChartReader:
    """Draws charts and trains a reader on them.

    Args:
        progress: called with (what was done, what there is to do in all) after every chart drawn and every step.
        lesson: charts that were drawn before; none are drawn then.
    """
    drawn = config.charts if lesson is None else 0
    if lesson is None:
        lesson = draw_lesson(range(drawn), config.seed, lambda done: progress(done, drawn + config.steps))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        reader = ChartReader(sizes)
        _fit(reader, lesson, config, lambda done: progress(drawn + done, drawn + config.steps))
    return reader


def draw_lesson(numbers: Sequence[int], seed: int, progress: Callable[[int], None] = lambda done: None) -> Lesson:
    """Draws made-up charts; a chart depends on its number and the seed alone."""
    pictures, found, labels, written = [], [], [], []
    for done, number in enumerate(numbers):
        rng = np.random.default_rng([seed, number])
        chart = made_up_chart(rng)
        pictures.append(chart.picture)
        found.append(_targets(chart))
        for y, label in chart.ticks:
            if not (text := letters(label)):
                continue
            jitter_x, jitter_y = rng.normal(0, _JITTER, 2)
            labels.append(cut_label(chart.picture, chart.edge + jitter_x, y + jitter_y))
            written.append(np.array([LETTERS.index(letter) for letter in text], dtype=np.int64))
        progress(done + 1)
    if not labels:
        raise InvalidChart("none of so few charts has a label that can be taught; draw more")
    heat, place, near = (np.stack(parts) for parts in zip(*found, strict=True))
    return Lesson(np.stack(pictures), heat, place, near, np.stack(labels), written)


def _targets(
    chart: DrawnChart,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16], npt.NDArray[np.uint8]]:
    height, width = HEIGHT // STRIDE, WIDTH // STRIDE
    heat = np.zeros((len(KINDS), height, width), np.uint8)
    place = np.zeros((len(KINDS), 2, height, width), np.float16)
    near = np.zeros_like(heat)

    def mark(kind: int, x: float, y: float, down: int, across: int) -> None:
        column, row = min(max(int(x // STRIDE), 0), width - 1), min(max(int(y // STRIDE), 0), height - 1)
        heat[kind, row, column] = 1
        for there in range(max(row - down, 0), min(row + down + 1, height)):
            for beside in range(max(column - across, 0), min(column + across + 1, width)):
                near[kind, there, beside] = 1
                place[kind, :, there, beside] = x / STRIDE - beside - 0.5, y / STRIDE - there - 0.5

    for (x, y), (left, right) in zip(chart.places, chart.tops, strict=True):
        # A bar has no cue for its middle: its whole top edge is marked, and the middle is where the tick below it is.
        for column in range(int(left // STRIDE) + 1, int(right // STRIDE)):
            mark(_VALUE, (column + 0.5) * STRIDE, y, 1, 0)
        mark(_VALUE, x, y, 1, 0)
    for x in chart.below:
        mark(_X_TICK, x, chart.base, 0, 1)
    for y, _ in chart.ticks:
        mark(_Y_TICK, chart.edge, y, 1, 0)
    if chart.multiplier is not None:
        mark(_MULTIPLIER, *chart.multiplier, 1, 1)
    return heat, place, near


def _fit(reader: ChartReader, lesson: Lesson, config: ReaderTrainingConfig, progress: Callable[[int], None]) -> None:
    parameters = list(reader.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=1e-3)
    rng = np.random.default_rng(config.seed)
    reader.train()
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / _WARM_UP) * max(0.01, 1 - step / config.steps)
        charts = rng.integers(0, len(lesson.charts_NHW), config.batch)
        labels = rng.integers(0, len(lesson.labels_LHW), _LABELS)
        loss = _pointing_loss(reader, lesson, charts) + 0.3 * _letters_loss(reader, lesson, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        progress(step + 1)
    reader.eval()


def _pointing_loss(reader: ChartReader, lesson: Lesson, chosen: npt.NDArray[np.int64]) -> Tensor:
    """CenterNet's focal loss of marks, and the absolute error of their places, in squares."""
    found = reader(torch.from_numpy(lesson.charts_NHW[chosen])).permute(0, 3, 4, 1, 2)  # [B, K, 3, h, w]
    heat, near = (torch.from_numpy(part[chosen]).float() for part in (lesson.heat_NKhw, lesson.near_NKhw))
    place = torch.from_numpy(lesson.place_NK2hw[chosen]).float()
    logits = found[:, :, 0]
    likely = logits.sigmoid()
    missed = -heat * (1 - likely) ** 2 * F.logsigmoid(logits)
    # Beside a mark, where its place is learned too, a guess costs less: it may lie on the border of two squares.
    mistaken = -(1 - heat) * (1 - 0.9 * near) * likely**2 * F.logsigmoid(-logits)
    marks = heat.sum((0, 2, 3)).clamp_min(1)
    pointing = ((missed + mistaken).sum((0, 2, 3)) / marks).sum()
    away = (found[:, :, 1:] - place).abs() * near[:, :, None]
    along = torch.tensor([[0.0, 1.0], [0.3, 1.0], [1.0, 0.3], [0.0, 0.0]])[None, :, :, None, None]
    placing: Tensor = (away * along).sum() / near.sum()
    total: Tensor = pointing + 10 * placing
    return total


def _letters_loss(reader: ChartReader, lesson: Lesson, chosen: npt.NDArray[np.int64]) -> Tensor:
    logits_LSC = reader.letters(torch.from_numpy(np.ascontiguousarray(lesson.labels_LHW[chosen])))
    written = [lesson.letters[label] for label in chosen]
    return F.ctc_loss(
        logits_LSC.transpose(0, 1).log_softmax(-1),
        torch.from_numpy(np.concatenate(written)),
        torch.full((len(chosen),), logits_LSC.shape[1]),
        torch.tensor([len(word) for word in written]),
        blank=len(LETTERS),
    )

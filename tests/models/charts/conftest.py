"""A reader that knows where the marks of a chart are, to test what is measured apart from what is seen."""

import numpy as np
import pytest
import torch

from confide.models.charts.drawing import Style, draw, letters
from confide.models.charts.reader import CROP_WIDTH, HEIGHT, KINDS, LETTERS, STRIDE, WIDTH
from confide.models.charts.reader import load as load_reader

SHIFTS = ((0, 0), (2, 1), (-1, -2))  # pixels down and right, as `reading` shows a chart
VALUE, Y_TICK, X_TICK, MULTIPLIER = range(len(KINDS))
COLUMNS = CROP_WIDTH // 2


class KnowingReader:
    """Says of a chart what `marks` and `labels` say; both may be changed to what a mistaken reader would say."""

    def __init__(self, chart):
        self.marks = [(VALUE, x, y) for x, y in chart.places]
        self.marks += [(X_TICK, x, chart.base) for x in chart.below]
        self.marks += [(Y_TICK, chart.edge, y) for y, _ in chart.ticks]
        self.labels = [letters(label) for _, label in sorted(chart.ticks)]
        self.sure = 0.99
        self.noise = lambda shift: 0.0  # pixels downwards that values are mistaken by in each look
        self.mistake = lambda label, cut: label  # what each cut of a label is taken for

    def __call__(self, charts_BHW):
        assert charts_BHW.shape == (len(SHIFTS), HEIGHT, WIDTH)
        found = torch.zeros(len(SHIFTS), HEIGHT // STRIDE, WIDTH // STRIDE, len(KINDS), 3)
        found[..., 0] = -8
        for number, (down, right) in enumerate(SHIFTS):
            for kind, x, y in self.marks:
                across, below = (x + right) / STRIDE, (y + down) / STRIDE
                if kind == VALUE:
                    below += self.noise(number) / STRIDE
                square = found[number, int(below), int(across), kind]
                square[:] = torch.tensor([4.0, across - int(across) - 0.5, below - int(below) - 0.5])
        return found

    def letters(self, labels_LHW):
        found = torch.zeros(len(labels_LHW), COLUMNS, len(LETTERS) + 1)
        found[..., -1] = 12
        cuts, left = divmod(len(labels_LHW), len(self.labels))
        assert not left
        said = [self.mistake(label, cut) for label in self.labels for cut in range(cuts)]
        for row, (picture, label) in enumerate(zip(labels_LHW.numpy(), said, strict=True)):
            inked = np.flatnonzero((picture[6:-6] < 195).any(0))
            first = min((inked[0] if inked.size else 0) // 2 + 1, COLUMNS - 1 - 2 * len(label))
            for place, letter in enumerate(label):
                column = first + 2 * place
                found[row, column, -1] = 0
                found[row, column, LETTERS.index(letter)] = float(np.log(self.sure / (1 - self.sure) * len(LETTERS)))
        return found


@pytest.fixture
def chart():
    return draw([3.0, 8.5, 6.25, 7.0], Style(is_bar=False))


@pytest.fixture
def knowing(chart):
    return KnowingReader(chart)


@pytest.fixture(scope="session")
def reader():
    return load_reader()[0]

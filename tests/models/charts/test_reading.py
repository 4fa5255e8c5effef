import itertools
import math
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from confide.models.charts import drawing, labels, reading
from confide.models.charts.drawing import Style, draw
from confide.models.charts.reader import HEIGHT
from confide.models.errors import ChartRefused, InvalidPicture

from .conftest import MULTIPLIER, VALUE, X_TICK, Y_TICK, KnowingReader

CASES = int(os.environ.get("CONFIDE_FUZZ_CASES", "60"))


@pytest.mark.parametrize("is_bar", [False, True])
@pytest.mark.parametrize("values", [[3.0, 8.5, 6.25, 7.0], [120_000.0, 75.0, 98_000.0], [0.031, 0.008, 0.02, 0.044]])
def test_values_are_those_that_were_drawn(values, is_bar):
    chart = draw(values, Style(is_bar=is_bar))
    found = reading.read(KnowingReader(chart), chart.picture)
    assert np.abs(found.values - values).max() < 0.01 * found.pixel
    slope = np.polyfit(chart.places[:, 1], values, 1)[0]
    assert found.pixel == pytest.approx(-slope)
    assert list(found.ticks) == sorted(float(label) for _, label in chart.ticks)
    assert not found.is_percent


@pytest.mark.parametrize(
    ("written", "factor"),
    [(lambda value, place: f"{value * 1000:,.0f}", 1000), (lambda value, place: f"{value:g}%", 1)],
)
def test_percent_and_thousands_are_read(written, factor):
    chart = draw([1.0, 4.0, 2.5], Style(is_bar=False), written=written)
    found = reading.read(KnowingReader(chart), chart.picture)
    assert found.values == pytest.approx([1.0 * factor, 4.0 * factor, 2.5 * factor], rel=1e-3)
    assert found.is_percent is (factor == 1)


def refusal(knowing, chart):
    with pytest.raises(ChartRefused) as refused:
        reading.read(knowing, chart.picture)
    return str(refused.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda k: k.labels.__setitem__(1, "9"), "even distances"),
        (lambda k: k.labels.__setitem__(1, "7?"), "no plain number"),
        (lambda k: k.labels.__setitem__(1, "7.0.0"), "no plain number"),
        (lambda k: k.labels.__setitem__(1, "-"), "no plain number"),
        (lambda k: k.labels.__setitem__(1, "70%"), "no plain number"),
        (lambda k: k.labels.__setitem__(1, "7,0"), "no plain number"),
        (lambda k: k.labels.__setitem__(1, "07"), "no plain number"),
        (lambda k: k.labels.__setitem__(1, ""), "cannot be read"),
        (lambda k: k.labels.reverse(), "do not rise"),
        (lambda k: setattr(k, "sure", 0.25), "for sure"),
        (lambda k: setattr(k, "mistake", lambda label, cut: label + str(cut % 4)), "for sure"),
        (lambda k: k.marks.append((VALUE, k.marks[0][1], k.marks[0][2] + 30)), "more than one value"),
        (lambda k: k.marks.append((VALUE, k.marks[0][1], k.marks[0][2] + 5)), "more than one value"),
        (lambda k: k.marks.append((VALUE, (k.marks[0][1] + k.marks[1][1]) / 2, 60.0)), "has no tick"),
        (lambda k: k.marks.pop(7), "tick at an end"),
        (lambda k: k.marks.pop(4), "tick at an end"),
        (lambda k: setattr(k, "labels", [label + "9" for label in k.labels]), "whole multiples"),
        (lambda k: k.marks.pop(5), "even distances"),
        (lambda k: k.marks.pop(0), "no value"),
        (lambda k: k.marks.append((MULTIPLIER, 70.0, 20.0)), "multiplier"),
        (lambda k: k.marks.append((X_TICK, 100.0, 60.0)), "stand in one line"),
        (lambda k: k.marks.append((Y_TICK, 200.0, 60.0)), "stand in one line"),
        (lambda k: setattr(k, "marks", [mark for mark in k.marks if mark[0] != Y_TICK]), "vertical axis has fewer"),
        (lambda k: setattr(k, "marks", [mark for mark in k.marks if mark[0] != X_TICK]), "horizontal axis has fewer"),
        (lambda k: setattr(k, "noise", lambda number: 1.8 * (number == 1)), "looks at its values do not agree"),
    ],
)
def test_a_chart_that_fails_a_check_is_refused(knowing, chart, changed, said):
    reading.read(knowing, chart.picture)
    changed(knowing)
    assert said in refusal(knowing, chart)


def test_a_strange_letter_that_only_some_cuts_of_a_label_show_is_none(knowing, chart):
    want = reading.read(knowing, chart.picture).values
    knowing.mistake = lambda label, cut: "?" + label if cut % 3 else label
    np.testing.assert_array_equal(reading.read(knowing, chart.picture).values, want)
    knowing.mistake = lambda label, cut: "?" + label
    assert "no plain number" in refusal(knowing, chart)


def test_the_foot_of_a_bar_is_no_value():
    values = [3.0, -2.5, 4.0]
    chart = draw(values, Style(is_bar=True))
    knowing = KnowingReader(chart)
    zero = chart.base - np.polyval(np.polyfit(values, chart.base - chart.places[:, 1], 1), 0)
    knowing.marks += [(VALUE, x, zero) for x in chart.places[:, 0]]
    found = reading.read(knowing, chart.picture)
    assert np.abs(found.values - values).max() < 0.01 * found.pixel
    knowing.marks.append((VALUE, chart.places[0, 0], zero - 12))
    assert "more than one value" in refusal(knowing, chart)


@pytest.mark.parametrize("low", [0.1, -0.1, 0.0])
def test_a_low_bar_is_refused_beside_bars_of_both_signs_alone(low):
    for values, is_refused in (([3.0, -2.5, low, 4.0], True), ([3.0, 2.5, abs(low), 4.0], False)):
        chart = draw(values, Style(is_bar=True))
        if is_refused:
            assert "too low" in refusal(KnowingReader(chart), chart)
        else:
            reading.read(KnowingReader(chart), chart.picture)
    line = draw([3.0, -2.5, low, 4.0], Style(is_bar=False))
    reading.read(KnowingReader(line), line.picture)


@pytest.mark.parametrize("sign", ["+", "4"])
def test_a_plus_before_every_label_is_not_taken_for_a_four(sign):
    for family, font in itertools.product(("DejaVu Sans", "DejaVu Serif", "STIXGeneral"), (7.5, 9.0)):
        style = Style(is_bar=False, family=family, font=font)
        chart = draw([1.0, 4.0, 2.5], style, written=lambda value, place: f"{sign}{value:.1f}")
        knowing = KnowingReader(chart)
        knowing.labels = ["4" + label[1:] for label in knowing.labels]
        if sign == "+":
            assert "sign that is not read" in refusal(knowing, chart)
        else:
            reading.read(knowing, chart.picture)


def test_a_colon_is_not_taken_for_a_point():
    for sign in (":", "."):
        chart = draw(
            [8.0, 20.0, 14.0], Style(is_bar=False), written=lambda value, place, sign=sign: f"{value:g}{sign}00"
        )
        knowing = KnowingReader(chart)
        knowing.labels = [label.replace("?", ".") for label in knowing.labels]
        if sign == ":":
            assert "no point" in refusal(knowing, chart)
        else:
            reading.read(knowing, chart.picture)


def test_an_axis_without_room_above_is_refused():
    for height, is_refused in ((0.80, True), (0.74, False)):
        chart = draw([3.0, 8.5, 6.25], Style(is_bar=False, box=(0.21, 0.16, 0.75, height)))
        if is_refused:
            assert "no room" in refusal(KnowingReader(chart), chart)
        else:
            reading.read(KnowingReader(chart), chart.picture)


def test_a_chart_without_a_line_for_its_axis_is_refused(knowing, chart):
    column = int(chart.edge)
    without = replace(chart, picture=inked(chart.picture, slice(None), slice(column - 1, column + 3), 255))
    assert "not drawn" in refusal(knowing, without)


def test_bars_that_may_go_on_beyond_the_axis_are_refused():
    chart = draw([3.0, 8.5, 6.25, 7.0], Style(is_bar=True))
    knowing = KnowingReader(chart)
    reading.read(knowing, chart.picture)
    top = HEIGHT * (1 - 0.16 - 0.70)
    knowing.marks[1] = (VALUE, chart.places[1, 0], top + 1)
    assert "above the axis" in refusal(knowing, chart)


def test_a_bar_whose_end_was_not_found_is_not_taken_for_nothing():
    chart = draw([3.0, 8.5, 6.25, 7.0], Style(is_bar=True))
    knowing = KnowingReader(chart)
    knowing.marks[1] = (VALUE, chart.places[1, 0], chart.base)
    assert "not found" in refusal(knowing, chart)


def test_a_second_line_at_zero_is_seen():
    chart = draw([3.0, 8.5, 6.25, 7.0, 0.0], Style(is_bar=False))
    zero, knowing = chart.places[4, 1], KnowingReader(chart)
    reading.read(knowing, chart.picture)
    knowing.marks.append((VALUE, chart.places[1, 0], zero))
    assert "more than one value" in refusal(knowing, chart)
    knowing.marks[-1] = (VALUE, float(chart.places[:2, 0].mean()), zero)
    assert "no tick" in refusal(knowing, chart)


def inked(picture, rows, columns, shade):
    changed = picture.copy()
    changed[rows, columns] = shade
    return changed


@pytest.mark.parametrize("values", [[3.0, 8.5, 6.25, 7.0], [-3.0, -8.5, -6.25, -7.0]])
@pytest.mark.parametrize("width", [0.35, 0.85])
def test_bars_of_several_parts_are_refused(values, width):
    chart = draw(values, Style(is_bar=True, bar_width=width))
    knowing = KnowingReader(chart)
    reading.read(knowing, chart.picture)
    (left, right), y = chart.tops[1], chart.places[1, 1]
    middle = int((y + (chart.base if values[0] > 0 else chart.places[0, 1])) / 2)
    parted = replace(chart, picture=inked(chart.picture, slice(middle, middle + 9), slice(int(left), int(right)), 30))
    assert "several parts" in refusal(knowing, parted)


def test_marks_with_error_bars_are_refused_and_steep_lines_are_not():
    steep = draw([0.0, 9.0, 18.0, 0.0, 18.0] * 3, Style(is_bar=False, line=2.2, marker_size=7.0, grid="both"))
    reading.read(KnowingReader(steep), steep.picture)
    chart = draw([3.0, 8.5, 6.25, 7.0], Style(is_bar=False, grid="both"))
    knowing = KnowingReader(chart)
    reading.read(knowing, chart.picture)
    x, y = chart.places[2].astype(int)
    one_side = replace(chart, picture=inked(chart.picture, slice(y, y + 30), slice(x, x + 2), 0))
    reading.read(knowing, one_side.picture)
    assert "error bars" in refusal(knowing, replace(chart, picture=inked(one_side.picture, slice(y - 14, y), x, 0)))


LOSSES = {
    "first": lambda label: label[1:],
    "last": lambda label: label[:-1],
    "point": lambda label: label.replace(".", ""),
    "equal": lambda label: re.sub(r"(.)\1+", r"\1", label),
}


def test_most_losses_from_every_label_are_noticed_by_their_ink_and_no_honest_reading_is():
    tried = noticed = 0
    series = [[3.4, 2.9, 3.1], [80_000.0, 10_000.0, 45_000.0], [10.3, 10.9, 10.45], [160.0, 172.0, 181.0]]
    for values, family, font in itertools.product(series, ("DejaVu Sans", "DejaVu Serif", "STIXGeneral"), (7.0, 10.0)):
        chart = draw(values, Style(is_bar=False, family=family, font=font))
        honest = KnowingReader(chart)
        reading.read(honest, chart.picture)
        for loses in LOSSES.values():
            losing = KnowingReader(chart)
            losing.labels = [loses(label) for label in honest.labels]
            if losing.labels == honest.labels or not all(losing.labels):
                continue
            try:
                reading.read(losing, chart.picture)
            except ChartRefused as refused:
                if "more letters" not in str(refused):
                    continue  # noticed already by what the labels say
                noticed += 1
            tried += 1
    assert tried > 30
    assert noticed / tried > 0.6


def test_a_label_that_the_picture_cuts_off_is_refused():
    chart = draw([12_500.0, 20_000.0, 15_500.0], Style(is_bar=False, font=9))
    left = round(chart.edge) - 30  # in the middle of its labels
    moved = np.full_like(chart.picture, 255)
    moved[:, : -left or None] = chart.picture[:, left:]
    shifted = replace(
        chart,
        picture=moved,
        edge=chart.edge - left,
        places=chart.places - [left, 0],
        below=[x - left for x in chart.below],
    )
    knowing = KnowingReader(shifted)
    knowing.labels = [label[1:] for label in knowing.labels]
    assert "cut off" in refusal(knowing, shifted)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["1.000", "1.250", "1.500"], "two ways"),
        (["0", "1.250", "2.500"], "two ways"),
        (["1.000", "2.000", "3.000"], "two ways"),
        (["1000", "2,000", "3,000"], "two ways"),
        (["0,125", "0,250", "0,375"], "no plain number"),
        (["05", "10", "15"], "no plain number"),
        (["1.5", "2.5", "3.5%"], "no plain number"),
    ],
)
def test_labels_that_could_mean_something_else_are_refused(words, said):
    with pytest.raises(ChartRefused, match=said):
        labels._parsed(words)


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (["0.00", "0.25"], [0.0, 0.25]),
        (["0", "1,000", "-2,500"], [0.0, 1000.0, -2500.0]),
        (["0.000", "0.125"], [0.0, 0.125]),
        (["500", "1,000"], [500.0, 1000.0]),
        (["1.025", "1.050", "1.075"], [1.025, 1.05, 1.075]),
        (["0.500", "1.000", "1.500"], [0.5, 1.0, 1.5]),
        (["0", "12.5", "25"], [0.0, 12.5, 25.0]),
    ],
)
def test_plain_labels_are_numbers(words, numbers):
    assert labels._parsed(words) == (numbers, False)


@pytest.mark.parametrize(
    ("number", "wrong"),
    [(0, math.nan), (1, math.nan), (2, math.nan), (1, math.inf), (2, -math.inf), (1, 1e3), (2, -1e3)],
)
def test_a_reader_that_points_nowhere_is_refused(chart, number, wrong):
    class Nowhere(KnowingReader):
        def __call__(self, charts_BHW):
            found = super().__call__(charts_BHW)
            found[..., number] = torch.where(found[..., :1] > 0, wrong, found[..., number : number + 1])[..., 0]
            return found

    with pytest.raises(ChartRefused):
        reading.read(Nowhere(chart), chart.picture)


def test_a_mark_at_the_edge_of_the_picture_is_refused_and_nothing_else_is_raised(chart):
    for kind, x, y in itertools.product((VALUE, X_TICK, Y_TICK), (3.0, 316.0), (3.0, 188.0)):
        knowing = KnowingReader(chart)
        knowing.marks.append((kind, x, y))
        refusal(knowing, chart)


def test_a_value_on_the_border_of_two_columns_of_squares_is_found():
    for shift in np.linspace(0, 4, 9):
        style = Style(is_bar=False, box=(0.21 + shift / 320, 0.16, 0.7, 0.7))
        chart = draw([3.0, 8.5, 6.25, 7.0, 5.0], style)
        found = reading.read(KnowingReader(chart), chart.picture)
        assert np.abs(found.values - [3.0, 8.5, 6.25, 7.0, 5.0]).max() < 0.01 * found.pixel


def test_files_of_another_size_are_refused(chart):
    file = drawing.to_png(chart.picture)
    assert reading.decode(file).shape == chart.picture.shape
    smaller = drawing.to_png(chart.picture[:-1])
    with pytest.raises(InvalidPicture, match=r"^is not 192 pixels high and 320 wide"):
        reading.decode(smaller)


@pytest.mark.slow
def test_the_reader_that_comes_with_confide_reads_charts_it_never_saw(reader):
    rng, apart, refused = np.random.default_rng([77, 0]), [], 0
    for number in range(24):
        style = drawing.made_up_style(rng)
        values = drawing.made_up_values(rng, is_bar=style.is_bar)
        chart = draw(values.tolist(), style)
        try:
            found = reading.read(reader, chart.picture)
        except ChartRefused:
            refused += 1
            continue
        assert len(found.values) == len(values), number
        apart += (np.abs(found.values - values) / abs(np.polyfit(chart.places[:, 1], values, 1)[0])).tolist()
    assert refused <= 5
    assert np.mean(np.array(apart) <= 1) > 0.95
    assert np.median(apart) < 0.35


@pytest.mark.slow
def test_hostile_pictures_are_read_or_refused_and_nothing_else(reader):
    rng = np.random.default_rng(3)
    for case in range(CASES):
        picture = rng.integers(0, 256, (192, 320), dtype=np.uint8)
        if case % 3 == 0:
            picture[:] = case % 256
        elif case % 3 == 1:
            picture = np.where(picture > 250, 0, 255).astype(np.uint8)
        with pytest.raises(ChartRefused):
            reading.read(reader, picture)

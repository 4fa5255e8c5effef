import builtins

import numpy as np
import pytest

from confide.models.charts import drawing
from confide.models.charts.drawing import Style, draw, letters, made_up_chart, to_png
from confide.models.charts.reader import HEIGHT, WIDTH
from confide.models.charts.reading import decode
from confide.models.errors import InvalidChart


def test_a_marker_is_inked_around_where_its_value_is_said_to_be():
    plain = Style(is_bar=False, line=0.0, marker="s", marker_size=5.0, colour="k")
    chart = draw([1.0, 4.0, 2.5], plain)
    ink = 255 - chart.picture.astype(float)
    down, across = np.indices(ink.shape) + 0.5
    for x, y in chart.places:
        near = ink * ((abs(across - x) < 5) & (abs(down - y) < 5))
        assert abs((near * across).sum() / near.sum() - x) < 0.6
        assert abs((near * down).sum() / near.sum() - y) < 0.6


def test_a_bar_ends_at_its_value_and_its_sides():
    chart = draw([1.0, 4.0, 2.5], Style(is_bar=True, colour="k"))
    for (x, y), (left, right) in zip(chart.places, chart.tops, strict=True):
        assert chart.picture[round(y) + 2, round(x)] == 0
        assert chart.picture[round(y) - 2, round(x)] == 255
        assert left < x < right
        assert chart.picture[round(y) + 2, round(left) - 2] == 255
        assert chart.picture[round(y) + 2, round(right) + 1] == 255


def test_a_tick_s_label_says_where_it_is_on_the_line_of_the_values():
    values = [12.0, 48.0, 30.0]
    chart = draw(values, Style(is_bar=False))
    slope, level = np.polyfit([y for y, _ in chart.ticks], [float(label) for _, label in chart.ticks], 1)
    assert np.allclose(level + slope * chart.places[:, 1], values)
    for y, _ in chart.ticks:
        assert chart.picture[int(y) - 1 : int(y) + 2, round(chart.edge) - 2].min() < 120  # drawn on whole pixels


def test_a_label_that_is_cut_off_is_told():
    chart = draw([1.0, 2.0], Style(is_bar=False, font=10), written=lambda value, place: "123456789.25")
    assert {label for _, label in chart.ticks} == {""}


def test_a_multiplier_is_told_with_its_place():
    assert draw([1.0, 2.0], Style(is_bar=False), has_multiplier=True).multiplier is None  # matplotlib needs none
    chart = draw([3e9, 5e9], Style(is_bar=False), has_multiplier=True)
    x, y = chart.multiplier
    assert (chart.picture[round(y) - 4 : round(y) + 4, round(x) - 4 : round(x) + 4] < 150).any()
    assert draw([3e9, 5e9], Style(is_bar=False)).multiplier is None


def test_made_up_charts_have_multipliers_ticks_left_out_and_bars_that_hang():
    charts = [made_up_chart(np.random.default_rng([4, number])) for number in range(120)]
    assert 3 <= sum(chart.multiplier is not None for chart in charts) <= 20
    assert 4 <= sum(len(chart.below) < len(chart.places) for chart in charts) <= 25
    hanging = [
        chart
        for chart in charts
        if chart.tops[0, 0] < chart.tops[0, 1]
        and len({chart.picture[int(y) + 2, int(x)] < 255 for x, y in chart.places}) == 2
    ]
    assert hanging


def test_made_up_charts_depend_on_their_generator_alone_and_differ():
    first, again, other = (made_up_chart(np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first.picture, again.picture)
    assert not np.array_equal(first.picture, other.picture)


def test_made_up_labels_have_every_shape_that_real_ones_have():
    shapes = set()
    for seed in range(150):
        for _, label in made_up_chart(np.random.default_rng(seed)).ticks:
            shapes.add("".join("9" if letter.isdigit() else letter for letter in letters(label)))
    wanted = ["9", "99", "999", "9999", "99999", "9.9", "99.9", "9.99", "99.99", "9.999", "99,999"]
    assert [shape for shape in wanted if shape not in shapes] == []
    assert all(any(sign in shape for shape in shapes) for sign in "?%-")


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        ("\N{MINUS SIGN}2.5", "-2.5"),
        ("10,000", "10,000"),
        ("12.5%", "12.5%"),
        ("3k", "3?"),
        ("$40", "?40"),
        (r"$\mathdefault{10^{2}}$", "10?"),
        ("$10^{-1}$", "?10??"),
        ("5 bn", "5??"),
    ],
)
def test_letters_of_a_label_are_its_signs_and_one_for_all_others(label, wanted):
    assert letters(label) == wanted


def test_a_chart_is_written_as_a_picture_that_is_read_the_same():
    chart = draw([1.0, 4.0, 2.5], Style(is_bar=True))
    assert np.array_equal(decode(to_png(chart.picture)), chart.picture)
    assert chart.picture.shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize("values", [[1.0], [], [1.0, float("nan")], [[1.0, 2.0]]])
def test_what_is_no_series_is_not_drawn(values):
    with pytest.raises(InvalidChart, match="two values or more"):
        draw(values, Style(is_bar=False))


def test_without_matplotlib_it_is_said_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **named):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InvalidChart, match=r"confide\[charts\]"):
        drawing.draw([1.0, 2.0], Style(is_bar=False))

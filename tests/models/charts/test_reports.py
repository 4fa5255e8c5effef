from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from confide.models.charts import reports
from confide.models.charts.reading import Reading
from confide.models.errors import InvalidChart


def reading(*values, pixel=0.03, is_percent=False):
    return Reading(np.array(values), pixel, (0.0, 1.0, 2.0), is_percent)


@drawn(st.floats(-1e6, 1e6), st.floats(1e-4, 1e4))
def test_a_figure_is_rounded_to_the_power_of_ten_below_a_pixel(value, pixel):
    said, steps = Decimal(reports.said(value, pixel)), [Decimal(10) ** power for power in range(-9, 9)]
    step = max(step for step in steps if step <= Decimal(pixel) * (1 + Decimal("1e-11")))
    assert said % step == 0
    assert abs(said - Decimal(value)) <= step / 2


@pytest.mark.parametrize(
    ("value", "pixel", "said"),
    [(10.4567, 0.03, "10.46"), (45_678.0, 140.0, "45700"), (-0.004, 0.01, "0.00"), (0.5, 1.0, "0")],
)
def test_figures_are_said_without_false_digits(value, pixel, said):
    assert reports.said(value, pixel) == said


def test_a_report_has_each_figure_and_the_word_for_the_change():
    text = reports.sentences("albumin", reading(3.51, 2.87, 3.9, 3.1))
    assert text == (
        "albumin: 4 values. The first is 3.51, and the last, 3.10, is lower. The lowest is 2.87, the highest 3.90. "
        "Read from a chart, in which a pixel is worth up to 0.03."
    )


@pytest.mark.parametrize(
    ("last", "word"), [(3.51, "about the same"), (3.56, "about the same"), (3.58, "higher"), (3.44, "lower")]
)
def test_a_change_within_two_pixels_is_none(last, word):
    assert reports.trend(reading(3.51, 9.0, last)) == word


def test_percent_stays_with_each_figure():
    words = reports.given("interest", reading(12.0, 15.0, pixel=0.2, is_percent=True))
    assert (words["first"], words["last"], words["pixel"]) == ("12.0%", "15.0%", "0.2%")


@pytest.mark.parametrize(
    ("pixel", "within"),
    [(0.03, "0.03"), (0.0149, "0.02"), (1.49, "2"), (149.0, "200"), (0.00003, "0.00003"), (9.7, "10"), (0.1, "0.1")],
)
def test_how_exact_it_is_is_rounded_up(pixel, within):
    assert reports.given("albumin", reading(1.0, 2.0, pixel=pixel))["pixel"] == within


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("albumin", "albumin"),
        ("ward 7: the first is 99.9", "ward the first is"),
        ("{name}", "name"),
        ("x\x1b[31m", "x m"),
        ("2024", "chart"),
        ("½ Ⅷ 四", "四"),
        ("chart-0", "chart"),
        ("Blut_druck (links)", "Blut_druck (links)"),
    ],
)
def test_a_name_has_no_figures(text, name):
    assert reports.named(text) == name
    assert reports.given(name, reading(1.0, 2.0))["name"] == name


def test_a_report_under_a_name_with_figures_is_refused():
    with pytest.raises(InvalidChart, match="letters, blanks"):
        reports.sentences("ward 7", reading(1.0, 2.0))


def test_what_is_given_fills_the_template_of_a_report_form():
    import re

    words = reports.given("albumin", reading(3.51, 2.87))
    slots = re.findall(r"\{([a-z]+)(?::[^}]*)?\}", reports.TEMPLATE)
    assert sorted(slots) == sorted([*words, "finding"])

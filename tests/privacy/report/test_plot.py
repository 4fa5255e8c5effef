import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.privacy.report.plot import (
    Plot,
    between,
    linear,
    log_ticks,
    logarithmic,
    nice_top,
    ticks,
    time_ticks,
    whole_ticks,
)


def test_a_linear_axis_takes_its_ends_to_the_ends_and_goes_no_further():
    place = linear(2, 4, 100, 0)
    assert [place(value) for value in (2, 3, 4, 1, 9)] == [100, 50, 0, 100, 0]


def test_a_logarithmic_axis_gives_every_decade_the_same_length():
    place = logarithmic(1e-3, 1, 0, 300)
    assert [place(value) for value in (1e-3, 1e-2, 1e-1, 1)] == pytest.approx([0, 100, 200, 300])
    assert place(0.0) == 0


@pytest.mark.parametrize("value", [0.0, 1e-4, 0.18, 1, 7.9, 64, 1234, math.inf])
def test_an_axis_ends_above_what_it_shows_and_has_a_few_round_ticks(value):
    top = nice_top(value)
    found = ticks(top)
    assert top > value or math.isinf(value)
    assert 4 <= len(found) <= 8
    assert found[0][0] == 0
    assert found[-1][0] == pytest.approx(top)


@pytest.mark.parametrize("last", [1, 7, 41, 1000, 999_999])
def test_whole_ticks_are_whole(last):
    found = [value for value, _ in whole_ticks(last)]
    assert found[0] == 0
    assert found[-1] <= last
    assert all(value == int(value) for value in found)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (0.8123, 0.8127), (0.5, 0.5), (0.61, 0.97), (0.849, 0.871)])
def test_an_axis_between_two_values_reaches_both_in_a_few_round_steps(ends):
    low, high = ends
    found = [value for value, _ in between(low, high)]
    assert found[0] <= low + 1e-9
    assert found[-1] >= high - 1e-9
    assert 2 <= len(found) <= 10
    assert [float(text) for _, text in between(low, high)] == pytest.approx(found)


def test_ticks_of_a_logarithmic_axis_are_ones_twos_and_fives_within_its_ends():
    assert [value for value, _ in log_ticks(0.3, 12)] == pytest.approx([0.5, 1, 2, 5, 10])
    assert [text for _, text in log_ticks(0.05, 0.2)] == ["0.05", "0.1", "0.2"]


@pytest.mark.parametrize("seconds", [60, 3_600, 86_400, 40 * 86_400, 3000 * 86_400])
def test_times_on_an_axis_are_round_and_few(seconds):
    first = datetime(2026, 1, 12, 8, 0, 7, tzinfo=UTC).timestamp()
    found = time_ticks(first, first + seconds)
    assert 1 <= len(found) <= 7
    assert all(first <= place <= first + seconds for place, _ in found)
    assert len({text for _, text in found}) == len(found)


@pytest.mark.parametrize("most", [1, 2, 5])
@given(first=st.floats(0, 4e9), seconds=st.floats(0, 4e8))
def test_there_is_a_time_on_every_axis(most, first, seconds):
    found = [place for place, _ in time_ticks(first, first + seconds, most)]
    assert 1 <= len(found) <= most + 1 or seconds > 3650 * 86_400 * most  # beyond ten years there is no rounder step
    assert all(first <= place <= first + seconds for place in found)


def test_names_in_the_margin_never_overlap_and_text_is_escaped():
    plot = Plot(width=100, height=100, left=0, right=0, top=0, bottom=0)
    plot.name("a", 50, "<one>")
    plot.name("b", 50, "two")
    text = str(plot.svg("k", "<title>", "&"))
    assert 'y="54.0"' in text
    assert 'y="68.0"' in text
    assert "&lt;one&gt;" in text
    assert "<title>&lt;title&gt;</title><desc>&amp;</desc>" in text

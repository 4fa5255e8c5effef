from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.models.rounding import figures_up, power_of_ten, rounded_down, rounded_up


@pytest.mark.parametrize(
    ("bound", "up", "down"),
    [
        (2.7208, "2.73", "2.72"),
        (2.72, "2.72", "2.72"),
        (3.0, "3.00", "3.00"),
        (0.0, "0.00", "0.00"),
        (0.0123, "0.013", "0.012"),
        (1e-7, "0.00000010", "0.00000010"),
        (0.0999, "0.100", "0.099"),
        (float("inf"), "∞", "∞"),
    ],
)
def test_bounds_are_rounded_to_the_side_on_which_they_hold(bound, up, down):
    assert (rounded_up(bound), rounded_down(bound)) == (up, down)


@given(st.floats(min_value=0, max_value=1e6), st.integers(min_value=0, max_value=6))
def test_no_digit_is_lost_on_the_wrong_side(bound, decimals):
    up, down = (Decimal(write(bound, decimals)) for write in (rounded_up, rounded_down))
    assert down <= Decimal(repr(bound)) <= up
    assert up - down <= Decimal(1).scaleb(-decimals)


@pytest.mark.parametrize(
    ("bound", "text"),
    [
        (1.2349e-5, "1.24e-05"),
        (1.1e-5, "1.1e-05"),
        (1e-5 + 1e-6, "1.1e-05"),
        (9.999e-6, "1e-05"),
        (0.0, "0"),
        (1e-3, "0.001"),
        (0.12301, "0.124"),
    ],
)
def test_a_small_bound_keeps_its_first_digits_and_never_shrinks(bound, text):
    assert figures_up(bound) == text
    assert float(text) >= bound * (1 - 1e-12)


@pytest.mark.parametrize(
    ("value", "text"), [(1e-5, "10⁻⁵"), (2.5e-6, "2.5 · 10⁻⁶"), (1e-12, "10⁻¹²"), (0.0001234, "1.234 · 10⁻⁴")]
)
def test_a_small_number_is_written_as_a_power_of_ten(value, text):
    assert power_of_ten(value) == text

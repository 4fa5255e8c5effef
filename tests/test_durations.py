import pytest

from confide.durations import duration


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "0 s"), (0.4, "0 s"), (59.6, "60 s"), (119, "119 s"), (120, "2 min"), (401, "7 min"), (7199, "120 min"),
        (7200, "2 h"), (11_001, "3 h"), (172_799, "48 h"), (172_800, "2 d"), (40 * 86_400, "40 d"),
    ],
)  # fmt: skip
def test_a_span_is_told_in_the_largest_unit_of_which_it_has_two(seconds, told):
    assert duration(seconds) == told

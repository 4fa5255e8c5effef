"""Protocol numbers: what two programs have in common, and what is read of another one's word."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.versions import MOST_BYTES, OLDEST, OWN, PROTOCOL, Speaks, apart

RANGES = st.tuples(st.integers(1, 9), st.integers(0, 4)).map(
    lambda pair: Speaks(version="1", oldest=pair[0], newest=sum(pair))
)


@given(st.lists(RANGES, min_size=1, max_size=4))
def test_the_common_number_is_the_largest_that_all_speak(every: list[Speaks]) -> None:
    spoken = set.intersection(*({*range(each.oldest, each.newest + 1)} for each in every))
    assert every[0].common(*every[1:]) == max(spoken, default=None)


def test_this_version_speaks_the_number_before_its_own_from_protocol_3_on() -> None:
    assert 1 <= OLDEST <= max(2, PROTOCOL - 1)


@given(RANGES)
def test_what_is_told_is_read_with_whatever_a_later_version_adds(spoken: Speaks) -> None:
    assert Speaks.read(spoken.text()) == spoken
    assert Speaks.read(json.dumps(json.loads(spoken.text()) | {"more": [1]}).encode()) == spoken
    assert len(OWN.text()) <= MOST_BYTES


GOOD = {"version": "1.0", "oldest": 1, "newest": 2}


@pytest.mark.parametrize(
    "told",
    [
        b"", b"\xff", b"[" * MOST_BYTES, b"null", b"[]", b" " * (MOST_BYTES + 1),
        *(json.dumps(GOOD | changed).encode() for changed in (
            {"oldest": 0}, {"oldest": 3}, {"newest": 2.0}, {"newest": True, "oldest": True}, {"newest": 10**9},
            {"newest": "2"}, {"version": "1\n2"}, {"version": 1}, {"version": "1" * 33}, {"version": None},
        )),
        *(json.dumps({name: value for name, value in GOOD.items() if name != left}).encode() for left in GOOD),
    ],
)  # fmt: skip
def test_anything_else_is_no_version(told: bytes) -> None:
    with pytest.raises(ValueError, match=r"version") as caught:
        Speaks.read(told)
    assert "1\n2" not in str(caught.value)


@given(st.binary(max_size=80) | st.text(max_size=80))
def test_the_decoder_meets_anything_with_one_error(data: bytes | str) -> None:
    try:
        Speaks.read(data)
    except ValueError:
        return


def test_the_one_whose_newest_is_too_old_is_upgraded_first() -> None:
    older, newer = Speaks(version="1", oldest=1, newest=1), Speaks(version="3", oldest=2, newest=3)
    assert apart("svi", older, newer) == (
        "svi runs confide 1 (protocol 1), the coordinator runs confide 3 (protocols 2 to 3), and no protocol is common "
        "to both: upgrade svi first"
    )
    assert apart("svi", newer, older).endswith("upgrade the coordinator first")

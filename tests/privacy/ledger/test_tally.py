import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from confide.privacy.ledger.tally import Kind, Tally

from ..ledgers import STUDY, release

KINDS = [
    Kind(study, purpose, is_settled, release(sites=sites))
    for study in (STUDY, "cd" * 32)
    for purpose in ("update", "evaluation")
    for is_settled in (False, True)
    for sites in (3, 4)
]


def clock(second: int) -> str:
    return (datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture
def random_history():
    """A tally after 200 charges, half of them changed later, beside the plain list of what they are."""
    draw, tally, plain = random.Random(3), Tally(), []
    for second in range(200):
        plain.append(draw.choice(KINDS))
        assert tally.add(plain[-1], clock(second)) == second
        if draw.random() < 0.5:
            place = draw.randrange(len(plain))
            plain[place] = draw.choice(KINDS)
            tally.change(place, plain[place])
    return tally, plain


def test_counts_are_those_of_the_charges_one_by_one(random_history):
    tally, plain = random_history
    assert len(tally) == 200
    assert tally.kinds() == Counter(plain)
    assert tally.releases() == Counter(kind.release for kind in plain)


def test_kinds_come_in_the_order_of_their_first_charges(random_history):
    tally, plain = random_history
    assert list(tally.kinds()) == list(dict.fromkeys(plain))


@pytest.mark.parametrize("charges", [1, 2, 57, 200])
def test_the_first_charges_are_counted_as_they_are_today(random_history, charges):
    tally, plain = random_history
    assert tally.first(charges) == Counter(kind.release for kind in plain[:charges])
    assert tally.time(charges - 1) == clock(charges - 1)


def test_a_kind_that_all_charges_have_left_is_not_shown():
    tally = Tally()
    place = tally.add(KINDS[0], clock(0))
    tally.change(place, KINDS[1])
    assert tally.kinds() == {KINDS[1]: 1}
    assert Tally().kinds() == Tally().releases() == {}


def test_a_time_that_does_not_exist_is_refused_and_leaves_the_tally_as_it_was():
    tally = Tally()
    with pytest.raises(ValueError, match="month"):
        tally.add(KINDS[0], "2026-13-01T00:00:00Z")
    assert len(tally) == 0
    assert tally.kinds() == {}


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "0500-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_every_time_that_an_entry_may_have_is_told_as_it_was_written(time):
    tally = Tally()
    assert tally.time(tally.add(KINDS[0], time)) == time

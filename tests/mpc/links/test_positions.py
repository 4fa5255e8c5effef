"""An aggregator's memory of sites' ledgers, over random histories of a ledger that is, or is not, rolled back."""

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.mpc.errors import InvalidField, JournalBroken
from confide.mpc.links.positions import History, Positions
from confide.mpc.sharing.position import Position

SITE, OTHER = "ab" * 32, "cd" * 32
NOTHING = History(0, b"")


def record(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def place(records, count=None, generation=0):
    """The position after the first `count` records, by the definition: a hash chain over all of them."""
    digest = bytes(32)
    label = b"confide/mpc/position/1"
    for each in records[:count]:
        framed = b"".join(len(part).to_bytes(4, "big") + part for part in (label, digest, each))
        digest = hashlib.sha256(framed).digest()
    return Position(generation, len(records) if count is None else count, digest)


def history(records, start=0):
    return History(start, b"".join(records[start:]))


LEDGER = [record(f"entry {i}") for i in range(20)]
FORK = LEDGER[:9] + [record(f"another entry {i}") for i in range(9, 40)]  # as it goes on from a copy of nine entries


@pytest.fixture
def seen(tmp_path):
    positions = Positions(tmp_path / "positions")
    yield positions
    positions.close()


def take(positions, position, told, site=SITE):
    """What an aggregator does with one update."""
    is_allowed = positions.allow(site, position, told)
    if is_allowed and position is not None:
        positions.accept({site: position})
    return is_allowed


def test_a_ledger_that_was_rolled_back_is_refused_at_every_length(seen):
    assert take(seen, place(LEDGER, 12), NOTHING)
    for count in range(10, 41):
        told = FORK[:count]
        for start in (0, 9, 12):
            assert not take(seen, place(FORK, count), history(told, start) if start < count else NOTHING)
    assert take(seen, place(LEDGER, 15), history(LEDGER))


def test_no_false_history_helps_a_ledger_that_was_rolled_back(seen):
    """Whoever relays may tell any records: the true ones, a mixture, or none."""
    assert take(seen, place(LEDGER, 12), NOTHING)
    mixture = History(0, b"".join(LEDGER[:12] + FORK[12:30]))
    for told in (history(LEDGER), history(FORK), mixture, NOTHING, History(12, b"".join(FORK[12:30]))):
        assert not take(seen, place(FORK, 30), told)


@given(st.data())
def test_honest_updates_are_taken_in_whatever_order_they_come(tmp_path_factory, data):
    positions = Positions(tmp_path_factory.mktemp("seen") / "positions")
    counts = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=12))
    accepted = [0]
    for step, count in enumerate(counts):
        newest = data.draw(st.integers(max(*accepted, count), 20), label=f"newest record at step {step}")
        start = data.draw(st.sampled_from([known for known in accepted if known < count] or [0]))
        assert take(positions, place(LEDGER, count), history(LEDGER[:newest], start))
        accepted.append(count)
    positions.close()


@given(st.integers(0, 2**32))
def test_of_two_ledgers_that_part_only_one_is_ever_taken(tmp_path_factory, seed):
    """Random updates of a ledger and of its fork, with histories of either: what is accepted lies on one chain."""
    rng = random.Random(seed)
    positions = Positions(tmp_path_factory.mktemp("seen") / "positions")
    taken = set()
    for _ in range(12):
        chain = rng.choice([LEDGER, FORK])
        told = rng.choice([LEDGER, FORK])
        start = rng.choice([0, *(count for count, _ in taken)])
        position = place(chain, rng.randint(1, 20))
        if take(positions, position, history(told, min(start, 20))):
            taken.add((position.count, position.digest))
    positions.close()
    chains = [{(place(one, n).count, place(one, n).digest) for n in range(1, 21)} for one in (LEDGER, FORK)]
    assert any(taken <= chain for chain in chains)


def test_the_same_update_again_needs_no_history(seen):
    assert take(seen, place(LEDGER, 12), NOTHING)
    assert take(seen, place(LEDGER, 12), NOTHING)
    assert not take(seen, place(FORK, 12), NOTHING)


def test_a_later_update_without_its_history_is_refused(seen):
    assert take(seen, place(LEDGER, 12), NOTHING)
    assert not take(seen, place(LEDGER, 13), NOTHING)


def test_what_was_seen_outlives_the_process(tmp_path):
    for position, told, is_taken in (
        (place(LEDGER, 12), NOTHING, True),
        (place(FORK, 20), history(FORK[:20]), False),
        (place(LEDGER, 14), history(LEDGER), True),
        (place(LEDGER, 13), history(LEDGER), True),
    ):
        positions = Positions(tmp_path / "positions")
        assert take(positions, position, told) is is_taken
        positions.close()


def test_what_was_seen_of_one_site_says_nothing_of_another(seen):
    assert take(seen, place(LEDGER, 12), NOTHING)
    assert take(seen, place(FORK, 11), NOTHING, OTHER)


def test_a_site_that_owned_up_to_a_loss_begins_anew_and_never_goes_back(seen):
    assert take(seen, place(LEDGER, 12), NOTHING)
    assert take(seen, place(FORK, 12, generation=5), NOTHING)
    assert take(seen, place(FORK, 14, generation=5), history(FORK, 12))
    assert not take(seen, place(LEDGER, 20), history(LEDGER))
    assert not take(seen, place(LEDGER, 15, generation=5), history(LEDGER))
    assert not take(seen, place(LEDGER, 15, generation=4), history(LEDGER))


def test_an_envelope_without_a_position_is_taken_of_an_unknown_site_alone(seen):
    assert take(seen, None, NOTHING)
    assert take(seen, place(LEDGER, 12), NOTHING)
    assert not take(seen, None, NOTHING)


def test_a_damaged_or_forked_file_stops_the_aggregator(tmp_path):
    path = tmp_path / "positions"
    line = '{"positions":{"%s":[0,%d,"%s"]}}\n'
    path.write_text(line % (SITE, 3, "00" * 32) + line % (SITE, 3, "11" * 32))
    with pytest.raises(JournalBroken, match=r"line 2 .* contradicts"):
        Positions(path)
    for damaged in (line % (SITE, 3, "00"), line % ("x", 3, "00" * 32), "[]\n", '{"positions":[]}\n'):
        path.write_text(damaged)
        with pytest.raises(JournalBroken, match=r"line 1 .* is damaged"):
            Positions(path)


@pytest.mark.parametrize("records", [b"1", bytes(33), bytes(32 * (2**20 + 1))])
def test_a_history_of_another_size_is_refused(records):
    with pytest.raises(InvalidField, match="history"):
        History(0, records)


def test_a_site_with_several_keys_is_known_by_the_one_under_which_most_was_accepted(seen):
    first, second, third = "11" * 32, "22" * 32, "33" * 32
    assert seen.newest((second, first)) == second  # of a site that was never seen: the key that it uses
    take(seen, place(LEDGER, 12), NOTHING, first)
    assert {seen.newest(keys) for keys in ((second, first), (third, second, first))} == {first}
    take(seen, place(LEDGER, 14), NOTHING, second)  # by an aggregator that did not know yet that they are one site's
    assert seen.newest((first, second)) == second
    take(seen, place(LEDGER, 3, generation=7), NOTHING, first)
    assert seen.newest((second, first)) == first  # a higher generation is newer, whatever its length

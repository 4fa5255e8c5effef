import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.privacy.errors import LedgerBroken
from confide.privacy.ledger import canonical
from confide.privacy.ledger.chain import START, Entry, Head, check_extension, extend, verify_chain

from ..ledgers import ledger_with, signer

KEY = canonical.public_hex(signer())


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    with ledger_with(tmp_path_factory.mktemp("chain") / "ledger.db") as ledger:
        return ledger.entries()


def parsed(text: str) -> list[Entry]:
    return [Entry.parse(value) for value in json.loads(text)]


def test_a_chain_survives_json(entries):
    text = json.dumps([entry.model_dump(mode="json") for entry in entries])
    assert parsed(text) == entries
    assert verify_chain(parsed(text), KEY) == Head(entries[-1].seq, entries[-1].hash)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_character_is_found_at_its_entry(entries, data):
    at = data.draw(st.integers(0, len(entries) - 1))
    text = json.dumps(entries[at].model_dump(mode="json"))
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from("0123456789abcdefxyz\"{}:, '"))
    changed = text[:place] + other + text[place + 1 :]
    try:
        same = json.loads(changed) == json.loads(text)
    except ValueError:
        return
    if same:
        return
    with pytest.raises(LedgerBroken, match=r"entry (\d+|\?)") as caught:
        verify_chain([*entries[:at], Entry.parse(json.loads(changed)), *entries[at + 1 :]], KEY)
    # a changed sequence number shows under its new name, everything else under the old
    assert f"entry {at}" in str(caught.value) or '"seq"' in text[max(0, place - 12) : place + 8]


@pytest.mark.parametrize("at", [0, 1, 3, 5])
def test_a_missing_entry_is_named(entries, at):
    with pytest.raises(LedgerBroken, match=f"entry {at} "):
        verify_chain([*entries[:at], *entries[at + 1 :]], KEY)


def test_two_swapped_entries_are_named(entries):
    with pytest.raises(LedgerBroken, match="entry 2 is missing or out of order"):
        verify_chain([*entries[:2], entries[3], entries[2], *entries[4:]], KEY)


def test_an_entry_by_another_key_is_named(entries):
    forged = extend(Head(entries[-1].seq, entries[-1].hash), signer(9), entries[-1].time, "settle", {})
    with pytest.raises(LedgerBroken, match=f"entry {forged.seq} is not signed"):
        verify_chain([*entries, forged], KEY)


def test_a_whole_chain_by_another_key_is_not_taken_for_this_one(entries):
    with pytest.raises(LedgerBroken, match="entry 0"):
        verify_chain(entries, canonical.public_hex(signer(2)))
    with pytest.raises(LedgerBroken, match="empty"):
        verify_chain([], KEY)


def test_a_replica_takes_what_follows_and_nothing_else(entries):
    head = check_extension(START, entries[:4], KEY)
    assert check_extension(head, entries[4:], KEY).seq == entries[-1].seq
    assert check_extension(head, [], KEY) == head
    with pytest.raises(LedgerBroken, match="entry 4 is missing"):
        check_extension(head, entries[5:], KEY)
    with pytest.raises(LedgerBroken, match="out of order"):
        check_extension(head, entries[3:], KEY)


def test_a_replica_refuses_a_fork_by_the_right_key(entries):
    head = check_extension(START, entries[:4], KEY)
    before = Head(entries[2].seq, entries[2].hash)
    other = extend(before, signer(), entries[3].time, "budget", {"other": 1})
    fork = extend(Head(other.seq, other.hash), signer(), entries[4].time, "settle", {})
    with pytest.raises(LedgerBroken, match="entry 4 does not follow entry 3"):
        check_extension(head, [fork], KEY)


def test_a_body_that_is_too_long_is_refused(entries):
    with pytest.raises(LedgerBroken, match=r"entry 0 is .* bytes long"):
        extend(START, signer(), entries[0].time, "open", {"site": "x" * (1 << 20)})

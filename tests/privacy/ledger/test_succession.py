"""A ledger whose key is followed by another, and what nobody but the owner of both keys can make."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from confide.privacy.errors import LedgerBroken
from confide.privacy.ledger import backup, canonical, chain, succession
from confide.privacy.ledger.chain import Entry, Head, verify_chain
from confide.privacy.ledger.charges import Books
from confide.privacy.ledger.ledger import Ledger
from confide.privacy.ledger.succession import Succession, hand_over, key_handed_to, keys_of

from ..ledgers import SITES, charge, ledger_with, signer

COORDINATOR, AT = "c0" * 32, "2026-03-01T09:00:00Z"
FIRST, SECOND, THIRD, THIEF = (signer(seed) for seed in (1, 12, 13, 66))
KEYS = {canonical.public_hex(key): key for key in (FIRST, SECOND, THIRD)}
NAMES = tuple(KEYS)


def stated(old=FIRST, new=SECOND, site="east"):
    return Succession.make(site, COORDINATOR, old, new, AT)


@dataclass
class Held:
    """A ledger on disk, and how a process of its site opens it."""

    path: Path

    def open(self, present=FIRST):
        return Ledger.open(self.path, present, "east", keyring=KEYS.get)


@pytest.fixture
def held(tmp_path):
    ledger_with(tmp_path / "east.db").close()  # entries 0 to 6, under the first key
    return Held(tmp_path / "east.db")


@pytest.fixture
def twice(held):
    """The entries of a ledger that was handed over twice, with a charge under each key."""
    with held.open() as ledger:
        ledger.succeed(stated(), SECOND)
        ledger.reserve(charge(4))
        ledger.succeed(stated(SECOND, THIRD), THIRD)
        ledger.settle("run-1", 4, SITES)
        return ledger.entries()


def test_the_statement_is_signed_by_both_keys_over_everything_in_it():
    made = stated()
    assert made.problem() == ""
    message = b'confide key succession 1\n{"coordinator":"%s","new":"%s","old":"%s","site":"east","time":"%s"}' % tuple(
        text.encode() for text in (COORDINATOR, NAMES[1], NAMES[0], AT)
    )
    FIRST.public_key().verify(bytes.fromhex(made.old_signature), message)  # as docs/formats-ledger.md says it
    SECOND.public_key().verify(bytes.fromhex(made.new_signature), message)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"site": "west"}, "earlier"),
        ({"coordinator": "c1" * 32}, "earlier"),
        ({"time": "2026-03-02T09:00:00Z"}, "earlier"),
        ({"new": canonical.public_hex(THIEF)}, "earlier"),
        ({"old": canonical.public_hex(THIEF)}, "earlier"),
        ({"new_signature": "00" * 64}, "later"),
        ({"old_signature": "00" * 64}, "earlier"),
        ({"new": NAMES[0]}, "twice"),
    ],
)
def test_a_changed_statement_holds_nothing(changed, problem):
    assert problem in stated().model_copy(update=changed).problem()


def test_without_the_earlier_key_nobody_makes_one():
    forged = Succession.make("east", COORDINATOR, THIEF, THIEF, AT).model_copy(
        update={"old": NAMES[0], "new": canonical.public_hex(THIEF)}
    )
    assert "earlier" in forged.problem()
    unwilling = stated(FIRST, THIEF).model_copy(update={"new": NAMES[1]})  # a thief hands over to a key not his
    assert unwilling.problem()


def test_keys_follow_one_another_or_not_at_all():
    assert keys_of([stated(), stated(SECOND, THIRD)]) == NAMES
    assert keys_of([]) == ()
    for wrong in ([stated(SECOND, THIRD), stated()], [stated(), stated(SECOND, FIRST)], [stated(), stated()]):
        with pytest.raises(ValueError, match="does not follow"):
            keys_of(wrong)


def test_a_ledger_over_two_successions_is_verified_from_the_first_key(twice):
    head = verify_chain(twice, NAMES[0])
    assert head == Head(twice[-1].seq, twice[-1].hash)
    assert [entry.kind for entry in twice[-4:]] == ["succeed", "reserve", "succeed", "settle"]
    assert Books.replay(twice).keys == NAMES
    signed_by = [next(key for key in NAMES if chain.follow(Head(e.seq - 1, e.previous), [e], key)) for e in twice[:7]]
    assert signed_by == [NAMES[0]] * 7
    with pytest.raises(LedgerBroken, match="given public key"):
        verify_chain(twice, NAMES[2])  # a report names the key that opened it; the verifier then lists the others


def test_a_handover_made_again_from_a_copy_is_the_very_same_entry(held, monkeypatch):
    copy = Held(held.path.with_name("copy.db"))
    copy.path.write_bytes(held.path.read_bytes())
    for each, now in ((held, "2026-03-02T10:00:00Z"), (copy, "2026-04-01T10:00:00Z")):
        monkeypatch.setattr(chain, "now", lambda now=now: now)
        with each.open() as ledger:
            ledger.succeed(stated(), SECOND)
    with held.open() as first, copy.open() as second:
        assert first.entries()[-1] == second.entries()[-1]
        assert first.entries()[-1].time == AT
        second.reserve(charge(4))  # and the copy goes on from what others hold
        assert chain.check_extension(first.head, second.entries(first.head.seq + 1), NAMES[1]) == second.head


def test_entries_after_a_succession_are_of_the_later_key_alone(twice):
    head = Head(twice[7].seq, twice[7].hash)
    reserve = twice[8]
    for wrong in (FIRST, THIEF):
        forged = chain.extend(head, wrong, reserve.time, reserve.kind, reserve.body)
        with pytest.raises(LedgerBroken, match="entry 8 is not signed"):
            verify_chain([*twice[:8], forged], NAMES[0])


def test_nobody_but_its_two_keys_hands_a_ledger_over(twice):
    head = Head(twice[6].seq, twice[6].hash)
    by_thief = stated(FIRST, THIEF).model_copy(update={"old_signature": "00" * 64})
    bodies = [
        hand_over(by_thief, THIEF, head.hash),  # the earlier key did not sign the statement
        hand_over(stated(SECOND, THIRD), THIRD, head.hash),  # of another key than the ledger's
        hand_over(stated(), SECOND, "00" * 32),  # the later key accepted another place
        hand_over(stated(), THIEF, head.hash),  # somebody else accepted
        {"succession": stated().model_dump()},
        {},
    ]
    for body in bodies:
        entry = chain.extend(head, FIRST, AT, succession.KIND, body)
        with pytest.raises(LedgerBroken, match="entry 7"):
            verify_chain([*twice[:7], entry], NAMES[0])
        with pytest.raises(LedgerBroken, match="entry 7"):
            chain.check_links(head, [entry], NAMES[0])


def test_a_succession_of_another_site_or_back_to_an_earlier_key_means_nothing(twice):
    entry = twice[7]
    other = entry.model_copy(update={"body": hand_over(stated(site="west"), SECOND, entry.previous)})
    with pytest.raises(LedgerBroken, match="of site 'west'"):
        Books.replay([*twice[:7], other])
    back = twice[9].model_copy(update={"body": hand_over(stated(SECOND, FIRST), FIRST, twice[9].previous)})
    with pytest.raises(LedgerBroken, match="does not follow"):
        Books.replay([*twice[:9], back])


def test_a_replayed_succession_is_refused(twice):
    """The genuine statement and even its whole body, once more or elsewhere in the chain."""
    for place in (8, 10):
        head = Head(twice[place - 1].seq, twice[place - 1].hash)
        for signing in (FIRST, SECOND, THIRD):
            again = chain.extend(head, signing, AT, succession.KIND, twice[7].body)
            with pytest.raises(LedgerBroken):
                verify_chain([*twice[:place], again], NAMES[0])


def test_the_later_key_vouches_for_the_entries_before_it(twice):
    """Who has the first key alone cannot put another past under a genuine succession."""
    rewritten = list(twice[:6])
    for entry in (*twice[6:7], twice[7]):
        head = Head(rewritten[-1].seq, rewritten[-1].hash)
        rewritten.append(chain.extend(head, FIRST, "2026-02-28T09:00:00Z", entry.kind, entry.body))
    with pytest.raises(LedgerBroken, match="has not accepted"):
        verify_chain(rewritten, NAMES[0])
    assert key_handed_to(twice[7].body, key=NAMES[0], previous=twice[7].previous) == NAMES[1]


def test_a_process_that_has_the_ledger_open_goes_on_under_the_next_key(held):
    with held.open() as daemon, held.open() as command:
        daemon.reserve(charge(4))
        command.succeed(stated(), SECOND)
        daemon.settle("run-1", 4, SITES)
        assert daemon.keys == command.keys == NAMES[:2]
        assert verify_chain(daemon.entries(), NAMES[0]) == command.head


def test_a_succession_is_written_once_and_from_the_key_that_signs_now(held):
    with held.open() as ledger:
        with pytest.raises(LedgerBroken):
            ledger.succeed(stated(SECOND, THIRD), THIRD)
        assert ledger.keys == NAMES[:1]
        ledger.succeed(stated(), SECOND)
        before = ledger.head
        ledger.succeed(stated(), SECOND)
        assert ledger.head == before


def test_a_ledger_opens_under_any_later_key_of_its_site_and_under_no_other(held, twice):
    for present in (FIRST, SECOND, THIRD):
        with held.open(present) as ledger:
            assert (ledger.public_key, ledger.keys) == (NAMES[0], NAMES)
            assert [Entry.parse(entry.model_dump()) for entry in ledger.entries()] == twice
    with Ledger.open(held.path, THIRD, "east"):  # with no other key in the house
        pass
    for lacking in (FIRST, THIEF):
        with pytest.raises(LedgerBroken, match="last succession on, which is not here"):
            Ledger.open(held.path, lacking, "east")


def test_a_copy_over_two_successions_is_written_restored_and_gone_on_with(held, twice, tmp_path):
    with held.open(THIRD) as ledger:
        backup.write(tmp_path / "kept.jsonl", ledger.walk(), ledger.public_key)
    new = tmp_path / "new.db"
    with pytest.raises(LedgerBroken, match="not here"):
        Ledger.restore(new, backup.read(tmp_path / "kept.jsonl"), THIEF, "east")
    assert Ledger.restore(new, backup.read(tmp_path / "kept.jsonl"), THIRD, "east") == (len(twice), len(twice))
    with Ledger.open(new, THIRD, "east") as ledger:
        ledger.reserve(charge(5))
        assert verify_chain(ledger.entries(), NAMES[0]) == ledger.head


def test_an_older_copy_is_brought_up_to_the_newest_over_a_succession(held, twice, tmp_path):
    older, newest = tmp_path / "older.db", tmp_path / "newest.jsonl"
    with held.open(THIRD) as ledger:
        backup.write(newest, ledger.walk(), ledger.public_key)
        backup.write(tmp_path / "older.jsonl", ledger.entries()[:9], ledger.public_key)
    Ledger.restore(older, backup.read(tmp_path / "older.jsonl"), THIRD, "east", keyring=KEYS.get)
    assert Ledger.restore(older, backup.read(newest), THIRD, "east") == (len(twice) - 9, len(twice))

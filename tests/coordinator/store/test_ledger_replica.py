import threading
from itertools import pairwise

import pytest

from confide.coordinator.errors import ReplicaBroken
from confide.coordinator.store.ledger_replica import LedgerReplica
from confide.coordinator.store.tables import LedgerRow, NodeRow, SuccessionRow
from confide.privacy.ledger import canonical
from confide.privacy.ledger.chain import Head, extend, now
from confide.privacy.ledger.ledger import Ledger
from confide.privacy.ledger.succession import Succession

from ...privacy.ledgers import SITES, charge, ledger_with, signer


@pytest.fixture
def replica(empty_store):
    return LedgerReplica(empty_store)


@pytest.fixture
def ledger(tmp_path):
    """Three charged rounds, two of them settled: entries 0 to 6."""
    with ledger_with(tmp_path / "east.db") as opened:
        yield opened


def test_a_ledger_is_replicated_entry_by_entry(replica, ledger):
    entries = ledger.entries()
    for number, entry in enumerate(entries):
        assert replica.length("east") == number
        replica.extend("east", ledger.public_key, [entry])
    assert replica.entries("east") == entries


def test_a_replica_survives_a_restart(replica, ledger, empty_store):
    replica.extend("east", ledger.public_key, ledger.entries())
    assert LedgerReplica(empty_store).entries("east") == ledger.entries()


def test_a_site_is_asked_only_for_what_is_new(replica, ledger):
    replica.extend("east", ledger.public_key, ledger.entries())
    ledger.settle("run-1", 3, SITES)
    replica.extend("east", ledger.public_key, ledger.entries(replica.length("east")))
    assert replica.entries("east") == ledger.entries()


def test_repeats_are_skipped(replica, ledger):
    entries = ledger.entries()
    replica.extend("east", ledger.public_key, entries[:4])
    replica.extend("east", ledger.public_key, entries[:4])
    replica.extend("east", ledger.public_key, entries[2:])
    assert replica.entries("east") == entries


def test_no_entries_change_nothing(replica, ledger):
    replica.extend("east", ledger.public_key, [])
    assert replica.length("east") == 0


@pytest.mark.parametrize(
    ("kind", "body"),
    [("reserve", {}), ("settle", {"run": "run-1", "round": [], "summed": []}), ("unheard", {}), ("open", {})],
)
def test_a_signed_entry_without_meaning_is_refused_and_spoils_nothing(replica, ledger, empty_store, kind, body):
    """One site could else stop every driver and every report, for good."""
    entries = ledger.entries()
    replica.extend("east", ledger.public_key, entries[:5])
    empty = extend(Head(entries[4].seq, entries[4].hash), signer(), now(), kind, body)
    with pytest.raises(ReplicaBroken, match="east: its ledger does not hold together: entry 5"):
        replica.extend("east", ledger.public_key, [empty])
    for found in (replica, LedgerReplica(empty_store)):
        assert found.length("east") == 5
        assert found.has_charge("east", "run-1", 1)
    replica.extend("east", ledger.public_key, entries)
    assert replica.open_rounds("east", "run-1") == {3}


def test_stored_entries_that_do_not_hold_together_are_told_with_their_site(replica, ledger, empty_store):
    replica.extend("east", ledger.public_key, ledger.entries()[:5])
    with empty_store.session() as session:
        session.delete(session.get(LedgerRow, ("east", 0)))
    with pytest.raises(ReplicaBroken, match="east: what is stored of its ledger does not hold together"):
        LedgerReplica(empty_store).has_charge("east", "run-1", 1)


@pytest.mark.parametrize("start", [1, 3], ids=["at the beginning", "after what is known"])
def test_a_gap_is_refused(replica, ledger, start):
    replica.extend("east", ledger.public_key, ledger.entries()[: start - 1])
    with pytest.raises(ReplicaBroken, match=f"east: .* entry {start - 1} is missing"):
        replica.extend("east", ledger.public_key, ledger.entries()[start:])
    assert replica.length("east") == start - 1


def test_a_second_ledger_by_the_same_key_is_refused(replica, ledger, tmp_path):
    replica.extend("east", ledger.public_key, ledger.entries()[:3])
    with Ledger.open(tmp_path / "fork.db", ledger._signer(), "east") as fork:
        fork.set_budget(ledger.budget("thyroid", "patient"))
        fork.reserve(charge(0, run="run-2"))
        fork.reserve(charge(1, run="run-2"))
        with pytest.raises(ReplicaBroken, match="entry 3 does not follow entry 2"):
            replica.extend("east", ledger.public_key, fork.entries())
    assert replica.entries("east") == ledger.entries()[:3]


def test_entries_of_another_key_are_refused(replica, ledger, tmp_path):
    with ledger_with(tmp_path / "foreign.db", seed=2) as foreign, pytest.raises(ReplicaBroken, match="not signed"):
        replica.extend("east", ledger.public_key, foreign.entries())
    assert replica.length("east") == 0


@pytest.mark.parametrize("place", [0, 3, 6])
def test_one_changed_entry_refuses_all_of_them(replica, ledger, place):
    entries = ledger.entries()
    entries[place] = entries[place].model_copy(update={"time": "2020-01-01T00:00:00Z"})
    with pytest.raises(ReplicaBroken, match=f"entry {place} was changed"):
        replica.extend("east", ledger.public_key, entries)
    assert replica.length("east") == 0


def test_sites_do_not_mix(replica, ledger, tmp_path):
    replica.extend("east", ledger.public_key, ledger.entries())
    with ledger_with(tmp_path / "west.db", site="west", seed=2, rounds=1) as west:
        replica.extend("west", west.public_key, west.entries())
        assert replica.entries("west") == west.entries()
    assert replica.entries("east") == ledger.entries()


def test_open_rounds_are_those_charged_whose_outcome_the_site_has_not_signed(replica, ledger):
    replica.extend("east", ledger.public_key, ledger.entries())
    assert replica.open_rounds("east", "run-1") == {3}
    assert replica.open_rounds("east", "run-2") == set()
    assert replica.open_rounds("west", "run-1") == set()


def test_a_charge_is_there_once_the_site_signed_it(replica, ledger):
    replica.extend("east", ledger.public_key, ledger.entries())
    assert [replica.has_charge("east", "run-1", number) for number in range(4)] == [False, True, True, True]
    assert not replica.has_charge("east", "run-2", 0)
    assert not replica.has_charge("west", "run-1", 0)


def test_a_charge_that_another_driver_has_stored_is_seen(replica, ledger, empty_store):
    entries, other = ledger.entries(), LedgerReplica(empty_store)
    replica.extend("east", ledger.public_key, entries[:2])
    assert not replica.has_charge("east", "run-1", 1)
    other.extend("east", ledger.public_key, entries)
    replica.extend("east", ledger.public_key, entries)  # what the site sends to both
    for found in (replica, other):
        assert [found.has_charge("east", "run-1", number) for number in (1, 2, 3)] == [True] * 3
        assert found.open_rounds("east", "run-1") == {3}


def test_two_drivers_that_append_the_same_entries_at_once_append_each_once(ledger, empty_store):
    entries = ledger.entries()
    replicas = [LedgerReplica(empty_store) for _ in range(4)]
    start, failures = threading.Barrier(len(replicas)), []

    def append(replica):
        for number in range(1, len(entries) + 1):
            start.wait(30)
            try:
                replica.extend("east", ledger.public_key, entries[:number])
            except Exception as err:
                failures.append(err)

    threads = [threading.Thread(target=append, args=(replica,)) for replica in replicas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert all(replica.entries("east") == entries for replica in replicas)
    assert all(replica.open_rounds("east", "run-1") == {3} for replica in replicas)


SECOND, THIRD = signer(12), signer(13)


def register(store, *successions):
    """Has the register know the site east by the last key of `successions`."""
    with store.session() as session:
        session.add(NodeRow(name="east", roles="train", identity=successions[-1].new, enrolled_at=1.0))
        for each in successions:
            row = {"old": each.old, "new": each.new, "site": "east", "statement": each.model_dump_json()}
            session.add(SuccessionRow(**row, taken_at=1.0 - len(session.new)))  # as of a clock that was set back


@pytest.fixture
def handed_over(ledger):
    """Successions of the key of `ledger`, which went over to both later keys and charged a round under each."""
    keys = {canonical.public_hex(key): key for key in (signer(), SECOND, THIRD)}
    ledger._keyring, made = keys.get, []
    for number, (old, new) in enumerate(pairwise(keys.values())):
        made.append(Succession.make("east", "c0" * 32, old, new, "2026-03-01T09:00:00Z"))
        ledger.succeed(made[-1], new)
        ledger.reserve(charge(4 + number))
    return made


def test_a_ledger_is_replicated_over_successions_that_the_register_knows(empty_store, ledger, handed_over):
    register(empty_store, *handed_over)
    assert empty_store.identities("east") == ledger.keys
    replica = LedgerReplica(empty_store)
    for entry in ledger.entries():  # one at a time, so that each part begins under another key
        replica.extend("east", ledger.keys[0], [entry])  # by a study that names the first key
    LedgerReplica(empty_store).extend("east", ledger.keys[2], ledger.entries())
    assert replica.entries("east") == ledger.entries()


def test_a_succession_that_the_register_does_not_know_is_not_replicated(empty_store, ledger, handed_over):
    register(empty_store, handed_over[0])
    replica = LedgerReplica(empty_store)
    _, second = (n for n, entry in enumerate(ledger.entries()) if entry.kind == "succeed")
    replica.extend("east", ledger.keys[0], ledger.entries()[:second])
    with pytest.raises(ReplicaBroken, match="which the register does not know"):
        replica.extend("east", ledger.keys[0], ledger.entries())
    assert replica.length("east") == second


def test_after_a_succession_the_earlier_key_extends_nothing(empty_store, ledger, handed_over):
    register(empty_store, *handed_over)
    replica, entries = LedgerReplica(empty_store), ledger.entries()
    first = next(n for n, entry in enumerate(entries) if entry.kind == "succeed")
    replica.extend("east", ledger.keys[0], entries[: first + 1])
    head = Head(first, entries[first].hash)
    forged = extend(head, signer(), now(), "reserve", entries[first + 1].body)
    with pytest.raises(ReplicaBroken, match="not signed"):
        replica.extend("east", ledger.keys[0], [forged])

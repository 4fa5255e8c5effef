"""A party's transfers are made for one order, and a party that cheats in them ends that order alone."""

import socket
from collections import Counter
from functools import partial

import numpy as np
import pytest

from confide.mpc.errors import PartyLost, TransferRejected
from confide.mpc.party import serving
from confide.mpc.sharing.ring import Ring, from_integers

pytestmark = pytest.mark.slow  # three parties over TLS in threads: 2 s


@pytest.fixture
def parties(kit, tmp_path):
    made = [serving.Party(config) for config in kit.configs(tmp_path, 15.0)]
    yield made
    for party in made:
        party._drop_links()
        party._journal.close()
        party._port.close()


@pytest.fixture
def one(kit):
    ring, rng = Ring(32, 10), np.random.default_rng(5)
    vectors = {f"site{i}": from_integers(rng.integers(-300, 300, 100), ring) for i in range(3)}
    return kit.Round(0, ring, 3, 100, rng, norm_bound=6000, vectors=vectors)


def aggregated(kit, party, one, folder, attempt):
    aggregator_id = party.aggregator_id
    try:
        inbox = kit.lay(folder, one.inbox(aggregator_id))
        return party.aggregate(one.order(aggregator_id, attempt=attempt), inbox, {})
    except (TransferRejected, PartyLost) as err:
        return err


def each_twice(kit, parties, one, folder):
    """What the parties' two attempts give, [party, attempt]; each party in a thread of its own, as CrypTen wants it."""

    def twice(party):
        return [aggregated(kit, party, one, folder, attempt) for attempt in range(2)]

    return list(kit.outcomes({party.aggregator_id: partial(twice, party) for party in parties}).values())


def test_a_party_keeps_its_port_while_it_has_no_links(parties):
    """Or an outgoing connection of this machine could take it, and hold up every sum for as long as it lasts."""
    for party in parties:
        host, port = party._config.addresses[party.aggregator_id].split(":")
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((host, int(port)))


def test_base_transfers_are_made_anew_for_every_order(kit, parties, one, tmp_path, monkeypatch):
    made = []

    class Noted(serving.Oblivious):
        def __init__(self, links):
            made.append((links.aggregator_id, id(links)))
            super().__init__(links)

    monkeypatch.setattr(serving, "Oblivious", Noted)
    results = each_twice(kit, parties, one, tmp_path)
    assert {release.kept for attempts in results for release in attempts} == {("site0", "site1", "site2")}
    assert list(Counter(made).values()) == [2, 2, 2]  # on the same links
    assert all(party._triples is None for party in parties)


def test_who_cheats_in_transfers_ends_the_order_and_the_try_is_counted(kit, parties, one, tmp_path, monkeypatch):
    class Cheating(serving.Oblivious):
        """Party 0 turns half of the columns around that it sends to the others, in its first order."""

        cheats = True

        def __init__(self, links):
            super().__init__(links)
            if links.aggregator_id == 0 and Cheating.cheats:
                Cheating.cheats, self._links = False, Turned(links)

    class Turned:
        def __init__(self, links):
            self._links = links

        def exchange(self, step, outgoing, limit):
            if step == "OTEX":
                columns = {party: np.frombuffer(data, np.uint8).reshape(128, -1) for party, data in outgoing.items()}
                turned = np.arange(128)[:, None] % 2 * 255
                outgoing = {party: (one ^ turned).astype(np.uint8).tobytes() for party, one in columns.items()}
            return self._links.exchange(step, outgoing, limit)

    monkeypatch.setattr(serving, "Oblivious", Cheating)
    results = each_twice(kit, parties, one, tmp_path)
    first, second = zip(*results, strict=True)
    assert TransferRejected in {type(result) for result in first[1:]}
    assert all(isinstance(result, TransferRejected | PartyLost) for result in first)
    assert {release.kept for release in second} == {("site0", "site1", "site2")}
    for party in parties[1:]:
        assert set(party._journal._tries.values()) == {2}

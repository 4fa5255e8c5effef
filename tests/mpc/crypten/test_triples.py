"""AND triples of three parties, by oblivious transfer."""

from functools import partial

import numpy as np
import pytest
import torch

from confide.mpc.crypten import runtime
from confide.mpc.crypten.runtime import BinarySharedTensor
from confide.mpc.crypten.triples import Oblivious
from confide.mpc.errors import PartyLost, RuntimeUnsound, TransferRejected

WORDS = 4200  # 268,800 ANDs: more than one batch of 2**18


@pytest.fixture(scope="module")
def triples(kit):
    """The three parties' bits: [party, (a, b, c), AND]."""

    def draw(links):
        provider = Oblivious(links)
        drawn = [provider.generate_binary_triple((words,), (words,)) for words in (3, WORDS - 3)]
        shares = [torch.cat([first.share, second.share]).numpy() for first, second in zip(*drawn, strict=True)]
        return np.unpackbits(np.stack(shares).view(np.uint8), axis=1)

    return np.stack(kit.at_each(draw))


def test_every_triple_multiplies(triples):
    a, b, c = np.bitwise_xor.reduce(triples, axis=0)
    assert a.size == 64 * WORDS
    assert (c == a & b).all()


def test_what_two_parties_hold_says_nothing_of_the_third(triples):
    """All bits but the third's c, which the others fix, are jointly uniform: 255 degrees of freedom, 1e-9 at 405."""
    for third in range(3):
        free = [bits for party in range(3) for row, bits in enumerate(triples[party]) if (party, row) != (third, 2)]
        combination = sum(bits.astype(int) << place for place, bits in enumerate(free))
        counts = np.bincount(combination, minlength=256)
        expected = combination.size / 256
        assert ((counts - expected) ** 2 / expected).sum() < 405


def test_what_a_receiver_is_told_says_nothing_of_the_senders_bit(kit):
    """b of the sender and what the receiver has of a transfer (a, the chosen bit's part in c, the correction) are
    jointly uniform but for c = a b: 16 combinations a pair, 15 degrees of freedom, 1e-9 at 73."""
    told = {}

    class Told:
        def __init__(self, links):
            self.aggregator_id, self._links = links.aggregator_id, links

        def exchange(self, step, outgoing, limit):
            received = self._links.exchange(step, outgoing, limit)
            if step == "OTCO":
                told[self.aggregator_id] = {party: np.frombuffer(data, np.uint8) for party, data in received.items()}
            return received

    def draw(links):
        shares = [one.share for one in Oblivious(Told(links)).generate_binary_triple((500,), (500,))]
        return np.unpackbits(torch.stack(shares).numpy().view(np.uint8), axis=1)

    triples = kit.at_each(draw)
    for receiver, corrections in told.items():
        for sender, packed in corrections.items():
            a, _, c = triples[receiver]
            correction = np.unpackbits(packed)[: a.size]
            combination = a + 2 * c + 4 * correction + 8 * triples[sender][1]
            counts, expected = np.bincount(combination, minlength=16), a.size / 16
            assert ((counts - expected) ** 2 / expected).sum() < 73


def test_triples_are_used_once_and_made_when_they_run_out(at_each_prepared):
    def draw(links, provider):
        provider.prepare(5)
        return torch.cat([provider.generate_binary_triple((2,), (2,))[0].share for _ in range(4)])

    for shares in at_each_prepared(draw):
        assert len(set(shares.tolist())) == 8


def test_prepared_triples_need_no_message(kit):
    links = kit.linked()
    providers = kit.outcomes({i: lambda end=end: Oblivious(end) for i, end in enumerate(links)})
    kit.outcomes({i: lambda one=one: one.prepare(10) for i, one in providers.items()})
    for end in links:
        end.close()
    for provider in providers.values():
        provider.generate_binary_triple((10,), (10,))


def test_crypten_computes_with_them(at_each_prepared):
    x, y = torch.arange(-8, 8), torch.arange(16) * 3

    def party(links, provider):
        runtime.start(links)
        with runtime.using(provider):
            return (BinarySharedTensor(x, src=0) & BinarySharedTensor(y, src=2)).reveal()

    assert all(torch.equal(opened, x & y) for opened in at_each_prepared(party))


def test_two_sizes_and_other_triples_are_refused(at_each_prepared):
    def party(links, provider):
        with pytest.raises(RuntimeUnsound, match="two sizes"):
            provider.generate_binary_triple((2,), (1,))
        with pytest.raises(RuntimeUnsound, match="B2A_rng"):
            _ = provider.B2A_rng
        return True

    assert at_each_prepared(party) == [True] * 3


def test_a_party_that_leaves_is_lost(kit):
    def party(links):
        provider = Oblivious(links)
        if links.aggregator_id == 1:
            raise PartyLost("gone")
        provider.prepare(10)

    assert all(isinstance(one, PartyLost) for one in kit.at_each(party))


@pytest.mark.parametrize("step", ["OTBA", "OTBC", "OTEX", "OTCH", "OTCK", "OTCO"])
def test_a_message_of_another_size_is_a_lost_party(kit, step):
    class Short:
        """Links of a party that leaves a byte away at one step."""

        def __init__(self, links):
            self.aggregator_id, self._links = links.aggregator_id, links

        def exchange(self, at, outgoing, limit):
            short = {party: data[: -(at == step) or None] for party, data in outgoing.items()}
            return self._links.exchange(at, short, limit)

    def party(links):
        Oblivious(Short(links) if links.aggregator_id == 0 else links).prepare(10)

    results = kit.at_each(party)
    assert isinstance(results[1], PartyLost)
    assert isinstance(results[2], PartyLost)


def test_a_party_with_other_choices_in_some_columns_is_refused_before_anything_comes_of_its_transfers(kit):
    """Party 0 turns half of the columns that it sends to party 1 around: a chance of 2^-64 to get through."""
    sent = []

    class Turned:
        def __init__(self, links):
            self.aggregator_id, self._links = links.aggregator_id, links

        def exchange(self, step, outgoing, limit):
            if step == "OTEX":
                columns = np.frombuffer(outgoing[1], np.uint8).reshape(128, -1).copy()
                columns[::2, 0] ^= 1
                outgoing = outgoing | {1: columns.tobytes()}
            return self._links.exchange(step, outgoing, limit)

    class Told:
        def __init__(self, links):
            self.aggregator_id, self._links = links.aggregator_id, links

        def exchange(self, step, outgoing, limit):
            sent.append(step)
            return self._links.exchange(step, outgoing, limit)

    wrapped = {0: Turned, 1: Told, 2: lambda links: links}
    results = kit.at_each(lambda links: Oblivious(wrapped[links.aggregator_id](links)).prepare(10))
    assert isinstance(results[1], TransferRejected)
    assert isinstance(results[2], PartyLost)
    assert "aggregators 0 and 1" in str(results[1])
    assert sent == ["OTBA", "OTBC", "OTEX", "OTCH", "OTCK"]  # no OTCO, which its bits would blind


def test_what_hides_the_choices_is_drawn_for_each_of_the_others(kit):
    """Two answers under one blind block would cancel it: two parties that pool would see 128 equations in a."""
    seen = {}

    def party(links):
        provider = Oblivious(links)
        if links.aggregator_id == 0:
            for other, one in provider._receivers.items():
                one.extend = partial(noted, other, one.extend)
        provider.prepare(2)

    def noted(other, extend, choices):
        seen[other] = bytes(choices)
        return extend(choices)

    kit.at_each(party)
    assert seen[1][:-16] == seen[2][:-16]
    assert seen[1][-16:] != seen[2][-16:]

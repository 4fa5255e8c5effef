"""Joint coin tossing of three parties in threads."""

import secrets

import pytest

from confide.mpc.errors import CommitmentBroken, InvalidField, PartyLost
from confide.mpc.party.coins import joint_seeds


class Bent:
    """Links of a party that sends what `bend` makes of its bytes."""

    def __init__(self, links, bend):
        self.aggregator_id, self._links, self._bend = links.aggregator_id, links, bend

    def all_gather(self, step, data, limit):
        gathered = self._links.all_gather(step, self._bend(step, data), limit)
        gathered[self.aggregator_id] = data  # it knows what it meant
        return gathered


def toss(kit, coins, bend=None):
    """The three parties' seeds, or errors; party 1 bends its messages."""

    def party(links):
        ends = Bent(links, bend) if bend and links.aggregator_id == 1 else links
        return joint_seeds(ends, coins[links.aggregator_id])

    return kit.at_each(party)


def fresh(count):
    return [[secrets.token_bytes(32) for _ in range(count)] for _ in range(3)]


def test_all_parties_get_the_same_seed_for_each_coin(kit):
    zero, one, two = toss(kit, fresh(5))
    assert zero == one == two
    assert len(set(zero)) == 5
    assert {len(seed) for seed in zero} == {32}


def test_the_same_coins_give_the_same_seeds_in_any_company(kit):
    """So a retry repeats a site's sketch, whoever else is there."""
    coins = fresh(3)
    seeds = toss(kit, coins)[0]
    assert toss(kit, [party[1:] for party in coins])[0] == seeds[1:]


@pytest.mark.parametrize("changed", range(3))
def test_every_partys_coin_changes_the_seed(kit, changed):
    coins = fresh(1)
    before = toss(kit, coins)[0]
    coins[changed] = [secrets.token_bytes(32)]
    assert toss(kit, coins)[0] != before


def test_no_sites_need_no_coins(kit):
    assert toss(kit, [[], [], []]) == [[], [], []]


def test_coins_other_than_the_committed_ones_are_found_out(kit):
    def bend(step, data):
        return secrets.token_bytes(len(data)) if step == "COIN" else data

    zero, _, two = toss(kit, fresh(2), bend)
    assert isinstance(zero, CommitmentBroken)
    assert isinstance(two, CommitmentBroken)
    assert "aggregator 1" in str(zero)


def test_another_partys_commitment_and_coins_cannot_be_repeated(kit):
    """Party 1 copies party 0, so that both coins together would cancel or repeat; here it even knows them before."""
    coins = fresh(1)
    commitments = {}

    def party(links):
        me = links.aggregator_id

        def bend(step, data):
            if step == "TOSS":
                commitments.setdefault(me, data)
            return data

        return joint_seeds(Bent(links, bend), coins[me])

    kit.at_each(party)

    def copy(step, data):
        return commitments[0] if step == "TOSS" else coins[0][0]

    zero, _, two = toss(kit, coins, copy)
    assert isinstance(zero, CommitmentBroken)
    assert isinstance(two, CommitmentBroken)


def test_a_party_that_does_not_commit_sees_no_coin(kit):
    def party(links):
        if links.aggregator_id == 1:
            return links.exchange("COIN", {0: b"", 2: b""}, 32)
        return joint_seeds(links, fresh(1)[0])

    assert all(isinstance(one, PartyLost) for one in kit.at_each(party))


def test_another_number_of_coins_is_a_party_out_of_step(kit):
    coins = fresh(2)
    coins[2] = coins[2][:1]
    assert all(isinstance(one, PartyLost) for one in toss(kit, coins))


def test_a_coin_is_32_bytes(kit):
    assert all(isinstance(one, InvalidField) for one in toss(kit, [[bytes(31)]] * 3))

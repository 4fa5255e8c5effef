"""The protocol by itself: three threads, queues for links, and the norm check in plain numbers."""

import contextlib
import dataclasses
import functools
import queue

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.mpc.crypten import runtime, sums
from confide.mpc.errors import (
    CheckBroken,
    ChecksExhausted,
    CohortTooSmall,
    CommitmentBroken,
    Equivocation,
    NormExceeded,
    OrderMismatch,
    PartyLost,
    SetConflict,
    TopUpMissing,
    TotalConflict,
)
from confide.mpc.links.journal import MAX_TRIES, Journal
from confide.mpc.links.orders import OpenedTotal
from confide.mpc.party import aggregation, shards
from confide.mpc.party.coins import _commitment
from confide.mpc.party.shards import Shards
from confide.mpc.sharing import sealing
from confide.mpc.sharing.position import Position
from confide.mpc.sharing.ring import Ring, decode, from_integers, read_total

from ..plain_norm_check import judging

RING = Ring(64, 24)
seal_update = functools.partial(sealing.seal_update, position=Position(0, 0, bytes(32)))
CLOSED = None  # in place of a step: the party has ended
OTHER_STATE = "0d" * 32


class QueueLinks:
    """Links of one party; `lie` alters what it sends at a step, at `dies_at` it ends."""

    def __init__(self, party, mesh):
        self.party, self.mesh = party, mesh
        self.aggregator_id = party
        self.lie, self.dies_at = {}, None
        self.said = {}

    def exchange(self, step, outgoing, limit):
        for peer, data in outgoing.items():
            self.mesh[self.party, peer].put((step, data))
        return {peer: self._get(peer, step) for peer in outgoing}

    def all_gather(self, step, data, limit):
        if step == self.dies_at:
            raise PartyLost("killed")
        self.said[step] = data
        for peer in range(3):
            self.mesh[self.party, peer].put((step, self.lie.get(step, data)))
        return [self._get(peer, step) for peer in range(3)]

    def _get(self, peer, step):
        try:
            tag, data = self.mesh[peer, self.party].get(timeout=60)
        except queue.Empty:
            raise PartyLost(f"{peer} is silent") from None
        if tag is CLOSED:
            raise PartyLost(f"{peer} is gone")
        assert tag == step
        return data

    def close(self):
        for peer in range(3):
            self.mesh[self.party, peer].put((CLOSED, b""))


@pytest.fixture(scope="module", params=["in one piece", pytest.param("in shards", marks=pytest.mark.process)])
def pools(request, kit, tmp_path_factory):
    """What opens and adds shares at each party: the party itself, or two processes beside it."""
    folder = tmp_path_factory.mktemp("shards")
    count = 1 if request.param == "in one piece" else 2
    made = [Shards(dataclasses.replace(config, shards=count)) for config in kit.configs(folder, 60.0)]
    for one in made:
        one.warm(count if count > 1 else 0)
    yield made
    for one in made:
        one.close()


@pytest.fixture
def three(tmp_path, kit, pools, monkeypatch):
    """Runs one order at three parties whose journals last; a dict of OpenedTotal or error by party."""
    monkeypatch.setattr(shards, "LEAST_SITES", 1)
    journals = [Journal(tmp_path / f"journal{party}") for party in range(3)]

    def run(orders, inboxes, topups=({}, {}, {}), *, dies_at=None, lie=None):
        mesh = {(a, b): queue.SimpleQueue() for a in range(3) for b in range(3)}
        links = [QueueLinks(party, mesh) for party in range(3)]
        links[1].dies_at = dies_at
        links[2].lie = lie or {}
        run.links = links

        def party(i):
            with contextlib.closing(links[i]):
                runtime.start(links[i])
                aggregation.compare_orders(orders[i], links[i])
                boxes = kit.lay(tmp_path, inboxes[i]), kit.lay(tmp_path, topups[i])
                opened = pools[i].open(orders[i], *boxes)
                assert len(pools[i]._parts) == (pools[i]._config.shards if boxes[0] else 1)
                return aggregation.aggregate(orders[i], opened, pools[i], links[i], journals[i], judging(links[i]))

        return list(kit.outcomes({i: functools.partial(party, i) for i in range(3)}).values())

    yield run
    for journal in journals:
        journal.close()


@pytest.fixture
def five(kit):
    return kit.Round(7, RING, 5, 40, np.random.default_rng(11))


def orders(one, **changes):
    return [one.order(party, **changes) for party in range(3)]


def inboxes(one, without=((), (), ())):
    return [one.inbox(party, without[party]) for party in range(3)]


def total_of(releases):
    assert all(isinstance(release, OpenedTotal) for release in releases), releases
    assert len({(release.set_digest, release.kept, release.total) for release in releases}) == 1
    return np.frombuffer(releases[0].total, RING.unsigned)


def kinds(results):
    return [type(result) for result in results]


def test_all_three_open_the_sum(three, five):
    releases = three(orders(five), inboxes(five))
    assert (total_of(releases) == five.total(five.vectors)).all()
    exact = five.total(five.vectors).view(np.int64) * 2.0**-RING.scale_bits
    assert (decode(read_total(releases[0].total, [b""] * 3, RING, 40).units, RING) == exact).all()


def test_tags_of_the_kept_sites_are_shared_beside_their_total(three, kit):
    one = kit.Round(7, Ring(32, 20), 5, 41, np.random.default_rng(11), tag_count=3)
    releases = three(orders(one), inboxes(one, ({"site0"}, (), ())))
    total = read_total(releases[1].total, [release.tag_share for release in releases], one.ring, 41, 3)
    kept = ["site1", "site2", "site3", "site4"]
    assert (total.units == one.total(kept).view(np.int32)).all()
    assert total.tags.tolist() == [sum(int(one.tags[site][k]) for site in kept) % 2**64 for k in range(3)]


def test_no_party_hears_another_share_of_the_tags(three, kit):
    """With the total and its tags, the last to speak could open twice the total, which has twice the tags."""
    one = kit.Round(7, Ring(32, 20), 5, 41, np.random.default_rng(11), tag_count=3)
    releases = three(orders(one), inboxes(one))
    for links, release in zip(three.links, releases, strict=True):
        assert len(release.tag_share) == 24
        assert len(links.said["TOTL"]) == 4 * 41
        assert not any(release.tag_share[i : i + 8] in said for said in links.said.values() for i in (0, 8, 16))


def test_total_longer_than_a_block_is_opened_block_by_block(three, five, monkeypatch):
    monkeypatch.setattr(sums, "_OPENED_AT_ONCE", 7)
    releases = three(orders(five), inboxes(five))
    assert (total_of(releases) == five.total(five.vectors)).all()
    assert len(three.links[0].said["TOTL"]) == 8 * (40 % 7)


def test_site_that_misses_one_party_is_left_out_by_all(three, five):
    releases = three(orders(five), inboxes(five, ({"site0"}, (), {"site3"})))
    assert [release.kept for release in releases] == [("site1", "site2", "site4")] * 3
    assert (total_of(releases) == five.total(["site1", "site2", "site4"])).all()


@pytest.mark.parametrize("garbage", [b"", b"\1" * 300, None])
def test_site_whose_share_is_unsound_at_one_party_is_left_out_by_all(three, five, garbage):
    boxes = inboxes(five)
    boxes[1]["site2"] = boxes[1]["site1"] if garbage is None else garbage  # None: another site's envelope
    assert [release.kept for release in three(orders(five), boxes)] == [("site0", "site1", "site3", "site4")] * 3


def test_signed_share_that_does_not_open_leaves_the_site_out(three, five):
    """A malicious site cannot stop the round by sealing to a wrong key."""
    wrong = [sealing.new_keypair()[1], *five.public[1:]]
    one = seal_update(five.vectors["site0"], five.context("site0"), wrong, five.signers["site0"], 0)
    five.envelopes["site0"] = one
    assert [release.kept[0] for release in three(orders(five), inboxes(five))] == ["site1"] * 3


def move(one, sites):
    """Lets `sites` compute and seal their updates from another state than the order's."""
    for site in sites:
        context = dataclasses.replace(one.context(site), state=OTHER_STATE)
        one.envelopes[site] = seal_update(one.vectors[site], context, one.public, one.signers[site], 0)


def test_update_of_another_state_leaves_its_site_out(three, five):
    move(five, ["site3"])
    releases = three(orders(five), inboxes(five))
    assert [release.kept for release in releases] == [("site0", "site1", "site2", "site4")] * 3
    assert (total_of(releases) == five.total(["site0", "site1", "site2", "site4"])).all()


def test_one_site_alone_with_its_state_is_never_released(three, five):
    """A coordinator that sends the real state to one site only gets that site's update in no order."""
    move(five, ["site0", "site1", "site2", "site3"])
    results = three(orders(five), inboxes(five))
    assert kinds(results) == [CohortTooSmall] * 3
    assert {result.names for result in results} == {("site4",)}
    five.state = OTHER_STATE
    assert [r.kept for r in three(orders(five), inboxes(five))] == [("site0", "site1", "site2", "site3")] * 3


def test_round_released_for_one_state_is_bound_for_every_other(three, five):
    total_of(three(orders(five), inboxes(five)))
    move(five, five.signers)
    five.state = OTHER_STATE
    assert kinds(three(orders(five), inboxes(five))) == [SetConflict] * 3


def test_stranger_is_ignored(three, five):
    boxes = inboxes(five)
    for box in boxes:
        box["stranger"] = box["site0"]
    assert [release.kept for release in three(orders(five), boxes)] == [tuple(five.signers)] * 3


def test_update_of_an_invented_site_key_is_ignored(three, five):
    five.signers["site0"] = Ed25519PrivateKey.generate()  # the envelope was signed by another
    assert [release.kept[0] for release in three(orders(five), inboxes(five))] == ["site1"] * 3


def test_two_updates_of_one_site_stop_the_round(three, five):
    again = seal_update(five.vectors["site3"], five.context("site3"), five.public, five.signers["site3"], 0)
    boxes = inboxes(five)
    boxes[2]["site3"] = again[2].to_bytes()
    results = three(orders(five), boxes)
    assert kinds(results) == [Equivocation] * 3
    assert {result.names for result in results} == {("site3",)}


def test_too_few_sites_are_refused(three, five):
    results = three(orders(five, min_sites=4), inboxes(five, ({"site0"}, {"site1"}, ())))
    assert kinds(results) == [CohortTooSmall] * 3
    assert {result.names for result in results} == {("site2", "site3", "site4")}


@pytest.mark.parametrize(
    "change",
    [
        {"attempt": 1},
        {"min_sites": 3, "min_untopped": 3},
        {"min_untopped": 3},
        {"dim": 41},
        {"run": "other"},
        {"state": OTHER_STATE},
        {"cohort": ()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_different_orders_are_refused(three, five, change):
    given = orders(five)
    given[2] = dataclasses.replace(given[2], **change)
    assert kinds(three(given, inboxes(five))) == [OrderMismatch] * 3


def test_same_set_is_released_again_bit_for_bit(three, five):
    first = three(orders(five), inboxes(five, ({"site0"}, (), ())))
    again = three(orders(five, attempt=1), inboxes(five, ((), {"site0"}, ())))
    assert [release.total for release in first] == [release.total for release in again]


def test_another_set_is_never_released(three, five):
    total_of(three(orders(five), inboxes(five)))
    results = three(orders(five, attempt=1), inboxes(five, ({"site0"}, (), ())))
    assert kinds(results) == [SetConflict] * 3
    assert {result.bound for result in results} == {tuple(five.signers)}


def test_new_draw_of_the_same_sites_is_another_set(three, five):
    total_of(three(orders(five), inboxes(five)))
    five.envelopes["site0"] = seal_update(
        five.vectors["site0"], five.context("site0"), five.public, five.signers["site0"], 0
    )
    assert kinds(three(orders(five, attempt=1), inboxes(five))) == [SetConflict] * 3


def test_set_bound_by_one_party_alone_binds_all(three, five):
    """Party 1 dies after the comparison: only the others have bound. No second set can ever be released."""
    assert kinds(three(orders(five), inboxes(five), dies_at="DONE")) == [PartyLost] * 3
    short = inboxes(five, ({"site4"}, (), ()))
    assert kinds(three(orders(five, attempt=1), short)) == [SetConflict] * 3
    assert (total_of(three(orders(five, attempt=2), inboxes(five))) == five.total(five.vectors)).all()


@pytest.mark.parametrize("step", ["ORDR", "MASK", "VIEW", "BIND", "DONE", "TOTL", "SAME"])
def test_nothing_is_released_when_a_party_dies(three, five, step):
    assert kinds(three(orders(five), inboxes(five), dies_at=step)) == [PartyLost] * 3
    assert (total_of(three(orders(five, attempt=1), inboxes(five))) == five.total(five.vectors)).all()


def test_a_second_total_of_a_round_is_given_out_by_nobody_honest(three, five):
    """A false share at one attempt and the true one at the next: two totals, each with three signatures."""
    spoilt = total_of(three(orders(five), inboxes(five), lie={"TOTL": bytes(8 * 40)}))
    assert (spoilt != five.total(five.vectors)).any()
    assert kinds(three(orders(five, attempt=1), inboxes(five))) == [TotalConflict] * 3
    again = three(orders(five, attempt=2), inboxes(five), lie={"TOTL": bytes(8 * 40)})
    assert (total_of(again) == spoilt).all()


def test_a_total_that_not_all_have_binds_nobody(three, five):
    results = three(orders(five), inboxes(five), lie={"SAME": bytes(32)})
    assert kinds(results) == [TotalConflict] * 3
    assert (total_of(three(orders(five, attempt=1), inboxes(five))) == five.total(five.vectors)).all()


@pytest.mark.parametrize(("step", "lie"), [("MASK", b"\1" * 4), ("VIEW", b"\1" * 31), ("BIND", b"\2" * 32 + b"\xff")])
def test_words_of_another_party_are_checked(three, five, step, lie):
    assert PartyLost in kinds(three(orders(five), inboxes(five), lie={step: lie}))


def test_mask_that_is_no_bit_is_no_vote(three, five):
    results = three(orders(five), inboxes(five), lie={"MASK": b"\2\1\1\1\1"})
    assert [release.kept for release in results] == [("site1", "site2", "site3", "site4")] * 3


FOUR = ("site0", "site1", "site2", "site4")


def topped(one, **changes):
    """Orders for site3's absence, of five sites without whom each sum needs its top-ups."""
    return orders(one, sites=FOUR, min_untopped=5, **changes)


def boxes_of(one, sites=FOUR):
    return [{site: data for site, data in one.topup_box(party).items() if site in sites} for party in range(3)]


def topped_total(one):
    noise = (one.topups[site][0] for site in FOUR)
    return one.total(FOUR) + np.sum(list(noise), axis=0, dtype=RING.unsigned)


def test_smaller_set_is_released_with_the_top_up_of_each_of_its_sites(three, five):
    five.top_up(FOUR)
    releases = three(topped(five), inboxes(five), boxes_of(five))
    assert [release.kept for release in releases] == [FOUR] * 3
    assert (total_of(releases) == topped_total(five)).all()


def test_smaller_set_without_top_ups_is_never_released(three, five):
    results = three(topped(five), inboxes(five))
    assert kinds(results) == [TopUpMissing] * 3
    assert {result.names for result in results} == {()}


@pytest.mark.parametrize("at", [(0,), (1, 2), (0, 1, 2)])
def test_one_top_up_missing_at_one_party_stops_the_release_and_is_named(three, five, at):
    five.top_up(FOUR)
    boxes = boxes_of(five)
    for party in at:
        del boxes[party]["site2"]
    results = three(topped(five), inboxes(five), boxes)
    assert kinds(results) == [TopUpMissing] * 3
    assert {result.names for result in results} == {("site0", "site1", "site4")}


@pytest.mark.parametrize("other", [FOUR[:3], (*FOUR, "site3"), ("site0", "site1", "site2", "site3")])
def test_top_ups_for_another_set_count_as_none(three, five, other):
    five.top_up(other)
    for site in set(FOUR) - set(other):
        five.topups[site] = five.topups["site0"]
    results = three(topped(five), inboxes(five), boxes_of(five))
    assert {(type(result), result.names) for result in results} == {(TopUpMissing, ())}


def test_top_ups_of_two_sets_cannot_be_mixed(three, five):
    five.top_up(FOUR)
    mine = five.topups["site0"]
    five.top_up(FOUR[:3])
    five.topups["site0"] = mine
    results = three(topped(five), inboxes(five), boxes_of(five))
    assert {(type(result), result.names) for result in results} == {(TopUpMissing, ("site0",))}


def test_update_stands_for_no_top_up_and_a_top_up_for_no_update(three, five):
    assert kinds(three(topped(five), inboxes(five), inboxes(five))) == [TopUpMissing] * 3
    five.top_up(FOUR)
    assert kinds(three(topped(five), boxes_of(five), boxes_of(five))) == [CohortTooSmall] * 3


def test_top_ups_of_another_round_or_state_count_as_none(three, five):
    five.top_up(FOUR)
    boxes = boxes_of(five)
    five.number += 1
    move(five, [])
    for site in FOUR:  # the updates of the next round, with the top-ups of this one
        five.envelopes[site] = seal_update(five.vectors[site], five.context(site), five.public, five.signers[site], 0)
    assert kinds(three(topped(five), inboxes(five), boxes)) == [TopUpMissing] * 3


def test_site_whose_update_does_not_open_is_named_so_that_the_others_can_top_up(three, five):
    five.envelopes["site0"] = five.envelopes["site1"]
    results = three(orders(five, min_untopped=5), inboxes(five))
    assert {(type(result), result.names) for result in results} == {
        (TopUpMissing, ("site1", "site2", "site3", "site4"))
    }
    five.envelopes["site3"] = five.envelopes["site1"]
    five.top_up(FOUR)
    results = three(topped(five), inboxes(five), boxes_of(five))
    assert {(type(result), result.names) for result in results} == {(TopUpMissing, ("site1", "site2", "site4"))}


def test_all_sites_are_summed_as_they_are_whatever_top_ups_come_along(three, five):
    five.top_up(five.signers)
    with_topups = three(orders(five, min_untopped=5), inboxes(five), boxes_of(five, five.signers))
    without = three(orders(five, min_untopped=5, attempt=1), inboxes(five))
    assert (total_of(with_topups) == five.total(five.vectors)).all()
    assert [release.total for release in with_topups] == [release.total for release in without]


def test_total_with_and_total_without_top_ups_are_never_both_released(three, five):
    five.top_up(FOUR)
    total_of(three(topped(five), inboxes(five), boxes_of(five)))
    assert kinds(three(topped(five, attempt=1), inboxes(five))) == [TopUpMissing] * 3
    results = three(orders(five, min_untopped=5, attempt=2), inboxes(five))
    assert {(type(result), result.names) for result in results} == {(SetConflict, FOUR)}


def test_no_smaller_set_is_released_after_the_whole(three, five):
    total_of(three(orders(five, min_untopped=5), inboxes(five)))
    five.top_up(FOUR)
    results = three(topped(five, attempt=1), inboxes(five), boxes_of(five))
    assert {(type(result), result.bound) for result in results} == {(SetConflict, tuple(five.signers))}


def test_another_draw_of_the_top_ups_is_another_set(three, five):
    five.top_up(FOUR)
    total_of(three(topped(five), inboxes(five), boxes_of(five)))
    five.top_up(FOUR)  # seals anew
    assert kinds(three(topped(five, attempt=1), inboxes(five), boxes_of(five))) == [SetConflict] * 3


def test_two_top_ups_of_one_site_stop_the_round(three, five):
    five.top_up(FOUR)
    boxes = boxes_of(five)
    five.top_up(FOUR)
    boxes[2]["site1"] = boxes_of(five)[2]["site1"]
    results = three(topped(five), inboxes(five), boxes)
    assert {(type(result), result.names) for result in results} == {(Equivocation, ("site1",))}


@pytest.mark.parametrize("step", ["TMSK", "TVEW", "BIND", "DONE"])
def test_party_that_dies_between_fix_and_release_leaves_the_same_total_to_the_next_attempt(three, five, step):
    five.top_up(FOUR)
    assert kinds(three(topped(five), inboxes(five), boxes_of(five), dies_at=step)) == [PartyLost] * 3
    again = three(topped(five, attempt=1), inboxes(five), boxes_of(five))
    assert (total_of(again) == topped_total(five)).all()


def test_orders_that_differ_in_who_needs_top_ups_are_refused(three, five):
    given = orders(five, min_untopped=5)
    given[1] = five.order(1)
    assert kinds(three(given, inboxes(five))) == [OrderMismatch] * 3


BOUND = 10_000  # of a vector's norm, in ring units
LONG = {
    "ten times the bound": np.full(40, BOUND * 10 // 6, np.int64),
    "in one entry": np.eye(1, 40, dtype=np.int64)[0] * (4 * BOUND),
    "half the ring in two entries, which cancels in a sum": np.eye(1, 40, dtype=np.int64)[0] * -(2**31)
    + np.eye(1, 40, 7, dtype=np.int64)[0] * -(2**31),
    "everywhere as far as the ring goes": np.full(40, 2**31 - 1, np.int64),
}


def checked(kit, ring, number=9, **long):
    """Five sites with vectors inside the bound, but for those of `long`."""
    rng = np.random.default_rng(5)
    units = {f"site{i}": rng.integers(-700, 700, 40) for i in range(5)} | long
    vectors = {site: from_integers(values, ring) for site, values in units.items()}
    return kit.Round(number, ring, 5, 40, rng, norm_bound=BOUND, vectors=vectors)


@pytest.mark.parametrize("ring", [Ring(32, 10), Ring(64, 10)], ids=str)
@pytest.mark.parametrize("long", LONG.values(), ids=LONG)
@pytest.mark.slow
def test_site_with_a_vector_beyond_the_bound_is_left_out_and_named(kit, three, ring, long):
    one = checked(kit, ring, site3=long if ring.bits == 32 else long << 32 if (abs(long) >= 2**31 - 1).any() else long)
    releases = three(orders(one), inboxes(one))
    rest = ("site0", "site1", "site2", "site4")
    assert [(release.kept, release.rejected) for release in releases] == [(rest, ("site3",))] * 3
    assert [release.total for release in releases] == [one.total(rest).tobytes()] * 3


def test_sites_inside_the_bound_are_all_summed(kit, three):
    one = checked(kit, Ring(32, 10))
    releases = three(orders(one), inboxes(one))
    assert [(len(release.kept), release.rejected) for release in releases] == [(5, ())] * 3


def test_too_few_sites_inside_the_bound_are_not_summed(kit, three):
    one = checked(kit, Ring(32, 10), site1=LONG["in one entry"], site4=LONG["ten times the bound"])
    results = three(orders(one, min_sites=4), inboxes(one))
    assert kinds(results) == [NormExceeded] * 3
    assert [result.names for result in results] == [("site1", "site4")] * 3


def test_sites_that_need_top_ups_without_the_rejected_one_get_the_chance(kit, three):
    one = checked(kit, Ring(32, 10), site1=LONG["in one entry"])
    assert kinds(three(orders(one, min_untopped=5), inboxes(one))) == [NormExceeded] * 3
    four = ("site0", "site2", "site3", "site4")
    one.top_up(four, scale=100)
    boxes = [{site: data for site, data in box.items() if site in four} for box in inboxes(one)]
    releases = three(orders(one, attempt=1, sites=four, min_untopped=5), boxes, [one.topup_box(i) for i in range(3)])
    assert [release.kept for release in releases] == [four] * 3


def test_a_top_up_beyond_its_bound_stops_the_sum_that_it_was_for(kit, three):
    one = checked(kit, Ring(32, 10))
    one.top_up(FOUR, scale=4 * BOUND)
    beyond = one.topups["site2"]
    one.top_up(FOUR, scale=100)
    one.topups["site2"] = beyond
    changes = {"sites": FOUR, "min_untopped": 5}
    boxes = [{site: data for site, data in box.items() if site in FOUR} for box in inboxes(one)]
    results = three(orders(one, **changes), boxes, [one.topup_box(i) for i in range(3)])
    assert kinds(results) == [NormExceeded] * 3
    assert results[0].names == ("site2",)


def test_a_vector_meets_one_sketch_only_however_often_and_with_whomever_it_is_checked(kit, three):
    """Two sketches under the same masks would show their difference to everybody."""
    one = checked(kit, Ring(32, 10))
    assert kinds(three(orders(one), inboxes(one), dies_at="BIND")) == [CheckBroken] * 3
    first = [links.said["ROWS"] for links in three.links]
    short = inboxes(one, ({"site0"}, (), ()))
    three(orders(one, attempt=1), short)
    again = [links.said["ROWS"] for links in three.links]
    row = len(first[0]) // 5
    assert [rows[row:] for rows in first] == again


def test_sketches_of_two_rounds_have_nothing_in_common(kit, three):
    seeds = []
    for number in (9, 10):
        one = checked(kit, Ring(32, 10), number)
        three(orders(one), inboxes(one))
        seeds += [links.said["COIN"] for links in three.links]
    coins = [seed[at : at + 32] for seed in seeds for at in range(0, len(seed), 32)]
    assert len(set(coins)) == len(coins) == 2 * 3 * 5


def test_party_that_chooses_its_coin_when_it_has_seen_the_others_is_caught(kit, three):
    one = checked(kit, Ring(32, 10))
    assert set(kinds(three(orders(one), inboxes(one), lie={"COIN": bytes(5 * 32)}))) == {CommitmentBroken}


def new_coins(party, count, tag):
    """What a party says at TOSS and COIN that takes coins of its own liking, and commits to them as it should."""
    coins = bytes([tag]) * (32 * count)
    return {"TOSS": _commitment(party, coins), "COIN": coins}


def test_party_with_other_coins_at_another_attempt_sees_no_second_sketch(kit, three):
    """Two sketches of one vector under the same masks would give it 256 differences of the vector's entries."""
    one = checked(kit, Ring(32, 10))
    assert kinds(three(orders(one), inboxes(one), dies_at="BIND", lie=new_coins(2, 5, 1)))[:2] == [CheckBroken] * 2
    results = three(orders(one, attempt=1), inboxes(one), lie=new_coins(2, 5, 2))
    assert kinds(results)[:2] == [CommitmentBroken] * 2
    assert not any("ROWS" in links.said for links in three.links[:2])


def test_party_with_another_sketch_share_at_another_attempt_sees_no_second_verdict(kit, three):
    """Shifted anew at each attempt, verdicts would tell where between two shifts a sketch lies."""
    one = checked(kit, Ring(32, 10))
    assert set(kinds(three(orders(one), inboxes(one), dies_at="BIND"))) == {CheckBroken}
    bent = bytes(len(three.links[2].said["ROWS"]))
    results = three(orders(one, attempt=1), inboxes(one), lie={"ROWS": bent})
    assert kinds(results)[:2] == [CommitmentBroken] * 2
    assert not any("OPEN" in links.said for links in three.links[:2])


@pytest.mark.slow
def test_a_norm_check_that_breaks_off_for_ever_is_given_up_before_it_tells_more(kit, three):
    one = checked(kit, Ring(32, 10))
    for attempt in range(MAX_TRIES):
        assert set(kinds(three(orders(one, attempt=attempt), inboxes(one), dies_at="OPEN"))) == {CheckBroken}
    results = three(orders(one, attempt=MAX_TRIES), inboxes(one))
    assert kinds(results) == [ChecksExhausted] * 3
    assert not any("OPEN" in links.said for links in three.links)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["TOSS", "COIN", "ROWS", "OPEN", "BIND", "DONE"])
def test_party_that_dies_in_a_norm_check_leaves_the_same_total_to_the_next_attempt(kit, three, step):
    one = checked(kit, Ring(32, 10), site3=LONG["in one entry"])
    lost = CheckBroken if step in ("OPEN", "BIND", "DONE") else PartyLost  # the former counts as a try
    assert kinds(three(orders(one), inboxes(one), dies_at=step)) == [lost] * 3
    releases = three(orders(one, attempt=1), inboxes(one))
    assert [release.rejected for release in releases] == [("site3",)] * 3


@pytest.mark.parametrize("change", [{"norm_bound": BOUND + 1}, {"topup_bound": 1}], ids=str)
def test_orders_with_other_bounds_are_refused(kit, three, change):
    one = checked(kit, Ring(32, 10))
    three_orders = orders(one)
    three_orders[1] = dataclasses.replace(three_orders[1], **change)
    assert kinds(three(three_orders, inboxes(one))) == [OrderMismatch] * 3

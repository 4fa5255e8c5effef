"""Sums on CrypTen's tensors against plain Python integers; the parties are threads."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from confide.mpc.crypten import runtime, sums
from confide.mpc.crypten.runtime import ArithmeticSharedTensor
from confide.mpc.crypten.sums import SharedTotal, masked_sketch, opened_rows
from confide.mpc.errors import PartyLost, RuntimeUnsound
from confide.mpc.sharing import Ring, ShareContext, shares
from confide.mpc.sharing.shares import Share
from confide.mpc.sharing.sketch import Sketch

DIM, ROWS, TAGS = 7, 3, 2
RINGS = pytest.mark.parametrize("bits", [32, 64])


def context(site, bits, dim=DIM):
    return ShareContext(
        study="s", run="r", round=1, state="ab" * 32, site=site, dim=dim, ring_bits=bits, scale_bits=0,
        rows=ROWS, tag_count=TAGS,
    )  # fmt: skip


class Sites:
    """Sites that share vectors and tags of whole numbers."""

    def __init__(self, bits, vectors, tags, dim=DIM):
        self.bits, self.dim, self.vectors, self.tags = bits, dim, vectors, tags
        ring = Ring(bits, 0).unsigned
        self.shares = [
            shares.split(np.array([value % 2**bits for value in vector], ring), context(str(i), bits, dim), i % 3, own)
            for i, (vector, own) in enumerate(zip(vectors, tags, strict=True))
        ]

    def add(self, total, party, places):
        return [total.add(self.shares[i][party], context(str(i), self.bits, self.dim)) for i in places]

    def subtract(self, total, party, places):
        for i in places:
            total.subtract(self.shares[i][party], context(str(i), self.bits, self.dim))

    def sum(self, places):
        columns = zip(*(self.vectors[i] for i in places), strict=True)
        return b"".join((sum(column) % 2**self.bits).to_bytes(self.bits // 8, "little") for column in columns)

    def sum_of_tags(self, places):
        return [sum(self.tags[i][k] for i in places) % 2**64 for k in range(TAGS)]


def drawn(bits, count, seed=1, dim=DIM):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(0, 2**bits, (count, dim), np.uint64 if bits == 64 else np.uint32).tolist()
    return Sites(bits, vectors, rng.integers(0, 2**64, (count, TAGS), np.uint64).tolist(), dim)


def opened(kit, sites, added, taken=()):
    """What each party opens, and the sum of the three shares of the tags."""

    def party(links):
        runtime.start(links)
        total = SharedTotal(sites.dim, Ring(sites.bits, 0), TAGS)
        sites.add(total, links.aggregator_id, added)
        sites.subtract(total, links.aggregator_id, taken)
        return total.open(), total.tag_share()

    results = kit.at_each(party)
    assert len({total for total, _ in results}) == 1
    words = zip(
        *([int.from_bytes(t[8 * k : 8 * k + 8], "little") for k in range(TAGS)] for _, t in results), strict=True
    )
    return results[0][0], [sum(column) % 2**64 for column in words]


@RINGS
def test_a_total_is_the_sum_of_whole_numbers(kit, bits):
    ends = [0, 1, -1, 2 ** (bits - 1) - 1, -(2 ** (bits - 1)), 5, -7]
    sites = Sites(bits, [ends, ends[::-1], ends, [2**bits - 1] * DIM], [[2**64 - 1, k] for k in range(4)])
    assert opened(kit, sites, range(4)) == (sites.sum(range(4)), sites.sum_of_tags(range(4)))


@given(vectors=st.lists(st.lists(st.integers(0, 2**64 - 1), min_size=DIM, max_size=DIM), min_size=2, max_size=5))
@pytest.mark.parametrize("bits", [32, 64])
def test_three_shares_of_a_total_add_up_to_it(bits, vectors):
    sites = Sites(bits, [[value % 2**bits for value in vector] for vector in vectors], [[1, 2]] * len(vectors))
    found = [0] * DIM
    for party in range(3):
        total = SharedTotal(DIM, Ring(bits, 0), TAGS)
        sites.add(total, party, range(len(vectors)))
        words = sums._words(total._vector).tolist()
        assert all(0 <= word < 2**bits for word in words)
        found = [(have + word) % 2**bits for have, word in zip(found, words, strict=True)]
    assert b"".join(value.to_bytes(bits // 8, "little") for value in found) == sites.sum(range(len(vectors)))


@RINGS
def test_a_site_that_is_taken_out_leaves_nothing_behind(kit, bits):
    sites = drawn(bits, 5)
    assert opened(kit, sites, range(5), [1, 3]) == (sites.sum([0, 2, 4]), sites.sum_of_tags([0, 2, 4]))
    assert opened(kit, sites, [0, 1], [0, 1]) == (bytes(DIM * bits // 8), [0, 0])


@RINGS
def test_totals_over_other_sites_add_up_to_one_that_is_opened_alike(kit, bits):
    sites = drawn(bits, 5)

    def party(links):
        runtime.start(links)
        parts = [SharedTotal(DIM, Ring(bits, 0), TAGS) for _ in range(3)]
        for part, places in zip(parts, ([0, 3], [1, 2, 4], []), strict=True):
            sites.add(part, links.aggregator_id, places)
        whole, *others = [SharedTotal.of_words(part.vector.copy(), part.tags.copy()) for part in parts]
        for other in others:
            whole.merge(other)
        sites.subtract(whole, links.aggregator_id, [4])
        return whole.open(), whole.tag_share()

    results = kit.at_each(party)
    assert {total for total, _ in results} == {sites.sum(range(4))}
    shares_of_tags = [np.frombuffer(tags, "<u8") for _, tags in results]
    assert np.sum(shares_of_tags, axis=0, dtype=np.uint64).tolist() == sites.sum_of_tags(range(4))


@RINGS
def test_a_total_of_several_blocks_is_opened_in_order(kit, monkeypatch, bits):
    monkeypatch.setattr(sums, "_OPENED_AT_ONCE", 3)
    sites = drawn(bits, 3)
    assert opened(kit, sites, range(3))[0] == sites.sum(range(3))


@RINGS
def test_all_that_is_added_is_a_tensor_of_cryptens_in_the_ring_of_its_words(bits):
    sites, total = drawn(bits, 3), SharedTotal(DIM, Ring(bits, 0), TAGS)
    storage, kind = total._vector.share.data_ptr(), torch.int32 if bits == 32 else torch.int64
    for added in sites.add(total, 1, range(3)):
        for tensor, dtype in ((added.vector, kind), (added.masks, kind), (added.tags, torch.int64)):
            assert isinstance(tensor, ArithmeticSharedTensor)
            assert tensor.share.dtype == dtype
    assert isinstance(total._vector, ArithmeticSharedTensor)
    assert (total._vector.share.dtype, total._vector.share.data_ptr()) == (kind, storage)


class Heard:
    """A party's links that note what it says; nobody answers but with nothing shared."""

    aggregator_id = 0

    def __init__(self):
        self.said = b""

    def exchange(self, step, outgoing, limit):
        return {party: bytes(32) if party == 2 else b"" for party in outgoing}

    def all_gather(self, step, data, limit):
        self.said += data
        return [data, bytes(len(data)), bytes(len(data))]


def said(two):
    """What a party says to open the sum of two shares of 32 bits, whose first entries are `two`."""
    links = Heard()
    runtime.start(links)
    total, place = SharedTotal(DIM, Ring(32, 0), TAGS), context("a", 32)
    for entry in two:
        seed = bytes(32)
        body = np.zeros(shares.body_bytes(place), np.uint8)
        own = shares.expand(seed, place, 0).vector  # taken off, so that the share is `entry` and zeros
        body[: 4 * DIM].view("<u4")[:] = (np.array([entry, *[0] * (DIM - 1)], "<u4") - own).astype("<u4")
        total.add(Share(0, seed, body.tobytes()), place)
    total.open()
    return links.said


def test_what_a_party_says_tells_nothing_of_the_carries_of_its_shares():
    """Both pairs are 4 modulo 2**32; added as 64 bits the second is not, which would tell on the single shares."""
    without, with_carry = (1, 3), (2**32 - 1, 5)
    assert sum(without) != sum(with_carry)
    assert said(without) == said(with_carry) == (4).to_bytes(4, "little") + bytes(4 * (DIM - 1))


@RINGS
def test_sketches_under_their_masks_are_opened_as_one_table(kit, bits):
    dim, seed = 500, b"s" * 32
    sites, sketch = drawn(bits, 3, dim=dim), Sketch(seed, dim, bits, ROWS)

    def party(links):
        runtime.start(links)
        total = SharedTotal(dim, Ring(bits, 0), TAGS)
        rows, masks = [], []
        for i in range(3):
            (added,) = sites.add(total, links.aggregator_id, [i])
            rows.append(masked_sketch(added, sketch))
            masks.append(sums._words(added.masks))
        return opened_rows(np.stack(rows)), opened_rows(np.stack(masks))

    results = kit.at_each(party)
    for table, masks in results:
        for i in range(3):
            plain = sketch.sketch(np.array(sites.vectors[i], table.dtype))
            assert ((table[i] - masks[i]) == plain).all()
        assert (table == results[0][0]).all()


def test_parties_that_open_rings_of_two_sizes_are_lost(kit):
    def party(links):
        runtime.start(links)
        SharedTotal(DIM, Ring(32 if links.aggregator_id else 64, 0), TAGS).open()

    assert {type(result) for result in kit.at_each(party)} == {PartyLost}


def test_a_thread_that_started_no_party_opens_no_total():
    runtime.stop()
    with pytest.raises(RuntimeUnsound):
        SharedTotal(DIM, Ring(32, 0), TAGS).open()

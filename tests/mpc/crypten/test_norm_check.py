"""The norm check on shares against the plain rule, and what it shows; the parties are threads."""

import functools
import itertools

import numpy as np
import pytest

from confide.mpc.crypten import norm_check, runtime
from confide.mpc.crypten.oblivious_transfer import BLOCK_BYTES
from confide.mpc.crypten.triples import Oblivious
from confide.mpc.errors import InvalidField, PartyLost
from confide.mpc.sharing.sketch import Limits, Sketch
from confide.mpc.sharing.sketch import limits as norm_limits

from ..plain_norm_check import is_outside, is_too_long

SMALL = Limits(ring_bits=32, rows=64, window=100 << 18, tau=9, bits_used=14)
LARGE = Limits(ring_bits=64, rows=256, window=75 << 25, tau=55, bits_used=39)


def uniform(rng, shape, limits):
    return rng.integers(0, 2**limits.ring_bits - 1, shape, dtype=np.uint64, endpoint=True)


def masked(z, masks, limits):
    """z + masks in the ring."""
    sums = (np.asarray(z).astype(np.int64).view(np.uint64) + masks) & np.uint64(2**limits.ring_bits - 1)
    return sums.astype(np.uint32 if limits.ring_bits == 32 else np.uint64)


def sketches(rng, sites, limits):
    """Rows of sites about the edge: some accepted, some not."""
    spread = limits.window * rng.uniform(0.4, 0.9, (sites, 1))
    return np.rint(rng.normal(0, 1, (sites, limits.rows)) * spread)


def xor_shares(words, rng):
    first, second = rng.integers(0, 2**64 - 1, (2, *words.shape), dtype=np.uint64, endpoint=True)
    return [first, second, words ^ first ^ second]


def in_plain(opened, words, limits):
    """The circuit with one party that holds everything."""
    return norm_check.verdict_shares(opened, words, limits, 0, np.bitwise_and)


@pytest.mark.parametrize(("limits", "sites"), [(SMALL, 70), (LARGE, 9)], ids=["32", "64"])
def test_parties_decide_what_the_plain_rule_does(at_each_prepared, limits, sites):
    rng = np.random.default_rng(1)
    masks = uniform(rng, (sites, limits.rows), limits)
    opened = masked(sketches(rng, sites, limits), masks, limits)
    expected = is_too_long(opened, masks, limits)
    assert 0 < expected.sum() < sites
    shares = xor_shares(masks, rng)

    def party(links, triples):
        runtime.start(links)
        return norm_check.verdicts(opened, shares[links.aggregator_id], limits, triples)

    assert all((verdict == expected).all() for verdict in at_each_prepared(party))


def test_sites_beyond_those_that_are_judged_at_once_are_judged_as_well(at_each_prepared, monkeypatch):
    monkeypatch.setattr(norm_check, "_AT_ONCE", 4)
    rng = np.random.default_rng(8)
    masks = uniform(rng, (9, SMALL.rows), SMALL)
    opened, shares = masked(sketches(rng, 9, SMALL), masks, SMALL), xor_shares(masks, rng)

    def party(links, triples):
        runtime.start(links)
        return norm_check.verdicts(opened, shares[links.aggregator_id], SMALL, triples).tolist()

    assert at_each_prepared(party) == [is_too_long(opened, masks, SMALL).tolist()] * 3


def test_bits_of_a_mask_word_above_the_ring_do_not_count():
    rng = np.random.default_rng(6)
    masks, garbage = uniform(rng, (50, SMALL.rows), SMALL), uniform(rng, (50, SMALL.rows), SMALL) << np.uint64(32)
    opened = masked(sketches(rng, 50, SMALL), masks, SMALL)
    assert (in_plain(opened, masks | garbage, SMALL) == is_too_long(opened, masks, SMALL)).all()


@pytest.mark.parametrize("ring_bits", [32, 64])
def test_shared_vectors_are_judged_by_their_length(at_each_prepared, ring_bits):
    """From shares of vectors and masks to verdicts: two honest at the bound, one three times as long, two that wrap."""
    rng, dim, bound = np.random.default_rng(7), 20_000, 2**20
    limits, dtype = norm_limits(bound, ring_bits), np.dtype(f"u{ring_bits // 8}")
    lengths = np.array([1, 1, 3, 0, 0])[:, None] * bound
    directions = rng.normal(size=(5, dim))
    vectors = np.rint(directions / np.linalg.norm(directions, axis=1, keepdims=True) * lengths).astype(np.int64)
    vectors = vectors.view(np.uint64).astype(dtype)
    vectors[3, 17] = 2 ** (ring_bits - 1)
    vectors[4, :2] = 2 ** (ring_bits - 1)
    masks = uniform(rng, (5, limits.rows), limits).astype(dtype)
    seeds, words = [bytes([site]) * 32 for site in range(5)], xor_shares(masks.astype(np.uint64), rng)

    def added(values):
        one, two = rng.integers(0, 2**ring_bits - 1, (2, *values.shape), dtype=dtype, endpoint=True)
        return [one, two, values - one - two]

    vector_shares, mask_shares = added(vectors), added(masks)

    def party(links, triples):
        runtime.start(links)
        me = links.aggregator_id
        shares = zip(seeds, vector_shares[me], strict=True)
        rows = np.stack([Sketch(seed, dim, ring_bits, limits.rows).sketch(vector) for seed, vector in shares])
        hidden = rows + mask_shares[me]
        gathered = links.all_gather("ROWS", hidden.tobytes(), hidden.nbytes)
        opened = sum(np.frombuffer(share, dtype).reshape(hidden.shape) for share in gathered)
        return norm_check.verdicts(opened, words[me], limits, triples).tolist()

    assert at_each_prepared(party) == [[False, False, True, True, True]] * 3


def edges(limits):
    w, step, half = limits.window, limits.step, 2 ** (limits.ring_bits - 1)
    return [0, 1, -1, w, -w, w + step, -w - step, w + step // 2, -w - step // 2, half - 1, -half, half // 2, -half // 2]


@pytest.mark.parametrize("limits", [SMALL, LARGE], ids=["32", "64"])
def test_circuit_is_the_plain_rule_at_every_edge(limits):
    """Just tau rows exceed surely; one more is put at each edge, under masks and openings at the ring's ends."""
    rng = np.random.default_rng(2)
    top = 2**limits.ring_bits - 1
    ends = [0, 1, limits.step - 1, limits.step, top // 2, top // 2 + 1, top - limits.step, top - 1, top]
    cases = [(z, m) for z, m in itertools.product(edges(limits), ends)]
    cases += [(z, (y - z) & top) for z, y in itertools.product(edges(limits), ends)]
    z = np.zeros((len(cases), limits.rows), np.int64)
    z[:, : limits.tau] = 3 * limits.window
    z[:, limits.tau] = [z for z, _ in cases]
    masks = uniform(rng, z.shape, limits)
    masks[:, limits.tau] = np.array([m for _, m in cases], np.uint64)
    opened = masked(z, masks, limits)
    expected = is_too_long(opened, masks, limits)
    assert (expected == is_outside(opened, masks, limits)[:, limits.tau]).all()
    assert 0 < expected.sum() < len(cases)
    assert (in_plain(opened, masks, limits) == expected).all()


@pytest.mark.parametrize("mask_top", [0, 1, 127, 128, 254, 255])
def test_circuit_is_the_plain_rule_for_every_opening(mask_top):
    """All 2^8 openings in steps, so intervals that go round the ring, begin at 0 or end at the largest number."""
    limits = Limits(ring_bits=32, rows=64, window=3 << 24, tau=0, bits_used=8)
    opened = np.repeat(np.arange(256, dtype=np.uint32)[:, None] << 24, 64, axis=1)
    masks = np.full((256, 64), mask_top << 24, np.uint64)
    assert (in_plain(opened, masks, limits) == is_too_long(opened, masks, limits)).all()


@pytest.mark.parametrize("length", range(1, 8))
def test_less_than_is_exact_for_all_numbers(length):
    numbers, constants = np.meshgrid(np.arange(2**length, dtype=np.uint64), np.arange(2**length, dtype=np.uint64))
    planes = norm_check._planes(numbers, length), norm_check._planes(np.stack([constants, numbers]), length)
    less, never = norm_check._less(*planes, lambda bits: bits, np.bitwise_and)
    assert (less == (numbers < constants)).all()
    assert not never.any()


@pytest.mark.parametrize("rows", range(1, 11))
def test_threshold_is_exact_for_all_bits(rows):
    bits = norm_check._planes(np.arange(2**rows, dtype=np.uint64), rows).T
    for threshold in range(rows):
        more = norm_check._more_than(threshold, bits, lambda public: public, np.bitwise_and)
        assert (more == (bits.sum(axis=1) > threshold)).all()


@pytest.mark.parametrize("rows", [64, 100, 256, 1000])
def test_threshold_is_exact_for_every_count(rows):
    rng = np.random.default_rng(rows)
    bits = rng.permuted(np.tri(rows + 1, rows, -1, dtype=np.uint8), axis=1)  # counts 0 to rows
    for threshold in (0, 1, rows // 5, rows // 2, rows - 1):
        more = norm_check._more_than(threshold, bits, lambda public: public, np.bitwise_and)
        assert (more == (np.arange(rows + 1) > threshold)).all()


def test_cost_is_as_stated():
    limits = Limits(ring_bits=32, rows=256, window=119 << 15, tau=55, bits_used=17)
    counts = norm_check.and_counts(limits)
    assert len(counts) == 22
    assert sum(counts) == 8448 == 2 * (17 - 1) * 256 + 256


def test_exactly_the_prepared_triples_are_used(kit):
    """All are made in one go, before the circuit begins; only what fills up the last block is left."""
    rng = np.random.default_rng(3)
    masks = uniform(rng, (3, SMALL.rows), SMALL)
    opened, shares = masked(sketches(rng, 3, SMALL), masks, SMALL), xor_shares(masks, rng)

    class Unextended(Oblivious):
        calls = 0

        def _batch(self, size):
            self.calls += 1
            return super()._batch(size)

    def party(links):
        runtime.start(links)
        triples = Unextended(links)
        norm_check.verdicts(opened, shares[links.aggregator_id], SMALL, triples)
        return triples.calls, triples._ready.shape[1]

    assert all(calls == 1 and left < BLOCK_BYTES for calls, left in kit.at_each(party))


class Recorded:
    """Links that keep what they gathered, by step."""

    def __init__(self, links):
        self.aggregator_id, self._links, self.opened = links.aggregator_id, links, []

    def exchange(self, step, outgoing, limit):
        return self._links.exchange(step, outgoing, limit)

    def all_gather(self, step, data, limit):
        gathered = self._links.all_gather(step, data, limit)
        self.opened.append(functools.reduce(np.bitwise_xor, [np.frombuffer(one, np.uint8) for one in gathered]))
        return gathered


@pytest.mark.parametrize("size", [0.0, 0.5, 5.0], ids=["zero", "short", "long"])
def test_only_uniform_bits_and_the_verdict_are_opened(at_each_prepared, size):
    """Each AND opens two masked bits: as many ones as of coins, whatever z is; then one word with the verdicts."""
    rng = np.random.default_rng(4)
    masks = uniform(rng, (20, SMALL.rows), SMALL)
    z = np.rint(rng.normal(0, 1, (20, SMALL.rows)) * size * SMALL.window)
    opened, shares = masked(z, masks, SMALL), xor_shares(masks, rng)

    def party(links, triples):
        recorded = Recorded(links)
        runtime.start(recorded)
        norm_check.verdicts(opened, shares[links.aggregator_id], SMALL, triples)
        return recorded.opened

    *maskings, verdict = at_each_prepared(party)[0]
    assert verdict.tobytes() == (2**20 - 1 if size == 5.0 else 0).to_bytes(8, "little")
    counts = norm_check.and_counts(SMALL)
    assert [one.nbytes for one in maskings] == [16 * -(-20 * count // 64) for count in counts]
    bits = np.unpackbits(np.concatenate(maskings))
    assert abs(int(bits.sum()) - bits.size / 2) < 7 * (bits.size / 4) ** 0.5


class Gmw:
    """ANDs of one party with given triples; keeps what it sends.

    With the messages of another run it makes the triple that sends them again: what an honest third party would have
    drawn, if its inputs were these. `others` are the triples of the two whose views are fixed.
    """

    def __init__(self, links, triples, messages=None, others=None):
        self.links, self.triples, self.messages, self.others = links, iter(triples), messages, others
        self.sent = []

    def __call__(self, x, y):
        a, b, c = (bits.reshape(x.shape) for bits in next(self.triples))
        if self.messages is not None:
            e, d = self.messages[len(self.sent)].reshape(2, *x.shape)
            (a0, b0, c0), (a1, b1, c1) = ([bits.reshape(x.shape) for bits in next(one)] for one in self.others)
            a, b = x ^ e, y ^ d
            c = c0 ^ c1 ^ ((a ^ a0 ^ a1) & (b ^ b0 ^ b1))
        message = np.stack([x ^ a, y ^ b])
        self.sent.append(message)
        gathered = self.links.all_gather("OPEN", message.tobytes(), message.nbytes)
        e, d = np.bitwise_xor.reduce([np.frombuffer(one, np.uint8) for one in gathered]).reshape(message.shape)
        return c ^ (e & b) ^ (a & d) ^ ((e & d) if self.links.aggregator_id == 0 else 0)


@pytest.mark.parametrize("sizes", [(0.1, 0.5), (4.0, 30.0)], ids=["accepted", "rejected"])
def test_views_of_two_parties_fit_a_small_and_a_large_sketch_alike(kit, sizes):
    """Everything that parties 0 and 1 hold and see stays the same, bit for bit, when the third's mask bits are those of
    another z: its triples can be chosen to match, one way each, and are uniform. So with one verdict all z are equal to
    the two."""
    rng = np.random.default_rng(5)
    z, other_z = (np.rint(rng.normal(0, 1, (4, SMALL.rows)) * size * SMALL.window) for size in sizes)
    opened = uniform(rng, z.shape, SMALL).astype(np.uint32)
    masks, other_masks = (masked(-one, opened.astype(np.uint64), SMALL).astype(np.uint64) for one in (z, other_z))
    shares = xor_shares(masks, rng)
    triples = [[], [], []]
    for count in norm_check.and_counts(SMALL):
        a, b, c = rng.integers(0, 2, (3, 3, 4 * count), dtype=np.uint8)
        c[2] = c[0] ^ c[1] ^ (np.bitwise_xor.reduce(a) & np.bitwise_xor.reduce(b))
        for party in range(3):
            triples[party].append((a[party], b[party], c[party]))

    def run(third_share, messages=None):
        def party(links):
            me = links.aggregator_id
            replay = (messages, [iter(triples[0]), iter(triples[1])]) if me == 2 and messages else ()
            ands = Gmw(links, triples[me], *replay)
            share = norm_check.verdict_shares(opened, [*shares[:2], third_share][me], SMALL, me, ands)
            return ands.sent, share

        return kit.at_each(party)

    first = run(shares[2])
    again = run(shares[2] ^ masks ^ other_masks, messages=first[2][0])
    for (sent, share), (sent_again, share_again) in zip(first, again, strict=True):
        assert all((one == other).all() for one, other in zip(sent, sent_again, strict=True))
        assert (share == share_again).all()
    verdict = np.bitwise_xor.reduce([share for _, share in first]).astype(bool)
    assert (verdict == is_too_long(opened, masks, SMALL)).all()
    assert (verdict == is_too_long(opened, other_masks, SMALL)).all()
    assert (is_outside(opened, masks, SMALL) != is_outside(opened, other_masks, SMALL)).any()


def test_no_sites_need_no_messages(kit):
    nothing = np.zeros((0, SMALL.rows), np.uint64)

    def party(links):
        triples = Oblivious(links)
        links.close()
        return norm_check.verdicts(nothing, nothing, SMALL, triples)

    assert [one.shape for one in kit.at_each(party)] == [(0,)] * 3


def test_arrays_of_another_shape_or_type_are_refused():
    good = np.zeros((2, SMALL.rows), np.uint64)
    for opened, words in ((good[:, 1:], good), (good, good[1:]), (good, good.astype(np.uint32)), (good[0], good)):
        with pytest.raises(InvalidField):
            norm_check.verdicts(opened, words, SMALL, None)


def test_a_party_that_leaves_during_the_check_is_lost(kit):
    zeros = np.zeros((2, SMALL.rows), np.uint64)

    def party(links):
        runtime.start(links)
        triples = Oblivious(links)
        if links.aggregator_id == 0:
            triples.prepare(norm_check.triple_words(SMALL, 2))
            raise PartyLost("gone")
        return norm_check.verdicts(zeros, zeros, SMALL, triples)

    assert all(isinstance(one, PartyLost) for one in kit.at_each(party))

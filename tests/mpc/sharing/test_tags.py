import hashlib
import hmac
import itertools

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from confide.mpc.errors import InvalidField, TotalForged
from confide.mpc.sharing import tags as tags_module
from confide.mpc.sharing.tags import tags, verify_total

KEY = bytes(range(32))
BOUND = 2**31
WORD = 2**64


def vector(dim=100, seed=1, low=-(2**31), high=2**31):
    return np.random.default_rng(seed).integers(low, high, dim)


def coefficients(key, count):
    """The public sequence, from its definition: HKDF by hmac, the keystream by one call."""
    label = b"confide/mpc/tags/1"
    extracted = hmac.new(bytes(32), key, hashlib.sha256).digest()
    derived = hmac.new(extracted, len(label).to_bytes(4, "big") + label + b"\1", hashlib.sha256).digest()
    stream = Cipher(algorithms.AES(derived), modes.CTR(bytes(16))).encryptor().update(bytes(4 * count))
    return [int.from_bytes(stream[i : i + 4], "little") for i in range(0, 4 * count, 4)]


@pytest.mark.parametrize("block", [1, 2, 7, 2**16], ids="blocks of {}".format)
@pytest.mark.parametrize("tag_count", [0, 1, 3, 16])
def test_tags_are_the_sums_of_their_definition(monkeypatch, tag_count, block):
    """In big integers; blocks shorter than the overlap of the tags, and longer than the vector."""
    monkeypatch.setattr(tags_module, "_BLOCK", block)
    units, r = vector(23).tolist(), coefficients(KEY, 23 + 16)
    expected = [sum(r[j + k] * unit for j, unit in enumerate(units)) % WORD for k in range(tag_count)]
    assert tags(np.array(units), KEY, tag_count).tolist() == expected


@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=5, max_size=5), min_size=1, max_size=5))
@pytest.mark.slow
def test_tags_of_a_sum_are_the_sum_of_the_tags(vectors):
    """Modulo 2**64 in both, whatever the vectors."""
    total = [sum(column) for column in zip(*vectors, strict=True)]
    wrapped = np.array([(value + 2**63) % WORD - 2**63 for value in total], np.int64)
    summed = [sum(column) % WORD for column in zip(*(tags(np.array(v), KEY, 3).tolist() for v in vectors), strict=True)]
    assert tags(wrapped, KEY, 3).tolist() == summed


def test_an_honest_total_passes():
    vectors = [vector(seed=seed, low=-(2**28), high=2**28) for seed in range(5)]
    sums = np.sum([tags(one, KEY, 3) for one in vectors], axis=0, dtype=np.uint64)
    verify_total(np.sum(vectors, axis=0), sums, KEY, BOUND)


def assert_noticed(lie):
    honest = vector(low=-(2**29), high=2**29)
    with pytest.raises(TotalForged, match="does not have the tags"):
        verify_total(lie(honest.copy()), tags(honest, KEY, 3), KEY, 2**33)


@pytest.mark.parametrize("place", [0, 1, 50, 98, 99])
@pytest.mark.parametrize("bit", range(32))
def test_any_flipped_bit_is_noticed(place, bit):
    def flip(total):
        total[place] ^= 1 << bit
        return total

    assert_noticed(flip)


@pytest.mark.parametrize("entry", [2**31, -(2**31), 2**32, 2**31 - 1])
@pytest.mark.parametrize("places", [slice(0, 1), slice(99, 100), slice(0, 2), slice(None)])
def test_half_a_ring_added_is_noticed(entry, places):
    """Modulo powers of two the top bit vanishes under every even coefficient: hence coefficients and tags are wider."""

    def add(total):
        total[places] += entry
        return total

    assert_noticed(add)


@given(st.integers(0, 99), st.integers(0, 99))
def test_two_swapped_entries_are_noticed(i, j):
    def swap(total):
        total[[i, j]] = total[[j, i]]
        return total

    if i != j:
        assert_noticed(swap)


@given(st.integers(2, 2**31), st.integers(-3, 3), st.integers(0, 99))
def test_a_multiple_of_anything_added_is_noticed(factor, times, place):
    def add(total):
        total[place:] += factor * times
        return total

    if times:
        assert_noticed(add)


def test_another_site_s_vector_twice_is_noticed():
    assert_noticed(lambda total: total * 2)


def test_tags_changed_along_with_the_total_do_not_help_without_the_key():
    """A liar that makes tags under a key of its own choice for what it adds."""
    honest, extra = vector(low=-(2**29), high=2**29), vector(seed=2, low=-5, high=5)
    forged = tags(honest, KEY, 3) + tags(extra, bytes(32), 3)
    with pytest.raises(TotalForged):
        verify_total(honest + extra, forged, KEY, BOUND)


def test_whoever_knows_the_key_can_pass_any_total():
    """Hence it is kept from the parties."""
    honest, extra = vector(low=-(2**29), high=2**29), vector(seed=2, low=-5, high=5)
    verify_total(honest + extra, tags(honest, KEY, 3) + tags(extra, KEY, 3), KEY, BOUND)


@pytest.mark.parametrize("entry", [BOUND + 1, -BOUND - 1])
def test_a_total_beyond_its_bound_is_refused_whatever_its_tags(entry):
    """With a step of 2**63 a tag would pass every second time."""
    total = np.array([1, entry, 3])
    with pytest.raises(TotalForged, match="larger than"):
        verify_total(total, tags(total, KEY, 3), KEY, BOUND)


@pytest.mark.parametrize(("data_bits", "word_bits"), [(2, 4), (3, 6), (3, 5), (2, 3)])
def test_no_lie_passes_more_often_than_is_claimed(data_bits, word_bits):
    """By trying everything in small: two entries, two tags, all sequences, all changes of total and tags.

    `data_bits` stand for 32 and `word_bits` for 64. Entries lie in [-B, B] with B = 2**(data_bits - 1), so what is
    added, in [-2 B, 2 B], is a multiple of 2**data_bits at most.
    """
    size, word, bound = 2**data_bits, 2**word_bits, 2 ** (data_bits - 1)
    best = 0
    for lie in itertools.product(range(-2 * bound, 2 * bound + 1), repeat=2):
        if lie == (0, 0):
            continue
        seen = {}
        for r in itertools.product(range(size), repeat=3):
            change = tuple(sum(r[j + k] * lie[j] for j in range(2)) % word for k in range(2))
            seen[change] = seen.get(change, 0) + 1
        best = max(best, max(seen.values()))  # over the changes of the tags
    claimed = 2.0 ** -(2 * min(data_bits, word_bits - data_bits))
    assert best / size**3 <= claimed


@pytest.mark.parametrize("units", [np.zeros(3, np.int32), np.zeros((3, 1), np.int64), np.zeros(3)])
def test_what_is_no_vector_of_integers_is_refused(units):
    with pytest.raises(InvalidField):
        tags(units, KEY, 1)


@pytest.mark.parametrize("factor", [-1, 0, 2])
def test_whoever_knows_total_and_tags_can_put_another_pair_in_their_place(factor):
    """Why the parties open totals to each other, and tags to the coordinator alone."""
    units = vector(high=2**30, low=-(2**30))
    known = tags(units, KEY, 3)
    verify_total(factor * units, np.array([factor % WORD], np.uint64) * known, KEY, BOUND)
    with pytest.raises(TotalForged):
        verify_total(factor * units, known, KEY, BOUND)


def test_a_total_without_tags_is_not_verified_by_having_none():
    with pytest.raises(InvalidField):
        verify_total(vector(), np.zeros(0, np.uint64), KEY, BOUND)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33)])
def test_a_key_of_another_length_is_refused(key):
    with pytest.raises(InvalidField):
        tags(vector(), key, 1)


def test_error_shows_neither_key_nor_tags():
    with pytest.raises(TotalForged) as caught:
        verify_total(vector(3), np.array([12345678901], np.uint64), KEY, BOUND)
    assert not any(char.isdigit() for char in str(caught.value))

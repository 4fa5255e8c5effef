import math
from hashlib import sha256

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import example, given
from hypothesis import strategies as st

from confide.mpc.errors import InvalidField, NoRing
from confide.mpc.fields import canonical
from confide.mpc.sharing.ring import Ring, from_integers
from confide.mpc.sharing.sketch import (
    PIECE,
    ROWS,
    Limits,
    Sketch,
    interval,
    largest_bound,
    limits,
)

from ..plain_norm_check import exceedances, is_outside, is_too_long

KINDS = {32: np.uint32, 64: np.uint64}
COINS_AN_ENTRY = 16  # four tables, coefficients of 4 coins: a row is half the sum of so many signs times each entry


def seed(number):
    return sha256(f"seed {number}".encode()).digest()


def uniform(dim, bits, number=0):
    return np.random.default_rng(number).integers(0, 2**bits, dim, KINDS[bits])


def in_units(vector, norm, bits=64):
    scaled = np.asarray(vector, float) * (norm / np.linalg.norm(vector))
    return from_integers(np.rint(scaled).astype(np.int64), Ring(bits, 0))


def by_definition(vector, seed, bits, rows):
    """R v in big integers, entry by entry, from the words of docs/norm-check.md."""
    dim = len(vector)
    info = canonical("confide/mpc/sketch/1", dim, bits, rows)
    stream = Cipher(
        algorithms.AES(HKDF(SHA256(), 32, salt=None, info=info).derive(seed)), modes.CTR(bytes(16))
    ).encryptor()
    coins = stream.update(bytes((2**18 + 8192) // 8))
    pieces = -(-dim // 8192)
    starts = [int.from_bytes(stream.update(bytes(4)), "little") % 2**18 for _ in range(pieces)]
    offsets = [[int.from_bytes(stream.update(bytes(4)), "little") % 2**12 for _ in range(4)] for _ in range(pieces)]
    tables = [[0] * 12288 for _ in range(4)]
    for place, value in enumerate(vector.tolist()):
        piece, within = divmod(place, 8192)
        coin = starts[piece] + within
        sign = 2 * (coins[coin // 8] >> coin % 8 & 1) - 1
        for table in range(4):
            tables[table][offsets[piece][table] + within] += sign * value
    result = [0] * rows
    for table in tables:
        for row in range(rows):
            nibbles = stream.update(bytes(6144))
            low = sum(
                ((byte & 15).bit_count() - 2) * bucket for byte, bucket in zip(nibbles, table[:6144], strict=True)
            )
            high = sum(
                ((byte >> 4).bit_count() - 2) * bucket for byte, bucket in zip(nibbles, table[6144:], strict=True)
            )
            result[row] += low + high
    return [row % 2**bits for row in result]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("dim", [1, 8192, 20_001])
def test_sketch_is_what_its_definition_says(bits, dim):
    vector = uniform(dim, bits)
    assert Sketch(seed(1), dim, bits, rows=3).sketch(vector).tolist() == by_definition(vector, seed(1), bits, 3)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("dim", [1, 30_000])
def test_sketches_of_shares_add_up_to_the_sketch_of_their_sum(bits, dim):
    sketch = Sketch(seed(2), dim, bits).sketch
    shares = [uniform(dim, bits, number) for number in range(3)]
    shares[0][: dim // 2] = 2**bits - 1
    total = sum(sketch(share) for share in shares)
    assert total.dtype == KINDS[bits]
    assert total.tolist() == sketch(shares[0] + shares[1] + shares[2]).tolist()


@pytest.mark.parametrize(
    ("bits", "digest"),
    [
        (32, "18b059430080383a6c7b7273fcb372ab6ec2fc2e67525ba419ca40b61feebdd7"),
        (64, "445a27c83487ab8f70e3ec914c1d7833f3f1bd42b7e7f4b68134c58f269badaa"),
    ],
)
def test_sketch_stays_what_other_implementations_know(bits, digest):
    vector = np.arange(10_000).astype(KINDS[bits]) * 7**11
    assert sha256(Sketch(seed(3), 10_000, bits).sketch(vector).tobytes()).hexdigest() == digest


def test_another_seed_length_or_number_of_rows_gives_other_rows():
    vector = np.ones(5000, np.uint32)
    found = {
        bytes(Sketch(seed(number), dim, 32, rows).sketch(vector[:dim])[:4].data)
        for number, dim, rows in [(1, 5000, 8), (2, 5000, 8), (1, 4999, 8), (1, 5000, 9)]
    }
    assert len(found) == 4


SHAPES = {
    "gaussian": lambda dim: np.random.default_rng(0).standard_normal(dim),
    "heavy": lambda dim: np.random.default_rng(0).standard_t(1.5, dim),
    "one": lambda dim: np.eye(1, dim, 777)[0],
    "two": lambda dim: np.eye(1, dim, 777)[0] - np.eye(1, dim, 777 + 2 * PIECE)[0],
    "constant": lambda dim: np.ones(dim),
    "alternating": lambda dim: np.where(np.arange(dim) % 2, 1.0, -1.0),
    "identical pieces": lambda dim: np.resize(np.random.default_rng(0).standard_normal(PIECE), dim),
    "one residue": lambda dim: (np.arange(dim) % PIECE == 5) * 1.0,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_have_the_stated_variance_whatever_the_shape(shape):
    dim, norm = 60_000, 2.0**30
    rows = Sketch(seed(4), dim, 64, rows=1024).sketch(in_units(SHAPES[shape](dim), norm)).view(np.int64) / norm
    assert abs(rows.mean()) < 5 * 2 / 32  # five standard deviations of a mean over 1024 rows of variance 4
    assert rows.var() == pytest.approx(4, rel=0.3)  # five of a variance: sqrt(2 / 1024) each, and 2 % of the tables'


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("length", "is_rejected"), [(0.5, False), (1.0, False), (2.0, True), (3.0, True), (1e3, True)])
def test_norm_decides_whatever_the_shape(shape, length, is_rejected):
    dim, rule = 60_000, limits(2**20, 32)
    rows = Sketch(seed(5), dim, 32).sketch(in_units(SHAPES[shape](dim), length * 2**20, 32))
    assert (exceedances(rows, rule) > rule.tau) == is_rejected


def wrapped(bits):
    half, dim = 2 ** (bits - 1), 50_000
    piece = np.arange(dim) // PIECE
    for value in (half, half - 1, half // 2, half // 4):
        for places in ([7], [7, 7 + PIECE], [7, 8, 7 + PIECE, 8 + PIECE], [7, 7 + PIECE, 7 + 2 * PIECE, 7 + 3 * PIECE]):
            yield np.isin(np.arange(dim), places) * KINDS[bits](value)
        yield np.full(dim, value, KINDS[bits])
        yield np.isin(piece, [1, 4]) * KINDS[bits](value)  # looks the same at every offset
    rising = np.minimum(np.arange(PIECE), np.arange(PIECE)[::-1]).clip(max=64).astype(KINDS[bits])
    yield np.tile(rising * KINDS[bits](half // 64), 2)  # hardly changes from one offset to the next


@pytest.mark.parametrize("bits", [32, 64])
def test_wrapped_vectors_are_rejected_at_the_largest_bound(bits):
    rule = limits(largest_bound(bits), bits)
    for number, vector in enumerate(wrapped(bits)):
        rows = Sketch(seed(number), len(vector), bits).sketch(vector)
        assert exceedances(rows, rule) > 1.5 * rule.tau


def test_whole_pieces_of_the_half_ring_never_vanish_from_a_table():
    vector = np.zeros(4 * PIECE, np.uint32)
    vector[: 2 * PIECE] = 2**31
    for number in range(5):  # a coefficient is odd with probability 1/2, so half of the rows of any table show it
        rows = Sketch(seed(number), len(vector), 32).sketch(vector)
        assert 90 < np.count_nonzero(rows) < 166


def exceeding(entries, length, edge, shift=0.0):
    """Chance that a row exceeds, of so many equal entries with norm `length`, exactly: signs are fair coins."""
    coins = COINS_AN_ENTRY * entries
    size = length / math.sqrt(entries)
    return sum(
        math.comb(coins, heads)
        for heads in range(coins + 1)
        if abs((heads - coins / 2) * size + shift) > edge
    ) / 2.0**coins  # fmt: skip


def tail(most, rows, chance):
    return sum(math.comb(rows, k) * chance**k * (1 - chance) ** (rows - k) for k in range(most + 1, rows + 1))


@pytest.mark.parametrize("entries", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 32])
def test_few_equal_entries_at_the_bound_are_rejected_once_in_a_billion(entries):
    # The worst shapes: lumpy, and lengthened where entries meet in a table, each time by 2 / (4 entries) or not at all.
    rule, edge = limits(2**40, 64), limits(2**40, 64).window / 2**40
    meetings = 4 * math.comb(entries, 2) / 2**12
    rejected = 0.0
    for count in range(5):
        chance = math.exp(-meetings) * meetings**count / math.factorial(count)  # of so many, each to the one side
        longer = math.sqrt(1 + count / (2 * entries))
        rejected += chance / 2 ** min(count, 1) * tail(rule.tau, ROWS, exceeding(entries, longer, edge))
    assert rejected < 1e-9


def test_gaussian_vectors_pass_as_rarely_as_stated():
    rule = limits(2**40, 64)
    edge = (rule.window + rule.step) / 2**40

    def passes(length):
        return 1 - tail(rule.tau, ROWS, math.erfc(edge / (2 * length * math.sqrt(2))))

    assert passes(2.0) < 1e-5
    assert passes(3.0) < 1e-15


@pytest.mark.parametrize("entries", [1, 2, 3, 4, 6, 8, 16])
def test_no_shift_that_is_fixed_beforehand_hides_a_long_vector(entries):
    rule = limits(2**40, 64)
    edge = (rule.window + rule.step) / 2**40
    best = min(exceeding(entries, 3.0, edge, shift) for shift in np.linspace(0, 4, 161))
    assert tail(rule.tau, ROWS, best) > 1 - 1e-9


@pytest.mark.parametrize("bits", [32, 64])
def test_shift_of_every_row_does_not_hide_a_long_vector(bits):
    rule = limits(2**20, bits)
    rows = Sketch(seed(6), 40_000, bits).sketch(in_units(SHAPES["gaussian"](40_000), 3 * 2**20, bits))
    for shift in (-rule.window, -rule.window // 2, rule.window // 3, rule.window):
        assert exceedances(rows + np.int64(shift).astype(KINDS[bits]), rule) > rule.tau


def outside_in_integers(opened, mask, rule):
    """The rule in words: the mask's top bits are none of the 2 window / step + 1 values that end at y + window."""
    top = (opened + rule.window) % 2**rule.ring_bits // rule.step
    return mask // rule.step not in {(top - i) % 2**rule.bits_used for i in range(2 * rule.window // rule.step + 1)}


@given(st.data())
@example(None)
def test_rule_is_what_it_says_in_integers(data):
    for bits in (32, 64):
        rule = limits(1000, bits) if data is None else limits(data.draw(st.integers(1, largest_bound(bits))), bits)
        entry = st.integers(0, 2**bits - 1)
        near = st.integers(-rule.window - 2 * rule.step, rule.window + 2 * rule.step)
        mask, z = (0, 0) if data is None else (data.draw(entry), data.draw(near | entry))
        opened = (z + mask) % 2**bits
        found = is_outside(np.array([opened], KINDS[bits]), np.array([mask], KINDS[bits]), rule)[0]
        assert found == outside_in_integers(opened, mask, rule)
        size = min(z % 2**bits, -z % 2**bits)
        if size <= rule.window:
            assert not found
        if size >= rule.window + rule.step:
            assert found


@pytest.mark.parametrize("bits", [32, 64])
def test_interval_goes_round_where_it_must(bits):
    rule = limits(largest_bound(bits), bits)
    low, high = interval(uniform(1000, bits), rule)
    assert low.dtype == high.dtype == np.uint64
    assert max(low.max(), high.max()) < 2**rule.bits_used
    assert set((high - low) % 2**rule.bits_used) == {2 * rule.window // rule.step}
    assert 0 < np.count_nonzero(low > high) < 100  # the window is below a sixteenth of the ring


def test_verdict_is_by_site():
    rule = limits(2**20, 32)
    z = np.zeros((3, ROWS), np.uint32)
    z[1, : rule.tau] = z[2, : rule.tau + 1] = 2**31
    masks = uniform(3 * ROWS, 32).reshape(3, ROWS)
    assert is_too_long(z + masks, masks, rule).tolist() == [False, False, True]


@pytest.mark.parametrize("bits", [32, 64])
def test_largest_bound_fits_and_one_more_does_not(bits):
    rule = limits(largest_bound(bits), bits)
    assert 24 * (rule.window + rule.step) <= 2**bits
    assert 2 ** (bits - 7) < largest_bound(bits) < 2 ** (bits - 6)
    with pytest.raises(NoRing):
        limits(largest_bound(bits) + 1, bits)


@given(st.integers(1, 2**57), st.integers(64, 512))
def test_step_is_a_small_part_of_the_window(bound, rows):
    rule = limits(bound, 64, rows)
    assert rule.window >= 3.7 * bound * (1 - 1e-12)
    assert rule.step == 1 or rule.step * 64 <= rule.window
    assert rule.window <= 3.7 * bound * (1 + 1 / 64) + 1
    assert 0 < rule.tau < rows / 2 - 2 * math.sqrt(rows) / 2  # of a wrapped vector's rows half exceed


@pytest.mark.parametrize(
    "change", [{"window": 3711}, {"window": 2**28}, {"tau": 256}, {"tau": -1}, {"bits_used": 33}, {"ring_bits": 48}]
)
def test_limits_that_do_not_fit_together_are_refused(change):
    good = {"ring_bits": 32, "rows": 256, "window": 3712, "tau": 55, "bits_used": 27}
    Limits(**good)
    with pytest.raises(InvalidField):
        Limits(**good | change)


@pytest.mark.parametrize("vector", [np.zeros(9, np.uint32), np.zeros(10, np.uint64), np.zeros((1, 10), np.uint32)])
def test_vector_of_another_kind_is_refused(vector):
    with pytest.raises(InvalidField):
        Sketch(seed(0), 10, 32).sketch(vector)


@pytest.mark.parametrize("bad", [{"seed": bytes(31)}, {"dim": 0}, {"ring_bits": 16}, {"rows": 0}])
def test_sketch_of_bad_parameters_is_refused(bad):
    with pytest.raises(InvalidField):
        Sketch(**{"seed": bytes(32), "dim": 10, "ring_bits": 32, "rows": 4} | bad)

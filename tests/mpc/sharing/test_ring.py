import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.mpc.errors import InvalidField, NoRing, ShareMalformed
from confide.mpc.sharing.ring import Ring, decode, from_integers, plan_ring, read_total, to_integers

R32, R64 = Ring(32, 20), Ring(64, 24)
EDGES = {32: (-(2**31), 2**31 - 1), 64: (-(2**63), 2**63 - 1)}


@given(st.data())
def test_sums_are_exact_modulo_the_ring(data):
    ring = data.draw(st.sampled_from([R32, R64]))
    edges = [edge + step for low, high in EDGES.values() for edge, step in ((low, 0), (low, 1), (high, -1), (high, 0))]
    entry = st.sampled_from([*edges, -(2**31) - 1, 2**31, 2**32, -1, 0, 1]) | st.integers(*EDGES[64])
    vectors = data.draw(st.lists(st.lists(entry, min_size=3, max_size=3), min_size=1, max_size=6))
    total = sum((from_integers(np.array(v, np.int64), ring) for v in vectors), np.zeros(3, ring.unsigned))
    assert total.dtype == ring.unsigned
    assert total.tolist() == [sum(column) % 2**ring.bits for column in zip(*vectors, strict=True)]


@pytest.mark.parametrize("ring", [R32, Ring(64, 52)])
@pytest.mark.parametrize("sign", [1, -1])
def test_sum_is_right_at_capacity_and_wraps_one_past_it(ring, sign):
    assert ring.capacity(1.0) == 2047  # 2048 ones are half the ring
    largest = sign * (2**ring.scale_bits + 1)  # what capacity allows for
    one = from_integers(np.array([largest], np.int64), ring)
    for sites, right in ((2047, True), (2048, False)):
        total = np.sum([one] * sites, axis=0, dtype=ring.unsigned)
        assert (to_integers(total, ring).tolist() == [sites * largest]) == right


@pytest.mark.parametrize(("entry", "read"), [(2**31, -(2**31)), (-(2**31) - 1, 2**31 - 1), (2**32 + 5, 5)])
def test_integer_beyond_the_ring_is_read_back_wrapped(entry, read):
    assert to_integers(from_integers(np.array([entry], np.int64), Ring(32, 0)), Ring(32, 0)).tolist() == [read]


def test_integers_of_another_type_are_refused():
    with pytest.raises(InvalidField):
        from_integers(np.zeros(3, np.int32), R32)


@pytest.mark.parametrize("ring", [R32, R64])
def test_integers_come_back_exactly(ring):
    units = np.array([-(2**31), -1, 0, 1, 2**31 - 1], np.int64)
    back = to_integers(from_integers(units, ring), ring)
    assert back.dtype == np.int64
    assert back.tolist() == units.tolist()


@given(st.lists(st.integers(-(2**53), 2**53), min_size=1, max_size=4), st.integers(0, 62))
def test_units_are_read_as_the_real_numbers_that_they_stand_for(units, scale_bits):
    values = decode(np.array(units, np.int64), Ring(64, scale_bits))
    assert [Fraction(value) for value in values.tolist()] == [Fraction(unit, 2**scale_bits) for unit in units]


@given(st.integers(1, 1000), st.floats(1e-3, 1e7), st.integers(1, 2**27), st.floats(1e-2, 1e3))
def test_planned_ring_holds_the_sum_and_is_fine_enough_and_no_wider_than_needed(sites, max_abs, dim, clip_norm):
    try:
        ring = plan_ring(sites, max_abs, dim, clip_norm)
    except NoRing:
        return
    inflation = math.sqrt(dim) * 2.0**-ring.scale_bits / clip_norm
    assert sites * (Fraction(max_abs) * 2**ring.scale_bits + Fraction(1, 2)) < 2 ** (ring.bits - 1)
    assert ring.scale_bits == 0 or inflation > 0.5e-3  # nowhere finer than what costs nothing
    finer = Ring(32, min(ring.scale_bits + 1, 30))
    if ring.bits == 64:
        assert inflation <= 1e-3
        coarse = max(0, math.ceil(math.log2(math.sqrt(dim) / (1e-2 * clip_norm))))
        assert coarse > 30 or Ring(32, coarse).capacity(max_abs) < sites
    elif inflation > 1e-3:
        assert inflation <= 1e-2
        assert ring.scale_bits == 30 or finer.capacity(max_abs) < sites


@pytest.mark.parametrize(
    ("max_abs", "planned"),
    [
        (2**9 - 1, Ring(32, 22)),  # 0.075 % more sensitivity
        (2**10, Ring(32, 20)),  # 0.3 %
        (2**12 - 1, Ring(32, 19)),  # 0.6 %
        (2**12, Ring(64, 22)),  # it would be 1.2 %
        (2**40, Ring(64, 22)),
    ],
)
def test_ten_million_numbers_get_the_narrow_ring_while_it_costs_a_percent_at_most(max_abs, planned):
    assert plan_ring(1, max_abs, 10**7, 1.0) == planned


@pytest.mark.parametrize("max_abs", [1e12, 2.0**62])
def test_plan_that_fits_no_ring_is_refused(max_abs):
    with pytest.raises(NoRing):
        plan_ring(1000, max_abs, 10**6, 1e-6)


@pytest.mark.parametrize("size", [0, 8, 11, 13, 16])
def test_a_total_of_another_length_is_refused(size):
    with pytest.raises(ShareMalformed):
        read_total(bytes(size), [bytes(16)] * 3, R32, 3, 2)


@pytest.mark.parametrize("sizes", [(), (16, 16), (16, 16, 8), (16, 16, 17), (16, 16, 16, 16)], ids=str)
def test_tags_of_a_total_need_three_whole_shares(sizes):
    with pytest.raises(ShareMalformed):
        read_total(bytes(12), [bytes(size) for size in sizes], R32, 3, 2)


@pytest.mark.parametrize("ring", [R32, R64])
@given(data=st.data())
def test_a_total_is_read_as_big_integers_are(ring, data):
    """Three elements as signed numbers; two tags, the sums of the shares modulo 2**64."""
    step, half = ring.bits // 8, 2 ** (ring.bits - 1)
    words = data.draw(st.binary(min_size=3 * step, max_size=3 * step))
    shares = [data.draw(st.binary(min_size=16, max_size=16)) for _ in range(3)]
    total = read_total(words, shares, ring, 3, 2)
    elements = [int.from_bytes(words[i * step : (i + 1) * step], "little") for i in range(3)]
    assert total.units.tolist() == [(value + half) % (2 * half) - half for value in elements]
    sums = [sum(int.from_bytes(share[8 * i : 8 * i + 8], "little") for share in shares) for i in range(2)]
    assert total.tags.tolist() == [value % 2**64 for value in sums]

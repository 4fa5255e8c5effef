import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.mpc.errors import InvalidField, NoRing, OutOfRange, ShareMalformed
from confide.mpc.ring import Ring, decode, encode, from_integers, open_total, plan_ring

R32, R64 = Ring(32, 20), Ring(64, 24)
EDGES = {32: (-(2**31), 2**31 - 1), 64: (-(2**63), 2**63 - 1)}


@pytest.mark.parametrize("ring", [R32, R64])
def test_round_trip_is_off_by_half_a_unit_at_most(ring):
    values = np.random.default_rng(0).uniform(-8, 8, 10_000)
    assert abs(decode(encode(values, ring, 8), ring) - values).max() <= 2.0 ** -(ring.scale_bits + 1)


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
    one = encode(np.array([sign * (1 + 2.0**-ring.scale_bits)]), ring, 2.0)  # the largest that capacity allows for
    for sites, right in ((2047, True), (2048, False)):
        total = np.sum([one] * sites, axis=0, dtype=ring.unsigned)
        assert (decode(total, ring)[0] == pytest.approx(sign * sites)) == right


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_no_numbers_are_refused(bad):
    with pytest.raises(OutOfRange):
        encode(np.array([0.0, bad]), R64, 1.0)


def test_values_are_clamped_to_the_bound():
    assert decode(encode(np.array([-5.0, 5.0], np.float32), R32, 2.0), R32).tolist() == [-2.0, 2.0]


def test_bound_that_does_not_fit_is_refused():
    with pytest.raises(OutOfRange):
        encode(np.zeros(1), R32, 2048.0)


@pytest.mark.parametrize(("entry", "read"), [(2**31, -(2**31)), (-(2**31) - 1, 2**31 - 1), (2**32 + 5, 5)])
def test_integer_beyond_the_ring_is_read_back_wrapped(entry, read):
    assert decode(from_integers(np.array([entry], np.int64), Ring(32, 0)), Ring(32, 0)).tolist() == [read]


def test_integers_of_another_type_are_refused():
    with pytest.raises(InvalidField):
        from_integers(np.zeros(3, np.int32), R32)


@pytest.mark.parametrize("ring", [R32, R64])
def test_integers_come_back_exactly(ring):
    units = np.array([-(2**31), -1, 0, 1, 2**31 - 1], np.int64)
    assert (decode(from_integers(units, ring), ring) * 2.0**ring.scale_bits).astype(np.int64).tolist() == units.tolist()


@given(st.integers(1, 1000), st.floats(1e-3, 1e4), st.integers(1, 10**8), st.floats(1e-2, 1e3), st.floats(1e-5, 1e-1))
def test_planned_ring_is_sound_and_no_finer_than_needed(sites, max_abs, dim, clip_norm, max_inflation):
    try:
        ring = plan_ring(sites, max_abs, dim, clip_norm, max_inflation)
    except NoRing:
        return
    unit = 2.0**-ring.scale_bits
    assert math.sqrt(dim) * unit <= max_inflation * clip_norm
    assert ring.scale_bits == 0 or math.sqrt(dim) * unit * 2 > max_inflation * clip_norm
    assert sites * (max_abs / unit + 1) < 2 ** (ring.bits - 1) * (1 + 1e-9)
    if ring.bits == 64:
        assert ring.scale_bits > 30 or Ring(32, ring.scale_bits).capacity(max_abs) < sites


def test_plan_that_fits_no_ring_is_refused():
    with pytest.raises(NoRing):
        plan_ring(1000, 1e12, 10**6, 1e-6)


@pytest.mark.parametrize("size", [0, 11, 13])
def test_total_needs_three_whole_shares(size):
    whole = bytes(12)
    with pytest.raises(ShareMalformed):
        open_total([whole, whole, bytes(size)], R32, 3)
    with pytest.raises(ShareMalformed):
        open_total([whole, whole], R32, 3)


@pytest.mark.parametrize(("bits", "scale_bits"), [(16, 4), (32, 31), (64, -1), (64, True)])
def test_what_is_no_ring_is_refused(bits, scale_bits):
    with pytest.raises(InvalidField):
        Ring(bits, scale_bits)

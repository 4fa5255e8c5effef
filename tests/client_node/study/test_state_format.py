import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from confide.client_node.errors import MessageInvalid
from confide.client_node.study.state_format import StateFormat

FORMATS = [
    StateFormat(kind=kind, dim=dim, exact=exact)
    for kind in ("float32", "int8") for dim, exact in ((1, 0), (1, 1), (64, 0), (65, 0), (65, 1), (200, 1))
]  # fmt: skip
NUMBERS = st.floats(min_value=-(2.0**100), max_value=2.0**100, width=32)
few = settings(max_examples=40, deadline=None)


def by_hand(state, exact):
    """The int8 form of plain Python numbers, in exact arithmetic but for the scale, which is rounded once."""
    coded, scales, codes = state[: len(state) - exact], [], []
    for start in range(0, len(coded), 64):
        block = [float(x) for x in coded[start : start + 64]]
        scale = float(np.float32(max(map(abs, block))) / np.float32(127))
        scales.append(scale if scale >= 2.0**-126 else 0.0)
        codes += [round(x / scales[-1]) if scales[-1] else 0 for x in block]  # half to even, as IEEE 754
    tail = [float(x) for x in state[len(coded) :]]
    return struct.pack(f"<{len(scales)}f{len(codes)}b{len(tail)}f", *scales, *codes, *tail)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_bytes_are_those_of_the_definition(form):
    state = np.random.default_rng(form.dim).normal(0, 0.3, form.dim).astype(np.float32)
    want = by_hand(state, form.exact) if form.kind == "int8" else struct.pack(f"<{form.dim}f", *state)
    assert form.encode(state) == want
    assert len(want) == form.size


def test_known_bytes_are_known_numbers():
    """By hand: a block of 64 and one of 1, and a number that stays as it is."""
    form = StateFormat(kind="int8", dim=66, exact=1)
    data = struct.pack("<2f", 0.5, 0.25) + struct.pack("66b", *range(-32, 33), 0)[:65] + struct.pack("<f", 0.1)
    state = form.decode(data)
    assert state.dtype == np.float32
    assert state[:65].tolist() == [0.5 * code for code in range(-32, 32)] + [0.25 * 32]
    assert state[65] == np.float32(0.1)


@pytest.mark.parametrize("form", FORMATS, ids=str)
@few
@given(data=st.data())
def test_a_number_is_off_by_half_a_scale_and_the_last_by_nothing(form, data):
    state = data.draw(arrays(np.float32, form.dim, elements=NUMBERS))
    got = form.decode(form.encode(state))
    if form.kind == "float32":
        assert got.tobytes() == state.tobytes()
        return
    coded = form.dim - form.exact
    assert got[coded:].tobytes() == state[coded:].tobytes()
    for start in range(0, coded, 64):
        block = slice(start, min(start + 64, coded))
        scale = float(np.abs(state[block]).max()) / 127
        gap = np.abs(got[block].astype(np.float64) - state[block]).max()
        assert gap <= max(scale * (0.5 + 1e-4), 127 * 2.0**-126)  # rounding; a block too small for a normal scale


@pytest.mark.parametrize("form", FORMATS, ids=str)
@few
@given(data=st.data())
def test_whatever_the_bytes_a_decoder_gives_finite_numbers_or_refuses(form, data):
    raw = data.draw(st.one_of(st.binary(min_size=form.size, max_size=form.size), st.binary(max_size=1000)))
    try:
        state = form.decode(raw)
    except MessageInvalid:
        return
    assert len(raw) == form.size
    assert state.shape == (form.dim,)
    assert np.isfinite(state).all()
    assert len(form.encode(state)) == form.size


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 2.0**-127, 3e38])
def test_a_scale_that_no_vector_has_is_refused(scale):
    form = StateFormat(kind="int8", dim=3)
    with pytest.raises(MessageInvalid):
        form.decode(struct.pack("<f3b", scale, 1, 2, 127))


def test_a_code_that_no_vector_has_is_refused():
    with pytest.raises(MessageInvalid):
        StateFormat(kind="int8", dim=3).decode(struct.pack("<f3b", 1.0, 1, 2, -128))


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("extra", [-1, 1])
def test_another_length_is_refused(form, extra):
    data = form.encode(np.ones(form.dim, np.float32))
    with pytest.raises(MessageInvalid, match="does not fit the study"):
        form.decode((data + b"\0")[: len(data) + extra])


@pytest.mark.parametrize("kind", ["float32", "int8"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_refused(kind, number):
    form = StateFormat(kind=kind, dim=2, exact=1)
    data = form.encode(np.ones(2, np.float32))[:-4] + struct.pack("<f", number)
    with pytest.raises(MessageInvalid, match="not finite"):
        form.decode(data)

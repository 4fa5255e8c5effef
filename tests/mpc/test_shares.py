import dataclasses
import json
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.mpc import shares
from confide.mpc.errors import InvalidField, ShareMalformed
from confide.mpc.ring import Ring
from confide.mpc.shares import Share, ShareContext, expand, set_name, split, unpack

CONTEXT = ShareContext(study="s", run="r", round=1, state="ab" * 32, site="a", dim=64, ring_bits=64, scale_bits=24)
NARROW = dataclasses.replace(CONTEXT, ring_bits=32, scale_bits=20)
KNOWN = json.loads((Path(__file__).parent / "vectors" / "expand.json").read_text())
CHANGES = [
    {"study": "t"},
    {"run": "q"},
    {"round": 2},
    {"state": "ab" * 31 + "ac"},
    {"site": "b"},
    {"dim": 65},
    {"scale_bits": 23},
    {"ring_bits": 32},
    {"topup_for": "ab" * 32},
]


def random_vector(context):
    top = 2**context.ring_bits
    return np.random.default_rng(5).integers(0, top, context.dim, dtype=context.ring.unsigned.type)


@pytest.mark.parametrize("known", KNOWN)
def test_expand_gives_the_known_answers(known):
    context = ShareContext(**known["context"])
    assert bytes(context).hex() == known["context_bytes"]
    assert expand(bytes.fromhex(known["seed"]), context, known["aggregator_id"]).tolist() == known["elements"]


@pytest.mark.parametrize("context", [CONTEXT, NARROW])
@pytest.mark.parametrize("full", [0, 1, 2])
def test_shares_add_up_to_the_vector(context, full):
    vector = random_vector(context)
    parts = split(vector, context, full)
    assert (sum((unpack(part, context) for part in parts), np.zeros(64, vector.dtype)) == vector).all()
    assert [len(part.payload) for part in parts].count(34) == 2
    assert len(parts[full].payload) == shares.vector_payload_bytes(64, context.ring_bits)


@pytest.mark.parametrize("full", [0, 1, 2])
def test_two_shares_are_the_same_for_two_different_updates(monkeypatch, full):
    """With the same random bytes the two seeds do not change; only the third share carries the difference."""

    def fixed_split(vector):
        numbers = count(1)
        monkeypatch.setattr(shares, "token_bytes", lambda size: bytes([next(numbers)]) * size)
        return split(vector, CONTEXT, full)

    one, other = fixed_split(np.zeros(64, "<u8")), fixed_split(random_vector(CONTEXT))
    assert [a.payload == b.payload for a, b in zip(one, other, strict=True)] == [party != full for party in range(3)]


def test_any_pair_with_the_full_share_is_explained_by_every_update():
    """Given the full share and one seed, each candidate vector leaves a rest that some third share could be."""
    parts = split(random_vector(CONTEXT), CONTEXT, 2)
    for candidate in (np.zeros(64, "<u8"), random_vector(CONTEXT)[::-1].copy()):
        rest = candidate - unpack(parts[2], CONTEXT) - unpack(parts[0], CONTEXT)
        assert (unpack(parts[2], CONTEXT) + unpack(parts[0], CONTEXT) + rest == candidate).all()


def test_the_full_share_looks_uniform_whatever_the_update():
    wide = dataclasses.replace(CONTEXT, dim=50_000)
    for vector in (np.zeros(wide.dim, "<u8"), np.full(wide.dim, 2**64 - 1, "<u8")):
        seen = np.bincount(np.frombuffer(split(vector, wide, 1)[1].payload[2:], np.uint8), minlength=256)
        expected = wide.dim * 8 / 256
        assert ((seen - expected) ** 2 / expected).sum() < 255 + 6 * (2 * 255) ** 0.5  # chi-square, six sigma


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_a_seed_stands_for_another_vector_in_another_context(change):
    other = dataclasses.replace(CONTEXT, **change)
    assert bytes(other) != bytes(CONTEXT)
    assert expand(bytes(32), other, 0).tobytes()[:64] != expand(bytes(32), CONTEXT, 0).tobytes()[:64]


def test_a_seed_stands_for_another_vector_at_another_aggregator():
    assert (expand(bytes(32), CONTEXT, 0) != expand(bytes(32), CONTEXT, 1)).any()


names = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=8)


@given(names, names, names, names, names, names)
def test_no_two_contexts_have_the_same_bytes(a, b, c, d, e, f):
    one = dataclasses.replace(CONTEXT, study=a, run=b, site=c)
    other = dataclasses.replace(CONTEXT, study=d, run=e, site=f)
    assert (bytes(one) == bytes(other)) == (one == other)


@pytest.mark.parametrize(
    "change",
    [
        {"study": ""},
        {"site": "a\nb"},
        {"run": "x" * 129},
        {"round": -1},
        {"dim": 0},
        {"ring_bits": 16},
        {"round": True},
        {"state": "ab" * 31},
        {"state": "AB" * 32},  # a second spelling would be a second context
        {"state": bytes(32)},
        {"topup_for": ""},
        {"topup_for": "AB" * 32},
    ],
    ids=lambda change: next(iter(change)),
)
def test_context_outside_its_ranges_is_refused(change):
    with pytest.raises(InvalidField):
        dataclasses.replace(CONTEXT, **change)


@given(st.binary(max_size=80), st.integers(0, 2))
def test_any_bytes_are_a_sound_share_or_malformed(data, party):
    context = dataclasses.replace(CONTEXT, dim=4)
    try:
        assert unpack(Share(party, data), context).shape == (4,)
    except ShareMalformed:
        return
    assert data[0] == 1
    assert (data[1], len(data)) in {(0, 34), (1, 34)}  # a seed, or four elements of eight bytes


def test_secrets_do_not_show():
    part = split(random_vector(CONTEXT), CONTEXT, 0)[1]
    assert repr(part) == "Share(aggregator_id=1)"


@pytest.mark.parametrize("vector", [np.zeros(63, "<u8"), np.zeros(64, "<u4"), np.zeros((8, 8), "<u8")])
def test_vector_of_another_shape_or_ring_is_refused(vector):
    with pytest.raises(InvalidField):
        split(vector, CONTEXT, 0)


def test_a_set_is_named_by_its_members_alone():
    assert set_name(["b", "a"]) == set_name(("a", "b"))
    assert len({set_name(names) for names in (["a", "b"], ["ab"], ["a"], ["a", "b", "c"], [])}) == 5


def test_context_names_its_ring():
    assert NARROW.ring == Ring(32, 20)

import dataclasses
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.mpc.errors import InvalidField, ShareMalformed
from confide.mpc.sharing import shares
from confide.mpc.sharing.ring import Ring, from_integers
from confide.mpc.sharing.shares import Share, ShareContext, body_bytes, expand, masked, set_name, split, unpack

CONTEXT = ShareContext(
    study="s", run="r", round=1, state="ab" * 32, site="a", dim=64, ring_bits=64, scale_bits=24, rows=6, tag_count=2
)
NARROW = dataclasses.replace(CONTEXT, ring_bits=32, scale_bits=20, dim=63, rows=5)
BARE = dataclasses.replace(NARROW, rows=0, tag_count=0)
CHANGES = [
    {"study": "t"},
    {"run": "q"},
    {"round": 2},
    {"state": "ab" * 31 + "ac"},
    {"site": "b"},
    {"dim": 65},
    {"scale_bits": 23},
    {"ring_bits": 32},
    {"rows": 7},
    {"tag_count": 3},
    {"topup_for": "ab" * 32},
]


def random_vector(context):
    top = 2**context.ring_bits
    return np.random.default_rng(5).integers(0, top, context.dim, dtype=context.ring.unsigned.type)


def random_tags(context):
    return np.random.default_rng(6).integers(0, 2**64, context.tag_count, np.uint64)


def shared(context, full=1):
    return split(random_vector(context), context, full, random_tags(context))


def integers(parts):
    """Parts as lists of Python integers, which know no overflow."""
    return {name: getattr(parts, name).tolist() for name in ("vector", "masks", "mask_words", "tags")}


def put_together(pieces, context):
    """What shares stand for, by definition: sums modulo 2**bits or 2**64, XOR for the words."""
    columns = {name: list(zip(*(piece[name] for piece in pieces), strict=True)) for name in pieces[0]}
    whole = {name: [sum(column) % 2**context.ring_bits for column in columns[name]] for name in ("vector", "masks")}
    words = []
    for column in columns["mask_words"]:
        word = 0
        for value in column:
            word ^= value
        words.append(word)
    return whole | {"mask_words": words, "tags": [sum(column) % 2**64 for column in columns["tags"]]}


@pytest.mark.parametrize("context", [CONTEXT, NARROW, BARE], ids=["64", "32", "bare"])
@pytest.mark.parametrize("full", [0, 1, 2])
def test_shares_are_the_update_put_together(context, full):
    whole = put_together([integers(unpack(part, context)) for part in shared(context, full)], context)
    assert whole["vector"] == random_vector(context).tolist()
    assert whole["tags"] == random_tags(context).tolist()
    assert whole["masks"] == whole["mask_words"]  # two ways of sharing one mask
    assert len(set(whole["masks"])) == context.rows  # hardly ever twice the same of 2**32


@given(st.data())
def test_shares_of_extreme_vectors_are_exact(data):
    """Elements and tags at both ends of the ring, in a context of any shape."""
    bits, rows, tag_count = data.draw(st.sampled_from([(32, 0, 0), (32, 3, 1), (64, 2, 3), (64, 0, 1)]))
    context = dataclasses.replace(CONTEXT, ring_bits=bits, dim=3, rows=rows, tag_count=tag_count)
    edges = st.sampled_from([0, 1, 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2**bits - 1])
    vector = data.draw(st.lists(edges, min_size=3, max_size=3))
    tags = data.draw(st.lists(st.sampled_from([0, 1, 2**63, 2**64 - 1]), min_size=tag_count, max_size=tag_count))
    parts = split(np.array(vector, context.ring.unsigned), context, data.draw(st.integers(0, 2)), tags)
    whole = put_together([integers(unpack(part, context)) for part in parts], context)
    assert (whole["vector"], whole["tags"]) == (vector, tags)


@pytest.mark.parametrize("full", [0, 1, 2])
def test_one_share_of_three_has_the_body(full):
    parts = shared(CONTEXT, full)
    assert [len(part.body) for part in parts] == [body_bytes(CONTEXT) if i == full else 0 for i in range(3)]
    assert body_bytes(CONTEXT) == (64 + 6) * 8 + (6 + 2) * 8
    assert body_bytes(NARROW) == (63 + 5) * 4 + (5 + 2) * 8


def test_every_share_draws_its_masks_and_seeds_anew():
    one, other = shared(CONTEXT), shared(CONTEXT)
    assert len({part.seed for part in (*one, *other)}) == 6
    masks = [put_together([integers(unpack(p, CONTEXT)) for p in parts], CONTEXT)["masks"] for parts in (one, other)]
    assert not set(masks[0]) & set(masks[1])


class Canned:
    """A keystream of given bytes."""

    def __init__(self, data):
        self.rest = data

    def update_into(self, zeros, target):
        target[:], self.rest = self.rest[: len(zeros)], self.rest[len(zeros) :]


@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize("full", [0, 1, 2])
@pytest.mark.parametrize("context", [CONTEXT, NARROW], ids=["64", "32"])
def test_two_parties_and_the_relay_see_what_every_update_explains(monkeypatch, context, missing, full):
    """Their two seeds and the body are bit for bit those of any other update, if the third keystream is another."""
    rng, element = np.random.default_rng(7), context.ring.unsigned
    update, other = (
        {
            "vector": rng.integers(0, 2**context.ring_bits, context.dim, dtype=element.type),
            "masks": rng.integers(0, 2**context.ring_bits, context.rows, dtype=element.type),
            "tags": rng.integers(0, 2**64, context.tag_count, np.uint64),
        }
        for _ in range(2)
    )
    third = expand(bytes([2 + missing]) * 32, context, missing)
    streams = {name: getattr(third, name) + (other[name] - update[name]) for name in other}
    streams["mask_words"] = third.mask_words ^ other["masks"].astype("<u8") ^ update["masks"].astype("<u8")
    real = shares._stream

    def seen(chosen, stream):
        draws = iter([*(bytes([2 + party]) * 32 for party in range(3)), chosen["masks"].tobytes()])
        monkeypatch.setattr(shares, "token_bytes", lambda size: next(draws))
        monkeypatch.setattr(shares, "_stream", stream)
        parts = split(chosen["vector"], context, full, chosen["tags"])
        return [part.seed for part in parts if part.aggregator_id != missing], bytes(parts[full].body)

    def replaced(seed, context, party, name):
        return Canned(streams[name].tobytes()) if party == missing else real(seed, context, party, name)

    assert seen(update, real) == seen(other, replaced) != seen(other, real)


@pytest.mark.parametrize("full", [0, 1, 2])
def test_seeds_do_not_depend_on_the_update(monkeypatch, full):
    """With the same random bytes two updates have the same seeds; only the body carries the difference."""

    def fixed_split(vector, tags):
        numbers = count(1)
        monkeypatch.setattr(shares, "token_bytes", lambda size: bytes([next(numbers)]) * size)
        return split(vector, CONTEXT, full, tags)

    one, other = fixed_split(np.zeros(64, "<u8"), [0, 0]), fixed_split(random_vector(CONTEXT), [1, 2**64 - 1])
    assert [part.seed for part in one] == [part.seed for part in other]
    assert one[full].body != other[full].body


@pytest.mark.parametrize("vector", [0, 2**64 - 1])
def test_the_body_looks_uniform_whatever_the_update(vector):
    wide = dataclasses.replace(CONTEXT, dim=50_000, rows=1000, tag_count=16)
    body = split(np.full(wide.dim, vector, "<u8"), wide, 1, [vector] * 16)[1].body
    seen = np.bincount(np.frombuffer(body, np.uint8), minlength=256)
    expected = len(body) / 256
    assert ((seen - expected) ** 2 / expected).sum() < 426  # chi-square of 255 degrees of freedom: 1e-10


def test_no_two_parts_parties_or_contexts_share_a_keystream():
    """The first eight bytes of each stream: equal ones would cancel, or show one part to who knows the other."""
    contexts = [dataclasses.replace(CONTEXT, **change) for change in CHANGES]
    streams = [
        getattr(expand(bytes(32), context, party), name).tobytes()[:8]
        for context in (CONTEXT, *contexts)
        for party in range(3)
        for name in ("vector", "masks", "mask_words", "tags")
    ]
    assert len(set(streams)) == len(streams) == 12 * (1 + len(CHANGES))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_every_field_is_in_the_context_s_bytes(change):
    assert bytes(dataclasses.replace(CONTEXT, **change)) != bytes(CONTEXT)


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
        {"rows": -1},
        {"rows": 1025},
        {"tag_count": 17},
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


@given(st.binary(min_size=30, max_size=36))
def test_any_bytes_are_a_payload_or_malformed(data):
    try:
        assert shares.payload_of(Share(0, shares.seed_in(data))) == data
    except ShareMalformed:
        assert len(data) != 33 or data[0] != 2


@given(st.binary(max_size=120), st.integers(0, 2))
def test_any_body_of_the_right_length_is_sound_and_no_other(body, party):
    context = dataclasses.replace(CONTEXT, dim=4, rows=3, tag_count=1)  # 88 bytes
    try:
        parts = unpack(Share(party, bytes(32), body), context)
    except ShareMalformed:
        assert len(body) not in (0, 88)
    else:
        assert [len(found) for found in integers(parts).values()] == [4, 3, 3, 1]
        assert len(body) in (0, 88)


def test_vector_is_unpacked_into_given_memory_whatever_that_held():
    memory = np.full(NARROW.dim, 7, "<u4")
    for part in shared(NARROW):
        parts = unpack(part, NARROW, out=memory)
        assert parts.vector is memory
        assert integers(parts) == integers(unpack(part, NARROW))


@pytest.mark.parametrize(
    "memory", [np.zeros(62, "<u4"), np.zeros(63, "<u8"), np.zeros(126, "<u4")[::2]], ids=["length", "ring", "strided"]
)
def test_memory_that_does_not_fit_is_refused(memory):
    with pytest.raises(InvalidField):
        unpack(shared(NARROW)[0], NARROW, out=memory)


def test_a_long_vector_is_shared_over_all_its_blocks(monkeypatch):
    """Blocks of 64 bytes: first, middle and last ones, the last one short."""
    parts = shared(NARROW)
    whole = [integers(unpack(part, NARROW)) for part in parts]
    monkeypatch.setattr(shares, "_BLOCK", 64)
    assert [integers(unpack(part, NARROW)) for part in parts] == whole
    again = [integers(unpack(part, NARROW)) for part in shared(NARROW)]
    assert put_together(again, NARROW)["vector"] == random_vector(NARROW).tolist()


@pytest.mark.parametrize(
    "vector", [np.zeros(63, "<u8"), np.zeros((64, 1), "<i8"), np.zeros(64, "<f8"), np.zeros(64, "<u4")]
)
def test_vector_of_another_shape_or_ring_is_refused(vector):
    with pytest.raises(InvalidField):
        split(vector, CONTEXT, 0, [1, 2])


@pytest.mark.parametrize("context", [CONTEXT, NARROW])
def test_integers_are_shared_modulo_the_ring_s_size_and_every_byte_is_noted_in_its_order(context, monkeypatch):
    monkeypatch.setattr(shares, "_BLOCK", 64)
    monkeypatch.setattr(shares, "token_bytes", lambda size: bytes(range(size)))  # the masks
    integers = np.random.default_rng(1).integers(-(2**63), 2**63, context.dim)
    seeds, noted = [bytes([number]) * 32 for number in range(3)], []
    framed = masked(integers, context, seeds, random_tags(context), room=7, note=lambda part: noted.append(bytes(part)))
    elements = from_integers(integers, context.ring)
    assert bytes(framed[7:]) == bytes(masked(elements, context, seeds, random_tags(context)))
    assert b"".join(noted) == bytes(framed[7:])
    assert len(noted) > 4


@pytest.mark.parametrize("tags", [[], [1], [1, 2, 3]])
def test_another_number_of_tags_is_refused(tags):
    with pytest.raises(InvalidField):
        split(random_vector(CONTEXT), CONTEXT, 0, tags)


def test_a_share_shows_neither_seed_nor_body():
    part = shared(CONTEXT)[1]
    assert repr(part) == "Share(aggregator_id=1)"
    assert repr(unpack(part, CONTEXT)) == "Parts()"


def test_a_set_is_named_by_its_members_alone():
    assert set_name(["b", "a"]) == set_name(("a", "b"))
    assert len({set_name(names) for names in (["a", "b"], ["ab"], ["a"], ["a", "b", "c"], [])}) == 5


def test_context_names_its_ring():
    assert NARROW.ring == Ring(32, 20)

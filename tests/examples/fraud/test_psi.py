import json
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from confide.mpc.errors import InvalidField
from confide.mpc.sharing.curve25519 import A, P

RFC = json.loads((Path(__file__).parent / "rfc9380-curve25519.json").read_text())  # appendix J.4.2
VECTORS = pytest.mark.parametrize("known", RFC["vectors"], ids=lambda known: known["msg"][:16] or "empty")
SMALL_ORDER = [  # RFC 7748, section 6.1 asks to notice them; 2**255 - 20 lies on the twist
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    2**255 - 20,
]


@pytest.fixture(scope="module")
def psi(fraud):
    return fraud.psi


def added(one, other):
    """The chord and tangent law on v^2 = u^3 + A u^2 + u; None is the point at infinity."""
    if one is None or other is None:
        return other or one
    (u1, v1), (u2, v2) = one, other
    if u1 == u2 and (v1 + v2) % P == 0:
        return None
    rise, run = (3 * u1 * u1 + 2 * A * u1 + 1, 2 * v1) if one == other else (v2 - v1, u2 - u1)
    slope = rise * pow(run, -1, P)
    u3 = (slope * slope - A - u1 - u2) % P
    return u3, (slope * (u1 - u3) - v1) % P


def times(scalar, point):
    result = None
    for bit in f"{scalar:b}":
        result = added(result, result)
        result = added(result, point) if bit == "1" else result
    return result


def both(one, other):
    """Runs two owners' calls, each with its end of a socket pair, and returns what they return."""

    def linked(end):
        def exchange(step, data, limit):
            end.sendall(struct.pack(">4sI", step.encode(), len(data)))
            end.sendall(data)
            with end.makefile("rb", buffering=0) as file:
                head = file.read(8)
                tag, size = struct.unpack(">4sI", head)
                assert tag == step.encode()
                assert size <= limit
                received = b""
                while len(received) < size:
                    received += file.read(size - len(received))
            return received

        return exchange

    ends = socket.socketpair()
    with ends[0], ends[1], ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda call, end: call(linked(end)), (one, other), ends))


@VECTORS
def test_hashing_gives_the_vectors_of_the_rfc(psi, known):
    message, dst = known["msg"].encode(), RFC["dst"].encode()
    assert psi._hash_to_field(message, dst) == int(known["u"], 16)
    assert psi.hash_to_curve(message, dst=dst) == int(known["Q"]["x"], 16)
    mapped = int(known["Q"]["x"], 16), int(known["Q"]["y"], 16)
    assert times(8, mapped)[0] == int(known["P"]["x"], 16)


@VECTORS
def test_x25519_multiplies_the_mapped_point_and_clears_its_cofactor(known):
    raw = bytes(range(32))
    clamped = int.from_bytes(raw, "little") & ~7 & (2**254 - 1) | 2**254
    mapped = int(known["Q"]["x"], 16), int(known["Q"]["y"], 16)
    public = X25519PublicKey.from_public_bytes(mapped[0].to_bytes(32, "little"))
    found = X25519PrivateKey.from_private_bytes(raw).exchange(public)
    assert int.from_bytes(found, "little") == times(clamped, mapped)[0]
    assert times(2**252 + 27742317777372353535851937790883648493, times(8, mapped)) is None  # the prime order


def test_owners_find_the_common_ids_in_one_order_and_no_others(psi):
    bank = [f"P-{number:05}" for number in range(0, 120, 2)]
    hospital = [f" p{number:05} " for number in range(90, 0, -3)]
    at_bank, at_hospital = both(
        lambda exchange: psi.intersect(bank, "study", exchange, max_ids=100),
        lambda exchange: psi.intersect(hospital, "study", exchange, max_ids=100),
    )
    found = [psi.normalised(bank[at]) for at in at_bank]
    assert found == [psi.normalised(hospital[at]) for at in at_hospital]
    assert sorted(found) == sorted({*map(psi.normalised, bank)} & {*map(psi.normalised, hospital)})
    assert len(found) == 15


def test_owners_with_nobody_in_common_find_nobody(psi):
    assert both(
        lambda exchange: psi.intersect(["a", "b"], "study", exchange),
        lambda exchange: psi.intersect(["c"], "study", exchange),
    ) == [[], []]


def test_owners_of_different_studies_find_nobody(psi):
    assert both(
        lambda exchange: psi.intersect(["a", "b"], "study", exchange),
        lambda exchange: psi.intersect(["a", "b"], "another", exchange),
    ) == [[], []]


def test_an_offer_says_nothing_of_the_order_of_the_ids(psi, monkeypatch):
    monkeypatch.setattr(psi, "token_bytes", lambda size: bytes(range(size)))
    ids = [str(number) for number in range(50)]
    assert psi.Owner(ids, "study").offer == psi.Owner(ids[::-1], "study").offer


def test_no_point_is_offered_in_two_sessions(psi):
    ids = [str(number) for number in range(20)]
    first, second = psi.Owner(ids, "study").offer, psi.Owner(ids, "study").offer
    assert not set(first.points) & set(second.points)


def test_offered_points_are_in_the_subgroup_of_prime_order(psi):
    for point in psi.Owner(["a", "b", "c"], "study").offer.points:
        u = int.from_bytes(point, "little")
        square = u * (u * u + A * u + 1) % P
        v = pow(square, (P + 3) // 8, P)
        v = v if v * v % P == square else v * pow(2, (P - 1) // 4, P) % P
        assert v * v % P == square  # on the curve, not on its twist
        assert times(2**252 + 27742317777372353535851937790883648493, (u, v)) is None


@pytest.mark.parametrize("u", SMALL_ORDER)
def test_a_point_of_small_order_is_refused(psi, u):
    with pytest.raises(psi.PointsMalformed, match="small order"):
        psi.Owner(["a"], "study").answer(psi.Points((u.to_bytes(32, "little"),)))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no list of points"),
        (b"\2" + bytes(32), "no list of points"),
        (b"\1" + bytes(31), "no list of points"),
        (b"\1" + bytes(96), "3 points where 2 are allowed"),
        (b"\1" + P.to_bytes(32, "little"), "only spelling"),
        (b"\1" + bytes(31) + b"\x80", "only spelling"),
    ],
    ids=["empty", "version", "half a point", "too many", "not reduced", "top bit"],
)
def test_a_malformed_list_is_refused(psi, data, says):
    with pytest.raises(psi.PointsMalformed, match=says):
        psi.Points.from_bytes(data, max_points=2)


@given(st.binary(max_size=100))
def test_any_bytes_are_refused_or_the_only_spelling_of_a_list(psi, data):
    try:
        points = psi.Points.from_bytes(data, max_points=3)
    except psi.PointsMalformed:
        return
    assert points.to_bytes() == data


@pytest.mark.parametrize("order", [(1, 0), (0, 0)], ids=["descending", "twice"])
def test_offered_points_that_do_not_ascend_are_refused(psi, order):
    owner, other = psi.Owner(["a"], "study"), psi.Owner(["a", "b"], "study")
    with pytest.raises(psi.PointsMalformed, match="ascend"):
        owner.answer(psi.Points(tuple(other.offer.points[at] for at in order)))


def test_more_points_than_agreed_are_refused(psi):
    owner, other = psi.Owner(["a"], "study", max_ids=1), psi.Owner(["a", "b"], "study")
    with pytest.raises(psi.PointsMalformed, match="2 points where 1 are allowed"):
        owner.answer(other.offer)


@pytest.mark.parametrize("chosen", [(0,), (0, 0)], ids=["short", "twice"])
def test_an_answer_to_other_points_is_refused(psi, chosen):
    owner, other = psi.Owner(["a", "b"], "study"), psi.Owner(["a", "b"], "study")
    answer = other.answer(owner.offer)
    with pytest.raises(psi.PointsMalformed, match="an answer"):
        owner.common(psi.Points(tuple(answer.points[at] for at in chosen)), owner.answer(other.offer))


@pytest.mark.parametrize(
    ("one", "other"),
    [("P-125 024", "p125024"), ("ＡＢ１", "ab1"), ("Straße", "STRASSE"), ("e\u0301", "É"), ("ﬁn.7", "FIN7")],
)
def test_two_spellings_are_one_id(psi, one, other):
    assert psi.normalised(one) == psi.normalised(other)


def test_a_vowel_mark_is_part_of_an_id(psi):
    assert psi.normalised("कि") != psi.normalised("क")


@pytest.mark.parametrize("ids", [[], ["a", "A "], ["---"], ["a" * 129]], ids=["none", "twice", "empty", "long"])
def test_ids_that_cannot_be_told_apart_or_read_are_refused_and_not_shown(psi, ids):
    with pytest.raises(InvalidField) as caught:
        psi.Owner(ids, "study")
    assert not any(one in str(caught.value) for one in ids if len(one) > 2)


def test_neither_points_nor_ids_are_shown(psi):
    owner = psi.Owner(["a"], "study")
    assert owner.offer.points[0].hex() not in repr(owner.offer)
    assert repr(owner.offer) == "Points()"

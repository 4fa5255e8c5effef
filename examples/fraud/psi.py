"""Private set intersection: two organisations find the people that both know, and show each other no others.

Diffie-Hellman intersection (Meadows 1986; Huberman, Franklin and Hogg 1999) on Curve25519. An id is hashed to a point
(RFC 9380), each owner multiplies the points of both with a secret scalar of its own, and equal points are common ids,
because the order of two multiplications does not matter.

What is learned, by both owners: how many ids the other has, and which ids are common. A list travels in the order of
its blinded points, which are random to whoever lacks the scalar, so the order says nothing. An answer keeps the order
of what it answers: that is how an owner finds its own common ids, and it can say no more than the two sets of points.
This holds for owners that follow the protocol, by the decisional Diffie-Hellman assumption, with the hash as a random
oracle. (The encoding reaches only half of the curve. That is enough: a simulator that needs a given point under an id
draws points until one has a preimage, twice on average.)

Not covered:
    An owner that lies about what it has. Ids are guessable, and each guess that is put in a set and turns out common is
    confirmed. Points cannot be tested without the other's help, and a session uses new scalars: so bound the guesses,
    by `max_ids` and by how many sessions are run, and let each side keep a record of them.
    Whether ids are right. Two spellings that `normalised` does not make equal are two people.
    Timing: hashing in Python integers takes time that depends on the id, on the owner's own machine.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from secrets import token_bytes
from typing import Protocol, Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from confide.mpc.errors import InvalidField
from confide.mpc.fields import MAX_TEXT, canonical, text, whole
from confide.mpc.sharing.curve25519 import A, P, on_curve

MAX_IDS = 2**22  # a list of so many is 128 MiB
POINT_BYTES = 32
_DST = b"confide/mpc/psi/1 with curve25519_XMD:SHA-512_ELL2_NU_"
_HEAD = 1  # version
_VERSION = 1


class PointsMalformed(Exception):
    """A message of a set intersection breaks its format, or a point in it is unusable."""


class Exchange(Protocol):
    """Both owners' link to each other."""

    def __call__(self, step: str, data: bytes, limit: int) -> bytes:
        """Gives the other owner `data` and returns what it sent at the same step, at most `limit` bytes."""


@dataclass(frozen=True, slots=True)
class Points:
    """A list of points of Curve25519, as u-coordinates of 32 little-endian bytes each."""

    points: tuple[bytes, ...] = field(repr=False)

    def to_bytes(self) -> bytes:
        """A version byte, then the points."""
        return bytes((_VERSION,)) + b"".join(self.points)

    @classmethod
    def from_bytes(cls, data: bytes, *, max_points: int) -> Self:
        """Reads what `to_bytes` wrote.

        Raises:
            PointsMalformed: another version, half a point, a u-coordinate that is not below P, or too many.
        """
        if len(data) < _HEAD or data[0] != _VERSION or (len(data) - _HEAD) % POINT_BYTES:
            raise PointsMalformed(f"{len(data)} bytes are no list of points of version {_VERSION}")
        if len(data) > max_bytes(max_points):
            raise PointsMalformed(f"{len(data) // POINT_BYTES} points where {max_points} are allowed")
        points = tuple(data[at : at + POINT_BYTES] for at in range(_HEAD, len(data), POINT_BYTES))
        if any(int.from_bytes(point, "little") >= P for point in points):
            raise PointsMalformed("a point is not in its only spelling")
        return cls(points)


class Owner:
    """One owner's side of one session. The scalar is drawn here and never leaves it."""

    def __init__(self, ids: Sequence[str], study: str, *, max_ids: int = MAX_IDS) -> None:
        """Hashes and blinds `ids`.

        Args:
            ids: one for each person, in any order; compared as `normalised` writes them.
            study: names the use; ids of another study hash to other points.
            max_ids: most ids that either owner may bring.

        Raises:
            InvalidField: no ids or too many, one that is empty or too long, or two that are the same.
        """
        whole("the number of ids", len(ids), 1, whole("max_ids", max_ids, 1, MAX_IDS))
        text("study", study)
        names = [normalised(one) for one in ids]
        if len(set(names)) != len(names):
            raise InvalidField("two ids are the same once normalised: each person needs one of their own")
        self._max_ids = max_ids
        self._scalar = X25519PrivateKey.from_private_bytes(token_bytes(32))
        blinded = [
            self._times(hash_to_curve(canonical("confide/mpc/psi/id/1", study, name)).to_bytes(POINT_BYTES, "little"))
            for name in names
        ]
        self._order = sorted(range(len(ids)), key=blinded.__getitem__)  # positions in `ids`, as offered
        self.offer = Points(tuple(blinded[at] for at in self._order))

    def answer(self, theirs: Points) -> Points:
        """The other owner's offered points times this scalar, in the order that they came in.

        Raises:
            PointsMalformed: not ascending, so that one might stand there twice; too many; or one of small order.
        """
        if len(theirs.points) > self._max_ids:
            raise PointsMalformed(f"{len(theirs.points)} points where {self._max_ids} are allowed")
        if any(one >= other for one, other in zip(theirs.points, theirs.points[1:], strict=False)):
            raise PointsMalformed("the offered points do not ascend")
        return Points(tuple(self._times(point) for point in theirs.points))

    def common(self, own_answered: Points, theirs_answered: Points) -> list[int]:
        """Positions in `ids` of the common ones, in an order that is the same at both owners.

        Args:
            own_answered: the other owner's answer to `offer`.
            theirs_answered: what `answer` gave for the other's offer.

        Raises:
            PointsMalformed: the answer has another length than the offer, or a point twice.
        """
        own, theirs = own_answered.points, set(theirs_answered.points)
        if len(own) != len(self._order) or len(set(own)) != len(own):
            raise PointsMalformed(f"an answer of {len(own)} points to {len(self._order)} different ones")
        found = sorted((point, at) for point, at in zip(own, self._order, strict=True) if point in theirs)
        return [at for _, at in found]

    def _times(self, point: bytes) -> bytes:
        """The point times the scalar; a clamped scalar is a multiple of 8, which clears the cofactor (RFC 7748)."""
        try:
            return self._scalar.exchange(X25519PublicKey.from_public_bytes(point))
        except ValueError as err:  # all zeros
            raise PointsMalformed("a point has small order") from err


def intersect(ids: Sequence[str], study: str, exchange: Exchange, *, max_ids: int = MAX_IDS) -> list[int]:
    """Positions in `ids` of those that the other owner has too, in an order that is the same at both owners.

    Both call this at the same time, with the same `study` and `max_ids`. Raises as `Owner` does, and what `exchange`
    raises; nothing is returned then.
    """
    owner = Owner(ids, study, max_ids=max_ids)
    theirs = Points.from_bytes(exchange("PSIO", owner.offer.to_bytes(), max_bytes(max_ids)), max_points=max_ids)
    answer = owner.answer(theirs)
    answered = exchange("PSIA", answer.to_bytes(), max_bytes(len(ids)))
    return owner.common(Points.from_bytes(answered, max_points=len(ids)), answer)


def max_bytes(points: int) -> int:
    """Size of a list of so many points."""
    return _HEAD + points * POINT_BYTES


def normalised(person_id: str) -> str:
    """The id as both owners compare it: NFKC, case folded, letters with their marks and digits only.

    So "P-125 024" and "p125024" are one id, and so are "1-23" and "12-3": use ids whose punctuation means nothing.

    Raises:
        InvalidField: nothing is left, or more than 128 bytes; the id is not shown.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", person_id).casefold())
    kept = "".join(letter for letter in folded if unicodedata.category(letter)[0] in "LMN")
    if not 0 < len(kept.encode()) <= MAX_TEXT:
        raise InvalidField(f"an id must have 1 to {MAX_TEXT} bytes of letters and digits")
    return kept


def hash_to_curve(message: bytes, *, dst: bytes = _DST) -> int:
    """The u-coordinate that curve25519_XMD:SHA-512_ELL2_NU_ (RFC 9380, 8.5) gives before it clears the cofactor."""
    return _map_to_curve(_hash_to_field(message, dst))


def _hash_to_field(message: bytes, dst: bytes) -> int:
    """RFC 9380, 5.2 and 5.3.1 for one element: 48 bytes of `expand_message_xmd` with SHA-512, which is one block."""
    dst_prime = dst + bytes((len(dst),))
    b_0 = hashlib.sha512(bytes(128) + message + (48).to_bytes(2, "big") + b"\0" + dst_prime).digest()
    b_1 = hashlib.sha512(b_0 + b"\1" + dst_prime).digest()
    return int.from_bytes(b_1[:48], "big") % P


def _map_to_curve(u: int) -> int:
    """Elligator 2 (RFC 9380, 6.7.1) with Z = 2, without the v-coordinate, which X25519 does not need.

    1 + 2 u^2 is never 0: -1 is a square modulo P and 2 is not.
    """
    x1 = -A * pow(1 + 2 * u * u, -1, P) % P
    return x1 if on_curve(x1) else -(x1 + A) % P

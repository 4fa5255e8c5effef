"""Rotation of a node's identity key: the next one is made, signed for by both, made known, and put in place.

Every step is on disk before the next, and can be done again. Until the coordinator has answered, the present key stays
the present one. From the first request on it may know the next one, so that one is never thrown away: a rotation that
was cut short is completed by the same request.
"""

import secrets
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, TypeAdapter, model_validator

from ...privacy.ledger import canonical, chain
from ...privacy.ledger.succession import Succession, keys_of
from ..enrolment import Enrolment, NodeIdentity, protocol
from ..enrolment.identity import KEYS, make_signer, read_signer
from ..errors import IdentityMissing
from ..files import locked, move_durably, read_json, write_private
from . import own_keys

FOLLOW_PATH: Final = "/confide/v1/identity"
_STATEMENT = Path(KEYS) / "next-succession.json"  # no key: a name in `.next` would be sealed, and be read as open
_MAX_BYTES = 2**16
MOST_SENT = 20  # successions in one request
_REMEDY = (
    "It is the statement of a rotation that was cut short: delete it, and run `client-node keys rotate --identity`"
)
_FORM = TypeAdapter(Succession)

Way = Callable[[], tuple[Enrolment, str]]


class FollowRequest(protocol.SignedQuery):
    """A node's request to be known by its next identity key from now on; the key before that signs it.

    The successions before the last one are for a coordinator that was put back to an older state.
    """

    domain = b"confide identity 1\n"
    successions: Annotated[tuple[Succession, ...], Field(min_length=1, max_length=MOST_SENT, strict=False)]

    def keys(self) -> tuple[str, ...]:
        """Lists the keys that it leads through, oldest first; the last but one is `identity`."""
        return keys_of(self.successions)

    @model_validator(mode="after")
    def _follows(self) -> Self:
        if self.keys()[-2] != self.identity:
            raise ValueError("the last succession is not of the key that signs")
        return self


def rotate(home: Path) -> NodeIdentity:
    """Makes a new identity key, has the coordinator know this node by it, and returns the node's keys as they are now.

    The key before stays in `keys/`, for the studies that name it.

    Raises:
        IdentityMissing: the node's keys cannot be read.
        NotEnrolled, CoordinatorUnreachable, WrongCoordinator: nothing is known to have changed; the old key is kept.
        CoordinatorRefused: it does not take the key; nothing has changed.
    """
    with locked(home / KEYS):
        return _rotated(home)


def complete(home: Path, way: Way | None = None) -> NodeIdentity:
    """Completes a rotation that was cut short, if there is one; returns the node's keys as they are now.

    Args:
        way: finds the coordinator, and the only CAs to trust for it, if it is needed; None for those of the enrolment.

    Raises:
        As `rotate`.
    """
    if not is_under_way(home):
        return NodeIdentity.load(home)
    with locked(home / KEYS):  # a command that is about to complete it does so first
        return _rotated(home, way) if is_under_way(home) else NodeIdentity.load(home)


def is_under_way(home: Path) -> bool:
    """True if a rotation was begun and not completed."""
    return own_keys.next_path(home).exists()


def _rotated(home: Path, way: Way | None = None) -> NodeIdentity:
    own, path, send = NodeIdentity.load(home), own_keys.next_path(home), protocol.send_signed
    if way is None:
        enrolment = Enrolment.load(home)
    else:
        enrolment, ca_pem = way()
        send = partial(send, ca_pem=ca_pem)
    if not path.exists():
        make_signer(path, beside=own_keys.present_path(home))
    new = read_signer(path)
    stated = _statement(home, own, enrolment, new)
    before = [each for each in own_keys.successions(home) if each != stated]
    request = FollowRequest(
        identity=own.identity_hex, timestamp=time.time(), nonce=secrets.token_hex(16),
        successions=(*before, stated)[-MOST_SENT:],
    )  # fmt: skip
    send(request, FOLLOW_PATH, own, enrolment)
    own_keys.keep_earlier(home, own.signer)
    own_keys.add_succession(home, stated)
    move_durably(path, own_keys.present_path(home))
    (home / _STATEMENT).unlink(missing_ok=True)
    return NodeIdentity.load(home)


def _statement(home: Path, own: NodeIdentity, enrolment: Enrolment, new: Ed25519PrivateKey) -> Succession:
    """Returns the statement that may be at the coordinator already; else makes it, and writes it down before."""

    def is_wanted(known: Succession) -> bool:
        keys = own.identity_hex, canonical.public_hex(new)
        return (known.old, known.new) == keys and known.coordinator in enrolment.coordinators

    for known in own_keys.successions(home):  # stored, and cut off before the key was put in place
        if is_wanted(known):
            return known
    kept = read_json(home / _STATEMENT, _FORM, remedy=_REMEDY, error=IdentityMissing, max_bytes=_MAX_BYTES)
    if kept is not None and is_wanted(kept):
        return kept
    stated = Succession.make(enrolment.name, enrolment.coordinator, own.signer, new, chain.now())
    write_private(home / _STATEMENT, stated.model_dump_json().encode())
    return stated

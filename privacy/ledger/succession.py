"""Successions: statements that one key of a site, or of a coordinator, is followed by another, signed by both.

A succession is the only way from a key to the next one. Who knows the earlier key can check it, so nobody else, a
coordinator for one, can make one up; the later key's signature shows that its owner wants it too. A ledger takes a
succession in as an entry of its own (`Handover`): the earlier key signs that entry, and the later key signs where it
stands. So each of the two keys vouches for all that comes before it.

Who has an earlier key can make successions of it as well as its owner. Against a thief only the first one counts, and
a revocation helps.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import StringConstraints, ValidationError

from ...models.strict import Digest, StrictModel
from . import canonical

KIND = "succeed"  # of the ledger's entries
DOMAIN = "confide key succession 1"
COORDINATOR_DOMAIN = "confide coordinator succession 1"
HANDOVER_DOMAIN = "confide ledger succession 1"
MOST = 200  # successions of one site, ever: monthly ones for sixteen years
MOST_OF_COORDINATOR = 50  # a statement about its CAs, which carries them all, has at most 64 KiB

_Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
_Signature = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]
_Time = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]


class Succession(StrictModel):
    """The statement that a key of a site is followed by another, at one coordinator."""

    site: _Name
    coordinator: Digest  # Ed25519 key of the coordinator at which it holds
    old: Digest  # Ed25519 keys, hex
    new: Digest
    time: _Time  # of the site's clock, for people
    old_signature: _Signature
    new_signature: _Signature

    @classmethod
    def make(
        cls, site: str, coordinator: str, old: Ed25519PrivateKey, new: Ed25519PrivateKey, time: str
    ) -> "Succession":
        """Signs the statement with both keys."""
        stated = {
            "site": site, "coordinator": coordinator, "old": canonical.public_hex(old),
            "new": canonical.public_hex(new), "time": time,
        }  # fmt: skip
        return cls.model_validate(stated | _signatures(DOMAIN, stated, old, new))

    def problem(self) -> str:
        """Says why the statement holds nothing, "" if it holds: both keys have signed it, and they are two."""
        return _problem(self, DOMAIN)


class CoordinatorSuccession(StrictModel):
    """The statement that a coordinator's signing key is followed by another."""

    old: Digest  # Ed25519 keys, hex
    new: Digest
    time: _Time  # of the coordinator's clock, for people
    old_signature: _Signature
    new_signature: _Signature

    @classmethod
    def make(cls, old: Ed25519PrivateKey, new: Ed25519PrivateKey, time: str) -> "CoordinatorSuccession":
        """Signs the statement with both keys."""
        stated = {"old": canonical.public_hex(old), "new": canonical.public_hex(new), "time": time}
        return cls.model_validate(stated | _signatures(COORDINATOR_DOMAIN, stated, old, new))

    def problem(self) -> str:
        """Says why the statement holds nothing, "" if it holds: both keys have signed it, and they are two."""
        return _problem(self, COORDINATOR_DOMAIN)


class Handover(StrictModel):
    """The body of a ledger's entry by which a succession takes effect there."""

    succession: Succession
    accepted: _Signature  # of the later key, over the hash of the entry before


def hand_over(succession: Succession, new: Ed25519PrivateKey, previous: str) -> dict[str, Any]:
    """Makes the body of the entry that follows the hash `previous`, for the earlier key to sign."""
    accepted = canonical.sign(new, HANDOVER_DOMAIN, bytes.fromhex(previous))
    return Handover(succession=succession, accepted=accepted).model_dump()


def read_handover(body: object) -> Succession:
    """Reads the succession of an entry's body; says nothing about signatures. Raises ValueError."""
    return _read(body).succession


def key_handed_to(body: object, *, key: str, previous: str) -> str:
    """Checks the body of an entry that `key` has signed after the hash `previous`; returns the key from there on.

    Raises:
        ValueError: it is none, it is of another key, or a signature does not hold.
    """
    found = _read(body)
    if found.succession.old != key:
        raise ValueError("the succession is of another key than the ledger's")
    if problem := found.succession.problem():
        raise ValueError(f"the succession does not hold: {problem}")
    if not canonical.is_signed(found.succession.new, HANDOVER_DOMAIN, bytes.fromhex(previous), found.accepted):
        raise ValueError("the later key has not accepted the entries before it")
    return found.succession.new


def keys_of(successions: Sequence[Succession] | Sequence[CoordinatorSuccession]) -> tuple[str, ...]:
    """Lists the keys that lead from the first one on, oldest first; none of no successions.

    Raises:
        ValueError: one does not follow the one before, or leads back to an earlier key.
    """
    if not successions:
        return ()
    keys = [successions[0].old]
    for each in successions:
        if each.old != keys[-1] or each.new in keys:
            raise ValueError("a succession does not follow the one before")
        keys.append(each.new)
    return tuple(keys)


def _signatures(domain: str, stated: dict[str, str], old: Ed25519PrivateKey, new: Ed25519PrivateKey) -> dict[str, str]:
    said = canonical.encode(stated)
    return {
        "old_signature": canonical.sign(old, domain, said),
        "new_signature": canonical.sign(new, domain, said),
    }


def _problem(found: Succession | CoordinatorSuccession, domain: str) -> str:
    said = canonical.encode(found.model_dump(exclude={"old_signature", "new_signature"}))
    if found.old == found.new:
        return "it names one key twice"
    for which, key, signature in (
        ("earlier", found.old, found.old_signature), ("later", found.new, found.new_signature),
    ):  # fmt: skip
        if not canonical.is_signed(key, domain, said, signature):
            return f"the {which} key has not signed it"
    return ""


def _read(body: object) -> Handover:
    try:
        return Handover.model_validate(body)
    except ValidationError as err:
        problem = err.errors(include_input=False, include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from err

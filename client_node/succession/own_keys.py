"""Identity keys that this node has had, and has still, one after the other.

The present one is `keys/identity.key`. `keys/successions.json` has the successions that led to it, oldest first. An
earlier key lies beside it, as `keys/identity-KEY.key`, for as long as a study names it or a log waits for its last
signature; the next one as `keys/identity.next`, until the coordinator knows this node by it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, TypeAdapter

from ...models.strict import StrictModel
from ...privacy.ledger import canonical
from ...privacy.ledger.succession import MOST, Succession, keys_of
from ..enrolment import NodeIdentity
from ..enrolment.identity import KEYS, copy_signer, read_signer
from ..errors import IdentityMissing
from ..files import damaged, read_json, write_private

FILE = Path(KEYS) / "successions.json"
_PRESENT, _NEXT = "identity.key", "identity.next"
_MAX_BYTES = 2**21
_DIGITS = 16  # of a public key, in the name of an earlier key's file
_REMEDY = "It says which keys this node had before, all signed: restore it from the same backup as identity.key"


class _File(StrictModel):
    format: Literal[1] = 1
    successions: Annotated[tuple[Succession, ...], Field(max_length=MOST)] = ()


_FORM = TypeAdapter(_File)


class OwnKeys:
    """This node's identity keys, looked for on disk, since another process may have put the next one in place."""

    def __init__(self, identity: NodeIdentity) -> None:
        self._home, self._present = identity.home, identity.identity_hex
        self._found: dict[str, Ed25519PrivateKey] = {self._present: identity.signer}

    @property
    def present(self) -> str:
        """The public key, in hex, that was the present one when this object was made."""
        return self._present

    def all(self) -> tuple[str, ...]:
        """Lists the public keys that this node has had, in hex, oldest first; those it has no more as well.

        Raises:
            IdentityMissing: the file of successions is damaged.
        """
        return keys_of(successions(self._home)) or (self._present,)

    def find(self, public: str) -> Ed25519PrivateKey | None:
        """Finds the private key of `public`; None if it is not here, or not any more.

        Raises:
            IdentityMissing: a key's file is damaged.
        """
        if public not in self._found:
            for path in (earlier_path(self._home, public), *(self._home / KEYS / name for name in (_PRESENT, _NEXT))):
                if path.exists() and canonical.public_hex(key := read_signer(path)) == public:
                    self._found[public] = key
                    break
        return self._found.get(public)

    def key_in(self, identities: Mapping[str, str], name: str) -> str:
        """Returns the key by which this node takes part in a study: the one that it names, if that is here.

        Args:
            identities: the study's keys by the names of its parties.
            name: this node's own.

        Returns:
            The present key if the study names none of this node's.
        """
        named = identities.get(name, "")
        is_own = named == self._present or (named in self.all() and self.find(named) is not None)
        return named if is_own else self._present

    def signer_in(self, identities: Mapping[str, str], name: str) -> Ed25519PrivateKey:
        """Returns the private key of `key_in`."""
        return self._found[self.key_in(identities, name)]


def of_home(home: Path) -> OwnKeys:
    """Reads the keys under `home`. Raises `IdentityMissing`."""
    return OwnKeys(NodeIdentity.load(home))


def successions(home: Path) -> tuple[Succession, ...]:
    """Reads the successions that led to the present key, oldest first; none of a node with its first key.

    Raises:
        IdentityMissing: the file is damaged, or they do not follow one another.
    """
    found = read_json(home / FILE, _FORM, remedy=_REMEDY, error=IdentityMissing, max_bytes=_MAX_BYTES)
    stated = () if found is None else found.successions
    try:
        keys_of(stated)
    except ValueError as err:
        raise damaged(home / FILE, f"does not hold together: {err}", remedy=_REMEDY, error=IdentityMissing) from err
    return stated


def add_succession(home: Path, stated: Succession) -> None:
    """Stores one more succession, durably; one that is there already changes nothing."""
    known = successions(home)
    if stated not in known:
        write_private(home / FILE, _File(successions=(*known, stated)).model_dump_json(indent=1).encode())


def earlier(home: Path) -> list[str]:
    """Lists the public keys, in hex and oldest first, of which the private key is kept though another followed."""
    present = NodeIdentity.load(home).identity_hex
    return [key for key in of_home(home).all() if key != present and earlier_path(home, key).exists()]


def keep_earlier(home: Path, signer: Ed25519PrivateKey) -> None:
    """Keeps the present private key, durably, beside the one that is to follow it."""
    copy_signer(present_path(home), earlier_path(home, canonical.public_hex(signer)))


def delete_earlier(home: Path, public: str) -> None:
    """Deletes the private key of an earlier public one, and copies that a write left which was cut off."""
    path = earlier_path(home, public)
    for left in path.parent.glob(f".{path.name}.*"):
        left.unlink(missing_ok=True)
    path.unlink(missing_ok=True)  # last: as long as it is there, this is done again


def next_path(home: Path) -> Path:
    """Path of the identity key that comes next, while its rotation is under way."""
    return home / KEYS / _NEXT


def present_path(home: Path) -> Path:
    """Path of the present identity key."""
    return home / KEYS / _PRESENT


def earlier_path(home: Path, public: str) -> Path:
    """Path of an earlier identity key, by its public one in hex."""
    return home / KEYS / f"identity-{public[:_DIGITS]}.key"

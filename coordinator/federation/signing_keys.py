"""The key that signs studies, rounds and checkpoints, and the keys that came before it.

A new key takes effect with a statement that both keys sign (`CoordinatorSuccession`). From then on the coordinator
signs with the new one alone, in runs under way too, and the old private key is gone: whoever stole it can drive no run
of a node that has heard of the new one. Studies keep the key that they name, which only says which coordinator made
them.

`signing.key` is the present key, `successions.json` has the statements that led to it, oldest first. While a rotation
is under way, `signing.next` is the key that comes next, and `next-succession.json` its statement.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import Field, TypeAdapter

from ...client_node.errors import ClientNodeError
from ...client_node.files import damaged, locked, move_durably, read_json, stamp, write_private
from ...client_node.secret_files import write_secret
from ...models.strict import StrictModel
from ...privacy.ledger import canonical, chain
from ...privacy.ledger.succession import MOST_OF_COORDINATOR, CoordinatorSuccession, keys_of
from ..errors import Conflict, CoordinatorError, StateDamaged
from . import pki_files

logger = logging.getLogger(__name__)

KEY, NEXT = "signing.key", "signing.next"
_FILE, _STATEMENT = "successions.json", "next-succession.json"
_MAX_BYTES = 2**17
_RETRY_S = 2.0
_REMEDY = "It says which keys the coordinator had before, all signed: restore it and signing.key from one backup"
_NEXT_REMEDY = "It is of a new signing key that no node knows yet: delete it, then `coordinator keys rotate`"


class _File(StrictModel):
    format: Literal[1] = 1
    successions: Annotated[tuple[CoordinatorSuccession, ...], Field(max_length=MOST_OF_COORDINATOR)] = ()


_FORM, _STATEMENT_FORM = TypeAdapter(_File), TypeAdapter(CoordinatorSuccession)


@dataclass(frozen=True, slots=True)
class Signing:
    """The key that signs, and those before it, as they were at one moment."""

    key: Ed25519PrivateKey = field(repr=False)
    successions: tuple[CoordinatorSuccession, ...]  # that led to it, oldest first; none for the first key
    state: object  # stamps of the files

    @property
    def public(self) -> str:
        """The public key in hex, which every new study names."""
        return canonical.public_hex(self.key)

    @property
    def all(self) -> tuple[str, ...]:
        """All public keys that the coordinator has had, in hex, the present one last."""
        return keys_of(self.successions) or (self.public,)


class SigningKeys:
    """The coordinator's signing key as it is on disk, where a command may put another in its place."""

    def __init__(self, folder: Path) -> None:
        """Reads the keys in `folder`, home/pki, and completes a rotation that was cut off when it held already.

        Raises:
            StateDamaged: a file is missing or damaged, is a key that others can read, or does not fit the others.
            KeysSealed: the key is sealed, and no passphrase is given.
        """
        self._folder = folder
        self._read = self._look()
        self._retry = 0.0  # when files that could not be read are read again

    @classmethod
    def create(cls, folder: Path) -> "SigningKeys":
        """Makes the first key if there is none."""
        if not (folder / KEY).exists():
            _write_key(folder / KEY, Ed25519PrivateKey.generate())
        return cls(folder)

    @property
    def now(self) -> Signing:
        """The key that signs now. A file that cannot be read just now changes nothing, and is read again."""
        if self._state() != self._read.state and time.monotonic() >= self._retry:
            try:
                self._read = self._look()
            except (CoordinatorError, ClientNodeError, OSError) as err:
                logger.error("the coordinator signs with the key that it has read before: %s", err)
                self._retry = time.monotonic() + _RETRY_S
        return self._read

    @property
    def is_cut_off(self) -> bool:
        """True if a rotation was begun and cut off before its key held; `rotate` completes it."""
        if not (self._folder / NEXT).exists():
            return False
        with self.held():  # whoever rotates it just now is through then
            return (self._folder / NEXT).exists()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps the key from being rotated meanwhile, by any process; `rotate` and `is_cut_off` hang in here."""
        with locked(self._folder / KEY):
            self._read = self._look(is_held=True)  # a rotation that was killed meanwhile is completed before `now` asks
            yield

    def rotate(self, note: Callable[[str, str], object], *, present: str | None = None) -> CoordinatorSuccession:
        """Puts a new key in the place of the present one.

        A call that was cut off before its statement was on disk is completed by the next one, with the same key; after
        that by whoever opens the folder, and this makes a further key.

        Args:
            note: is told the old key and the new one, public and in hex, before anybody hears of the new one; at every
                try of one rotation.
            present: the public key in hex that is to be followed; None for whichever it is.

        Raises:
            Conflict: the coordinator has had as many keys as it may have, or signs with another one than `present`.
            StateDamaged, KeysSealed: as the constructor.
        """
        folder, path = self._folder, self._folder / NEXT
        with locked(folder / KEY):
            self._read = self._look(is_held=True)
            old, before = self._read.key, self._read.successions
            if present is not None and self._read.public != present:
                raise Conflict(
                    f"the coordinator signs with another key than {present[:16]}... already; nothing was changed"
                )
            if len(before) >= MOST_OF_COORDINATOR:
                raise Conflict(
                    f"the coordinator's signing key has had {MOST_OF_COORDINATOR} successors, and may have no more"
                )
            if not path.exists():
                _write_key(path, Ed25519PrivateKey.generate())
            new = pki_files.signing_key(folder, NEXT, _NEXT_REMEDY)
            stated = self._statement(old, new)
            note(stated.old, stated.new)
            write_private(folder / _FILE, _File(successions=(*before, stated)).model_dump_json(indent=1).encode())
            self._put_in_place()
            self._read = self._look(is_held=True)
        return stated

    def _statement(self, old: Ed25519PrivateKey, new: Ed25519PrivateKey) -> CoordinatorSuccession:
        """Returns the statement of these keys that was written down before; else makes it and writes it down."""
        path = self._folder / _STATEMENT
        kept = read_json(path, _STATEMENT_FORM, remedy=_NEXT_REMEDY, error=StateDamaged, max_bytes=_MAX_BYTES)
        if kept is not None and (kept.old, kept.new) == (canonical.public_hex(old), canonical.public_hex(new)):
            return kept
        made = CoordinatorSuccession.make(old, new, chain.now())
        write_private(path, made.model_dump_json().encode())
        return made

    def _put_in_place(self) -> None:
        move_durably(self._folder / NEXT, self._folder / KEY)
        (self._folder / _STATEMENT).unlink(missing_ok=True)

    def _state(self) -> object:
        return stamp(self._folder / KEY), stamp(self._folder / _FILE)

    def _look(self, *, is_held: bool = False) -> Signing:
        """Reads the files; `is_held` if the caller holds the lock."""
        folder = self._folder
        state = self._state()
        found = read_json(folder / _FILE, _FORM, remedy=_REMEDY, error=StateDamaged, max_bytes=_MAX_BYTES)
        stated = () if found is None else found.successions
        try:
            keys = keys_of(stated)
        except ValueError as err:
            raise damaged(folder / _FILE, f"does not hold together: {err}", remedy=_REMEDY, error=StateDamaged) from err
        key = pki_files.signing_key(folder)
        if not keys or keys[-1] == canonical.public_hex(key):
            return Signing(key, stated, state)
        if not is_held:  # whoever rotates it just now is through then
            with locked(folder / KEY):
                return self._look(is_held=True)
        if (folder / NEXT).exists():
            following = canonical.public_hex(pki_files.signing_key(folder, NEXT, _REMEDY))
            if following == keys[-1]:  # cut off between the statement and the key
                self._put_in_place()
                return self._look(is_held=True)
        problem = "does not lead to the key in signing.key"
        raise damaged(folder / _FILE, problem, remedy=_REMEDY, error=StateDamaged)


def _write_key(path: Path, key: Ed25519PrivateKey) -> None:
    write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

"""One daemon's claim to a node's key, told to the gate when it connects.

Flower knows a node by its key alone, so it cannot tell a daemon that was killed and started again from two daemons with
copies of one key. The gate can: by `Hello.session`, which each daemon draws anew, and by `Hello.place`, which only
daemons on one home and one running machine share. A home is locked for one daemon, so a second one in the same place
proves that the first is dead, and takes over from it at once. Any other daemon has to wait until the first is silent.

Not told apart: a virtual machine that was copied while it ran, its memory included.
"""

import fcntl
import hashlib
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from ...versions import OWN, Speaks
from ..errors import AlreadyRunning

HELLO_HEADER = "confide-hello"  # with an activation
SESSION_HEADER = "confide-session"  # with every request
LOCK_FILE = "daemon.lock"  # under the home; held by its daemon
_LOCK_TRIES = 4
_BOOT = Path("/proc/sys/kernel/random/boot_id")

_Token = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
_Protocol = Annotated[int, Field(ge=1, le=2**16)]


class Hello(BaseModel):
    """A daemon's introduction: the version of confide that it runs, its session, and the place of its home.

    Every version must be able to read that of every other, so fields that a later one adds are passed over.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
    version: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z.+!-]{1,32}$")]
    oldest: _Protocol = 1  # the range of protocols that it speaks; who tells none speaks the first
    newest: _Protocol = 1
    session: _Token
    place: _Token

    @classmethod
    def of(cls, home: Path) -> Self:
        """Makes the introduction of a new daemon for `home`."""
        session, place = secrets.token_hex(16), place_of(home / LOCK_FILE)
        return cls(version=OWN.version, oldest=OWN.oldest, newest=OWN.newest, session=session, place=place)

    @classmethod
    def read(cls, header: bytes | str) -> Self:
        """Reads a header. Raises ValueError, which never repeats it."""
        try:
            return cls.model_validate_json(header)
        except ValidationError:
            raise ValueError("not the introduction of a daemon") from None

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.oldest > self.newest:
            raise ValueError("no range of protocols")
        return self

    @property
    def speaks(self) -> Speaks:
        """The version that it names, with the protocols."""
        return Speaks(version=self.version, oldest=self.oldest, newest=self.newest)

    def succeeds(self, other: "Hello") -> bool:
        """True if `other` is this daemon itself, or must be dead because this one holds its home."""
        return self.session == other.session or self.place == other.place


@contextmanager
def only_one(home: Path, *, shared: bool = False) -> Iterator[None]:
    """Locks the home for one daemon, or for a command that may not run beside one: two would answer one round twice.

    Args:
        shared: only tests for a running daemon.

    Raises:
        AlreadyRunning: the home is locked.
    """
    with (home / LOCK_FILE).open("a+") as lock:  # NFS knows no shared lock of a file that is only written
        try:
            if shared:  # whoever has it alone keeps it: nothing to wait for
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            else:
                _lock_alone(lock)
        except OSError as err:
            raise AlreadyRunning(f"a daemon serves {home} already; stop it first, or use another --home") from err
        yield


def _lock_alone(file: IO[str]) -> None:
    for _ in range(_LOCK_TRIES):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # a `status` that tests just now releases its lock at once
            time.sleep(0.05)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def place_of(lock: Path) -> str:
    """Digests what names a lock's file on a running machine; random, and so like no other, where nothing does."""
    try:
        file, boot = lock.stat(), _BOOT.read_text()
    except OSError:
        return secrets.token_hex(16)
    return hashlib.sha256(f"{boot}|{file.st_dev}|{file.st_ino}".encode()).hexdigest()[:32]

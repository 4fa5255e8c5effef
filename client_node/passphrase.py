"""Finds the passphrase that a home's keys are sealed with, and makes keys of passphrases.

A passphrase stands in a file that only its owner can read, never in an argument, a variable or a log. A program finds
it in this order:

1. the file that `CONFIDE_PASSPHRASE_FILE` names;
2. `confide-passphrase` among the credentials of its systemd unit (`LoadCredentialEncrypted=`).

Child processes inherit both names, and find it in the same way. A key is made by scrypt (RFC 7914) with N = 2^17, r = 8
and p = 1: 128 MiB and half a second for each guess.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from .errors import KeysSealed
from .files import read_own

VARIABLE = "CONFIDE_PASSPHRASE_FILE"
CREDENTIAL = "confide-passphrase"
SALT_BYTES, KEY_BYTES = 16, 32

_CREDENTIALS = "CREDENTIALS_DIRECTORY"  # set by systemd
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**17, 8, 1  # the formats fix them
_LEAST, _MOST = 12, 1024  # bytes


def derive(passphrase: bytes, salt: bytes) -> bytes:
    """Makes a key of 32 bytes of a passphrase and a salt of 16; takes half a second and 128 MiB."""
    return Scrypt(salt=salt, length=KEY_BYTES, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P).derive(passphrase)


def read(path: Path, *, of: str, error: Callable[[str], Exception]) -> bytes:
    """Reads a passphrase from a file that only its owner may read; a line break at the end is left out.

    Args:
        of: words for what it opens, for messages.
        error: what to raise, with one text.

    Raises:
        As `error`: there is none, others can read it, or it is too short to protect anything.
    """
    return _read(path, of=of, error=error, is_secret=True)


def given() -> tuple[bytes, Path] | None:
    """Reads the passphrase of the keys from where a program is given it, and tells where; None if it is given none.

    Raises:
        KeysSealed: a place is named, and no passphrase can be read there.
    """
    of = "a home's keys"
    if named := os.environ.get(VARIABLE):
        return read(Path(named), of=of, error=KeysSealed), Path(named)
    if folder := os.environ.get(_CREDENTIALS):
        path = Path(folder, CREDENTIAL)
        if path.exists():
            # systemd keeps a credential for one account by an access list, whose mask stands in the group's bits.
            if stat.S_IMODE(path.stat().st_mode) & 0o037:
                raise KeysSealed(
                    f"{path} can be read by others, which no credential of systemd can; nothing was opened"
                )
            return _read(path, of=of, error=KeysSealed, is_secret=False), path
    return None


def _read(path: Path, *, of: str, error: Callable[[str], Exception], is_secret: bool) -> bytes:
    remedy = f"It holds the passphrase of {of}, {_LEAST} to {_MOST} bytes"
    text = read_own(path, remedy=remedy, error=error, max_bytes=_MOST + 2, is_secret=is_secret)
    if text is None:
        raise error(f"{path} is not there. {remedy}")
    passphrase = text.rstrip(b"\r\n")
    if not _LEAST <= len(passphrase) <= _MOST:
        raise error(f"{path} holds {len(passphrase)} bytes. {remedy}")
    return passphrase

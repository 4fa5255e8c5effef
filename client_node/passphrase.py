"""Finds the passphrase that a home's keys are sealed with, or a token's PIN, and makes keys of passphrases.

They stand in files that only their owner can read, never in an argument, a variable or a log. A program finds the
passphrase in this order, and a PIN likewise (`PIN`):

1. the file that `CONFIDE_PASSPHRASE_FILE` names;
2. `confide-passphrase` among the credentials of its systemd unit (`LoadCredentialEncrypted=`).

Child processes inherit both names, and find it in the same way. A key is made by scrypt (RFC 7914) with N = 2^17, r = 8
and p = 1: 128 MiB and half a second for each guess.
"""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from .errors import KeysSealed, TokenUnusable
from .files import read_own

SALT_BYTES, KEY_BYTES = 16, 32

_CREDENTIALS = "CREDENTIALS_DIRECTORY"  # set by systemd
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**17, 8, 1  # the formats fix them
_MOST = 1024  # bytes


@dataclass(frozen=True, slots=True)
class Asked:
    """A secret that a program finds by itself: by which names, and what it is."""

    variable: str  # of the environment, with a file's path
    credential: str  # of the systemd unit
    of: str  # what it opens, in words
    least: int  # bytes
    error: Callable[[str], Exception]  # what to raise where it is named and cannot be read


_LEAST = 12  # bytes of a passphrase, which protects a file that others may hold
PASSPHRASE = Asked("CONFIDE_PASSPHRASE_FILE", "confide-passphrase", "a home's keys", _LEAST, KeysSealed)
PIN = Asked("CONFIDE_PIN_FILE", "confide-pin", "a token", 4, TokenUnusable)  # a token counts wrong ones


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
    return _read(path, of=of, least=_LEAST, error=error, is_secret=True)


def given(asked: Asked = PASSPHRASE) -> tuple[bytes, Path] | None:
    """Reads a secret, by default the passphrase of the keys, from where a program is given it, and tells where.

    Returns:
        None if it is given none.

    Raises:
        KeysSealed: as `asked.error`: a place is named, and no such secret can be read there.
    """
    if named := os.environ.get(asked.variable):
        if not os.path.isabs(named):
            raise asked.error(f"{asked.variable} needs an absolute path, since child processes run elsewhere: {named}")
        return _read(Path(named), of=asked.of, least=asked.least, error=asked.error, is_secret=True), Path(named)
    if folder := os.environ.get(_CREDENTIALS):
        path = Path(folder, asked.credential)
        if path.exists():
            # systemd keeps a credential for one account by an access list, whose mask stands in the group's bits.
            if stat.S_IMODE(path.stat().st_mode) & 0o037:
                raise asked.error(f"{path} can be read by others, which no credential of systemd can; it was not read")
            return _read(path, of=asked.of, least=asked.least, error=asked.error, is_secret=False), path
    return None


def _read(path: Path, *, of: str, least: int, error: Callable[[str], Exception], is_secret: bool) -> bytes:
    remedy = f"It holds the {'PIN' if of == PIN.of else 'passphrase'} of {of}, {least} to {_MOST} bytes"
    text = read_own(path, remedy=remedy, error=error, max_bytes=_MOST + 2, is_secret=is_secret)
    if text is None:
        raise error(f"{path} is not there. {remedy}")
    secret = text.rstrip(b"\r\n")
    if not least <= len(secret) <= _MOST:
        raise error(f"{path} holds {len(secret)} bytes. {remedy}")
    return secret

"""Seals the secret keys of a node's home with a passphrase, and unseals them, while nobody else uses the home."""

from collections.abc import Callable
from pathlib import Path

from . import passphrase as passphrases
from . import secret_files
from .enrolment.identity import KEYS
from .enrolment.sessions import only_one
from .errors import KeysSealed
from .files import locked

Done = secret_files.Changed


def seal(home: Path, passphrase_file: Path | None = None) -> Done:
    """Seals every secret key of a node, and those that it will make; a call that was cut short is completed.

    A home without keys is prepared: they are sealed from the start.

    Args:
        passphrase_file: holds the passphrase; None for where the daemon will find it.

    Raises:
        AlreadyRunning: its daemon runs; nothing was changed.
        KeysSealed: there is no passphrase, or they are sealed with another one; nothing was changed.
        FileDamaged: one of the files is damaged; nothing was changed.
    """
    return _alone(home, lambda: secret_files.seal(home, "node", chosen(passphrase_file)))


def unseal(home: Path, passphrase_file: Path | None = None) -> Done:
    """Takes the seals away; arguments and errors are those of `seal`."""
    return _alone(home, lambda: secret_files.unseal(home, "node", chosen(passphrase_file)))


def chosen(passphrase_file: Path | None) -> bytes:
    """Reads the passphrase from the file that is named, or else from where a daemon finds it. Raises KeysSealed."""
    if passphrase_file is not None:
        return passphrases.read(passphrase_file, of="a home's keys", error=KeysSealed)
    found = passphrases.given()
    if found is None:
        raise KeysSealed(
            f"no passphrase is given; nothing was changed. Name a file that holds one: --passphrase-file FILE, or "
            f"{passphrases.PASSPHRASE.variable}"
        )
    return found[0]


def _alone(home: Path, change: Callable[[], Done]) -> Done:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with only_one(home), locked(home / KEYS):  # no daemon, no rotation
        return change()

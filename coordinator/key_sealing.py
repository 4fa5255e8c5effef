"""Seals the secret keys of the coordinator's home with a passphrase, and unseals them, while no server runs."""

from collections.abc import Callable
from pathlib import Path

from ..client_node import secret_files
from ..client_node.files import locked
from ..client_node.key_sealing import chosen
from .federation import is_founded, opened_store
from .federation.serving import only_server

Done = secret_files.Changed


def seal(home: Path, passphrase_file: Path | None = None) -> Done:
    """Seals every secret key of a federation, and those that it will make; a call that was cut short is completed.

    The audit log says so before. A home without a federation is prepared: its keys are sealed from the start.

    Args:
        passphrase_file: holds the passphrase; None for where the server will find it.

    Raises:
        Conflict: the server runs; nothing was changed.
        KeysSealed: there is no passphrase, or they are sealed with another one; nothing was changed.
        FileDamaged: one of the files is damaged; nothing was changed.
    """
    passphrase = chosen(passphrase_file)
    return _alone(home, "keys.seal", lambda: secret_files.seal(home, "coordinator", passphrase))


def unseal(home: Path, passphrase_file: Path | None = None) -> Done:
    """Takes the seals away; the audit log says so before. Arguments and errors are those of `seal`."""
    passphrase = chosen(passphrase_file)
    return _alone(home, "keys.unseal", lambda: secret_files.unseal(home, "coordinator", passphrase))


def _alone(home: Path, action: str, change: Callable[[], Done]) -> Done:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    pki = home / "pki"
    with (
        only_server(home),
        locked(pki / "server.crt"),
        locked(pki / "signing.key"),
    ):  # no server, no renewal or rotation
        if is_founded(home):
            with opened_store(home) as store, store.session() as session:
                store.log_action(session, action)
        return change()

"""The rotation of the coordinator's signing key, without a new enrolment and while runs go on."""

from pathlib import Path

from ..privacy.ledger.succession import CoordinatorSuccession
from .federation import Pki
from .store import Store, audit_log


def rotate(store: Store, home: Path) -> CoordinatorSuccession:
    """Puts a new signing key in the place of the present one; the audit log says so before any node hears of it.

    A running server signs with it from the next second on, and so do the drivers of runs. One that was cut off is
    completed as `SigningKeys.rotate` says.

    Raises:
        Conflict: the coordinator has had as many keys as it may have.
        PkiMissing, StateDamaged, KeysSealed: a file is missing, damaged or sealed; nothing was changed.
    """

    def note(old: str, new: str) -> None:
        with store.session() as session:
            noted = list(audit_log.entries(session, action="keys.rotate"))
            if not noted or noted[-1].fields.get("new") != new:
                store.log_action(session, "keys.rotate", old=old, new=new)

    return Pki.load(home).signing.rotate(note)

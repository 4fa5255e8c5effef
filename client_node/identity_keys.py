"""Rotation of this node's identity key, with all that is signed by it: the ledger, the decision log, studies.

A rotation is done once the coordinator knows the next key and it is in place (`succession.rotation`). The ledger and
the decision log each say for themselves which key signs them next, so both are handed over after that, at any time and
again after a crash. The earlier key stays for as long as it has anything to sign: until both logs are handed over, and
while the approval of a study that names it stands.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..privacy.ledger.ledger import Ledger
from .approval.catalogue import known_studies
from .approval.charges import ledger_if_begun
from .approval.confirmed_sites import fingerprint
from .enrolment import Enrolment, NodeIdentity
from .enrolment.identity import KEYS
from .files import locked
from .ledger_head import LedgerHead
from .policy import decision_log, decisions, site_policy
from .succession import own_keys, rotation


@dataclass(frozen=True, slots=True)
class OwnKey:
    """An identity key of this node whose private key is here."""

    public: str  # hex
    is_present: bool
    since: str  # UTC, when it followed the one before; "" of the first key
    holds: tuple[str, ...]  # what an earlier key is kept for, in words

    @property
    def fingerprint(self) -> str:
        """The fingerprint that people compare."""
        return fingerprint(self.public)


def rotate(home: Path, *, by: str | None = None) -> NodeIdentity:
    """Puts a new identity key in the place of the present one, or completes a rotation; returns the keys as they are.

    The daemon may run, and runs go on: studies keep the key that they name. A rotation that was completed just now is
    not begun a second time.

    Args:
        by: who decides; None for the account that runs this process.

    Raises:
        IdentityMissing: the node's keys cannot be read.
        NotEnrolled, CoordinatorUnreachable, WrongCoordinator: nothing is known to have changed; the old key is kept.
        CoordinatorRefused: it does not take the key; nothing has changed.
        SiteNotReady, LedgerError: the new key is in place, and the ledger could not be handed over to it yet.
    """
    identity = rotation.rotate(home)
    settle(home, by=by)
    return identity


def settle(home: Path, ledger: Ledger | None = None, *, by: str | None = None) -> None:
    """Hands the ledger and the decision log over to the present key, and deletes earlier ones that nothing needs.

    Args:
        ledger: the site's, where it is open already.
        by: who decides; None for the account that runs this process.

    Raises:
        SiteNotReady: the ledger is an older copy; nothing was written into it, and no key was deleted.
    """
    with locked(home / KEYS):
        if not own_keys.earlier(home):
            return
        for each in own_keys.successions(home):
            decisions.note_succession(home, each, by=by)
        with _opened(home, ledger) as found:
            if found is not None:
                _hand_over(home, found)
            for key in _held(home, found):
                if not key.is_present and not key.holds:
                    own_keys.delete_earlier(home, key.public)


def held(home: Path) -> list[OwnKey]:
    """Lists the identity keys whose private key is here, oldest first, and what each earlier one is kept for."""
    if not own_keys.earlier(home):
        return _held(home, None)
    with _opened(home, None) as ledger:
        return _held(home, ledger)


def _held(home: Path, ledger: Ledger | None) -> list[OwnKey]:
    present = NodeIdentity.load(home).identity_hex
    since = {each.new: each.time for each in own_keys.successions(home)}
    earlier = own_keys.earlier(home)
    waiting = _waiting_logs(home, ledger) if earlier else {}
    found = [
        OwnKey(key, False, since.get(key, ""), (*_studies_of(home, key), *waiting.get(key, ()))) for key in earlier
    ]
    return [*found, OwnKey(present, True, since.get(present, ""), ())]


@contextmanager
def _opened(home: Path, ledger: Ledger | None) -> Iterator[Ledger | None]:
    """Opens the site's ledger for the block, unless it is open already; None where none was begun."""
    begun = ledger_if_begun(home) if ledger is None else None
    try:
        yield ledger or begun
    finally:
        if begun is not None:
            begun.close()


def _hand_over(home: Path, ledger: Ledger) -> None:
    keys, head = own_keys.of_home(home), LedgerHead(home, ledger)
    for each in own_keys.successions(home):
        new = keys.find(each.new)
        if ledger.keys[-1] == each.old and new is not None:
            head.require()  # an older copy is to take in what it lacks, and no entry before that
            ledger.succeed(each, new)
            head.keep()


def _waiting_logs(home: Path, ledger: Ledger | None) -> dict[str, tuple[str, ...]]:
    """Finds the logs that a key has to sign once more, by key."""
    found: dict[str, tuple[str, ...]] = {}
    logs = {"the decision log": decision_log.signing_key(home, own_keys.of_home(home))}
    if ledger is not None:
        logs["the ledger"] = ledger.keys[-1]
    for name, key in logs.items():
        found[key] = (*found.get(key, ()), f"{name}, to be handed over")
    return found


def _studies_of(home: Path, key: str) -> tuple[str, ...]:
    """Names the approved studies that give this node an earlier key; one that never came here might be among them."""
    name, approvals = Enrolment.load(home).name, site_policy.approvals(home)
    known = {study.study_hash: study for study in known_studies(home)}
    naming = [study for study in known.values() if study.identities().get(name) == key]
    found = [f"study {each.name} ({each.study_hash[:12]})" for each in naming if approvals.names(each.study_hash)]
    unseen = sorted({*approvals.approved, *approvals.unprotected} - {*known})
    return (*found, *(f"study {hashed[:12]}, which has not reached this node" for hashed in unseen))

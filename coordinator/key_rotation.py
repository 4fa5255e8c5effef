"""The rotation of the coordinator's signing key, without a new enrolment and while runs go on.

The register knows by which key each node says that it knows the coordinator, so the operator sees who has heard of the
present one. Nothing is decided by it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..privacy.ledger.succession import CoordinatorSuccession
from .federation import Pki
from .store import Store, audit_log

Knows = Literal["present", "earlier", "strange", "unknown"]


@dataclass(frozen=True, slots=True)
class NodeKnowledge:
    """An enrolled node, and by which key it knows the coordinator, by its own last word."""

    name: str
    knows: Knows  # strange: a key that the coordinator has not had; unknown: it has named none
    key: str | None  # Ed25519, hex, as it said


@dataclass(frozen=True, slots=True)
class Standing:
    """A coordinator's signing key, those before it, and which nodes have heard of it."""

    key: str  # Ed25519, hex
    successions: tuple[CoordinatorSuccession, ...]  # that led to it, oldest first
    is_cut_off: bool  # a rotation was begun, and its key does not hold yet
    nodes: tuple[NodeKnowledge, ...]

    @property
    def lacking(self) -> tuple[str, ...]:
        """Names of the nodes that are not known to have heard of the key; none before the first rotation.

        Until then each node knows the only key from its enrolment, and names none.
        """
        return self._who("earlier", "unknown") if self.successions else ()

    @property
    def strange(self) -> tuple[str, ...]:
        """Names of the nodes that go by a key which this coordinator has not had.

        Somebody made a successor of a key that he has stolen, or the coordinator was put back to before a rotation.
        """
        return self._who("strange")

    @property
    def next_step(self) -> str:
        """The words for an operator: what is to be done, or waited for."""
        if self.strange:
            return (
                f"This coordinator has not had the key that is shown of: {', '.join(self.strange)}. Somebody has made "
                "a successor of a stolen key, or this home was put back to before a rotation: docs/key-rotation.md"
            )
        if not self.nodes:
            return "No node is enrolled."
        if not self.successions:
            return "There was no rotation: nodes know this key from their enrolment, and do not name it."
        if self.lacking:
            return (
                f"Not known to have heard of the present key: {', '.join(self.lacking)}. A daemon that is connected "
                "follows within a minute; have the people of the others run: client-node ca fetch"
            )
        return "All nodes know the present key."

    def _who(self, *knows: Knows) -> tuple[str, ...]:
        return tuple(each.name for each in self.nodes if each.knows in knows)


def standing(store: Store, home: Path) -> Standing:
    """Describes the coordinator's signing key, and which nodes have heard of it.

    Raises:
        PkiMissing, StateDamaged, KeysSealed: a file is missing, damaged or sealed.
    """
    rows = store.nodes()  # first: a node may confirm meanwhile a key that is newer than what is read below
    signing = Pki.load(home).signing
    now = signing.now
    return Standing(
        key=now.public,
        successions=now.successions,
        is_cut_off=signing.is_cut_off,
        nodes=tuple(
            NodeKnowledge(row.name, _knows(row.known_key, now.all), row.known_key)
            for row in rows
            if row.enrolled_at is not None and not row.revoked_at
        ),
    )


def _knows(key: str | None, keys: tuple[str, ...]) -> Knows:
    if key is None:
        return "unknown"
    if key not in keys:
        return "strange"
    return "present" if key == keys[-1] else "earlier"


def rotate(store: Store, home: Path, *, present: str | None = None) -> CoordinatorSuccession:
    """Puts a new signing key in the place of the present one; the audit log says so before any node hears of it.

    A running server signs with it from the next second on, and so do the drivers of runs. One that was cut off is
    completed as `SigningKeys.rotate` says.

    Args:
        present: the public key in hex that is to be followed, as somebody was shown it; None for whichever it is.

    Raises:
        Conflict: the coordinator has had as many keys as it may have, or signs with another one than `present`.
        PkiMissing, StateDamaged, KeysSealed: a file is missing, damaged or sealed; nothing was changed.
    """

    def note(old: str, new: str) -> None:
        with store.session() as session:
            noted = list(audit_log.entries(session, action="keys.rotate"))
            if not noted or noted[-1].fields.get("new") != new:
                store.log_action(session, "keys.rotate", old=old, new=new)

    return Pki.load(home).signing.rotate(note, present=present)

"""Checkpoints of the audit log: made, offered to nodes, and stored with what nodes countersigned."""

import logging
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy.orm import Session

from ...client_node.wire.checkpoints import DIGESTS_A_MESSAGE, AuditAnswer, AuditOffer, Checkpoint, countersigned_by
from ...privacy.ledger import chain
from ...privacy.ledger.chain import Head
from ..errors import StateDamaged
from ..federation import Pki
from ..store import Store, audit_log
from ..store.actions import SELF
from ..store.audit_log import Action
from ..store.tables import CheckpointRow, CountersignatureRow

logger = logging.getLogger(__name__)


def make(store: Store, pki: Pki) -> Checkpoint | None:
    """Signs the log's head, unless that is signed already, and returns the checkpoint; None for an empty log."""
    with store.session() as session:
        head, newest = audit_log.head(session), audit_log.newest_checkpoint(session)
        if newest is not None and (newest.seq, newest.hash) == (head.seq, head.hash):
            return checkpoint_of(newest)  # without a lock, for the server asks often
    with store.session() as session:
        head = audit_log.hold(session)
        return None if head.seq < 0 else _signed(session, pki, head)


def offer(store: Store, pki: Pki, site: str, *, known: int | None = None) -> AuditOffer | None:
    """Makes the next offer to a node: the log's head, or an earlier entry if the proof would be too long.

    Args:
        known: the entry that the node says it countersigned last; None for what is stored here.
    """
    with store.session() as session:  # without a lock, for a driver asks every second while nodes are away
        head = audit_log.head(session)
        if head.seq < 0:
            return None
        since = min(audit_log.countersigned(session, site) if known is None else known, head.seq)
        digests = audit_log.digests(session, since + 1, DIGESTS_A_MESSAGE)
        if since + len(digests) < head.seq:
            at = since + len(digests)
            head = Head(at, _hash_at(session, at))
        digests = digests[: head.seq - since]  # what was appended meanwhile is for the next offer
        row = session.get(CheckpointRow, head.seq)
    if row is not None and row.hash == head.hash:
        return AuditOffer(checkpoint=checkpoint_of(row), digests=tuple(digests))
    with store.session() as session:
        audit_log.hold(session)
        return AuditOffer(checkpoint=_signed(session, pki, head), digests=tuple(digests))


def take(
    store: Store, coordinators: Collection[str], site: str, identity: str, checkpoint: Checkpoint, answer: AuditAnswer
) -> int | None:
    """Stores a node's countersignature, or in the audit log that it refuses.

    An offer that another driver's newer one has overtaken is no refusal of the log: the node holds what stands in it.

    Args:
        coordinators: the keys that the coordinator has had, hex.
        identity: the node's Ed25519 key, hex.
        checkpoint: the one that it was offered.

    Returns:
        The entry from which on the node needs a proof; None if it is the one that is stored here.

    Raises:
        MessageInvalid: the countersignature does not verify.
    """
    if answer.refusal is None:
        decisions, signature = countersigned_by(site, identity, checkpoint, answer)
        row = CountersignatureRow(
            site=site, seq=checkpoint.seq, time=checkpoint.time, decisions=decisions.seq,
            decisions_hash=decisions.hash, identity=identity, signature=signature,
        )  # fmt: skip
        with store.session() as session:
            audit_log.hold(session)  # of two drivers one waits here
            session.merge(row)
        return None
    held = answer.last
    is_ours = held is None or any(map(held.is_signed_by, coordinators))
    with store.session() as session:
        if is_ours and answer.refusal in ("unproved", "older"):
            at = -1 if held is None else held.seq
            if held is None or audit_log.hash_at(session, at) == held.hash:
                return at
        _note_refusal(store, session, site, answer, held if is_ours else None)
    return None


def _note_refusal(store: Store, session: Session, site: str, answer: AuditAnswer, held: Checkpoint | None) -> None:
    """Writes a refusal in the log, unless it is the newest one of that node already; `held` is one of our own key."""
    reason = "forked" if answer.refusal == "unproved" else str(answer.refusal)
    at = -1 if held is None else held.seq
    fields = {"site": site, "reason": reason, "held": at}
    refusals = [each for each in audit_log.entries(session, action="log.refused") if each.fields.get("site") == site]
    if refusals and dict(refusals[-1].fields) == fields:
        return
    logger.warning(
        "%s does not countersign the audit log (%s): %s. Was an older copy of the database put back? Its people "
        "can let it begin anew: client-node witness --forget",
        site, reason, held_words(at),
    )  # fmt: skip
    store.log_action(session, "log.refused", actor=SELF, **fields)


@dataclass(frozen=True, slots=True)
class WitnessStanding:
    """An enrolled node, or one that refuses, and how far it has countersigned the log."""

    site: str
    reached: int  # the newest entry that it has countersigned; -1 for none
    refusal: Action | None  # the entry of its last refusal, if it has countersigned nothing after that

    @property
    def why(self) -> str:
        """The reason of its refusal in words; empty if it does not refuse."""
        if self.refusal is None:
            return ""
        fields = self.refusal.fields
        return f"since {self.refusal.time} ({fields['reason']}): {held_words(fields['held'])}"


def witnesses(store: Store) -> list[WitnessStanding]:
    """Lists how far each node has countersigned the log, by name."""
    enrolled = {node.name for node in store.nodes() if node.enrolled_at is not None and node.revoked_at is None}
    with store.session() as session:
        reached = audit_log.all_countersigned(session)
        refused = {str(each.fields["site"]): each for each in audit_log.entries(session, action="log.refused")}
    refusing = {name: each for name, each in refused.items() if each.seq > reached.get(name, -1)}
    return [
        WitnessStanding(name, reached.get(name, -1), refusing.get(name)) for name in sorted(enrolled | set(refusing))
    ]


def held_words(held: int) -> str:
    """Tells of the entry that a refusing node holds; -1 if it shows none that this coordinator signed."""
    if held < 0:
        return "it shows no entry that this coordinator signed"
    return f"it has signed entry {held} of another state of it"


def _signed(session: Session, pki: Pki, head: Head) -> Checkpoint:
    """Finds the checkpoint of a head, or makes it; the caller holds the log: of two keys the later one signs last."""
    row = session.get(CheckpointRow, head.seq)
    if row is not None and row.hash == head.hash:
        return checkpoint_of(row)
    if row is not None:
        raise StateDamaged(
            f"entry {head.seq} of the audit log in the database is another than the one that was signed: "
            "`coordinator audit verify` says where it was changed. Restore the newest backup"
        )
    made = Checkpoint.issue(log=_hash_at(session, 0), head=head, time=chain.now(), signer=pki.signing.now.key)
    session.add(CheckpointRow(seq=made.seq, log=made.log, hash=made.hash, time=made.time, signature=made.signature))
    session.flush()
    return made


def checkpoint_of(row: CheckpointRow) -> Checkpoint:
    """Reads a stored checkpoint. Raises StateDamaged if it has no form of one."""
    try:
        return Checkpoint(log=row.log, seq=row.seq, hash=row.hash, time=row.time, signature=row.signature)
    except ValueError as err:
        raise StateDamaged(f"checkpoint {row.seq} in the database is damaged") from err


def _hash_at(session: Session, seq: int) -> str:
    found = audit_log.hash_at(session, seq)
    if found is None:
        raise StateDamaged(f"entry {seq} of the audit log in the database is gone. Restore the newest backup")
    return found

"""This node's part in the coordinator's audit log: it countersigns checkpoints, and never two that contradict.

The last checkpoint that it countersigned is kept in `witness.json`, on disk before the signature leaves. An older one,
another of the same number, or one that is not proved to follow from it is refused; the run goes on without. A refusal
means that the coordinator's log was put back to an older state, or rewritten: people ask the coordinator's. If they
are content, `forget` lets the node begin anew, which stands in the decision log.
"""

import logging
from collections.abc import Collection
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import TypeAdapter

from ..models.strict import StrictModel
from .errors import MessageInvalid
from .files import locked, read_json, write_private
from .policy import decision_log, decisions
from .wire.checkpoints import AuditAnswer, AuditOffer, Checkpoint, DecisionsHead, Refusal, countersign

logger = logging.getLogger(__name__)

FILE = "witness.json"
_MAX_BYTES = 2**16
_REMEDY = (
    "It holds the last entry of the coordinator's audit log that this node has countersigned: restore a backup of it. "
    "Without one, delete it; the node then cannot tell any more if the log was rewritten before that"
)
_WORDS: dict[Refusal, str] = {
    "older": "it ends before the entry that this node has countersigned: an older state was put back, as after a "
    "restored backup",
    "forked": "it does not hold what this node has countersigned: entries were rewritten",
    "unproved": "it was not shown that it follows from what this node has countersigned",
    "another log": "it is another log than the one that this node has countersigned",
}


class Refused(StrictModel):
    """The last checkpoint that was refused, and why."""

    reason: Refusal
    checkpoint: Checkpoint

    @property
    def words(self) -> str:
        """The reason in words."""
        return _WORDS[self.reason]


class Witnessed(StrictModel):
    """The last checkpoint that this node countersigned, and one that it has refused since."""

    last: Checkpoint | None = None
    refused: Refused | None = None


_FORM = TypeAdapter(Witnessed)


def load(home: Path) -> Witnessed:
    """Reads what this node has countersigned last, and refused since.

    Raises:
        FileDamaged: the file is damaged; nothing is countersigned until a person has looked at it.
    """
    return read_json(home / FILE, _FORM, remedy=_REMEDY, max_bytes=_MAX_BYTES) or Witnessed()


def answer(
    home: Path, site: str, coordinators: Collection[str], signer: Ed25519PrivateKey, offer: AuditOffer
) -> AuditAnswer:
    """Countersigns the checkpoint of an offer, or says why not.

    Raises:
        MessageInvalid: the checkpoint is not signed by one of the coordinator's keys (hex).
        FileDamaged: this node cannot tell what it has countersigned.
    """
    checkpoint = offer.checkpoint
    if not any(map(checkpoint.is_signed_by, coordinators)):
        raise MessageInvalid("a checkpoint of the audit log is not signed by the coordinator")
    decided = decision_log.verify(home)
    if decided.problems:  # the signature shows it to whoever verifies the log
        logger.error("%s: %s; see client-node decisions --verify", home / decision_log.FILE, decided.problems[0])
    with locked(home / FILE):
        known = load(home)
        refusal = checkpoint.why_not_after(known.last, offer.digests)
        if refusal is None:
            _store(home, Witnessed(last=checkpoint))
        elif refusal != "unproved" and not _is_overtaken(refusal, checkpoint, known.last):
            # Of "unproved", the coordinator is told how much is missing.
            if known.refused is None or known.refused.reason != refusal:
                logger.warning("the coordinator's audit log is not countersigned: %s", _WORDS[refusal])
            _store(home, Witnessed(last=known.last, refused=Refused(reason=refusal, checkpoint=checkpoint)))
    if refusal is not None:
        return AuditAnswer(refusal=refusal, last=known.last)
    head = DecisionsHead(seq=decided.head.seq, hash=decided.head.hash)
    return countersign(checkpoint, site=site, decisions=head, signer=signer)


def _is_overtaken(refusal: Refusal, checkpoint: Checkpoint, last: Checkpoint | None) -> bool:
    """True if an older checkpoint was signed before the last one here: a newer offer of another run came first.

    A log that was put back is signed anew as soon as it grows, which it does by this very refusal.
    """
    return refusal == "older" and last is not None and checkpoint.time <= last.time


def forget(home: Path, *, by: str | None = None) -> Checkpoint | None:
    """Forgets what was countersigned, for a person who knows why the log was put back; returns it.

    Args:
        by: who decides; None for the account that runs this process.
    """
    with locked(home / FILE):
        known = load(home)
        if known.last is not None:
            decisions.note_forgotten(home, known.last.hash, f"entry {known.last.seq} of {known.last.time}", by=by)
        _store(home, Witnessed())
    return known.last


def _store(home: Path, witnessed: Witnessed) -> None:
    write_private(home / FILE, witnessed.model_dump_json().encode())

"""Checkpoints of the coordinator's audit log, and the countersignatures of nodes.

A checkpoint is a head of the log that the coordinator signs. A node countersigns it only if it follows from the one
that the node countersigned last: the coordinator sends the digests of the entries between, and the node recomputes the
links. So a coordinator that rewrote an entry can get no further countersignature, from any node that had signed that
entry or a later one. The digests are salted: a node learns how many actions there were, and nothing of them.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from ...models.strict import StrictModel
from ...privacy.ledger import canonical, log_chain
from ...privacy.ledger.chain import START, Head, Hex64, Hex128, Time
from ..errors import MessageInvalid

CHECKPOINT_DOMAIN = "confide audit checkpoint 1"
COUNTERSIGNATURE_DOMAIN = "confide audit countersignature 1"
DIGESTS_A_MESSAGE = 4096  # 280 KB of a body's MiB: the entries of 1,300 enrolments, so nobody is asked twice for them

Seq = Annotated[int, Field(ge=0, lt=2**48)]
Refusal = Literal["older", "forked", "unproved", "another log"]


class Checkpoint(StrictModel):
    """A head of the audit log, signed by the coordinator."""

    log: Hex64  # hash of entry 0, which names the log: it stays when keys change
    seq: Seq
    hash: Hex64
    time: Time  # of the signature, by the coordinator's clock
    signature: Hex128

    @classmethod
    def issue(cls, *, log: str, head: Head, time: str, signer: Ed25519PrivateKey) -> Self:
        """Signs a head."""
        signed = canonical.encode({"log": log, "seq": head.seq, "hash": head.hash, "time": time})
        signature = canonical.sign(signer, CHECKPOINT_DOMAIN, signed)
        return cls(log=log, seq=head.seq, hash=head.hash, time=time, signature=signature)

    @property
    def statement(self) -> dict[str, Any]:
        """The fields that are signed."""
        return {"log": self.log, "seq": self.seq, "hash": self.hash, "time": self.time}

    @property
    def head(self) -> Head:
        """The head that it names."""
        return Head(self.seq, self.hash)

    def is_signed_by(self, coordinator: str) -> bool:
        """True if the key `coordinator` (hex) signed it."""
        return canonical.is_signed(coordinator, CHECKPOINT_DOMAIN, canonical.encode(self.statement), self.signature)

    def why_not_after(self, last: "Checkpoint | None", digests: Sequence[str]) -> Refusal | None:
        """Says why a node that countersigned `last` may not countersign this one; None if it may.

        Args:
            digests: of the contents of the entries up to this one, the last ones as many as there are.
        """
        known = START if last is None else last.head
        if last is not None and last.log != self.log:
            return "another log"
        if self.seq < known.seq:
            return "older"
        if self.seq == known.seq:
            return None if self.hash == known.hash else "forked"
        missing = self.seq - known.seq
        if len(digests) < missing:
            return "unproved"
        following = digests[len(digests) - missing :]
        if log_chain.follow(known, following) != self.head:
            return "forked"
        if last is None and log_chain.follow(START, following[:1]).hash != self.log:
            return "another log"
        return None


class AuditOffer(StrictModel):
    """A checkpoint for a node to countersign, with the proof that it follows from the node's last one."""

    checkpoint: Checkpoint
    digests: Annotated[tuple[Hex64, ...], Field(max_length=DIGESTS_A_MESSAGE)]  # of entries, the checkpoint's last


class DecisionsHead(StrictModel):
    """The head of a node's chain of decisions; seq -1 before the first."""

    seq: Annotated[int, Field(ge=-1, lt=2**31)]  # as a database of the coordinator's holds it
    hash: Hex64


class AuditAnswer(StrictModel):
    """A node's answer to an offer: its countersignature, or why there is none; with the last checkpoint it signed."""

    signature: Hex128 | None = None
    decisions: DecisionsHead | None = None  # covered by the signature
    refusal: Refusal | None = None
    last: Checkpoint | None = None  # with a refusal


def countersign(
    checkpoint: Checkpoint, *, site: str, decisions: DecisionsHead, signer: Ed25519PrivateKey
) -> AuditAnswer:
    """Countersigns a checkpoint, with the head of the node's own decisions."""
    signed = _countersigned(checkpoint.statement, site, decisions.seq, decisions.hash)
    return AuditAnswer(signature=canonical.sign(signer, COUNTERSIGNATURE_DOMAIN, signed), decisions=decisions)


def is_countersigned(
    checkpoint: Checkpoint, *, site: str, identity: str, decisions: DecisionsHead, signature: str
) -> bool:
    """True if the key `identity` (hex) of `site` gave this countersignature."""
    signed = _countersigned(checkpoint.statement, site, decisions.seq, decisions.hash)
    return canonical.is_signed(identity, COUNTERSIGNATURE_DOMAIN, signed, signature)


def countersigned_by(
    site: str, identity: str, checkpoint: Checkpoint, answer: AuditAnswer
) -> tuple[DecisionsHead, str]:
    """Returns the decisions' head and the signature of a node's answer. Raises MessageInvalid if it does not verify."""
    if (
        answer.signature is None
        or answer.decisions is None
        or not is_countersigned(
            checkpoint, site=site, identity=identity, decisions=answer.decisions, signature=answer.signature
        )
    ):
        raise MessageInvalid(f"{site} did not countersign entry {checkpoint.seq} of the audit log as it says")
    return answer.decisions, answer.signature


def _countersigned(statement: dict[str, Any], site: str, seq: int, digest: str) -> bytes:
    decisions = {"seq": seq, "hash": digest}
    return canonical.encode({"checkpoint": statement, "site": site, "decisions": decisions})

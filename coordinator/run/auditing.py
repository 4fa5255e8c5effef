"""Lets the nodes of a run countersign the coordinator's audit log, at its beginning and at its end."""

from ...client_node.wire.checkpoints import AuditAnswer, AuditOffer
from ..oversight import checkpoints
from .context import RunContext


def offered(run: RunContext, name: str) -> AuditOffer | None:
    """Makes the offer that goes to a node with the next message, and remembers it."""
    offer = checkpoints.offer(run.store, run.signer, name, known=run.witnessed.get(name))
    if offer is not None:
        run.offered[name] = offer.checkpoint
    return offer


def answered(run: RunContext, name: str, answer: AuditAnswer | None) -> None:
    """Stores a node's answer to its offer. Raises MessageInvalid if a countersignature does not verify."""
    if answer is None or name not in run.offered:
        return
    checkpoint = run.offered.pop(name)
    known = checkpoints.take(run.store, run.signer, name, run.identity_of(name), checkpoint, answer)
    run.witnessed.pop(name, None)
    if known is not None:
        run.witnessed[name] = known

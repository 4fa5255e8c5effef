"""Lets the nodes of a run countersign the coordinator's audit log, at its beginning and at its end."""

from ...client_node.wire.checkpoints import DIGESTS_A_MESSAGE, AuditAnswer, AuditOffer
from ..oversight import checkpoints
from .context import RunContext


def offered(run: RunContext, name: str) -> AuditOffer | None:
    """Makes the offer that goes to a node with the next message, and remembers it."""
    offer = checkpoints.offer(run.store, run.pki, name, known=run.witnessed.get(name))
    if offer is not None:
        run.offered[name] = offer
    return offer


def answered(run: RunContext, name: str, answer: AuditAnswer | None) -> bool:
    """Stores a node's answer to its offer; True if another offer now brings it further.

    That is so if the offer was as long as a message can be, and if the node holds another entry than is stored here.

    Raises:
        MessageInvalid: a countersignature does not verify.
    """
    if answer is None or name not in run.offered:
        return False
    offer = run.offered.pop(name)
    known = checkpoints.take(run.store, run.pki.signing.now.all, name, run.identity_of(name), offer.checkpoint, answer)
    before = run.witnessed.pop(name, None)
    if known is not None:
        run.witnessed[name] = known
        return known != before
    return answer.refusal is None and len(offer.digests) == DIGESTS_A_MESSAGE

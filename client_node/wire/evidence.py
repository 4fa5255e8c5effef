"""Evidence of a round: three aggregators' signed answers, which prove to a site what was summed and what the total is.

A site is not shown the total with it: an answer's body holds the total's SHA-256, its blobs stay with the coordinator.
"""

from typing import ClassVar

from pydantic.types import PositiveInt

from ..errors import MessageInvalid
from ..study import Study
from .messages import Digest, Message, Name, Outcome, RunId, SignedTotal, verify_body


class _EarlierShare(Message):
    """What aggregators of version 0.2 and before signed for a round: it says nothing of the total."""

    kind: ClassVar[str] = "share"
    request: Digest
    study: Digest
    run: RunId
    round: PositiveInt
    kept: tuple[Name, ...]
    rejected: tuple[Name, ...] = ()
    set_digest: Digest


_ANSWERS: tuple[type[SignedTotal | _EarlierShare], ...] = (SignedTotal, _EarlierShare)


def require_evidence(study: Study, run: str, outcome: Outcome) -> SignedTotal | None:
    """Checks that all three aggregators signed the set of `outcome`, with one total.

    Returns:
        What the first of them signed; None where a version that signed no totals released the round.

    Raises:
        MessageInvalid: they did not, or one of them signed something else.
    """
    if len(outcome.evidence) != len(study.aggregators):
        raise MessageInvalid(f"round {outcome.round}: the outcome lacks the aggregators' signatures")
    answers = []
    for party, body in zip(study.aggregators, outcome.evidence, strict=True):
        answer = verify_body(body.encode(), party.identity, *_ANSWERS)
        if (answer.study, answer.run, answer.round) != (study.study_hash, run, outcome.round):
            raise MessageInvalid(f"round {outcome.round}: what {party.name} signed is about another round")
        answers.append(answer)
    if len({_released(answer) for answer in answers}) != 1 or answers[0].kept != outcome.sites:
        raise MessageInvalid(f"round {outcome.round}: the aggregators released another set than the coordinator says")
    first = answers[0]
    return first if isinstance(first, SignedTotal) else None


def signed_total(study: Study, run: str, outcome: Outcome) -> SignedTotal:
    """Returns what all three aggregators signed of a round's total: its SHA-256, and the start of its updates.

    The digest is over the ring elements of the opened vector, little-endian, without tags.

    Raises:
        MessageInvalid: the evidence does not hold, names sites that the study never sums, or says nothing of the total
            because it is of version 0.2 or before.
    """
    sites = set(outcome.sites)
    if not (len(sites) == len(outcome.sites) >= study.quorum and sites <= set(study.site_names())):
        raise MessageInvalid(f"round {outcome.round}: study {study.name} has no sum over these sites")
    signed = require_evidence(study, run, outcome)
    if signed is None:
        raise MessageInvalid(f"round {outcome.round}: it was released by a version that signed no total")
    return signed


def _released(answer: SignedTotal | _EarlierShare) -> tuple[object, ...]:
    """What must be equal in all three answers."""
    total = (answer.start, answer.total_digest) if isinstance(answer, SignedTotal) else ()
    return (answer.kept, answer.set_digest, *total)

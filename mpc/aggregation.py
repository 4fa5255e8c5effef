"""One round at one party: agree with the other two on the set of sites, add, bind, release.

Honest-but-curious parties: any two of them learn nothing of a single update, the coordinator learns the total. A party
that lies can spoil the total unseen. There is no check of an update's norm on the shares: a malicious site can shift
the total as far as the ring goes. Every update in a total started from the one state that the order names; that the
sites trained on it as agreed is not checked.

A study may size the sites' noise for all of them. A sum over fewer would then be noised too little: it is released only
with a top-up of every site in it, sealed for exactly this set. So which noise a sum has follows from the set alone, and
a round is bound to one set.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np

from .errors import (
    CohortTooSmall,
    EnvelopeRejected,
    EnvelopeUnreadable,
    Equivocation,
    OrderMismatch,
    PartyLost,
    SetConflict,
    TopUpMissing,
)
from .fields import MAX_COHORT, MAX_TEXT, canonical
from .journal import Binding, Journal
from .mapped import mapped
from .orders import Order, Release
from .ring import Ring, RingVector
from .sealing import Envelope, open_envelope
from .shares import Share, Words, unpack

logger = logging.getLogger(__name__)

_HASH = 32


class Links(Protocol):
    """What the protocol needs of the links between the parties."""

    def all_gather(self, step: str, data: bytes, limit: int) -> list[bytes]:
        """All three parties' bytes of this step, in aggregator order."""


class Addition(Protocol):
    """How one party adds its shares."""

    def __call__(self, vectors: Iterable[RingVector], ring: Ring) -> RingVector:
        """The sum of `vectors`, one at least, in `ring`."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A site's share, opened and found sound at this party."""

    share: Share = field(repr=False)
    digest: bytes  # SHA-256 over the digests that the site signed: the same at all parties, or they saw two updates


def admit(order: Order, aggregator_id: int, site: str, path: Path, *, is_topup: bool = False) -> Submission | None:
    """The site's share, or None where the file is not what the site sealed for this party, round and state.

    Opening comes before the agreement, so that a site whose share does not open is left out like one that never sent.

    Args:
        path: the site's envelope for this party, on this party's disk.
        is_topup: it is no update but a top-up, which must be for the order's cohort.

    Raises:
        EnvelopeUnreadable: the disk does not give the file. Such a site must not pass for one that sent nothing: the
            round may be bound to a set with it.
    """
    identity = dict(order.cohort).get(site)
    if identity is None:
        logger.warning("round %d: %r is not in the cohort; its envelope is ignored", order.round, site)
        return None
    context = order.topup_context(site) if is_topup else order.context(site)
    try:
        envelope = Envelope.from_bytes(mapped(path), context)
        share = open_envelope(
            envelope,
            context,
            aggregator_id,
            identity=bytes.fromhex(identity),
            private_key=order.private_key,
        )
    except EnvelopeRejected as err:
        logger.warning("round %d: site %s is left out: %s", order.round, site, err)
        return None
    except OSError as err:
        message = f"round {order.round}: the sealed share of {site} cannot be read here ({err.strerror}): {path}"
        raise EnvelopeUnreadable(message, (site,)) from err
    return Submission(share, sha256(b"".join(envelope.digests)).digest())


def compare_orders(order: Order, links: Links) -> None:
    """First step of every order: all three must hold the same one, at the same attempt.

    Raises:
        OrderMismatch: they do not.
        PartyLost: a party is gone or silent.
    """
    if len(set(links.all_gather("ORDR", order.digest(), _HASH))) != 1:
        raise OrderMismatch(f"round {order.round}, attempt {order.attempt}: the parties were given different orders")


def aggregate(
    order: Order,
    submissions: Mapping[str, Submission],
    topups: Mapping[str, Submission],
    links: Links,
    journal: Journal,
    add: Addition,
) -> Release:
    """This party's share of the sum over all sites that reached all three parties.

    Returns only after every party has bound the round to this very set on its disk. `topups` are looked at, and added,
    only for fewer sites than `order.min_untopped`.

    Raises:
        Equivocation: two parties hold different updates or top-ups of one site.
        CohortTooSmall: fewer than `order.min_sites` sites are complete.
        TopUpMissing: fewer than `order.min_untopped` are, and not each has its top-up for exactly this set.
        SetConflict: a party has bound the round to another set; all three raise it.
        JournalBroken: this party's disk did not take the binding.
        PartyLost: another party is gone or silent.
    """
    kept = _agree(order, submissions, links, "MASK", "VIEW")
    if len(kept) < order.min_sites:
        raise CohortTooSmall(
            f"round {order.round}: {len(kept)} sites reached all parties, {order.min_sites} are needed", kept
        )
    is_topped = len(kept) < order.min_untopped
    if is_topped:
        _require_topups(order, kept, topups, links)
    added = topups if is_topped else {}
    binding = Binding(_set_digest(order, kept, submissions, added), kept)
    _refuse_other_set(order, binding, links, journal)
    tags = np.zeros(order.tag_count, "<u8")
    total = add(_vectors(order, kept, submissions, added, tags), order.ring)
    journal.bind(order.round_id, binding)
    links.all_gather("DONE", b"", 0)  # nobody releases before all have bound
    logger.info("round %d: released the sum over %d of %d sites", order.round, len(kept), len(order.cohort))
    return Release(kept=kept, set_digest=binding.set_digest, share=total.tobytes() + tags.tobytes())


def _require_topups(order: Order, kept: tuple[str, ...], topups: Mapping[str, Submission], links: Links) -> None:
    """Raises `TopUpMissing` at all three unless all hold the same top-up of each site, for exactly the kept set.

    Top-ups were opened for the order's cohort, so if less of it is kept, none is for the kept set.
    """
    cohort = tuple(name for name, _ in order.cohort)
    complete = _agree(order, topups, links, "TMSK", "TVEW") if kept == cohort else kept
    if complete != cohort:
        raise TopUpMissing(
            f"round {order.round}: of {order.min_untopped} sites {len(kept)} are there, and not each of them has added "
            "the noise of the missing ones",
            complete,
        )


def _vectors(
    order: Order,
    kept: tuple[str, ...],
    submissions: Mapping[str, Submission],
    topups: Mapping[str, Submission],
    tags: Words,
) -> Iterator[RingVector]:
    """The vectors to be added; what comes with them of tags is added to `tags`."""
    for site in kept:
        shares = [(submissions[site].share, order.context(site))]
        if topups:
            shares.append((topups[site].share, order.topup_context(site)))
        for share, context in shares:
            parts = unpack(share, context)
            tags += parts.tags
            yield parts.vector


def _agree(
    order: Order, submissions: Mapping[str, Submission], links: Links, mask_step: str, view_step: str
) -> tuple[str, ...]:
    """Sites that all three hold, in cohort order, once all three hold the same of each."""
    names = [name for name, _ in order.cohort]
    mask = bytes(name in submissions for name in names)
    masks = _of_length(links.all_gather(mask_step, mask, len(mask)), len(mask))
    kept = tuple(name for name, *votes in zip(names, *masks, strict=True) if all(vote == 1 for vote in votes))
    view = b"".join(submissions[name].digest for name in kept)
    views = _of_length(links.all_gather(view_step, view, len(view)), len(view))
    if len(set(views)) != 1:
        seen = [{other[i * _HASH : (i + 1) * _HASH] for other in views} for i in range(len(kept))]
        doubtful = tuple(name for name, digests in zip(kept, seen, strict=True) if len(digests) > 1)
        raise Equivocation(
            f"round {order.round}: the parties were shown different messages of {', '.join(doubtful)}", doubtful
        )
    return kept


def _refuse_other_set(order: Order, binding: Binding, links: Links, journal: Journal) -> None:
    """Compares what the three have bound before any binds more: a crash half-way can never leave two sets bound."""
    known = journal.bound(order.round_id)
    mine = b"" if known is None else known.set_digest + "\n".join(known.sites).encode()
    for other in links.all_gather("BIND", mine, _HASH + MAX_COHORT * (MAX_TEXT + 1)):
        if other and other[:_HASH] != binding.set_digest:
            raise SetConflict(f"round {order.round} is bound to another set of sites", _names(other[_HASH:]))


def _names(data: bytes) -> tuple[str, ...]:
    try:
        return tuple(data.decode().split("\n"))
    except UnicodeDecodeError as err:
        raise PartyLost("another party sends names that are no text") from err


def _of_length(gathered: list[bytes], size: int) -> list[bytes]:
    if any(len(data) != size for data in gathered):
        raise PartyLost("another party is out of step")
    return gathered


def _set_digest(
    order: Order, kept: tuple[str, ...], submissions: Mapping[str, Submission], topups: Mapping[str, Submission]
) -> bytes:
    if topups:
        topped = (word for name in kept for word in (name, submissions[name].digest, topups[name].digest))
        return sha256(canonical("confide/mpc/topped-set/1", *order.round_id, len(kept), *topped)).digest()
    words = (word for name in kept for word in (name, submissions[name].digest))
    return sha256(canonical("confide/mpc/set/1", *order.round_id, len(kept), *words)).digest()

"""One shard of a round at one party: the shares of some sites, opened, added up and sketched.

That is all of a party's work that grows with sites times numbers, and none of it needs another party. So a party may
cut a round into shards and give each to a process: which site lies in which is nobody else's business, and what leaves
the machine is the same to the bit. A shard's sum is a part of this party's share of the total, and as secret.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..crypten.sums import SharedTotal, masked_sketch
from ..errors import EnvelopeRejected, EnvelopeUnreadable
from ..links import Order, mapped
from ..sharing import ShareContext
from ..sharing.ring import RingVector
from ..sharing.sealing import Envelope, open_envelope
from ..sharing.shares import Share, Words
from ..sharing.sketch import Sketch

logger = logging.getLogger(__name__)

Files = Mapping[str, Path]  # site -> its envelope for this party


class Summand(NamedTuple):
    """One vector that a site has shared: its update, or its top-up."""

    site: str
    is_topup: bool


class Opened(NamedTuple):
    """Envelopes that opened and were found sound: SHA-256 over the three digests that the site signed.

    The same at all parties, or they saw two different messages.
    """

    updates: dict[str, bytes]  # by site
    topups: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Sketched:
    """This party's part in the norm check of some vectors."""

    rows: RingVector = field(repr=False)  # [vectors, rows], additive shares of the sketches under their masks
    mask_words: Words = field(repr=False)  # [vectors, rows], XOR shares of the masks


@dataclass(frozen=True, slots=True)
class _Submission:
    """A site's share, opened and found sound at this party."""

    share: Share = field(repr=False)
    context: ShareContext
    digest: bytes


class Shard:
    """The shares of some sites in one order."""

    def __init__(self, aggregator_id: int, order: Order) -> None:
        """Opens nothing yet."""
        self._aggregator_id, self._order = aggregator_id, order
        self._held: dict[Summand, _Submission] = {}
        self._added: list[Summand] = []
        self._total = SharedTotal(order.dim, order.ring, order.tag_count)

    def open(self, updates: Files, topups: Files) -> Opened:
        """Opens envelopes, and forgets those that are not what the site sealed for this party, round and state.

        Opening comes before the agreement, so that a site whose share does not open is left out like one that never
        sent.

        Args:
            topups: for exactly the order's cohort.

        Raises:
            EnvelopeUnreadable: the disk does not give a file. Its site must not pass for one that sent nothing: the
                round may be bound to a set with it.
        """
        found: tuple[dict[str, bytes], ...] = ({}, {})
        identities = dict(self._order.cohort)
        for is_topup, files in ((False, updates), (True, topups)):
            for site, path in files.items():
                if site not in identities:
                    logger.warning(
                        "round %d: %r is not in the cohort; its envelope is ignored", self._order.round, site
                    )
                    continue
                submission = self._admitted(Summand(site, is_topup), identities[site], path)
                if submission is not None:
                    self._held[Summand(site, is_topup)] = submission
                    found[is_topup][site] = submission.digest
        return Opened(*found)

    def add(self, summands: Sequence[Summand]) -> None:
        """Adds vectors that have opened."""
        for summand in summands:
            self._added.append(summand)
            self._total.add(self._held[summand].share, self._held[summand].context)

    def add_sketched(self, summands: Sequence[Summand], seeds: Sequence[bytes]) -> Sketched:
        """Adds vectors, and sketches each by a public seed of its own on the way."""
        order = self._order
        rows = np.empty((len(summands), order.rows), order.ring.unsigned)
        mask_words = np.empty((len(summands), order.rows), "<u8")
        for place, (summand, seed) in enumerate(zip(summands, seeds, strict=True)):
            self._added.append(summand)
            added = self._total.add(self._held[summand].share, self._held[summand].context)
            rows[place] = masked_sketch(added, Sketch(seed, order.dim, order.ring_bits, order.rows))
            mask_words[place] = added.mask_words
        return Sketched(rows, mask_words)

    def take_out(self, sites: Iterable[str]) -> None:
        """Takes all vectors of some sites out of the sum again."""
        left = frozenset(sites)
        for summand in self._added:
            if summand.site in left:
                self._total.subtract(self._held[summand].share, self._held[summand].context)
        self._added = [summand for summand in self._added if summand.site not in left]

    def total(self) -> SharedTotal:
        """This party's share of the sum of what was added and not taken out."""
        return self._total

    def _admitted(self, summand: Summand, identity: str, path: Path) -> _Submission | None:
        site, order = summand.site, self._order
        context = order.topup_context(site) if summand.is_topup else order.context(site)
        try:
            envelope = Envelope.from_bytes(mapped(path), context)
            share = open_envelope(
                envelope,
                context,
                self._aggregator_id,
                identity=bytes.fromhex(identity),
                private_key=order.private_key,
            )
        except EnvelopeRejected as err:
            logger.warning("round %d: site %s is left out: %s", order.round, site, err)
            return None
        except OSError as err:
            message = f"round {order.round}: the sealed share of {site} cannot be read here ({err.strerror}): {path}"
            raise EnvelopeUnreadable(message, (site,)) from err
        return _Submission(share, context, sha256(b"".join(envelope.digests)).digest())

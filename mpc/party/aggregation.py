"""One round at one party: agree with the other two on the set of sites, check norms, add, bind, open the total.

Honest-but-curious parties: any two of them learn nothing of a single update; the total all three learn, as the
coordinator does. A party that lies can spoil the total; that shows if the order has tags (see `tags`), whose sum the
parties therefore don't open to each other: with the total and its tags the last one to speak could make up another
pair. A site whose vector is longer than the order allows is left out, whatever it does to hide that (see `sketch`).
Every update in a total started from the one state that the order names; that the sites trained on it as agreed is not
checked.

A study may size the sites' noise for all of them. A sum over fewer would then be noised too little: it is released only
with a top-up of every site in it, sealed for exactly this set. So which noise a sum has follows from the set alone, and
a round is bound to one set.
"""

import hmac
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..crypten.sums import opened_rows
from ..errors import (
    CheckBroken,
    CohortTooSmall,
    Equivocation,
    NormExceeded,
    OrderMismatch,
    PartyLost,
    SetConflict,
    TopUpMissing,
    TotalConflict,
)
from ..fields import MAX_COHORT, MAX_TEXT, canonical
from ..links import OpenedTotal, Order
from ..links.journal import Binding, Journal
from ..links.tls import Links
from ..sharing.ring import RingVector
from ..sharing.shares import Words
from ..sharing.sketch import Limits, limits
from .coins import COIN_BYTES, joint_seeds
from .shard import Opened, Sketched, Summand
from .shards import Shards

logger = logging.getLogger(__name__)

_HASH = 32


class Judge(Protocol):
    """Comparison of sketches that are hidden under masks, by the three parties together."""

    def __call__(self, opened: RingVector, mask_words: Words, limits: Limits) -> npt.NDArray[np.bool_]:
        """[vectors], whether more than `tau` rows of each exceed, from XOR shares of the masks."""


def compare_orders(order: Order, links: Links) -> None:
    """First step of every order: all three must hold the same one, at the same attempt.

    Raises:
        OrderMismatch: they do not.
        PartyLost: a party is gone or silent.
    """
    if len(set(links.all_gather("ORDR", order.digest(), _HASH))) != 1:
        raise OrderMismatch(f"round {order.round}, attempt {order.attempt}: the parties were given different orders")


def aggregate(
    order: Order, opened: Opened, shards: Shards, links: Links, journal: Journal, judge: Judge
) -> OpenedTotal:
    """The sum over all sites that reached all three parties with vectors that are not too long.

    It is opened only after every party has bound the round to this very set on its disk, and given out only once this
    party has bound the round to that total as well. Top-ups are looked at, and added, only for fewer sites than
    `order.min_untopped`.

    CrypTen's `runtime` must be started in this thread, on `links`.

    Args:
        opened: what `shards` have opened for this order.

    Raises:
        Equivocation: two parties hold different updates or top-ups of one site.
        CohortTooSmall: fewer than `order.min_sites` sites are complete.
        TopUpMissing: fewer than `order.min_untopped` are, and not each has its top-up for exactly this set.
        NormExceeded: vectors are too long, and the other sites may not be summed without more.
        SetConflict: a party has bound the round to another set; all three raise it.
        TotalConflict: the three do not have the same total, or this party has bound the round to another one.
        JournalBroken: this party's disk did not take the binding.
        PartyLost: another party is gone or silent; as `CheckBroken` if the norm check had begun.
        CommitmentBroken: another party tried to choose what must be random, or changed its mind between attempts.
        ChecksExhausted: a vector's check has been tried too often.
    """
    complete = _agree(order, opened.updates, links, "MASK", "VIEW")
    if len(complete) < order.min_sites:
        raise CohortTooSmall(
            f"round {order.round}: {len(complete)} sites reached all parties, {order.min_sites} are needed", complete
        )
    is_topped = len(complete) < order.min_untopped
    if is_topped:
        _require_topups(order, complete, opened.topups, links)
    sealed = opened if is_topped else Opened(opened.updates, {})
    kinds = (False, True) if is_topped else (False,)
    summands = [Summand(site, is_topup) for is_topup in kinds for site in complete]
    hidden = _added_and_hidden(order, sealed, summands, shards, links, journal) if order.rows else None
    if hidden is None:
        shards.add(summands)
    total = shards.total()  # takes memory: if it can't be had, no try of the norm check is lost by it
    rejected = frozenset[str]() if hidden is None else _too_long(order, summands, hidden, journal, judge)
    kept = tuple(site for site in complete if site not in rejected)
    if rejected:
        _require_enough(order, kept, rejected, is_topped=is_topped)
        shards.take_out(rejected)
        total = shards.total()
    binding = Binding(_set_digest(order, kept, sealed), kept)
    with _counted_try() if order.rows else nullcontext():
        _refuse_other_set(order, binding, links, journal)
        journal.bind(order.round_id, binding)
        links.all_gather("DONE", b"", 0)  # nobody gives its share before all have bound
        words = total.open()
        _bind_total(order, words, links, journal)
    logger.info("round %d: opened the sum over %d of %d sites", order.round, len(kept), len(order.cohort))
    left_out = tuple(site for site in complete if site in rejected)
    return OpenedTotal(
        kept=kept, rejected=left_out, set_digest=binding.set_digest, total=words, tag_share=total.tag_share()
    )


def _coin(order: Order, place: bytes) -> bytes:
    """This party's part in the seed of one vector's sketch: secret until it is opened, and the same at every attempt.

    Each vector has a seed of its own, which binds the bytes that all parties hold of it: a site that knows the seeds of
    earlier attempts gains nothing for another vector. And one vector never meets two sketches, whose rows under the
    same masks would show a difference.
    """
    key = HKDF(SHA256(), COIN_BYTES, salt=None, info=b"confide/mpc/coin-key/1").derive(order.private_key)
    return hmac.digest(key, place, "sha256")


def _place(order: Order, summand: Summand, sealed: Opened) -> bytes:
    """The name of a vector, under which its coins are drawn: no other vector, in no other round, has the same."""
    digest = (sealed.topups if summand.is_topup else sealed.updates)[summand.site]
    return canonical("confide/mpc/coin/1", *order.round_id, summand.site, digest)


@dataclass(frozen=True, slots=True)
class _Hidden:
    """Sketches of vectors under their masks, and this party's part in a comparison of them."""

    vectors: list[bytes]  # their names, 32 bytes
    shares: Sketched


def _added_and_hidden(
    order: Order, sealed: Opened, summands: Sequence[Summand], shards: Shards, links: Links, journal: Journal
) -> _Hidden:
    """Adds all vectors, and sketches each by a seed that all three have drawn.

    A party that keeps to the protocol has the same coins and the same sketches at every attempt. One that does not
    would see y = z + m for several z of one vector, or try verdicts until it knows z: the journal is there against it.
    """
    places = [_place(order, summand, sealed) for summand in summands]
    seeds = joint_seeds(links, [_coin(order, place) for place in places])
    vectors = [sha256(place).digest() for place in places]
    journal.tie_to_seeds({vector: sha256(seed).digest() for vector, seed in zip(vectors, seeds, strict=True)})
    return _Hidden(vectors, shards.add_sketched(summands, seeds))


def _too_long(
    order: Order, summands: Sequence[Summand], hidden: _Hidden, journal: Journal, judge: Judge
) -> frozenset[str]:
    """Gives the sites of vectors that are too long: one bit of each becomes known, and nothing else."""
    opened = opened_rows(hidden.shares.rows)
    sketches = {vector: sha256(row.tobytes()).digest() for vector, row in zip(hidden.vectors, opened, strict=True)}
    if (tries := journal.begin_checks(sketches)) > 1:
        logger.warning("round %d: norms are checked for the %d. time; was a party restarted?", order.round, tries)
    rejected: set[str] = set()
    bounds = [order.topup_bound if summand.is_topup else order.norm_bound for summand in summands]
    for bound in sorted(set(bounds)):
        alike = [at for at, own in enumerate(bounds) if own == bound]
        with _counted_try():
            verdicts = judge(opened[alike], hidden.shares.mask_words[alike], limits(bound, order.ring_bits, order.rows))
        rejected |= {summands[at].site for at, is_long in zip(alike, verdicts, strict=True) if is_long}
    for site in sorted(rejected):
        logger.warning("round %d: site %s is left out: its vector is longer than the study allows", order.round, site)
    return frozenset(rejected)


@contextmanager
def _counted_try() -> Iterator[None]:
    """Tells the loss of a party after which this try of the norm check counts from one before."""
    try:
        yield
    except PartyLost as err:
        raise CheckBroken(str(err)) from err


def _require_enough(order: Order, kept: tuple[str, ...], rejected: frozenset[str], *, is_topped: bool) -> None:
    """Raises `NormExceeded` unless `kept` may be summed as it is; top-ups were for a set with the rejected in it."""
    least = len(order.cohort) + 1 if is_topped else max(order.min_sites, order.min_untopped)
    if len(kept) < least:
        names = tuple(site for site, _ in order.cohort if site in rejected)
        raise NormExceeded(
            f"round {order.round}: the vectors of {', '.join(names)} are longer than the study allows, and the "
            f"{len(kept)} other sites may not be summed as they are",
            names,
            kept,
        )


def _require_topups(order: Order, kept: tuple[str, ...], topups: Mapping[str, bytes], links: Links) -> None:
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


def _agree(order: Order, digests: Mapping[str, bytes], links: Links, mask_step: str, view_step: str) -> tuple[str, ...]:
    """Sites that all three hold, in cohort order, once all three hold the same of each."""
    names = [name for name, _ in order.cohort]
    mask = bytes(name in digests for name in names)
    masks = _of_length(links.all_gather(mask_step, mask, len(mask)), len(mask))
    kept = tuple(name for name, *votes in zip(names, *masks, strict=True) if all(vote == 1 for vote in votes))
    view = b"".join(digests[name] for name in kept)
    views = _of_length(links.all_gather(view_step, view, len(view)), len(view))
    if len(set(views)) != 1:
        seen = [{other[i * _HASH : (i + 1) * _HASH] for other in views} for i in range(len(kept))]
        doubtful = tuple(name for name, found in zip(kept, seen, strict=True) if len(found) > 1)
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


def _bind_total(order: Order, opened: bytes, links: Links, journal: Journal) -> None:
    """Binds the round to its opened total, if all three have the same.

    What a false share has spoilt for some binds nobody, so the round can be opened again. Without the binding, two
    false shares at two attempts would be two totals that all three have signed.
    """
    digest = sha256(opened).digest()
    if len(set(links.all_gather("SAME", digest, _HASH))) != 1:
        raise TotalConflict(f"round {order.round}: the parties have opened different totals of one set")
    journal.bind_total(order.round_id, digest)


def _names(data: bytes) -> tuple[str, ...]:
    try:
        return tuple(data.decode().split("\n"))
    except UnicodeDecodeError as err:
        raise PartyLost("another party sends names that are no text") from err


def _of_length(gathered: list[bytes], size: int) -> list[bytes]:
    if any(len(data) != size for data in gathered):
        raise PartyLost("another party is out of step")
    return gathered


def _set_digest(order: Order, kept: tuple[str, ...], sealed: Opened) -> bytes:
    if sealed.topups:
        topped = (word for name in kept for word in (name, sealed.updates[name], sealed.topups[name]))
        return sha256(canonical("confide/mpc/topped-set/1", *order.round_id, len(kept), *topped)).digest()
    words = (word for name in kept for word in (name, sealed.updates[name]))
    return sha256(canonical("confide/mpc/set/1", *order.round_id, len(kept), *words)).digest()

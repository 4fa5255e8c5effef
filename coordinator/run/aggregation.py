"""Asks the aggregators for the total of one set of sites, which is fixed for the round, and verifies it."""

import hashlib
import itertools
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...client_node.wire.messages import AggregateOrder, Packet, Reply, SetIncomplete, SetTaken, SignedTotal, sign
from ...mpc.errors import CheckBroken, ChecksExhausted, TotalConflict, TotalForged
from ...mpc.links.positions import History
from ...mpc.sharing import Ring
from ...mpc.sharing.ring import decode, read_total
from ...mpc.sharing.sealing import position_in
from ...mpc.sharing.shares import set_name
from ...mpc.sharing.tags import verify_total
from ..errors import AggregationFailed, TotalRefused
from ..fleet import NodeFailure
from ..store.run_folder import Envelopes, require_unchanged
from . import questions
from .collection import top_up
from .context import RoundContext, RunContext
from .questions import verified_answers
from .relay import Delivery, Load
from .turns import at_aggregators

logger = logging.getLogger(__name__)

_PROBLEMS = {
    SetTaken.kind: "bound to another set",
    SetIncomplete.kind: "a share or top-up does not open, or a vector is too long",
}

_TOTALS_DIFFER = (
    "the aggregators have different totals of one set, or another one than they had before: one of them gave false "
    "shares, or signed what was not opened. Nothing of the round is kept. Resume the run: the same sealed shares are "
    "added again. If it stays, ask all three aggregators, and start a new run: a round is bound to the first total "
    "that all three had"
)

_CHECKS_EXHAUSTED = (
    "the check of the vectors' lengths was broken off eight times, as happens while the link between two aggregators "
    "breaks, and is not tried again: each try may tell a bit of a vector. Nothing of the round is kept, and its "
    "charges stand. Have the aggregators' people mend the link between them, and start a new run: this one cannot go on"
)
_ENDS = {TotalConflict.__name__: _TOTALS_DIFFER, ChecksExhausted.__name__: _CHECKS_EXHAUSTED}
_MOST_WAIT_S = 64.0  # so that the tries of a norm check last for minutes of a link that breaks again and again

Answers = dict[str, tuple[Reply, Packet]]  # verified, by aggregator


@dataclass(frozen=True, kw_only=True, slots=True)
class AgreedTotal:
    """The total of one agreed set of sites, as all aggregators signed it."""

    summed: tuple[str, ...]
    total: bytes  # ring elements
    tag_shares: tuple[bytes, ...]  # by aggregator
    evidence: tuple[str, ...]  # the aggregators' signed answers


def aggregate(round_: RoundContext, updates: Envelopes) -> AgreedTotal:
    """Asks the aggregators for the total of `updates` until all three sign one total of one set of sites.

    Raises:
        AggregationFailed: they sign different sets or totals, cannot sum any set that the study allows, have tried the
            check of the vectors' lengths too often, or make no progress.
    """
    run = round_.run
    summed = run.folder.fixed_set(round_.number) or tuple(sorted(updates))
    delivery, most = Delivery(run, round_.number), 0
    deadline, wait = time.monotonic() + questions.PATIENCE_S, questions.RETRY_S
    senders = itertools.cycle(run.parties)  # one that sends another total than it signs is not asked again at once
    while True:
        sender = next(senders)
        run.stop_if_asked()
        came = time.monotonic()
        summed, topups = top_up(round_, summed)
        deadline += time.monotonic() - came  # which has a patience of its own, and waits out a site's hours
        round_.laps.end("topup")
        run.beat(f"{round_.title}: aggregators add {len(summed)} sites")
        loads = {
            name: Load.of(summed, aggregator_id, updates, topups, set_name(summed))
            for aggregator_id, name in enumerate(run.parties)
        }
        answers: Answers = {}
        told: dict[str, History] = {}
        problems = delivery.deposit(loads)
        round_.laps.end("deliver")
        if delivery.count > most:  # a large round may take longer as long as it makes progress
            most, deadline = delivery.count, time.monotonic() + questions.PATIENCE_S
        if not problems:
            came = time.monotonic()
            with at_aggregators(run):
                round_.laps.end("wait")
                deadline += time.monotonic() - came  # waiting for its turn uses up none of the run's patience
                # Not before: meanwhile another run may have brought the ledgers further.
                told = {site: _history(run, site) for site in summed}
                answers, problems = _order(round_, summed, loads, delivery, sender, told)
            round_.laps.end("sum")
        replies = [message for message, _ in answers.values()]
        _note_rejected(round_, replies)
        if agreed := _agreed_total(round_, answers, sender):
            _note_seen(round_, agreed.summed, updates)
            return agreed
        summed = _next_set(round_, summed, updates, replies, told)
        logger.warning("run %s: %s not aggregated, asking again (%s)", run.id, round_.title, problems)
        require_unchanged({site: updates[site] for site in summed})  # else all would ask in vain
        if time.monotonic() > deadline:
            raise AggregationFailed(
                f"{round_.title} was not aggregated in {questions.PATIENCE_S:.0f} s: {problems}; sealed shares are kept"
            )
        is_broken = any(CheckBroken.__name__ in why for why in problems.values())
        if is_broken:  # between two of which the same link may fail in other ways
            wait = min(2 * wait, _MOST_WAIT_S)
        _rest(round_, wait if is_broken else questions.RETRY_S)
        round_.laps.end("wait")


def _rest(round_: RoundContext, seconds: float) -> None:
    """Waits before the aggregators are asked again, alive and ready to stop."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if left > questions.RETRY_S:
            round_.run.stop_if_asked()
            round_.run.beat(f"{round_.title}: aggregators lost each other in a check, {left:.0f} s until the next try")
        time.sleep(min(left, questions.RETRY_S))


def opened_total(round_: RoundContext, agreed: AgreedTotal) -> np.ndarray:
    """Reads the total as real numbers, after verifying its tags if the study has tags.

    Raises:
        TotalRefused: the tags are not those of the total.
    """
    planned = round_.planned
    ring = Ring(bits=planned.ring_bits, scale_bits=planned.scale_bits)
    total = read_total(agreed.total, agreed.tag_shares, ring, planned.dim, planned.tag_count)
    if key := round_.tag_key:
        try:
            verify_total(total.units, total.tags, bytes.fromhex(key), round_.run.study.largest_units(planned))
        except TotalForged as err:
            raise TotalRefused(
                f"{round_.title}: {err}. An aggregator has changed its share, or a site has sent tags that are not "
                "those of its vector. Nothing of the round is kept, and the aggregators open no other total of it. Ask "
                "all three aggregators and the sites, then start a new run"
            ) from err
    return decode(total.units, ring)


def _history(run: RunContext, site: str) -> History:
    start = run.seen.get(site, 0)
    return History(start, run.replica.hashes(site, start))


def _order(
    round_: RoundContext,
    summed: tuple[str, ...],
    loads: Mapping[str, Load],
    delivery: Delivery,
    sender: str,
    told: Mapping[str, History],
) -> tuple[Answers, dict[str, str]]:
    """Orders the sum once; returns verified answers by aggregator, and the reasons why the others have none.

    Raises:
        AggregationFailed: an aggregator says that the three do not have one total, or that the check of the vectors'
            lengths was tried too often.
    """
    run, attempt = round_.run, secrets.randbelow(2**31)
    hashes = {f"history-{place}": told[site].records for place, site in enumerate(summed)}
    requests = {
        name: sign(
            AggregateOrder(
                **run.addressed(name), round=round_.number, state=round_.start, cohort=summed,
                attempt=attempt, spooled=load.spooled(), with_total=name == sender,
                histories={site: each.start for site, each in told.items()},
            ),
            run.signer,
            load.blobs() | hashes,
        )
        for name, load in loads.items()
    }  # fmt: skip
    found: Answers = {}
    problems = dict.fromkeys(run.parties, "no answer in time")
    ends: set[str] = set()
    for name, answer in verified_answers(run, "aggregate", requests, SignedTotal, SetTaken, SetIncomplete):
        if isinstance(answer, NodeFailure):
            delivery.forget(name, answer)
            ends |= {answer.error} & _ENDS.keys()
        if not isinstance(answer, tuple):
            problems[name] = str(answer)
            continue
        message, packet = answer
        if isinstance(message, SignedTotal) and (problem := _problem(round_, message, packet, name == sender)):
            problems[name] = problem
            continue
        found[name] = answer
        problems[name] = _PROBLEMS.get(message.kind, "")
    if ends:
        raise AggregationFailed(f"{round_.title}: {' '.join(_ENDS[error] for error in sorted(ends))}")
    return found, {name: why for name, why in problems.items() if why}


def _problem(round_: RoundContext, signed: SignedTotal, packet: Packet, is_sender: bool) -> str | None:
    """Says why an aggregator's answer is not what it was ordered, or None."""
    run, planned = round_.run, round_.planned
    if (signed.study, signed.run, signed.round) != (run.study.study_hash, run.id, round_.number):
        return "it signed the total of another round"
    if signed.start != round_.start:
        return "it signed the total of updates from another state"
    if len(packet.blobs.get("tags", b"")) != 8 * planned.tag_count:
        return "it sent no share of the tags"
    total = packet.blobs.get("total", b"")
    if is_sender and hashlib.sha256(total).hexdigest() != signed.total_digest:
        return "it sent another total than it signed"
    if is_sender and len(total) != planned.dim * planned.ring_bits // 8:
        return "it signed a total of another length"
    return None


def _agreed_total(round_: RoundContext, answers: Answers, sender: str) -> AgreedTotal | None:
    """Returns the total if all aggregators signed it.

    Raises:
        AggregationFailed: they signed different sets, or different totals.
    """
    signed = [message for message, _ in answers.values() if isinstance(message, SignedTotal)]
    if len({(each.kept, each.set_digest) for each in signed}) > 1:
        raise AggregationFailed(f"{round_.title}: the aggregators opened totals of different sets")
    if len({each.total_digest for each in signed}) > 1:
        raise AggregationFailed(f"{round_.title}: {_TOTALS_DIFFER}")
    if len(signed) < len(round_.run.parties):
        return None
    packets = [answers[name][1] for name in round_.run.parties]
    return AgreedTotal(
        summed=signed[0].kept,
        total=answers[sender][1].blobs["total"],
        tag_shares=tuple(packet.blobs.get("tags", b"") for packet in packets),
        evidence=tuple(packet.body.decode() for packet in packets),
    )


def _note_rejected(round_: RoundContext, replies: Sequence[Reply]) -> None:
    """Stores the sites whose vectors are too long, if all aggregators say so: the word of one alone is no proof."""
    run = round_.run
    named = [set(each.rejected) for each in replies if isinstance(each, SignedTotal | SetIncomplete)]
    if len(named) == len(run.parties) and (rejected := sorted(set.intersection(*named) & set(run.sites))):
        logger.warning(
            "run %s: %s: left out, for a vector that is too long: %s", run.id, round_.title, ", ".join(rejected)
        )
        run.store.leave_out(run.id, run.lease, round_.number, rejected)


def _note_seen(round_: RoundContext, summed: Sequence[str], updates: Envelopes) -> None:
    """Notes how far all aggregators have now seen the ledgers of `summed`, so that later orders tell only the rest."""
    for site in summed:
        with updates[site][0].path.open("rb") as envelope:
            position = position_in(envelope.read(64))
        if position is not None:
            round_.run.seen[site] = position.count


def _next_set(
    round_: RoundContext,
    summed: tuple[str, ...],
    updates: Envelopes,
    replies: Sequence[Reply],
    told: Mapping[str, History],
) -> tuple[str, ...]:
    """Returns the set to ask for after an attempt that released nothing.

    Raises:
        AggregationFailed: no set can be summed.
    """
    for each in replies:
        if isinstance(each, SetIncomplete) and each.outdated:
            return _without_outdated(round_, summed, each.outdated, told)
    for message in replies:
        if isinstance(message, SetTaken):
            summed = _bound_set(round_, updates, message)
    return _without_incomplete(round_, summed, replies)


def _without_outdated(
    round_: RoundContext, summed: tuple[str, ...], seen: Mapping[str, int], told: Mapping[str, History]
) -> tuple[str, ...]:
    """Returns `summed` without sites of which an aggregator has seen newer ledgers than those they sealed by.

    One aggregator's word is enough: it could leave any site out by saying that its share does not open. A site whose
    ledger another run has brought further, since the order was written, stays: the next order tells the newest entries.

    Args:
        seen: entries that the aggregator has seen of each site's ledger.
        told: what the order said of it.

    Raises:
        AggregationFailed: too few are left.
    """
    run = round_.run
    forgotten = [site for site in summed if site in seen and seen[site] < told[site].start]
    for site in forgotten:  # by an aggregator whose positions were put back or cut: it is told the whole ledger again
        logger.warning(
            "run %s: %s: an aggregator has forgotten how far it saw the ledger of %s", run.id, round_.title, site
        )
        del run.seen[site]
    outdated = [
        site
        for site in summed
        if site in seen and site not in forgotten and not told[site].end < seen[site] <= run.replica.length(site)
    ]
    if not outdated:
        return summed
    names = ", ".join(outdated)
    reason = (
        f"{round_.title}: an aggregator has seen a newer ledger of {names} than the one that {names} now has: an older "
        "copy was put back there. Its people can import the newest one (client-node budget import), or own up to the "
        "loss (client-node budget recover)"
    )
    logger.error("run %s: %s", run.id, reason)
    run.store.note_outdated(run.id, run.lease, round_.number, outdated)
    round_.absent.update(dict.fromkeys(outdated, "outdated"))
    rest = tuple(site for site in summed if site not in outdated)
    if len(rest) < run.study.quorum:
        raise AggregationFailed(f"{reason}. {run.study.quorum} sites are needed, {len(rest)} are left")
    return rest


def _bound_set(round_: RoundContext, updates: Envelopes, taken: SetTaken) -> tuple[str, ...]:
    """Returns the set to which the round is bound according to one aggregator, if it can be summed.

    Raises:
        AggregationFailed: it can't. One aggregator's word may be false, so sites are asked for nothing.
    """
    study, summed = round_.run.study, tuple(sorted(set(taken.bound)))
    if len(summed) < study.quorum or not set(summed) <= set(study.site_names()):
        raise AggregationFailed(
            f"{round_.title}: an aggregator says that it is bound to {', '.join(summed) or 'nobody'}, which is no set "
            "that the study allows; ask the aggregators' people, then resume"
        )
    if not set(summed) <= set(updates):
        raise AggregationFailed(f"{round_.title} is bound to {', '.join(summed)}, whose shares are gone")
    return summed


def _without_incomplete(round_: RoundContext, summed: tuple[str, ...], replies: Sequence[Reply]) -> tuple[str, ...]:
    """Returns the complete sites of `summed` if all aggregators name the same and they may be summed, else `summed`.

    Raises:
        AggregationFailed: without the sites whose vectors are too long too few are left; asking again changes nothing.
    """
    run = round_.run
    incomplete = [each for each in replies if isinstance(each, SetIncomplete)]
    named = {(each.complete, each.rejected) for each in incomplete}
    if len(incomplete) < len(run.parties) or len(named) > 1:
        return summed
    complete, rejected = named.pop()
    if set(complete) < set(summed) and len(complete) >= run.study.quorum:
        round_.absent.update({site: "unopened" for site in summed if site not in complete and site not in rejected})
        return complete
    if rejected:
        raise AggregationFailed(
            f"{round_.title}: the vectors of {', '.join(rejected)} are longer than the study allows "
            f"(aggregation.max_norm), and {run.study.quorum} sites are needed: {len(complete)} are left. Nothing was "
            "opened. What they sealed stands for this round, so resuming changes nothing: mend or leave out these "
            "sites, and start a new run"
        )
    return summed

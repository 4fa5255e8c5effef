"""Asks the aggregators to release the total of one set of sites, which is fixed for the round, and opens it."""

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...client_node.wire.messages import AggregateOrder, Packet, Reply, SetIncomplete, SetTaken, ShareOfTotal, sign
from ...mpc.errors import TotalForged
from ...mpc.links.positions import History
from ...mpc.sharing import Ring
from ...mpc.sharing.ring import decode, open_total
from ...mpc.sharing.sealing import position_in
from ...mpc.sharing.shares import set_name
from ...mpc.sharing.tags import verify_total
from ..errors import AggregationFailed, TotalRefused
from ..fleet import NodeFailure
from ..store.run_folder import Envelopes
from . import questions
from .collection import top_up
from .context import RoundContext, RunContext
from .questions import verified_answers
from .relay import Delivery, Load

logger = logging.getLogger(__name__)

_PROBLEMS = {
    SetTaken.kind: "bound to another set",
    SetIncomplete.kind: "a share or top-up does not open, or a vector is too long",
}

Answers = dict[str, tuple[Reply, Packet]]  # verified, by aggregator


@dataclass(frozen=True, kw_only=True, slots=True)
class AgreedTotal:
    """The three shares of the total that all aggregators released for one agreed set of sites."""

    summed: tuple[str, ...]
    shares: tuple[bytes, ...]
    evidence: tuple[str, ...]  # the aggregators' signed answers


def aggregate(round_: RoundContext, updates: Envelopes) -> AgreedTotal:
    """Asks the aggregators for the total of `updates` until they release it for one set of sites.

    Raises:
        AggregationFailed: they release different sets, cannot sum any set that the study allows, or make no progress.
    """
    run = round_.run
    summed = run.folder.fixed_set(round_.number) or tuple(sorted(updates))
    delivery, most = Delivery(run, round_.number), 0
    deadline = time.monotonic() + questions.PATIENCE_S
    while True:
        run.stop_if_asked()
        summed, topups = top_up(round_, summed)
        run.beat(f"{round_.title}: aggregators add {len(summed)} sites")
        loads = {
            name: Load.of(summed, aggregator_id, updates, topups, set_name(summed))
            for aggregator_id, name in enumerate(run.parties)
        }
        told = {site: _history(run, site) for site in summed}
        answers: Answers = {}
        problems = delivery.deposit(loads)
        if delivery.count > most:  # a large round may take longer as long as it makes progress
            most, deadline = delivery.count, time.monotonic() + questions.PATIENCE_S
        if not problems:
            answers, problems = _order(round_, summed, loads, delivery, told)
        replies = [message for message, _ in answers.values()]
        _note_rejected(round_, replies)
        if agreed := _agreed_total(round_, answers):
            _note_seen(round_, agreed.summed, updates)
            return agreed
        summed = _next_set(round_, summed, updates, replies, told)
        logger.warning("run %s: %s not aggregated, asking again (%s)", run.id, round_.title, problems)
        if time.monotonic() > deadline:
            raise AggregationFailed(
                f"{round_.title} was not aggregated in {questions.PATIENCE_S:.0f} s: {problems}; sealed shares are kept"
            )
        time.sleep(questions.RETRY_S)


def opened_total(round_: RoundContext, shares: Sequence[bytes]) -> np.ndarray:
    """Opens the total as real numbers, after verifying its tags if the study has tags.

    Raises:
        TotalRefused: the tags are not those of the total.
    """
    planned = round_.planned
    ring = Ring(bits=planned.ring_bits, scale_bits=planned.scale_bits)
    total = open_total(shares, ring, planned.dim, planned.tag_count)
    if key := round_.tag_key:
        try:
            verify_total(total.units, total.tags, bytes.fromhex(key), round_.run.study.largest_units(planned))
        except TotalForged as err:
            raise TotalRefused(
                f"{round_.title}: {err}. An aggregator has changed its share, or a site has sent tags that are not "
                "those of its vector. Nothing of the round is kept. Resume the run once; if it stays, ask all three "
                "aggregators and the sites"
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
    told: Mapping[str, History],
) -> tuple[Answers, dict[str, str]]:
    """Orders the sum once; returns verified answers by aggregator, and the reasons why the others have none."""
    run, attempt = round_.run, secrets.randbelow(2**31)
    hashes = {f"history-{place}": told[site].records for place, site in enumerate(summed)}
    requests = {
        name: sign(
            AggregateOrder(
                **run.addressed(name), round=round_.number, state=round_.start, cohort=summed,
                attempt=attempt, spooled=load.spooled(), histories={site: each.start for site, each in told.items()},
            ),
            run.signer,
            load.blobs() | hashes,
        )
        for name, load in loads.items()
    }  # fmt: skip
    found: Answers = {}
    problems = dict.fromkeys(run.parties, "no answer in time")
    for name, answer in verified_answers(run, "aggregate", requests, ShareOfTotal, SetTaken, SetIncomplete):
        if isinstance(answer, NodeFailure):
            delivery.forget(name, answer)
        if not isinstance(answer, tuple):
            problems[name] = str(answer)
            continue
        message, packet = answer
        if isinstance(message, ShareOfTotal) and "share" not in packet.blobs:
            problems[name] = "it sent no share"
            continue
        found[name] = answer
        problems[name] = _PROBLEMS.get(message.kind, "")
    return found, {name: why for name, why in problems.items() if why}


def _agreed_total(round_: RoundContext, answers: Answers) -> AgreedTotal | None:
    """Returns the total if all aggregators released it; raises `AggregationFailed` if they released different sets."""
    shares = [message for message, _ in answers.values() if isinstance(message, ShareOfTotal)]
    views = {(share.kept, share.set_digest) for share in shares}
    if len(views) > 1:
        raise AggregationFailed(f"{round_.title}: the aggregators released shares of different sets")
    if len(shares) < len(round_.run.parties):
        return None
    packets = [answers[name][1] for name in round_.run.parties]
    return AgreedTotal(
        summed=views.pop()[0],
        shares=tuple(packet.blobs["share"] for packet in packets),
        evidence=tuple(packet.body.decode() for packet in packets),
    )


def _note_rejected(round_: RoundContext, replies: Sequence[Reply]) -> None:
    """Stores the sites whose vectors are too long, if all aggregators say so: the word of one alone is no proof."""
    run = round_.run
    named = [set(each.rejected) for each in replies if isinstance(each, ShareOfTotal | SetIncomplete)]
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
    outdated = [site for site in summed if site in seen and not told[site].end < seen[site] <= run.replica.length(site)]
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
        return complete
    if rejected:
        raise AggregationFailed(
            f"{round_.title}: the vectors of {', '.join(rejected)} are longer than the study allows "
            f"(aggregation.max_norm), and {run.study.quorum} sites are needed: {len(complete)} are left. Nothing was "
            "opened. What they sealed stands for this round, so resuming changes nothing: mend or leave out these "
            "sites, and start a new run"
        )
    return summed

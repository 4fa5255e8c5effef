"""One run, round by round: what the coordinator does, told from top to bottom.

The coordinator is trusted with none of the sites' data: it sends the trained vector, relays sealed shares that it
cannot open, and learns the total of one agreed set of sites. Every step may be cut off at any instant. Whoever drives
next takes a newer lease, starts from the last committed round and asks again: nodes answer a repeated question with the
stored answer, so a round is never released twice and never charged twice.
"""

import hashlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...client_node.errors import FINAL_REFUSALS, MessageInvalid
from ...client_node.study import PlannedRound
from ...client_node.wire.messages import (
    ENTRIES_A_MESSAGE,
    AggregateOrder,
    KeyCertificate,
    Outcome,
    Packet,
    Prepare,
    Ready,
    Reply,
    RoundPlan,
    SetIncomplete,
    SetTaken,
    Settle,
    Settled,
    ShareOfTotal,
    TopUp,
    TopUpPlan,
    Update,
    sign,
    start_hash,
)
from ...mpc.errors import TotalForged
from ...mpc.sharing import Ring, ShareContext
from ...mpc.sharing.ring import decode, open_total
from ...mpc.sharing.shares import set_name
from ...mpc.sharing.tags import verify_total
from ...privacy.ledger.chain import Entry
from ..errors import AggregationFailed, MessageRefused, ReplicaBroken, RunRefused, SitesMissing, TotalRefused
from ..fleet import NodeFailure
from ..store import Checkpoint
from ..store.run_folder import Envelopes
from ..store.states import FINISH
from ..store.tables import Evaluation, Round
from .broadcast import broadcast
from .context import Drive, R, identity_of, stop_if_asked, verified_answers
from .relay import Delivery, Intake, Load, inline_room
from .server_optimizer import server_step

logger = logging.getLogger(__name__)

PATIENCE_S = 600.0  # how long a run waits for nodes that are away before it fails
FAREWELL_S = 60.0  # how long the end of a run waits for them
RETRY_S = 1.0
OUTCOMES_A_MESSAGE = 64
_PROBLEMS = {
    SetTaken.kind: "bound to another set",
    SetIncomplete.kind: "a share or top-up does not open, or a vector is too long",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """What a round opened, and what its row will say of it."""

    total: np.ndarray  # float64 [dim of the round]
    sites: tuple[str, ...]
    record: dict[str, Any]  # columns that rows of every purpose have


def drive_run(drive: Drive) -> None:
    """Drives a run from its last committed round to its last one, or until an operator stops it."""
    rounds = drive.study.draft.rounds.rounds
    last = drive.store.last_round(drive.run)
    checkpoint = drive.start if last.state_hash is None else drive.folder.load(last.number, last.state_hash)
    if not is_over(drive, checkpoint):  # else only the end was missed, and the run's keys may be gone
        keys = prepare(drive)
        while checkpoint.round < rounds:
            stop_if_asked(drive)
            checkpoint = one_round(drive, keys, checkpoint)
        if not is_over(drive, checkpoint):
            stop_if_asked(drive)
            evaluate(drive, keys, checkpoint)
    settle(drive, final=True)
    evaluation = drive.store.evaluation(drive.run)
    problem = None if evaluation is None else evaluation.problem
    drive.store.move_run(drive.run, FINISH, lease=drive.lease, error=problem)


def is_over(drive: Drive, checkpoint: Checkpoint) -> bool:
    """Whether all that the study opens is committed."""
    is_evaluated = drive.study.draft.evaluation is None or drive.store.evaluation(drive.run) is not None
    return checkpoint.round >= drive.study.draft.rounds.rounds and is_evaluated


def one_round(drive: Drive, keys: tuple[KeyCertificate, ...], checkpoint: Checkpoint) -> Checkpoint:
    """A round of training: the total becomes a step of the server optimizer."""
    planned = drive.study.planned_round(checkpoint.round + 1)
    sent, residual = broadcast(drive.study.state_format(planned), checkpoint)
    opened = open_round(drive, keys, planned, sent, drive.sites)
    # 7 commit: the round exists once its row does.
    after = server_step(drive.study.draft, checkpoint, opened.total, slice(0, drive.head_size))
    after = replace(after, residual=residual)
    drive.store.commit_round(Round(**opened.record, state_hash=drive.folder.save(after), committed_at=time.time()))
    drive.folder.prune(planned.number)
    logger.info("run %s: round %d committed with %s", drive.run, planned.number, ", ".join(opened.sites))
    return after


def evaluate(drive: Drive, keys: tuple[KeyCertificate, ...], checkpoint: Checkpoint) -> None:
    """The round after the last update: the total is a histogram of how the final state scores held-out records.

    Where too few sites take part, or refuse for good, or the total has not their tags, that is written down instead:
    what was trained is kept.
    """
    planned = drive.study.planned_round(drive.study.last_round)
    sites = tuple(site for site in drive.sites if site not in drive.abstaining)
    try:
        if len(sites) < drive.study.quorum:  # asked nevertheless, the others would pay for a sum that is never opened
            raise RunRefused(
                f"{drive.study.quorum} sites are needed, only {', '.join(sites) or 'none'} hold records out"
            )
        state = drive.study.state_format(planned).encode(checkpoint.exported)
        opened = open_round(drive, keys, planned, state, sites)
    except (RunRefused, TotalRefused) as err:
        logger.warning("run %s: not evaluated: %s", drive.run, err)
        drive.store.commit_round(
            Evaluation(
                run=drive.run, number=planned.number, sites="[]", evidence="[]", counts="[]",
                problem=f"not evaluated: {err}"[:2000],
                seconds=0.0, bytes_per_site=0, lease=drive.lease, committed_at=time.time(),
            )
        )  # fmt: skip
    else:
        counts = json.dumps(opened.total.tolist())
        drive.store.commit_round(Evaluation(**opened.record, counts=counts, committed_at=time.time()))
        logger.info("run %s: evaluated with %s", drive.run, ", ".join(opened.sites))
    drive.folder.prune(planned.number)


def open_round(
    drive: Drive, keys: tuple[KeyCertificate, ...], planned: PlannedRound, state: bytes, sites: tuple[str, ...]
) -> Opened:
    """Steps 1 to 6 of a round, the same for every purpose: what enough of `sites` make of `state`, added up."""
    started = time.monotonic()
    # 1 plan: fixed by the immutable study, the last committed state and the aggregators' keys.
    # 2 admit, 3 step, 4 split: at the sites, which charge their ledgers before they read a record.
    envelopes = collect_envelopes(drive, keys, planned, state, sites)
    collected = time.monotonic()
    # 5 relay, 6 aggregate: at the aggregators, which agree on one set of sites for this round, for ever. If sites are
    # missing, and the study wants it so, those of the set first make up for the noise of the missing ones.
    kept, shares, evidence = aggregate(drive, keys, planned, envelopes, state)
    topups = drive.folder.topups(planned.number, kept).read()
    total = opened_total(drive, planned, shares)
    ended = time.monotonic()
    logger.info(
        "run %s: %s: %.2f s to the last sealed share, %.2f s to the total",
        drive.run, planned.title, collected - started, ended - collected,
    )  # fmt: skip
    record = {
        "run": drive.run,
        "number": planned.number,
        "sites": json.dumps(kept),
        "evidence": json.dumps(evidence),
        "seconds": ended - started,
        "bytes_per_site": largest(envelopes) + largest(topups),
        "lease": drive.lease,
    }
    return Opened(total=total, sites=kept, record=record)


def opened_total(drive: Drive, planned: PlannedRound, shares: Sequence[bytes]) -> np.ndarray:
    """The total as real numbers, once it has the tags that its sites made, if the study has tags.

    Raises:
        TotalRefused: it has not.
    """
    ring = Ring(bits=planned.ring_bits, scale_bits=planned.scale_bits)
    total = open_total(shares, ring, planned.dim, planned.tag_count)
    if key := tag_key(drive, planned.number):
        try:
            verify_total(total.units, total.tags, bytes.fromhex(key), drive.study.largest_units(planned))
        except TotalForged as err:
            raise TotalRefused(
                f"{planned.title}: {err}. An aggregator has changed its share, or a site has sent tags that are not "
                "those of its vector. Nothing of the round is kept. Resume the run once; if it stays, ask all three "
                "aggregators and the sites"
            ) from err
    return decode(total.units, ring)


def tag_key(drive: Drive, number: int) -> str | None:
    """The key of a round's tags, in hex, the same at every attempt; None if the study has none."""
    if not drive.study.draft.aggregation.verify_total:
        return None
    place = f"confide/tag-key/1|{drive.study.study_hash}|{drive.run}|{number}"
    return hmac.digest(drive.folder.secret(), place.encode(), "sha256").hex()


def prepare(drive: Drive) -> tuple[KeyCertificate, ...]:
    """Has every aggregator make (or find again) its key for this run, and enough sites load the study.

    A site whose ledger is longer than one message holds is asked on, so that no round waits for the rest of it.
    """
    behind: set[str] = set()  # sites of which the replica may still lack entries

    def request(name: str) -> Packet:
        since = drive.replica.length(name) if name in drive.sites else 0
        return sign(Prepare(**drive.addressed(name), ledger_from=since), drive.signer)

    def accept(name: str, answer: Ready, _: Packet) -> None:
        accept_ledger(drive, name, answer.ledger)
        if len(answer.ledger) >= ENTRIES_A_MESSAGE:
            behind.add(name)
        if not answer.evaluates:
            drive.abstaining.add(name)

    answers = ask_until_all(
        drive, "prepare", drive.parties, request, (Ready,), needed=len(drive.parties), accept=accept
    )
    sites = [site for site in drive.sites if site not in answers]
    needed = drive.study.quorum - (len(drive.sites) - len(sites))
    ask_until_all(drive, "prepare", sites, request, (Ready,), needed=needed, accept=accept)
    deadline = time.monotonic() + PATIENCE_S  # a ledger without end must not keep the others waiting for ever
    while behind and time.monotonic() < deadline:
        asked = tuple(behind)
        behind.clear()
        ask_until_all(drive, "prepare", asked, request, (Ready,), needed=0, accept=accept)
    keys = []
    for aggregator_id, party in enumerate(drive.study.aggregators):
        key = answers[party.name].key
        if key is None or (key.run, key.study, key.aggregator_id) != (drive.run, drive.study.study_hash, aggregator_id):
            raise MessageRefused(f"aggregator {party.name} sent no key for run {drive.run}")
        key.verify(party.identity)
        keys.append(key)
    return tuple(keys)


def plan_round(
    drive: Drive, keys: tuple[KeyCertificate, ...], planned: PlannedRound, state: bytes, site: str, inline: int
) -> Packet:
    """The signed plan for a site, with the vector and what the site has not been told, as things stand now."""
    first, second, third = keys
    plan = RoundPlan(
        **drive.addressed(site),
        round=planned.number,
        keys=(first, second, third),
        tag_key=tag_key(drive, planned.number),
        outcomes=untold_outcomes(drive, site),
        ledger_from=drive.replica.length(site),
        inline=inline,
    )
    return sign(plan, drive.signer, {"state": state})


def collect_envelopes(
    drive: Drive, keys: tuple[KeyCertificate, ...], planned: PlannedRound, state: bytes, sites: tuple[str, ...]
) -> Envelopes:
    """Sealed shares of at least the required sites, kept on disk until the round is committed."""
    number = planned.number
    inbox = drive.folder.envelopes(number)
    kept = inbox.read()
    if drive.folder.fixed_set(number) is not None:
        return kept  # sites have added noise for a set: it grows no more
    missing = [site for site in sites if site not in kept]
    intake = Intake(drive, inbox, lambda site: share_context(drive, site, planned, state))
    drive.store.beat(drive.run, drive.lease, f"{planned.title}: {len(missing)} sites compute")

    def request(site: str) -> Packet:  # anew each time: an answer may have brought a part of a long ledger
        return plan_round(drive, keys, planned, state, site, inline_room(len(missing)))

    def take_in(site: str, answer: Update, packet: Packet) -> None:
        accept_ledger(drive, site, answer.ledger)
        if not drive.replica.has_charge(site, drive.run, number):
            raise MessageRefused(f"{site} sent shares of round {number} without the charge for them")
        intake.begin(site, answer, packet)

    needed = max(0, drive.study.quorum - len(kept))
    ask_until_all(
        drive, "step", missing, request, (Update,), needed=needed, accept=take_in, finish=intake.finish
    )  # fmt: skip
    return inbox.read()


def top_up(
    drive: Drive, keys: tuple[KeyCertificate, ...], planned: PlannedRound, sites: tuple[str, ...], state: bytes
) -> tuple[tuple[str, ...], Envelopes]:
    """The set to be summed, and the noise that each of it adds for the missing ones; none where none is needed.

    A site of the set that fails now is left out too, and the others are asked anew for what remains.
    """
    while len(sites) < drive.study.draft.min_untopped:
        topups = collect_topups(drive, keys, planned, sites, state)
        if len(topups) == len(sites):
            return sites, topups
        sites = tuple(sorted(topups))
    return sites, {}


def collect_topups(
    drive: Drive, keys: tuple[KeyCertificate, ...], planned: PlannedRound, sites: tuple[str, ...], state: bytes
) -> Envelopes:
    """Top-ups of at least a quorum of `sites` for a sum over all of them. The set is on disk before they hear of it."""
    number = planned.number
    drive.folder.fix_set(number, sites)
    inbox = drive.folder.topups(number, sites)
    kept = inbox.read()
    missing = [site for site in sites if site not in kept]
    drive.store.beat(drive.run, drive.lease, f"{planned.title}: {len(missing)} sites add noise for the missing ones")
    first, second, third = keys
    name = set_name(sites)
    intake = Intake(drive, inbox, lambda site: replace(share_context(drive, site, planned, state), topup_for=name))

    def request(site: str) -> Packet:
        plan = TopUpPlan(
            **drive.addressed(site),
            round=number,
            state=state_hash(state),
            cohort=sites,
            keys=(first, second, third),
            tag_key=tag_key(drive, number),
            inline=inline_room(len(missing)),
        )
        return sign(plan, drive.signer)

    needed = max(0, drive.study.quorum - len(kept))
    ask_until_all(
        drive, "topup", missing, request, (TopUp,), needed=needed, accept=intake.begin, finish=intake.finish
    )  # fmt: skip
    return inbox.read()


def aggregate(
    drive: Drive,
    keys: tuple[KeyCertificate, ...],
    planned: PlannedRound,
    envelopes: Envelopes,
    state: bytes,
) -> tuple[tuple[str, ...], list[bytes], list[str]]:
    """The set of sites that was summed, the three shares of its total, and what the aggregators signed for it."""
    offered = drive.folder.fixed_set(planned.number) or tuple(sorted(envelopes))
    delivery, most = Delivery(drive, planned.number), 0
    deadline = time.monotonic() + PATIENCE_S
    while True:
        stop_if_asked(drive)
        offered, topups = top_up(drive, keys, planned, offered, state)
        drive.store.beat(drive.run, drive.lease, f"{planned.title}: aggregators add {len(offered)} sites")
        terms = {"round": planned.number, "state": start_of(drive, planned, state), "cohort": offered}
        loads = {
            name: Load.of(offered, aggregator_id, envelopes, topups, set_name(offered))
            for aggregator_id, name in enumerate(drive.parties)
        }
        answers: dict[str, tuple[Reply, Packet]] = {}
        problems = delivery.deposit(loads)
        if delivery.count > most:  # patience is for standstill, and a large round may take longer on its way
            most, deadline = delivery.count, time.monotonic() + PATIENCE_S
        if not problems:
            answers, problems = ask_aggregators(drive, terms, loads, delivery)
        note_rejected(drive, planned, [message for message, _ in answers.values()])
        shares = {name: message for name, (message, _) in answers.items() if isinstance(message, ShareOfTotal)}
        views = {(share.kept, share.set_digest) for share in shares.values()}
        if len(views) > 1:
            raise AggregationFailed(f"{planned.title}: the aggregators released shares of different sets")
        if len(shares) == len(drive.parties):
            packets = [answers[name][1] for name in drive.parties]
            evidence = [packet.body.decode() for packet in packets]
            return views.pop()[0], [packet.blobs["share"] for packet in packets], evidence
        for message, _ in answers.values():
            if isinstance(message, SetTaken):
                offered = bound_set(drive, planned, envelopes, message)
        offered = without_incomplete(drive, planned, offered, [message for message, _ in answers.values()])
        logger.warning("run %s: %s not aggregated, asking again (%s)", drive.run, planned.title, problems)
        if time.monotonic() > deadline:
            raise AggregationFailed(
                f"{planned.title} was not aggregated in {PATIENCE_S:.0f} s: {problems}; sealed shares are kept"
            )
        time.sleep(RETRY_S)


def bound_set(drive: Drive, planned: PlannedRound, envelopes: Envelopes, taken: SetTaken) -> tuple[str, ...]:
    """The set to which a round is bound by the word of one aggregator, if it can be summed.

    Raises:
        AggregationFailed: it can't. Nothing follows from a word that may be false: sites are asked for nothing.
    """
    bound = tuple(sorted(set(taken.bound)))
    if len(bound) < drive.study.quorum or not set(bound) <= set(drive.study.site_names()):
        raise AggregationFailed(
            f"{planned.title}: an aggregator says that it is bound to {', '.join(bound) or 'nobody'}, which is no set "
            "that the study allows; ask the aggregators' people, then resume"
        )
    if not set(bound) <= set(envelopes):
        raise AggregationFailed(f"{planned.title} is bound to {', '.join(bound)}, whose shares are gone")
    return bound


def note_rejected(drive: Drive, planned: PlannedRound, answers: Sequence[Reply]) -> None:
    """Keeps whose vectors are too long by the word of all aggregators: one alone accuses nobody."""
    named = [set(each.rejected) for each in answers if isinstance(each, ShareOfTotal | SetIncomplete)]
    if len(named) == len(drive.parties) and (rejected := sorted(set.intersection(*named) & set(drive.sites))):
        logger.warning(
            "run %s: %s: left out, for a vector that is too long: %s", drive.run, planned.title, ", ".join(rejected)
        )
        drive.store.leave_out(drive.run, drive.lease, planned.number, rejected)


def without_incomplete(
    drive: Drive, planned: PlannedRound, offered: tuple[str, ...], answers: Sequence[Reply]
) -> tuple[str, ...]:
    """`offered`, or the sites of it that lack nothing, if all aggregators name the same and they may be summed.

    Raises:
        AggregationFailed: too few are left without those whose vectors are too long; asking again changes nothing.
    """
    incomplete = [each for each in answers if isinstance(each, SetIncomplete)]
    named = {(each.complete, each.rejected) for each in incomplete}
    if len(incomplete) < len(drive.parties) or len(named) > 1:
        return offered
    complete, rejected = named.pop()
    if set(complete) < set(offered) and len(complete) >= drive.study.quorum:
        return complete
    if rejected:
        raise AggregationFailed(
            f"{planned.title}: the vectors of {', '.join(rejected)} are longer than the study allows "
            f"(aggregation.max_norm), and {drive.study.quorum} sites are needed: {len(complete)} are left. Nothing was "
            "opened. What they sealed stands for this round, so resuming changes nothing: mend or leave out these "
            "sites, and start a new run"
        )
    return offered


def ask_aggregators(
    drive: Drive, terms: dict[str, Any], loads: Mapping[str, Load], delivery: Delivery
) -> tuple[dict[str, tuple[Reply, Packet]], dict[str, str]]:
    """One attempt: verified answers by aggregator, and why the others have none."""
    attempt = secrets.randbelow(2**31)
    requests = {
        name: sign(
            AggregateOrder(**drive.addressed(name), **terms, attempt=attempt, spooled=load.spooled()),
            drive.signer,
            load.blobs(),
        )
        for name, load in loads.items()
    }
    found: dict[str, tuple[Reply, Packet]] = {}
    problems = dict.fromkeys(drive.parties, "no answer in time")
    for name, answer in verified_answers(drive, "aggregate", requests, ShareOfTotal, SetTaken, SetIncomplete):
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


def largest(envelopes: Envelopes) -> int:
    """Bytes of the site that sent the most."""
    return max((sum(incoming.size for incoming in sealed) for sealed in envelopes.values()), default=0)


def settle(drive: Drive, *, final: bool) -> None:
    """Tells every node the outcomes it has not heard; `final` ends the run at the nodes and deletes its keys.

    Who cannot be reached for a while is let go: its charges stay at their worst, its key is useless without the others.
    """
    drive.store.beat(drive.run, drive.lease, "sites sign what was really summed")

    def request(name: str) -> Packet:
        is_site = name in drive.sites
        message = Settle(
            **drive.addressed(name),
            outcomes=untold_outcomes(drive, name) if is_site else (),
            final=final,
            ledger_from=drive.replica.length(name) if is_site else 0,
        )
        return sign(message, drive.signer)

    def accept(name: str, answer: Settled, _: Packet) -> None:
        accept_ledger(drive, name, answer.ledger)

    nodes = tuple(dict.fromkeys((*drive.sites, *drive.parties)))
    needed, patience = (len(nodes), FAREWELL_S) if final else (0, 0.0)
    try:
        ask_until_all(
            drive, "settle", nodes, request, (Settled,),
            needed=needed, accept=accept, patience=patience, is_stoppable=False,
        )  # fmt: skip
    except (SitesMissing, RunRefused) as err:
        logger.warning("run %s: %s", drive.run, err)


def ask_until_all(
    drive: Drive,
    kind: str,
    nodes: Sequence[str],
    request: Callable[[str], Packet],
    models: tuple[type[R], ...],
    *,
    needed: int,
    accept: Callable[[str, R, Packet], None],
    finish: Callable[[Collection[str]], Collection[str]] | None = None,
    patience: float | None = None,
    is_stoppable: bool = True,
) -> dict[str, R]:
    """Verified and accepted answers of the nodes; asks again those that are away until `needed` have answered.

    An answer that does not verify counts as none. All nodes that are there are asked at least once.

    Args:
        accept: is given each verified answer; what it refuses counts as none.
        finish: is given the nodes whose answers were accepted since it was called last, and says which of them have
            sent all that belongs to their answer; the others are asked again.

    Raises:
        RunRefused: too few nodes remain that do not refuse for a reason that asking again can't change.
        SitesMissing: fewer than `needed` nodes answered within `patience` seconds.
    """
    found: dict[str, R] = {}
    refused: dict[str, str] = {}
    deadline = time.monotonic() + (PATIENCE_S if patience is None else patience)
    while True:
        missing = [name for name in nodes if name not in found and name not in refused]
        if len(nodes) - len(refused) < needed:
            few = f"{kind}: {needed} nodes are needed and {len(nodes)} are not revoked"
            raise RunRefused("; ".join(refused.values()) or few)
        if is_stoppable:
            stop_if_asked(drive)
        online = drive.fleet.online()
        requests = {name: request(name) for name in missing if name in online}
        accepted: dict[str, R] = {}
        for name, answer in verified_answers(drive, kind, requests, *models):
            if isinstance(answer, NodeFailure):
                if answer.error in FINAL_REFUSALS:
                    refused[name] = f"{name} refuses ({answer.error}): {answer.message}"
                logger.warning("run %s: %s, asked to %s: %s", drive.run, name, kind, answer)
                continue
            try:
                if not isinstance(answer, tuple):
                    raise answer
                accept(name, *answer)
            except (MessageInvalid, MessageRefused, ReplicaBroken) as err:
                logger.warning("run %s: the answer of %s is not taken: %s", drive.run, name, err)
                continue
            accepted[name] = answer[0]
        whole = accepted if finish is None else finish(accepted)
        found |= {name: accepted[name] for name in whole}
        if len(found) >= needed:
            return found
        away = ", ".join(name for name in missing if name not in found)
        if time.monotonic() > deadline:
            raise SitesMissing(f"{kind}: no good answer from {away} in time; what is committed is kept")
        drive.store.beat(drive.run, drive.lease, f"{kind}: waits for {away}")
        time.sleep(RETRY_S)


def accept_ledger(drive: Drive, site: str, entries: tuple[Entry, ...]) -> None:
    """Adds a site's new ledger entries to the replica. Raises `ReplicaBroken` if they do not continue it."""
    if entries:
        drive.replica.extend(site, identity_of(drive.study, site), entries)
        drive.open[site] = drive.replica.open_rounds(site, drive.run)


def untold_outcomes(drive: Drive, site: str) -> tuple[Outcome, ...]:
    """Committed rounds that the site has charged and not settled, as its replicated ledger says; some at a time."""
    if site not in drive.open:
        drive.open[site] = drive.replica.open_rounds(site, drive.run)
    untold = [row for row in drive.store.opened(drive.run) if row.number in drive.open[site]][:OUTCOMES_A_MESSAGE]
    return tuple(
        Outcome(round=row.number, sites=row.summed, evidence=tuple(json.loads(row.evidence))) for row in untold
    )


def state_hash(state: bytes) -> str:
    """What shares of a round are bound to, so that only what was made of one and the same vector adds up."""
    return hashlib.sha256(state).hexdigest()


def share_context(drive: Drive, site: str, planned: PlannedRound, state: bytes) -> ShareContext:
    """What a site's shares of a round must be sealed and signed for."""
    return drive.study.share_context(planned, run=drive.run, site=site, state=start_of(drive, planned, state))


def start_of(drive: Drive, planned: PlannedRound, state: bytes) -> str:
    """What stands in contexts and orders for all that the sites of a round are sent alike."""
    return start_hash(state_hash(state), tag_key(drive, planned.number))

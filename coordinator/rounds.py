"""One run, round by round: what the coordinator does, told from top to bottom.

The coordinator is trusted with none of the sites' data: it sends the trained vector, relays sealed shares that it
cannot open, and learns the total of one agreed set of sites. Every step may be cut off at any instant. Whoever drives
next takes a newer lease, starts from the last committed round and asks again: nodes answer a repeated question with the
stored answer, so a round is never released twice and never charged twice.
"""

import json
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..client_node.errors import FINAL_REFUSALS
from ..client_node.messages import (
    AggregateOrder,
    KeyCertificate,
    Outcome,
    Packet,
    Prepare,
    Ready,
    Reply,
    RoundPlan,
    SetTaken,
    Settle,
    Settled,
    ShareOfTotal,
    Update,
    sign,
    verify,
)
from ..client_node.study import Study
from ..mpc.ring import Ring, open_total
from ..privacy.chain import Entry
from .errors import AggregationFailed, MessageRefused, RunRefused, RunStopped, SitesMissing
from .fleet import Fleet, NodeFailure
from .optimizer import ServerOptimizer
from .replica import LedgerReplica
from .run_folder import Checkpoint, Envelopes, RunFolder
from .store import Round, Store, site_names

logger = logging.getLogger(__name__)

PATIENCE_S = 600.0  # how long a run waits for nodes that are away before it fails
RETRY_S = 1.0

M = TypeVar("M", bound=Reply)


@dataclass(kw_only=True, slots=True)
class Drive:
    """All that driving one run needs."""

    fleet: Fleet
    store: Store
    folder: RunFolder
    replica: LedgerReplica
    study: Study
    run: str
    lease: int
    signer: Ed25519PrivateKey
    start: Checkpoint  # round 0, used when nothing is committed yet
    head_size: int  # leading entries of the trained vector that belong to the head
    sites: tuple[str, ...]  # the study's sites that are not revoked
    told: dict[str, set[int]] = field(default_factory=dict)  # site -> rounds whose outcome its ledger holds

    @property
    def ring(self) -> Ring:
        """Ring in which updates are shared."""
        return Ring(bits=self.study.ring_bits, scale_bits=self.study.scale_bits)


def drive_run(drive: Drive) -> None:
    """Drives a run from its last committed round to its last one, or until an operator stops it."""
    last = drive.store.last_round(drive.run)
    checkpoint = drive.start if last.state_hash is None else drive.folder.load(last.number, last.state_hash)
    keys = prepare(drive)
    while checkpoint.round < drive.study.draft.rounds.rounds:
        stop_if_asked(drive)
        checkpoint = one_round(drive, keys, checkpoint)
    settle(drive)
    drive.store.set_run_state(drive.run, "done", lease=drive.lease)


def one_round(drive: Drive, keys: tuple[KeyCertificate, ...], checkpoint: Checkpoint) -> Checkpoint:
    """The seven steps of a round."""
    started = time.monotonic()
    number = checkpoint.round + 1
    # 1 plan: fixed by the immutable study, the last committed state and the aggregators' keys.
    plans = plan_round(drive, keys, checkpoint)
    # 2 admit, 3 step, 4 split: at the sites, which charge their ledgers before they read a record.
    envelopes = collect_envelopes(drive, number, plans, checkpoint)
    # 5 relay, 6 aggregate: at the aggregators, which agree on one set of sites for this round, for ever.
    kept, shares = aggregate(drive, number, envelopes)
    # 7 commit: the total becomes a step of the server optimizer; the round exists once its row does.
    total = open_total(shares, drive.ring, drive.study.dim)
    after = server_step(drive, checkpoint, total)
    drive.store.commit_round(
        Round(
            run=drive.run,
            number=number,
            sites=json.dumps(kept),
            state_hash=drive.folder.save(after),
            seconds=time.monotonic() - started,
            bytes_per_site=max(sum(map(len, sealed)) for sealed in envelopes.values()),
            lease=drive.lease,
            committed_at=time.time(),
        )
    )
    drive.folder.prune(number)
    logger.info("run %s: round %d committed with %s", drive.run, number, ", ".join(kept))
    return after


def prepare(drive: Drive) -> tuple[KeyCertificate, ...]:
    """Has every node load the study, and every aggregator make (or find again) its key for this run."""
    parties = [party.name for party in drive.study.aggregators]
    nodes = list(dict.fromkeys([*drive.sites, *parties]))

    def request(name: str) -> Packet:
        since = drive.replica.length(name) if name in drive.sites else 0
        message = Prepare(study=drive.study.study_hash, run=drive.run, lease=drive.lease, ledger_from=since)
        return sign(message, drive.signer)

    answers = ask_until_all(drive, "prepare", nodes, request, (Ready,), needed=len(nodes))
    for site in drive.sites:
        accept_ledger(drive, site, answers[site].ledger)
        drive.told[site] = drive.replica.settled_rounds(site, drive.run)
    keys = []
    for aggregator_id, party in enumerate(drive.study.aggregators):
        key = answers[party.name].key
        if key is None or (key.run, key.study, key.aggregator_id) != (drive.run, drive.study.study_hash, aggregator_id):
            raise MessageRefused(f"aggregator {party.name} sent no key for run {drive.run}")
        key.verify(party.identity)
        keys.append(key)
    return tuple(keys)


def plan_round(drive: Drive, keys: tuple[KeyCertificate, ...], checkpoint: Checkpoint) -> dict[str, Packet]:
    """The signed plan for each site, with the trained vector and the outcomes that the site has not been told."""
    state = {"state": checkpoint.state.astype("<f4").tobytes()}
    first, second, third = keys
    return {
        site: sign(
            RoundPlan(
                study=drive.study.study_hash,
                run=drive.run,
                lease=drive.lease,
                round=checkpoint.round + 1,
                cohort=drive.sites,
                keys=(first, second, third),
                outcomes=untold_outcomes(drive, site),
                ledger_from=drive.replica.length(site),
            ),
            drive.signer,
            state,
        )
        for site in drive.sites
    }


def collect_envelopes(drive: Drive, number: int, plans: dict[str, Packet], checkpoint: Checkpoint) -> Envelopes:
    """Sealed shares of at least the required sites, kept on disk until the round is committed."""
    kept = drive.folder.envelopes(number)
    missing = [site for site in drive.sites if site not in kept]
    drive.store.beat(drive.run, drive.lease, f"round {number}: {len(missing)} sites compute")

    def request(site: str) -> Packet:
        return plans[site]

    def store_envelopes(site: str, answer: Update, packet: Packet) -> None:
        if answer.round != number or sorted(packet.blobs) != ["envelope-0", "envelope-1", "envelope-2"]:
            raise MessageRefused(f"site {site} answered for round {answer.round} with {sorted(packet.blobs)}")
        sealed = packet.blobs["envelope-0"], packet.blobs["envelope-1"], packet.blobs["envelope-2"]
        drive.folder.save_envelopes(number, site, sealed)
        accept_ledger(drive, site, answer.ledger)

    needed = max(0, drive.study.quorum - len(kept))
    ask_until_all(drive, "step", missing, request, (Update,), needed=needed, accept=store_envelopes)
    return drive.folder.envelopes(number)


def aggregate(drive: Drive, number: int, envelopes: Envelopes) -> tuple[tuple[str, ...], list[bytes]]:
    """The set of sites that was summed and the three shares of its total, once all aggregators agree."""
    offered = tuple(sorted(envelopes))
    parties = [party.name for party in drive.study.aggregators]
    deadline = time.monotonic() + PATIENCE_S
    while True:
        stop_if_asked(drive)
        drive.store.beat(drive.run, drive.lease, f"round {number}: aggregators add {len(offered)} sites")
        order = AggregateOrder(
            study=drive.study.study_hash,
            run=drive.run,
            lease=drive.lease,
            round=number,
            attempt=secrets.randbelow(2**31),
            cohort=offered,
        )
        requests = {
            name: sign(order, drive.signer, {site: envelopes[site][aggregator_id] for site in offered})
            for aggregator_id, name in enumerate(parties)
        }
        shares: dict[str, tuple[ShareOfTotal, bytes]] = {}
        problems = dict.fromkeys(parties, "no answer in time")
        for name, answer in drive.fleet.ask("aggregate", requests, drive.study.draft.rounds.deadline_s):
            if isinstance(answer, NodeFailure):
                problems[name] = str(answer)
                continue
            message: Reply = verify(answer, identity_of(drive.study, name), ShareOfTotal, SetTaken)
            require_reply(message.request, requests[name], name)
            if isinstance(message, SetTaken):
                if not set(message.bound) <= set(envelopes):
                    raise AggregationFailed(f"round {number} is bound to {message.bound}, whose shares are gone")
                offered = message.bound
            elif isinstance(message, ShareOfTotal) and "share" in answer.blobs:
                shares[name] = message, answer.blobs["share"]
        views = {(message.kept, message.set_digest) for message, _ in shares.values()}
        if len(shares) == len(parties) and len(views) == 1:
            return views.pop()[0], [shares[name][1] for name in parties]
        if len(views) > 1:
            raise AggregationFailed(f"round {number}: the aggregators released shares of different sets")
        waiting = {name: why for name, why in problems.items() if name not in shares}
        logger.warning("run %s: round %d not aggregated, asking again (%s)", drive.run, number, waiting)
        if time.monotonic() > deadline:
            raise AggregationFailed(
                f"round {number} was not aggregated in {PATIENCE_S:.0f} s: {waiting}; sealed shares are kept"
            )
        time.sleep(RETRY_S)


def server_step(drive: Drive, checkpoint: Checkpoint, total: np.ndarray) -> Checkpoint:
    """The trained vector after one server optimizer step on the mean update over the public batch size."""
    terms = drive.study.draft
    optimizer = ServerOptimizer(
        lr=terms.optimizer.lr, head_lr=terms.optimizer.head_lr, momentum=terms.optimizer.momentum
    )
    mean = total / (terms.rounds.batch_units * terms.privacy.clip_norm)
    head = slice(0, drive.head_size)
    state, velocity = optimizer.step(checkpoint.state, checkpoint.velocity, mean, head)
    return Checkpoint(round=checkpoint.round + 1, state=state, velocity=velocity)


def settle(drive: Drive, *, final: bool = True) -> None:
    """Tells every node the outcomes it has not heard; `final` ends the run at the nodes and deletes its keys."""
    drive.store.beat(drive.run, drive.lease, "sites sign what was really summed")
    parties = [party.name for party in drive.study.aggregators]
    nodes = list(dict.fromkeys([*drive.sites, *parties]))

    def request(name: str) -> Packet:
        is_site = name in drive.sites
        message = Settle(
            study=drive.study.study_hash,
            run=drive.run,
            lease=drive.lease,
            outcomes=untold_outcomes(drive, name) if is_site else (),
            final=final,
            ledger_from=drive.replica.length(name) if is_site else 0,
        )
        return sign(message, drive.signer)

    answers = ask_until_all(drive, "settle", nodes, request, (Settled,), needed=len(nodes))
    for site in drive.sites:
        accept_ledger(drive, site, answers[site].ledger)


def ask_until_all(
    drive: Drive,
    kind: str,
    nodes: list[str],
    request: Callable[[str], Packet],
    models: tuple[type[M], ...],
    *,
    needed: int,
    accept: Callable[[str, M, Packet], None] | None = None,
) -> dict[str, M]:
    """Verified answers of the nodes; asks again those that are away until `needed` have answered.

    Raises:
        RunRefused: a node refuses for a reason that asking again can't change (its budget, its policy).
        SitesMissing: fewer than `needed` nodes answered within `PATIENCE_S`.
    """
    answers: dict[str, M] = {}
    deadline = time.monotonic() + PATIENCE_S
    while missing := [name for name in nodes if name not in answers]:
        stop_if_asked(drive)
        drive.store.beat(drive.run, drive.lease)
        here = [name for name in missing if name in drive.fleet.online()]
        requests = {name: request(name) for name in here}
        for name, packet in drive.fleet.ask(kind, requests, drive.study.draft.rounds.deadline_s) if here else ():
            drive.store.beat(drive.run, drive.lease)
            if isinstance(packet, NodeFailure):
                if packet.error in FINAL_REFUSALS:
                    raise RunRefused(f"{name} refuses ({packet.error}): {packet.message}")
                logger.warning("run %s: %s, asked to %s: %s", drive.run, name, kind, packet)
                continue
            message = verify(packet, identity_of(drive.study, name), *models)
            require_reply(message.request, requests[name], name)
            if accept is not None:
                accept(name, message, packet)
            answers[name] = message
        if len(answers) >= needed:
            break
        if time.monotonic() > deadline:
            raise SitesMissing(
                f"{kind}: no answer from {', '.join(missing)} in {PATIENCE_S:.0f} s; the run can be resumed"
            )
        drive.store.beat(
            drive.run, drive.lease, f"{kind}: waits for {', '.join(n for n in missing if n not in answers)}"
        )
        time.sleep(RETRY_S)
    return answers


def accept_ledger(drive: Drive, site: str, entries: tuple[Entry, ...]) -> None:
    """Adds a site's new ledger entries to the replica, or refuses the site's answer."""
    drive.replica.extend(site, identity_of(drive.study, site), entries)
    if entries:
        drive.told[site] = drive.replica.settled_rounds(site, drive.run)


def untold_outcomes(drive: Drive, site: str) -> tuple[Outcome, ...]:
    """Committed rounds of this run that the site's replicated ledger does not settle yet, oldest first."""
    told = drive.told.get(site, set())
    rounds = drive.store.rounds(drive.run)
    return tuple(Outcome(round=row.number, sites=site_names(row)) for row in rounds if row.number not in told)


def stop_if_asked(drive: Drive) -> None:
    """Ends the drive between two questions if an operator asked for it; what is committed stays."""
    if drive.store.run(drive.run).state == "stopping":
        raise RunStopped(f"run {drive.run} was stopped; `coordinator run resume {drive.run}` goes on with it")


def identity_of(study: Study, name: str) -> str:
    """The identity that the approved study gives to `name`."""
    identities = {site.name: site.identity for site in study.sites}
    identities |= {party.name: party.identity for party in study.aggregators}
    if name not in identities:
        raise MessageRefused(f"{name} takes no part in study {study.name}")
    return identities[name]


def require_reply(named: str, request: Packet, name: str) -> None:
    """Raises unless an answer names the request it was sent for."""
    if named != request.digest():
        raise MessageRefused(f"{name} answered another request than the one it was sent")

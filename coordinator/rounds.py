"""One run, round by round: what the coordinator does, told from top to bottom.

The coordinator is trusted with none of the sites' data: it sends the trained vector, relays sealed shares that it
cannot open, and learns the total of one agreed set of sites. Every step may be cut off at any instant. Whoever drives
next takes a newer lease, starts from the last committed round and asks again: nodes answer a repeated question with the
stored answer, so a round is never released twice and never charged twice.
"""

import hashlib
import json
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..client_node.errors import FINAL_REFUSALS, MessageInvalid
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
from ..mpc.errors import EnvelopeRejected
from ..mpc.ring import Ring, open_total
from ..mpc.sealing import check_update
from ..mpc.shares import ShareContext
from ..privacy.chain import Entry
from .errors import AggregationFailed, MessageRefused, ReplicaBroken, RunRefused, RunStopped, SitesMissing
from .fleet import Fleet, NodeFailure
from .optimizer import server_step
from .replica import LedgerReplica
from .run_folder import Checkpoint, Envelopes, RunFolder
from .store import Round, Store, site_names

logger = logging.getLogger(__name__)

PATIENCE_S = 600.0  # how long a run waits for nodes that are away before it fails
FAREWELL_S = 60.0  # how long the end of a run waits for them
RETRY_S = 1.0
OUTCOMES_A_MESSAGE = 64

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
    open: dict[str, set[int]] = field(default_factory=dict)  # site -> charged rounds whose outcome it has not signed

    @property
    def sites(self) -> tuple[str, ...]:
        """The study's sites that are not revoked at this moment."""
        revoked = {node.name for node in self.store.nodes() if node.revoked_at is not None}
        return tuple(site.name for site in self.study.sites if site.name not in revoked)

    @property
    def parties(self) -> tuple[str, ...]:
        """The aggregators, by aggregator_id."""
        return tuple(party.name for party in self.study.aggregators)

    def addressed(self, name: str) -> dict[str, Any]:
        """What every request to `name` begins with."""
        return {"to": name, "study": self.study.study_hash, "run": self.run, "lease": self.lease}

    @property
    def ring(self) -> Ring:
        """Ring in which updates are shared."""
        return Ring(bits=self.study.ring_bits, scale_bits=self.study.scale_bits)


def drive_run(drive: Drive) -> None:
    """Drives a run from its last committed round to its last one, or until an operator stops it."""
    rounds = drive.study.draft.rounds.rounds
    last = drive.store.last_round(drive.run)
    checkpoint = drive.start if last.state_hash is None else drive.folder.load(last.number, last.state_hash)
    if checkpoint.round < rounds:  # else only the end was missed, and the run's keys may be gone
        keys = prepare(drive)
        while checkpoint.round < rounds:
            stop_if_asked(drive)
            checkpoint = one_round(drive, keys, checkpoint)
    settle(drive, final=True)
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
    kept, shares, evidence = aggregate(drive, number, envelopes, checkpoint)
    # 7 commit: the total becomes a step of the server optimizer; the round exists once its row does.
    total = open_total(shares, drive.ring, drive.study.dim)
    after = server_step(drive.study.draft, checkpoint, total, slice(0, drive.head_size))
    drive.store.commit_round(
        Round(
            run=drive.run,
            number=number,
            sites=json.dumps(kept),
            evidence=json.dumps(evidence),
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
    """Has every aggregator make (or find again) its key for this run, and enough sites load the study."""

    def request(name: str) -> Packet:
        since = drive.replica.length(name) if name in drive.sites else 0
        return sign(Prepare(**drive.addressed(name), ledger_from=since), drive.signer)

    def accept(name: str, answer: Ready, _: Packet) -> None:
        accept_ledger(drive, name, answer.ledger)

    answers = ask_until_all(
        drive, "prepare", drive.parties, request, (Ready,), needed=len(drive.parties), accept=accept
    )
    sites = [site for site in drive.sites if site not in answers]
    needed = drive.study.quorum - (len(drive.sites) - len(sites))
    ask_until_all(drive, "prepare", sites, request, (Ready,), needed=needed, accept=accept)
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
    state = {"state": state_bytes(checkpoint)}
    first, second, third = keys
    return {
        site: sign(
            RoundPlan(
                **drive.addressed(site),
                round=checkpoint.round + 1,
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
        accept_ledger(drive, site, answer.ledger)
        if not drive.replica.has_charge(site, drive.run, number):
            raise MessageRefused(f"{site} sent shares of round {number} without the charge for them")
        sealed = packet.blobs["envelope-0"], packet.blobs["envelope-1"], packet.blobs["envelope-2"]
        try:
            check_update(sealed, share_context(drive, site, checkpoint), bytes.fromhex(identity_of(drive.study, site)))
        except EnvelopeRejected as err:
            raise MessageRefused(f"{site}: {err}") from err
        drive.folder.save_envelopes(number, site, sealed)

    needed = max(0, drive.study.quorum - len(kept))
    ask_until_all(drive, "step", missing, request, (Update,), needed=needed, accept=store_envelopes)
    return drive.folder.envelopes(number)


def aggregate(
    drive: Drive, number: int, envelopes: Envelopes, checkpoint: Checkpoint
) -> tuple[tuple[str, ...], list[bytes], list[str]]:
    """The set of sites that was summed, the three shares of its total, and what the aggregators signed for it."""
    offered = tuple(sorted(envelopes))
    deadline = time.monotonic() + PATIENCE_S
    while True:
        stop_if_asked(drive)
        drive.store.beat(drive.run, drive.lease, f"round {number}: aggregators add {len(offered)} sites")
        terms = {"round": number, "state": state_hash(checkpoint), "cohort": offered}
        answers, problems = ask_aggregators(drive, terms, envelopes)
        shares = {name: message for name, (message, _) in answers.items() if isinstance(message, ShareOfTotal)}
        views = {(share.kept, share.set_digest) for share in shares.values()}
        if len(views) > 1:
            raise AggregationFailed(f"round {number}: the aggregators released shares of different sets")
        if len(shares) == len(drive.parties):
            packets = [answers[name][1] for name in drive.parties]
            evidence = [packet.body.decode() for packet in packets]
            return views.pop()[0], [packet.blobs["share"] for packet in packets], evidence
        for message, _ in answers.values():
            if isinstance(message, SetTaken):
                if not set(message.bound) <= set(envelopes):
                    raise AggregationFailed(f"round {number} is bound to {message.bound}, whose shares are gone")
                offered = message.bound
        logger.warning("run %s: round %d not aggregated, asking again (%s)", drive.run, number, problems)
        if time.monotonic() > deadline:
            raise AggregationFailed(
                f"round {number} was not aggregated in {PATIENCE_S:.0f} s: {problems}; sealed shares are kept"
            )
        time.sleep(RETRY_S)


def ask_aggregators(
    drive: Drive, terms: dict[str, Any], envelopes: Envelopes
) -> tuple[dict[str, tuple[Reply, Packet]], dict[str, str]]:
    """One attempt: verified answers by aggregator, and why the others have none."""
    attempt = secrets.randbelow(2**31)
    requests = {
        name: sign(
            AggregateOrder(**drive.addressed(name), **terms, attempt=attempt),
            drive.signer,
            {site: envelopes[site][aggregator_id] for site in terms["cohort"]},
        )
        for aggregator_id, name in enumerate(drive.parties)
    }
    answers: dict[str, tuple[Reply, Packet]] = {}
    problems = dict.fromkeys(drive.parties, "no answer in time")
    for name, packet in drive.fleet.ask("aggregate", requests, drive.study.draft.rounds.deadline_s):
        if isinstance(packet, NodeFailure):
            problems[name] = str(packet)
            continue
        try:
            message: Reply = verify(packet, identity_of(drive.study, name), ShareOfTotal, SetTaken)
            require_reply(message.request, requests[name], name)
            if isinstance(message, ShareOfTotal) and "share" not in packet.blobs:
                raise MessageRefused(f"{name} sent no share")
        except (MessageInvalid, MessageRefused) as err:
            problems[name] = str(err)
            continue
        answers[name] = message, packet
        problems[name] = "" if isinstance(message, ShareOfTotal) else "bound to another set"
    return answers, {name: why for name, why in problems.items() if why}


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
    models: tuple[type[M], ...],
    *,
    needed: int,
    accept: Callable[[str, M, Packet], None],
    patience: float | None = None,
    is_stoppable: bool = True,
) -> dict[str, M]:
    """Verified and accepted answers of the nodes; asks again those that are away until `needed` have answered.

    An answer that does not verify counts as none. All nodes that are there are asked at least once.

    Raises:
        RunRefused: too few nodes remain that do not refuse for a reason that asking again can't change.
        SitesMissing: fewer than `needed` nodes answered within `patience` seconds.
    """
    answers: dict[str, M] = {}
    refused: dict[str, str] = {}
    deadline = time.monotonic() + (PATIENCE_S if patience is None else patience)
    while True:
        missing = [name for name in nodes if name not in answers and name not in refused]
        if len(nodes) - len(refused) < needed:
            few = f"{kind}: {needed} nodes are needed and {len(nodes)} are not revoked"
            raise RunRefused("; ".join(refused.values()) or few)
        if is_stoppable:
            stop_if_asked(drive)
        online = drive.fleet.online()
        requests = {name: request(name) for name in missing if name in online}
        for name, packet in drive.fleet.ask(kind, requests, drive.study.draft.rounds.deadline_s) if requests else ():
            if isinstance(packet, NodeFailure):
                if packet.error in FINAL_REFUSALS:
                    refused[name] = f"{name} refuses ({packet.error}): {packet.message}"
                logger.warning("run %s: %s, asked to %s: %s", drive.run, name, kind, packet)
                continue
            try:
                message = verify(packet, identity_of(drive.study, name), *models)
                require_reply(message.request, requests[name], name)
                accept(name, message, packet)
            except (MessageInvalid, MessageRefused, ReplicaBroken) as err:
                logger.warning("run %s: the answer of %s is not taken: %s", drive.run, name, err)
                continue
            answers[name] = message
        if len(answers) >= needed:
            return answers
        away = ", ".join(name for name in missing if name not in answers)
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
    untold = [row for row in drive.store.rounds(drive.run) if row.number in drive.open[site]][:OUTCOMES_A_MESSAGE]
    return tuple(
        Outcome(round=row.number, sites=site_names(row), evidence=tuple(json.loads(row.evidence))) for row in untold
    )


def state_bytes(checkpoint: Checkpoint) -> bytes:
    """The trained vector as it is sent: float32, little-endian."""
    return checkpoint.state.astype("<f4").tobytes()


def state_hash(checkpoint: Checkpoint) -> str:
    """What shares of the next round are bound to, so that only updates from one and the same vector add up."""
    return hashlib.sha256(state_bytes(checkpoint)).hexdigest()


def share_context(drive: Drive, site: str, checkpoint: Checkpoint) -> ShareContext:
    """What a site's shares of the next round must be sealed and signed for."""
    return ShareContext(
        study=drive.study.study_hash,
        run=drive.run,
        round=checkpoint.round + 1,
        site=site,
        state=state_hash(checkpoint),
        dim=drive.study.dim,
        ring_bits=drive.study.ring_bits,
        scale_bits=drive.study.scale_bits,
    )


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

"""A federation in one process: sites with made-up updates and aggregators that open shares and add them.

It seals, signs, charges and answers as real nodes do, so that the round driver can be tested step by step and cut off
at every question. What it leaves out is records, models, and the parties' own protocol.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.client_node import witness
from confide.client_node.enrolment import NodeIdentity
from confide.client_node.enrolment.identity import write_signer
from confide.client_node.replay.checkpoint import Checkpoint
from confide.client_node.replay.following import beginning, follow, round_start, total_bytes
from confide.client_node.study.study import PlannedRound, Study
from confide.client_node.wire.checkpoints import AuditAnswer
from confide.client_node.wire.evidence import require_evidence, signed_total
from confide.client_node.wire.messages import (
    AggregateOrder,
    Deposit,
    Deposited,
    Fetch,
    Fetched,
    KeyCertificate,
    Outcome,
    Packet,
    Prepare,
    Ready,
    Replay,
    Replayed,
    Reply,
    RoundPlan,
    Sealed,
    SetTaken,
    Settle,
    Settled,
    SignedTotal,
    Update,
    fitting,
    one_part,
    sign,
    start_hash,
    verify,
)
from confide.coordinator.fleet.nodes import NodeFailure
from confide.coordinator.run import relay
from confide.mpc.sharing import position as positions
from confide.mpc.sharing.ring import Ring, from_integers
from confide.mpc.sharing.sealing import Envelope, new_keypair, open_envelope, seal_update
from confide.mpc.sharing.shares import ShareContext, unpack
from confide.privacy.accounting.composition import Release
from confide.privacy.ledger.canonical import to_record
from confide.privacy.ledger.chain import START, Entry, Head, extend
from confide.privacy.ledger.charges import FORMAT, Budget, Charge, Opening, Settlement

SITES = ("north", "south", "west")
PARTIES = ("agg-a", "agg-b", "agg-c")


def key_of(name: str) -> Ed25519PrivateKey:
    """The same key for the same name, in tests only."""
    return Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32, b"."))


def identity_of(name: str) -> str:
    return key_of(name).public_key().public_bytes_raw().hex()


class FakeLedger:
    """A site's chain of entries, in memory."""

    def __init__(self, site: str) -> None:
        self.site, self.entries = site, list[Entry]()
        self._add("open", to_record(Opening(format=FORMAT, site=site, public_key=identity_of(site))))

    def reserve(self, study: Study, run: str, planned: PlannedRound) -> None:
        release = Release(
            mode="none", site_noise_int=0, scale_bits=planned.scale_bits, clip_norm=1.0, dim=planned.dim,
            sample_rate=0.5, sites=study.quorum,
        )  # fmt: skip
        charge = Charge(
            study=study.study_hash, run=run, round=planned.number, dataset="d", unit="patient",
            cohort=study.site_names(), release=release, purpose=planned.purpose,
        )  # fmt: skip
        self._add("reserve", to_record(charge))

    def settle(self, run: str, outcome: Outcome) -> None:
        self._add("settle", to_record(Settlement(run=run, round=outcome.round, summed=outcome.sites)))

    def grow(self, count: int) -> None:
        """What else a site writes: `count` caps of another data set."""
        for epsilon in range(1, count + 1):
            self._add(
                "budget", to_record(Budget(dataset="e", unit="patient", epsilon=epsilon, delta=1e-5, collusion=0))
            )

    def has(self, kind: str, round_number: int) -> bool:
        return any((entry.kind, entry.body.get("round")) == (kind, round_number) for entry in self.entries)

    def position(self) -> positions.Position:
        found = positions.digests(positions.START, (bytes.fromhex(entry.hash) for entry in self.entries))
        return positions.Position(0, len(found), found[-1])

    def _add(self, kind: str, contents: dict[str, object]) -> None:
        head = Head(self.entries[-1].seq, self.entries[-1].hash) if self.entries else START
        self.entries.append(extend(head, key_of(self.site), "2026-01-31T00:00:00Z", kind, contents))


@dataclass
class FakeFleet:
    """`before` and `after` run around every question to a node; they may raise, `before` may return a failure."""

    study: Study
    before: Callable[[str, str], NodeFailure | None] = lambda kind, name: None
    after: Callable[[str, str], None] = lambda kind, name: None
    asked: list[tuple[str, str]] = field(default_factory=list)
    states: dict[int, np.ndarray] = field(default_factory=dict)  # round -> the vector that sites came to
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)  # by site
    totals: dict[tuple[str, int], bytes] = field(default_factory=dict)  # (site, round) -> what came of it
    bound: dict[int, tuple[str, ...]] = field(default_factory=dict)
    computed: list[tuple[str, int]] = field(default_factory=list)  # (site, round): fresh draws, not stored answers
    stored: dict[tuple[str, int], tuple[Envelope, Envelope, Envelope]] = field(default_factory=dict)
    spool: dict[tuple[str, str], bytes] = field(default_factory=dict)  # (party, SHA-256) -> what came of it
    ledgers: dict[str, FakeLedger] = field(default_factory=lambda: {site: FakeLedger(site) for site in SITES})
    keys: dict[str, tuple[bytes, bytes]] = field(default_factory=lambda: {name: new_keypair() for name in PARTIES})
    ended: set[str] = field(default_factory=set)  # parties whose key of the run is gone
    abstaining: tuple[str, ...] = ()  # sites that hold no records out
    homes: Path | None = None  # in which nodes keep what they countersigned; None if none countersigns

    def trust(self, names: Callable[[], Mapping[str, str]]) -> None: ...

    def online(self) -> set[str]:
        return {*SITES, *PARTIES}

    def ask(
        self, kind: str, requests: Mapping[str, Packet], timeout: float, *, together: bool = False
    ) -> Iterator[tuple[str, Packet | NodeFailure]]:
        for name, packet in requests.items():
            self.asked.append((kind, name))
            failure = self.before(kind, name)
            if failure is None and kind in ("prepare", "aggregate") and name in self.ended:
                failure = NodeFailure(reason="failed", error="RunEnded", message="the run's key is gone")
            if failure is not None:
                yield name, failure
                continue
            answer = getattr(self, f"_{kind}")(name, packet)
            self.after(kind, name)
            yield name, answer

    def witness(self, name: str, message: Prepare | Settle) -> AuditAnswer | None:
        if self.homes is None or message.audit is None:
            return None
        if not (key := self.homes / name / "keys" / "identity.key").exists():
            NodeIdentity.create(self.homes / name)
            write_signer(key, key_of(name))
        return witness.answer(self.homes / name, name, [self.study.coordinator], key_of(name), message.audit)

    def _prepare(self, name: str, packet: Packet) -> Packet:
        message = verify(packet, self.study.coordinator, Prepare)
        key = None
        if name in PARTIES:
            key = KeyCertificate.issue(
                study=message.study,
                run=message.run,
                aggregator_id=PARTIES.index(name),
                public_key=self.keys[name][1],
                signer=key_of(name),
            )
        entries = self._entries(name, message.ledger_from)
        evaluates = name in SITES and name not in self.abstaining
        return self._sign(
            Ready(
                request=packet.digest(), key=key, evaluates=evaluates, ledger=entries, audit=self.witness(name, message)
            ),
            name,
        )

    def _replay(self, name: str, packet: Packet) -> Packet:
        """Takes totals as a site does, but in memory: `tests/client_node/replay` tests the files."""
        message = verify(packet, self.study.coordinator, Replay)
        here, part = self._checkpoint(name), packet.blobs["part"]
        if message.outcome.round != here.round + 1:
            answer = Replayed(request=packet.digest(), run=message.run, round=here.round, held=0)
            return self._sign(answer, name)
        held = self.totals.setdefault((name, message.outcome.round), b"")
        if message.offset == len(held):
            held = self.totals[name, message.outcome.round] = held + part
        start, signed = round_start(self.study, here), signed_total(self.study, message.run, message.outcome)
        assert signed.start == start_hash(start.digest, message.tag_key)
        if len(held) == total_bytes(start.planned):
            assert hashlib.sha256(held).hexdigest() == signed.total_digest
            here = self.checkpoints[name] = follow(self.study, here, held, kept=len(message.outcome.sites))
            held = b""
        return self._sign(Replayed(request=packet.digest(), run=message.run, round=here.round, held=len(held)), name)

    def _checkpoint(self, name: str) -> Checkpoint:
        zeros = np.zeros(self.study.dim, np.float32)
        return self.checkpoints.get(name) or beginning(self.study, zeros)

    def _step(self, name: str, packet: Packet) -> Packet:
        plan = verify(packet, self.study.coordinator, RoundPlan)
        planned = self.study.planned_round(plan.round)
        start = round_start(self.study, self._checkpoint(name), plan.round)
        assert (start.planned, start.digest) == (planned, plan.start)
        state = self.states[plan.round] = start.vector
        self._settle_outcomes(name, plan.run, plan.outcomes)
        if (name, plan.round) not in self.stored:
            self.computed.append((name, plan.round))
            if not self.ledgers[name].has("reserve", plan.round):
                self.ledgers[name].reserve(self.study, plan.run, planned)
            context = self._context(name, plan.run, plan.round, plan.start)
            recipients = [bytes.fromhex(key.public_key) for key in plan.keys]
            is_update = planned.purpose == "update"
            values = site_vector(name, plan.round, state) if is_update else site_histogram(name, planned)
            vector = from_integers(values, ring_of(planned))
            position = self.ledgers[name].position()
            self.stored[name, plan.round] = seal_update(vector, context, recipients, key_of(name), 0, position=position)
        parts = [envelope.to_bytes() for envelope in self.stored[name, plan.round]]
        first, second, third = (Sealed(size=len(part), digest=hashlib.sha256(part).hexdigest()) for part in parts)
        sizes = {f"envelope-{i}": len(part) for i, part in enumerate(parts)}
        blobs = {blob: parts[int(blob[-1])] for blob in fitting(sizes, plan.inline)}
        entries = self._entries(name, plan.ledger_from)
        answer = Update(
            request=packet.digest(), run=plan.run, round=plan.round, sealed=(first, second, third), ledger=entries
        )
        return sign(answer, key_of(name), blobs)

    def _fetch(self, name: str, packet: Packet) -> Packet:
        message = verify(packet, self.study.coordinator, Fetch)
        data = self.stored[name, message.round][message.aggregator_id].to_bytes()
        part = data[message.offset :][: relay.PART_BYTES]
        answer = Fetched(request=packet.digest(), run=message.run, round=message.round)
        return sign(answer, key_of(name), {"part": part})

    def _deposit(self, name: str, packet: Packet) -> Packet:
        message = verify(packet, self.study.coordinator, Deposit)
        here = self.spool.setdefault((name, message.sealed.digest), b"")
        if message.offset == len(here):
            here += packet.blobs["part"]
            self.spool[name, message.sealed.digest] = here
        assert len(here) < message.sealed.size or hashlib.sha256(here).hexdigest() == message.sealed.digest
        answer = Deposited(request=packet.digest(), run=message.run, round=message.round, held=len(here))
        return self._sign(answer, name)

    def _aggregate(self, name: str, packet: Packet) -> Packet:
        order = verify(packet, self.study.coordinator, AggregateOrder)
        bound = self.bound.setdefault(order.round, order.cohort)
        if bound != order.cohort:
            taken = SetTaken(request=packet.digest(), run=order.run, round=order.round, bound=bound)
            return self._sign(taken, name)
        planned = self.study.planned_round(order.round)
        total = np.zeros(planned.dim, ring_of(planned).unsigned)
        for place, site in enumerate(order.cohort):
            share_name = f"update-{place}"
            spooled = order.spooled.get(share_name)
            blob = packet.blobs[share_name] if spooled is None else self.spool[name, spooled]
            context = self._context(site, order.run, order.round, order.state)
            sealed = list(self.stored[site, order.round])
            sealed[PARTIES.index(name)] = Envelope.from_bytes(blob, context)
            for aggregator_id, envelope in enumerate(sealed):
                share = open_envelope(
                    envelope, context, aggregator_id,
                    identity=bytes.fromhex(identity_of(site)), private_key=self.keys[PARTIES[aggregator_id]][0],
                )  # fmt: skip
                total += unpack(share, context).vector
        answer = SignedTotal(
            request=packet.digest(),
            study=order.study,
            run=order.run,
            round=order.round,
            start=order.state,
            kept=order.cohort,
            set_digest="cd" * 32,
            total_digest=hashlib.sha256(total.tobytes()).hexdigest(),
        )
        return sign(answer, key_of(name), {"total": total.tobytes()} if order.with_total else {})

    def _settle(self, name: str, packet: Packet) -> Packet:
        message = verify(packet, self.study.coordinator, Settle)
        self._settle_outcomes(name, message.run, message.outcomes)
        if message.final and name in PARTIES:
            self.ended.add(name)
        entries = self._entries(name, message.ledger_from)
        return self._sign(Settled(request=packet.digest(), ledger=entries, audit=self.witness(name, message)), name)

    def _settle_outcomes(self, name: str, run: str, outcomes: tuple[Outcome, ...]) -> None:
        for outcome in outcomes:
            require_evidence(self.study, run, outcome)
            if not self.ledgers[name].has("settle", outcome.round):
                self.ledgers[name].settle(run, outcome)

    def _entries(self, name: str, since: int) -> tuple[Entry, ...]:
        return one_part(self.ledgers[name].entries[since:]) if name in self.ledgers else ()

    def _context(self, site: str, run: str, round_number: int, state: str) -> ShareContext:
        study, planned = self.study, self.study.planned_round(round_number)
        return study.share_context(planned, run=run, site=site, state=state)

    @staticmethod
    def _sign(reply: Reply, name: str) -> Packet:
        return sign(reply, key_of(name))


def ring_of(planned: PlannedRound) -> Ring:
    return Ring(bits=planned.ring_bits, scale_bits=planned.scale_bits)


def site_histogram(name: str, planned: PlannedRound) -> np.ndarray:
    """Counts that depend on the site, in ring units."""
    return (len(name) + np.arange(planned.dim)) << planned.scale_bits


def site_vector(name: str, round_number: int, state: np.ndarray) -> np.ndarray:
    """An update that depends on the site, the round and the state, in ring units."""
    return np.round(state.astype(np.float64) * 1000).astype(np.int64) + len(name) * round_number + np.arange(len(state))

"""A federation of real nodes in one process: their ledgers, outboxes, sealed noise, and the parties' own protocol.

Only the model and the links are missing: sites share noise alone (`QuietNode`), and the parties meet at a table instead
of over TLS. So the noise in whatever is opened can be measured, and held against what the ledgers say.
"""

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from confide.client_node.enrolment.identity import NodeIdentity
from confide.client_node.enrolment.protocol import Enrolment
from confide.client_node.errors import ClientNodeError
from confide.client_node.replay.checkpoint import Checkpoint
from confide.client_node.replay.following import start_digest
from confide.client_node.shares import aggregator as aggregator_module
from confide.client_node.study.study import AggregatorParty, Participant, Study, load_draft
from confide.client_node.wire.messages import Packet
from confide.coordinator.federation.pki import Pki
from confide.coordinator.fleet.nodes import NodeFailure
from confide.coordinator.run import aggregation as aggregation_module
from confide.coordinator.run import questions
from confide.coordinator.run import rounds as rounds_module
from confide.coordinator.run.context import RunContext
from confide.coordinator.run.rounds import drive_run
from confide.coordinator.store.ledger_replica import LedgerReplica
from confide.coordinator.store.run_folder import RunFolder
from confide.coordinator.store.store import Store
from confide.coordinator.store.tables import Run, StudyRow
from confide.mpc.crypten import runtime
from confide.mpc.errors import MpcError, PartyLost
from confide.mpc.links.journal import Journal
from confide.mpc.links.orders import OpenedTotal, Order, PartyConfig
from confide.mpc.party import aggregation
from confide.mpc.party.shards import Shards
from confide.mpc.sharing.ring import Ring, Total, decode
from confide.privacy.accounting import composition
from confide.privacy.ledger.charges import Books
from confide.privacy.ledger.ledger import Ledger

from ..client_node.conftest import certificate_of
from ..client_node.quiet_node import STUDY_TOML, QuietNode, enrol, quiet_node
from ..mpc.plain_norm_check import judging

SITES, PARTIES = ("east", "north", "south", "west"), ("agg-a", "agg-b", "agg-c")
DIM, RUN = 6000, "run-1"
AWAY = NodeFailure(reason="timeout")


class Table:
    """Where three parties meet for one order."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(3, timeout=10)
        self.said: dict[int, tuple[str, tuple[bytes, bytes, bytes]]] = {}  # by party: the step, what each is told


@dataclass
class Seat:
    """One party's links. It dies at the step `dies_at`, if it comes to that."""

    table: Table
    aggregator_id: int
    dies_at: str | None

    def exchange(self, step: str, outgoing: Mapping[int, bytes], limit: int) -> Mapping[int, bytes]:
        first, second, third = (outgoing.get(party, b"") for party in range(3))
        heard = self._meet(step, (first, second, third))
        return {party: heard[party] for party in outgoing}

    def all_gather(self, step: str, data: bytes, limit: int) -> list[bytes]:
        first, second, third = (TableParty.says(self.aggregator_id, party, step, data) for party in range(3))
        return self._meet(step, (first, second, third))

    def _meet(self, step: str, said: tuple[bytes, bytes, bytes]) -> list[bytes]:
        if step == self.dies_at:
            self.table.barrier.abort()
            raise PartyLost("killed")
        self.table.said[self.aggregator_id] = step, said
        try:
            self.table.barrier.wait()
            heard = [self.table.said[party] for party in range(3)]
            self.table.barrier.wait()
        except threading.BrokenBarrierError:
            raise PartyLost("another party is gone") from None
        assert {tag for tag, _ in heard} == {step}
        return [said[self.aggregator_id] for _, said in heard]


class TableParty:
    """Stands where the party process would be, and does what that does."""

    table = Table()
    dies: tuple[int, str] | None = None  # (party, step), once
    lie: Callable[[int, int, str, bytes], bytes] | None = None  # what a party tells another one at a step

    def __init__(self, config: PartyConfig) -> None:
        config.journal.parent.mkdir(parents=True, exist_ok=True)
        self._id, self._journal = config.aggregator_id, Journal(config.journal)
        self._shards = Shards(replace(config, shards=1))

    @classmethod
    def says(cls, speaker: int, listener: int, step: str, data: bytes) -> bytes:
        return data if cls.lie is None else cls.lie(speaker, listener, step, data)

    def start(self) -> None: ...

    def stop(self) -> None:
        self._journal.close()

    def aggregate(self, order: Order, envelopes: Mapping[str, Path], topups: Mapping[str, Path]) -> OpenedTotal:
        party, step = TableParty.dies or (-1, "")
        seat = Seat(TableParty.table, self._id, step if party == self._id else None)
        try:
            runtime.start(seat)
            aggregation.compare_orders(order, seat)
            opened = self._shards.open(order, envelopes, topups)
            return aggregation.aggregate(order, opened, self._shards, seat, self._journal, judging(seat))
        finally:
            runtime.stop()
            if party == self._id:
                TableParty.dies = None


@dataclass
class QuietFleet:
    """`before` and `after` run around every question to a node; they may raise, `before` may return a failure."""

    nodes: dict[str, QuietNode]
    before: Callable[[str, str], NodeFailure | None] = lambda kind, name: None
    after: Callable[[str, str], None] = lambda kind, name: None
    asked: list[tuple[str, str]] = field(default_factory=list)

    def trust(self, names: Callable[[], Mapping[str, str]]) -> None: ...

    def online(self) -> set[str]:
        return set(self.nodes)

    def ask(
        self, kind: str, requests: Mapping[str, Packet], timeout: float, *, together: bool = False
    ) -> Iterator[tuple[str, Packet | NodeFailure]]:
        failures: dict[str, Packet | NodeFailure] = {}
        for name in requests:
            self.asked.append((kind, name))
            if (failure := self.before(kind, name)) is not None:
                failures[name] = failure
        TableParty.table = Table()
        if kind == "aggregate" and failures:
            TableParty.table.barrier.abort()
        with ThreadPoolExecutor(len(requests)) as pool:
            going = {n: pool.submit(self._answer, kind, n, p) for n, p in requests.items() if n not in failures}
            answers = failures | {name: answer.result() for name, answer in going.items()}
        for name, answer in answers.items():
            yield name, answer
            self.after(kind, name)

    def _answer(self, kind: str, name: str, packet: Packet) -> Packet | NodeFailure:
        try:
            return self.nodes[name].handle(kind, packet)
        except (ClientNodeError, MpcError) as err:
            if kind == "aggregate" and isinstance(err, ClientNodeError):  # it never came to the table
                TableParty.table.barrier.abort()
            message = str(err) if getattr(err, "public", False) else ""
            return NodeFailure(reason="failed", error=type(err).__name__, message=message)


@dataclass
class Federation:
    """Four sites, three aggregators and a coordinator with one pending run."""

    home: Path
    store: Store
    study: Study
    fleet: QuietFleet
    ledgers: dict[str, Ledger]
    opened: list[tuple[bytes, np.ndarray]] = field(default_factory=list)  # totals: ring elements, numbers

    def context(self) -> RunContext:
        lease = self.store.acquire_lease(RUN)
        self.store.begin_driving(RUN, lease)
        return RunContext(
            fleet=self.fleet,
            store=self.store,
            folder=RunFolder(self.home, RUN),
            replica=LedgerReplica(self.store),
            study=self.study,
            id=RUN,
            lease=lease,
            pki=Pki.load(self.home),
            start=Checkpoint(round=0, state=np.zeros(DIM, np.float32), velocity=np.zeros(DIM, np.float32)),
        )

    def drive(self) -> None:
        drive_run(self.context())

    def restart(self, name: str) -> None:
        """Starts a node's process anew over the same home."""
        self.fleet.nodes[name].stop()
        home = self.home / name
        node = QuietNode(home, NodeIdentity.load(home), Enrolment.load(home), ledger=self.ledgers.get(name))
        self.fleet.nodes[name] = node

    def charged(self, site: str, round_number: int = 1) -> composition.Release:
        """What the site's ledger has it pay for a round."""
        books = Books.replay(self.ledgers[site].entries())
        return books.booked[RUN, round_number].release(site)

    def reserved(self, site: str) -> bool:
        return any(entry.kind == "reserve" for entry in self.ledgers[site].entries())


def found(
    home: Path,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    *,
    dropouts: str,
    max_dropouts: int,
    rounds: int,
    verify_total: bool = False,
) -> Federation:
    """A federation under `home`, with the empty `store` there."""
    monkeypatch.setattr(questions, "RETRY_S", 0.0)
    monkeypatch.setattr(rounds_module, "FAREWELL_S", 0.0)
    monkeypatch.setattr(aggregator_module, "PartyProcess", TableParty)
    TableParty.dies = None
    pki = Pki.create(home, ["127.0.0.1"])
    keys = {name: enrol(home / name, name, pki.identity_hex).identity_hex for name in (*SITES, *PARTIES)}
    text = STUDY_TOML.format(dropouts=dropouts, max_dropouts=max_dropouts, rounds=rounds)
    (home / "study.toml").write_text(text + "[aggregation]\nverify_total = true\n" * verify_total)
    study = Study.from_draft(
        load_draft(home / "study.toml"),
        backbone_hash="ab" * 32,
        sites=[Participant(name=name, identity=keys[name]) for name in SITES],
        aggregators=[
            AggregatorParty(
                name=name, identity=keys[name], address=f"{name}.example:7001", certificate=certificate_of(name)
            )
            for name in PARTIES
        ],
        coordinator=pki.identity_hex,
        created=date(2026, 1, 31),
        dim=DIM,
        start=start_digest(np.zeros(DIM, np.float32)),
        head_size=5,
    )
    with store.session() as session:
        session.add(StudyRow(hash=study.study_hash, name="s", canonical=study.canonical(), signature="", created_at=0))
    with store.session() as session:
        session.add(Run(id=RUN, study=study.study_hash, state="pending", created_at=0))
    nodes = {name: quiet_node(home / name, study, study.sign(pki.signer)) for name in (*SITES, *PARTIES)}
    fleet = QuietFleet({name: node for name, (node, _) in nodes.items()})
    made = Federation(home, store, study, fleet, {n: ledger for n, (_, ledger) in nodes.items() if ledger is not None})
    real = aggregation_module.read_total

    def read_total(words: bytes, tag_shares: Sequence[bytes], ring: Ring, dim: int, tag_count: int = 0) -> Total:
        total = real(words, tag_shares, ring, dim, tag_count)
        made.opened.append((words, decode(total.units, ring)))
        return total

    monkeypatch.setattr(aggregation_module, "read_total", read_total)
    return made


def std_bounds(std: float, count: int) -> tuple[float, float]:
    """Where the measured std of `count` normal numbers lies but for once in 10^11 times (chi-square)."""
    reach = 7 * math.sqrt(2 / count)
    return std * math.sqrt(1 - reach), std * math.sqrt(1 + reach)

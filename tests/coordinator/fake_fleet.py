"""A federation in one process: sites that send their update in the clear and aggregators that add in the clear.

It answers as the real nodes do, signatures included, so that the round driver can be tested step by step and cut off at
every question. Sealing, shares and the parties' protocol have tests of their own.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.client_node.messages import (
    AggregateOrder,
    KeyCertificate,
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
from confide.client_node.study import Study
from confide.coordinator.fleet import NodeFailure
from confide.mpc.ring import Ring, from_integers

SITES = ("north", "south", "west")
PARTIES = ("agg-a", "agg-b", "agg-c")


def key_of(name: str) -> Ed25519PrivateKey:
    """The same key for the same name, in tests only."""
    return Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32, b"."))


def identity_of(name: str) -> str:
    return key_of(name).public_key().public_bytes_raw().hex()


@dataclass
class FakeFleet:
    """`before` and `after` run around every question to a node; they may raise, `before` may return a failure."""

    study: Study
    before: Callable[[str, str], NodeFailure | None] = lambda kind, name: None
    after: Callable[[str, str], None] = lambda kind, name: None
    asked: list[tuple[str, str]] = field(default_factory=list)
    states: dict[int, np.ndarray] = field(default_factory=dict)  # round -> the state that sites were sent
    bound: dict[int, tuple[str, ...]] = field(default_factory=dict)
    computed: list[tuple[str, int]] = field(default_factory=list)  # (site, round): fresh draws, not stored answers
    stored: dict[tuple[str, int], tuple[bytes, bytes, bytes]] = field(default_factory=dict)

    def trust(self, site_of: Callable[[str], str | None]) -> None: ...

    def online(self) -> set[str]:
        return {*SITES, *PARTIES}

    def ask(
        self, kind: str, requests: Mapping[str, Packet], timeout: float
    ) -> Iterator[tuple[str, Packet | NodeFailure]]:
        for name, packet in requests.items():
            self.asked.append((kind, name))
            failure = self.before(kind, name)
            if failure is not None:
                yield name, failure
                continue
            answer = getattr(self, f"_{kind}")(name, packet)
            self.after(kind, name)
            yield name, answer

    def _prepare(self, name: str, packet: Packet) -> Packet:
        message = verify(packet, self.study.coordinator, Prepare)
        key = None
        if name in PARTIES:
            key = KeyCertificate.issue(
                study=message.study,
                run=message.run,
                aggregator_id=PARTIES.index(name),
                public_key=bytes(32),
                signer=key_of(name),
            )
        return self._sign(Ready(request=packet.digest(), key=key), name)

    def _step(self, name: str, packet: Packet) -> Packet:
        plan = verify(packet, self.study.coordinator, RoundPlan)
        state = np.frombuffer(packet.blobs["state"], "<f4")
        self.states[plan.round] = state
        if (name, plan.round) not in self.stored:
            self.computed.append((name, plan.round))
            self.stored[name, plan.round] = shares_of(site_vector(name, plan.round, state), self.ring)
        blobs = {f"envelope-{i}": share for i, share in enumerate(self.stored[name, plan.round])}
        answer = Update(request=packet.digest(), run=plan.run, round=plan.round, ledger=())
        return sign(answer, key_of(name), blobs)

    def _aggregate(self, name: str, packet: Packet) -> Packet:
        order = verify(packet, self.study.coordinator, AggregateOrder)
        bound = self.bound.setdefault(order.round, order.cohort)
        if bound != order.cohort:
            taken = SetTaken(request=packet.digest(), run=order.run, round=order.round, bound=bound)
            return self._sign(taken, name)
        parts = [np.frombuffer(blob, self.ring.unsigned) for blob in packet.blobs.values()]
        total = np.sum(parts, axis=0, dtype=self.ring.unsigned)
        answer = ShareOfTotal(
            request=packet.digest(), run=order.run, round=order.round, kept=order.cohort, set_digest="cd" * 32
        )
        return sign(answer, key_of(name), {"share": total.tobytes()})

    def _settle(self, name: str, packet: Packet) -> Packet:
        verify(packet, self.study.coordinator, Settle)
        return self._sign(Settled(request=packet.digest()), name)

    @property
    def ring(self) -> Ring:
        return Ring(bits=self.study.ring_bits, scale_bits=self.study.scale_bits)

    @staticmethod
    def _sign(reply: Reply, name: str) -> Packet:
        return sign(reply, key_of(name))


def site_vector(name: str, round_number: int, state: np.ndarray) -> np.ndarray:
    """An update that depends on the site, the round and the state, in ring units."""
    return np.round(state.astype(np.float64) * 1000).astype(np.int64) + len(name) * round_number + np.arange(len(state))


def shares_of(vector: np.ndarray, ring: Ring) -> tuple[bytes, bytes, bytes]:
    zero = np.zeros_like(from_integers(vector, ring)).tobytes()
    return from_integers(vector, ring).tobytes(), zero, zero

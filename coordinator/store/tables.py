"""The coordinator's tables, one class each; `migrations` makes them in a database.

Large vectors are files named in rows by their SHA-256.
"""

import json
from typing import ClassVar

from sqlalchemy import Double, Enum, ForeignKey, LargeBinary, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from .states import RunState

MAX_STEP = 255  # characters
_STATES = Enum(RunState, native_enum=False, length=16, values_callable=lambda states: [each.value for each in states])


class Base(DeclarativeBase):
    """Declarative base of every table."""

    type_annotation_map: ClassVar = {float: Double}  # seconds since 1970 do not fit in a single-precision FLOAT


class NodeRow(Base):
    """An enrolled node, or the invitation of one that has not enrolled yet."""

    __tablename__ = "node"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    roles: Mapped[str] = mapped_column(String(64))  # comma-separated: train, aggregate
    invite_digest: Mapped[str | None] = mapped_column(String(64), index=True)
    invite_expires: Mapped[float | None]
    identity: Mapped[str | None] = mapped_column(String(64))  # Ed25519, hex
    transport_key: Mapped[bytes | None] = mapped_column(LargeBinary)  # OpenSSH public key
    fingerprint: Mapped[str | None] = mapped_column(String(64), index=True)  # SHA-256 of Flower's form of that key
    party_address: Mapped[str | None] = mapped_column(String(255))
    party_certificate: Mapped[str | None] = mapped_column(String(8192))
    flower_id: Mapped[str | None] = mapped_column(String(32))  # id in the SuperLink's cache, not an identity
    enrolled_at: Mapped[float | None]
    revoked_at: Mapped[float | None]


class StudyRow(Base):
    """An immutable study: its canonical JSON and the coordinator's signature."""

    __tablename__ = "study"
    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), index=True)
    canonical: Mapped[bytes] = mapped_column(LargeBinary)
    signature: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[float]


class Run(Base):
    """One execution of a study."""

    __tablename__ = "run"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    study: Mapped[str] = mapped_column(ForeignKey("study.hash"))
    state: Mapped[RunState] = mapped_column(_STATES)
    lease: Mapped[int] = mapped_column(default=0)  # fencing token; only its holder may write
    heartbeat: Mapped[float] = mapped_column(default=0.0)  # of the driver that holds the lease
    step: Mapped[str] = mapped_column(String(MAX_STEP), default="")  # the driver's current step, for people
    error: Mapped[str | None] = mapped_column(String(2000))
    created_at: Mapped[float]
    ended_at: Mapped[float | None]


class OpenedSum:
    """Columns of every opened sum of a run: those of its rounds and of its evaluation."""

    run: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True, sort_order=-1)
    sites: Mapped[str] = mapped_column(Text)  # JSON list: the set really summed
    evidence: Mapped[str] = mapped_column(Text)  # JSON list: the aggregators' signed answers for that set
    seconds: Mapped[float]
    bytes_per_site: Mapped[int]  # sealed bytes that one site sent
    lease: Mapped[int]
    committed_at: Mapped[float]

    @property
    def summed(self) -> tuple[str, ...]:
        """The sites in the sum."""
        return tuple(json.loads(self.sites))

    @property
    def signed(self) -> tuple[str, ...]:
        """The aggregators' signed answers for it."""
        return tuple(json.loads(self.evidence))


class Round(OpenedSum, Base):
    """A committed round. `state_hash` names the file with the trained vector and the optimizer's velocity."""

    __tablename__ = "round"
    number: Mapped[int] = mapped_column(primary_key=True)
    state_hash: Mapped[str] = mapped_column(String(64))


class Evaluation(OpenedSum, Base):
    """The result of a run's evaluation, the round after its last update; if it measured nothing, the reason."""

    __tablename__ = "evaluation"
    number: Mapped[int]  # of the round
    counts: Mapped[str] = mapped_column(Text)  # JSON list: the noised histogram, label 0 first, bins ascending
    problem: Mapped[str | None] = mapped_column(String(2000))


class LedgerRow(Base):
    """A signed entry of a site's ledger, replicated."""

    __tablename__ = "ledger"
    site: Mapped[str] = mapped_column(String(63), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    hash: Mapped[str] = mapped_column(String(64))
    entry: Mapped[str] = mapped_column(Text)  # JSON, hash and signature included


class ActionRow(Base):
    """A line of the audit log: an action of an operator or a node."""

    __tablename__ = "audit"
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[float]
    what: Mapped[str] = mapped_column(String(2000))


class PrivacyTest(Base):
    """The result of a test of a run's privacy: an audit of its engine, or an attack on its adapter."""

    __tablename__ = "privacy_test"
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    run: Mapped[str] = mapped_column(ForeignKey("run.id"), index=True)
    kind: Mapped[str] = mapped_column(String(16))  # audit or membership
    facts: Mapped[str] = mapped_column(Text)  # JSON, as a report carries it


class LeftOut(Base):
    """A site that all three aggregators left out of a round because its vector was too long."""

    __tablename__ = "left_out"
    run: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    site: Mapped[str] = mapped_column(String(63), primary_key=True)

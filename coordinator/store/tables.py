"""The coordinator's tables, one class each; `migrations` makes them in a database.

Large vectors are files named in rows by their SHA-256.
"""

import json
from typing import ClassVar, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import BigInteger, Double, ForeignKey, Integer, LargeBinary, String, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from ...privacy.ledger.succession import Succession
from ..errors import StateDamaged
from .states import RunState

T = TypeVar("T")

Absence = Literal[
    "revoked",  # it was shut out, or has left
    "abstains",  # it holds no records out, and the round is an evaluation
    "offline",  # it was not connected
    "away",  # by its own schedule
    "behind",  # it lacked totals of earlier rounds
    "refused",  # for a reason that asking again does not change
    "failed",  # by an error there
    "late",  # no answer in time
    "invalid",  # its answer, or what it sealed, was not taken
    "outdated",  # it went on from an older copy of its ledger
    "unopened",  # an aggregator cannot open its share
    "long",  # all aggregators found its vector too long
]  # why a site is in no sum of a round, in words of the coordinator's own

MAX_STEP, MAX_ERROR = 255, 2000  # characters
_ABSENCE = TypeAdapter[Absence](Absence)
_TEXTS, _NUMBERS = TypeAdapter(tuple[str, ...]), TypeAdapter(tuple[float, ...])  # as JSON in a column
_RESTORE = "Restore the newest backup"


_BYTES = BigInteger().with_variant(Integer(), "sqlite")  # SQLite's INTEGER has 64 bits


class _State(TypeDecorator[RunState]):
    """A run's state as text; text that is none is damage."""

    impl = String(16)
    cache_ok = True

    def process_bind_param(self, value: RunState | None, dialect: Dialect) -> str | None:
        return None if value is None else RunState(value).value

    def process_result_value(self, value: str | None, dialect: Dialect) -> RunState | None:
        try:
            return None if value is None else RunState(value)
        except ValueError as err:
            raise StateDamaged(f"the state of a run in the database is damaged. {_RESTORE}") from err


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
    revoked_at: Mapped[float | None]  # shut out since
    left_at: Mapped[float | None]  # with `revoked_at`: it left, and may come back with the same identity
    trusted_cas: Mapped[str | None] = mapped_column(String(160))  # JSON list of SHA-256, hex: by the node's last word
    known_key: Mapped[str | None] = mapped_column(String(64))  # Ed25519, hex: the coordinator's, by that word too
    told_at: Mapped[float | None]  # by its clock: the time of its last word on decisions


class SuccessionRow(Base):
    """The statement, signed by both, that an identity key of a node was followed by another."""

    __tablename__ = "succession"
    old: Mapped[str] = mapped_column(String(64), primary_key=True)  # Ed25519 keys, hex
    new: Mapped[str] = mapped_column(String(64), unique=True)
    site: Mapped[str] = mapped_column(String(63), index=True)
    taken_at: Mapped[float]
    statement: Mapped[str] = mapped_column(Text)  # JSON

    def succession(self) -> Succession:
        """Reads the statement. Raises StateDamaged if the row holds none."""
        try:
            return Succession.model_validate_json(self.statement)
        except ValidationError as err:
            raise StateDamaged(f"a succession of keys of {self.site} in the database is damaged. {_RESTORE}") from err


class StudyRow(Base):
    """An immutable study: its canonical JSON and the coordinator's signature."""

    __tablename__ = "study"
    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), index=True)
    canonical: Mapped[bytes] = mapped_column(LargeBinary)
    signature: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[float]

    @property
    def parties(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of its sites and of its aggregators; of a study whose text cannot be read, none.

        The text alone is read: all terms of a study take numpy and more.
        """
        try:
            text = json.loads(self.canonical)
            sites, aggregators = (tuple(str(each["name"]) for each in text[kind]) for kind in ("sites", "aggregators"))
        except (ValueError, KeyError, TypeError):
            return (), ()
        return sites, aggregators


class DecisionRow(Base):
    """A node's decision on a study, by the node's last word. It is for people, and admits nothing."""

    __tablename__ = "study_decision"
    site: Mapped[str] = mapped_column(String(63), primary_key=True)
    study: Mapped[str] = mapped_column(ForeignKey("study.hash"), primary_key=True)
    verdict: Mapped[str] = mapped_column(String(8))  # approved or revoked
    runs_left: Mapped[int]
    until: Mapped[str | None] = mapped_column(String(10))  # the last day of an approval, UTC
    since: Mapped[float]  # when it was first told


class Run(Base):
    """One execution of a study."""

    __tablename__ = "run"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    study: Mapped[str] = mapped_column(ForeignKey("study.hash"))
    state: Mapped[RunState] = mapped_column(_State)
    lease: Mapped[int] = mapped_column(default=0)  # fencing token; only its holder may write
    heartbeat: Mapped[float] = mapped_column(default=0.0)  # of the driver that holds the lease
    step: Mapped[str] = mapped_column(String(MAX_STEP), default="")  # the driver's current step, for people
    error: Mapped[str | None] = mapped_column(String(MAX_ERROR))
    created_at: Mapped[float]
    ended_at: Mapped[float | None]


class OpenedSum:
    """Columns of every opened sum of a run: those of its rounds, of its prototype and of its evaluation."""

    run: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True, sort_order=-1)
    sites: Mapped[str] = mapped_column(Text)  # JSON list: the set really summed
    evidence: Mapped[str] = mapped_column(Text)  # JSON list: the aggregators' signed answers for that set
    seconds: Mapped[float]
    bytes_per_site: Mapped[int] = mapped_column(_BYTES)  # sealed bytes that one site sent
    collect_s: Mapped[float | None]  # of `seconds`, by step, see `run.laps`; none in rows of earlier versions
    topup_s: Mapped[float | None]
    deliver_s: Mapped[float | None]
    wait_s: Mapped[float | None]
    sum_s: Mapped[float | None]
    open_s: Mapped[float | None]
    apply_s: Mapped[float | None]  # not in `seconds`; None where no server step follows
    lease: Mapped[int]
    committed_at: Mapped[float]

    @property
    def summed(self) -> tuple[str, ...]:
        """The sites in the sum."""
        return _listed(self.sites, _TEXTS, f"the sites of a sum of run {self.run}")

    @property
    def signed(self) -> tuple[str, ...]:
        """The aggregators' signed answers for it."""
        return _listed(self.evidence, _TEXTS, f"the evidence of a sum of run {self.run}")


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
    problem: Mapped[str | None] = mapped_column(String(MAX_ERROR))

    @property
    def histogram(self) -> tuple[float, ...]:
        """The noised counts, label 0 first, bins ascending."""
        return _listed(self.counts, _NUMBERS, f"the evaluation of run {self.run}")


class Prototype(OpenedSum, Base):
    """The noised sum of how the backbone reads the sites' records; if there is none, the reason."""

    __tablename__ = "prototype"
    number: Mapped[int]  # of the round
    entries: Mapped[str] = mapped_column(Text)  # JSON list
    problem: Mapped[str | None] = mapped_column(String(MAX_ERROR))

    @property
    def vector(self) -> tuple[float, ...]:
        """The noised sum of vectors of length 1, one a unit."""
        return _listed(self.entries, _NUMBERS, f"the prototype of run {self.run}")


class LedgerRow(Base):
    """A signed entry of a site's ledger, replicated."""

    __tablename__ = "ledger"
    site: Mapped[str] = mapped_column(String(63), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    hash: Mapped[str] = mapped_column(String(64))
    entry: Mapped[str] = mapped_column(Text)  # JSON, hash and signature included


class ActionRow(Base):
    """An entry of the audit log: what an operator, a node or the server did."""

    __tablename__ = "audit_entry"
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    time: Mapped[str] = mapped_column(String(20), index=True)  # UTC
    actor: Mapped[str] = mapped_column(String(80))
    action: Mapped[str] = mapped_column(String(32), index=True)
    fields: Mapped[str] = mapped_column(Text)  # JSON
    salt: Mapped[str] = mapped_column(String(32))
    contents: Mapped[str] = mapped_column(String(64))  # digest of all of the above but the number
    previous: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class AuditHead(Base):
    """The last entry of the audit log, in one row, which whoever appends locks."""

    __tablename__ = "audit_head"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seq: Mapped[int]
    hash: Mapped[str] = mapped_column(String(64))


class CheckpointRow(Base):
    """A head of the audit log that the coordinator has signed."""

    __tablename__ = "audit_checkpoint"
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    log: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))
    time: Mapped[str] = mapped_column(String(20))
    signature: Mapped[str] = mapped_column(String(128))


class CountersignatureRow(Base):
    """A node's signature over a checkpoint, and over the head of its people's decisions."""

    __tablename__ = "audit_countersignature"
    site: Mapped[str] = mapped_column(String(63), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    time: Mapped[str] = mapped_column(String(20))  # of the checkpoint
    decisions: Mapped[int]  # number of the newest decision of the node's people, -1 before the first
    decisions_hash: Mapped[str] = mapped_column(String(64))
    identity: Mapped[str] = mapped_column(String(64))  # Ed25519, hex: the key that signed
    signature: Mapped[str] = mapped_column(String(128))


class OperatorRow(Base):
    """A person who may use commands, with a role and the hash of a token."""

    __tablename__ = "operator"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    token: Mapped[str] = mapped_column(String(255))  # argon2id, in PHC's form
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]


class ServerRow(Base):
    """A server of the federation that runs, or ran until a moment ago: one leads, others stand by."""

    __tablename__ = "server"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)  # random, of its process
    host: Mapped[str] = mapped_column(String(255))
    place: Mapped[str] = mapped_column(String(32))  # of the lock of its home, on its machine
    term: Mapped[int]  # how many servers have led before it, and itself; 0 while it stands by
    beat: Mapped[int]  # a count that grows while it lives: clocks of two machines differ


class PrivacyTest(Base):
    """The result of a test of a run's privacy: an audit of its engine, or an attack on its adapter."""

    __tablename__ = "privacy_test"
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    run: Mapped[str] = mapped_column(ForeignKey("run.id"), index=True)
    kind: Mapped[str] = mapped_column(String(16))  # audit or membership
    facts: Mapped[str] = mapped_column(Text)  # JSON, as a report carries it


class LeftOut(Base):
    """A site that is in no sum of a round, and why; those whose vectors are too long are here before the sum is."""

    __tablename__ = "left_out"
    run: Mapped[str] = mapped_column(ForeignKey("run.id"), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    site: Mapped[str] = mapped_column(String(63), primary_key=True)
    why: Mapped[str] = mapped_column(String(16))

    @property
    def absence(self) -> Absence:
        """The reason. Raises StateDamaged if the row holds none."""
        try:
            return _ABSENCE.validate_python(self.why)
        except ValidationError as err:
            raise StateDamaged(f"why {self.site} was left out, in the database, is damaged. {_RESTORE}") from err


def _listed(text: str, kind: TypeAdapter[T], what: str) -> T:
    try:
        return kind.validate_json(text, strict=True)
    except ValidationError as err:
        raise StateDamaged(f"{what} in the database is damaged. {_RESTORE}") from err

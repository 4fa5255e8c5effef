"""The coordinator's database: sites, studies, runs, rounds, leases, the ledger replica, the audit log.

Only this database counts; Flower's own state is a cache. A round exists once its row is committed, and only the holder
of the run's current lease commits it. The database is SQLite or PostgreSQL, and both give the same: a commit is on disk
when it returns, each statement sees what was committed before it, and whoever checks before writing does so `alone`.
"""

import hashlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    case,
    create_engine,
    event,
    func,
    inspect,
    literal,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.orm import Session, defer, sessionmaker

from ...privacy.ledger.chain import Head
from ...privacy.ledger.succession import Succession
from ..errors import (
    Conflict,
    LeaseLost,
    NotFound,
    StateDamaged,
    StoreUnavailable,
    TransitionRefused,
)
from . import audit_log
from .actions import SELF, acting
from .faults import remedy, turn_into_ours
from .place import database_of, name_of, note_database
from .states import BEGIN, RunState, Transition
from .tables import (
    MAX_ERROR,
    MAX_STEP,
    Absence,
    Base,
    DecisionRow,
    Evaluation,
    LedgerRow,
    LeftOut,
    NodeRow,
    PrivacyTest,
    Prototype,
    Round,
    Run,
    ServerRow,
    StudyRow,
    SuccessionRow,
)

SCHEMA = "0013"  # the newest of the migrations
HELD_S = 20  # how long to wait for another process's write
_TO_SERVER: dict[str, object] = {  # of libpq, where the URL says nothing: a server that is away is noticed in seconds
    "connect_timeout": 5, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3,
    "tcp_user_timeout": 20_000, "application_name": "confide",
}  # fmt: skip
_BY_STATE = select(Run.state, func.count()).group_by(Run.state)


@dataclass(frozen=True, kw_only=True, slots=True)
class CommittedRound:
    """The last committed round of a run, round 0 before the first."""

    number: int
    state_hash: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """All runs together."""

    runs: dict[RunState, int]
    rounds: int  # committed
    bytes_per_site: int  # sealed bytes that one site sent in them


class Store:
    """The coordinator's database. Safe to open from several processes at once.

    Every method raises StateDamaged if the file is damaged, and StoreUnavailable if it cannot be used just now.
    """

    def __init__(self, url: str | URL) -> None:
        self._engine = open_engine(make_url(url))
        self._sessions = sessionmaker(self._engine, expire_on_commit=False)

    @classmethod
    def create(cls, home: Path, database: URL | None = None) -> "Store":
        """Creates the tables of a new federation under `home`, or in the PostgreSQL database that `database` names.

        Raises:
            Conflict: that database cannot be used, or holds tables already; nothing was changed.
            StoreUnavailable: it cannot be used just now.
        """
        if database is not None and database != database_of(home):  # the same: an `init` that was cut short goes on
            store = cls(database)
            try:
                store.require_empty()
            finally:
                store.close()
            note_database(home, database)
        store = cls.open(home)
        migrate(store.url)
        return store

    @classmethod
    def open(cls, home: Path) -> "Store":
        """Opens the database of the federation at `home`."""
        return cls(database_of(home))

    @property
    def name(self) -> str:
        """The database in words, for people; no secret is in it."""
        return name_of(self._engine.url)

    def require_empty(self) -> None:
        """Refuses a database that a new federation cannot have.

        Raises:
            Conflict: it holds tables, or stores text in another form than UTF-8.
        """
        with self.session() as session:
            if self.is_sqlite:
                encoding = session.scalar(text("PRAGMA encoding"))
            else:
                encoding = session.scalar(text("SHOW server_encoding"))
        if str(encoding).upper().replace("-", "") != "UTF8":
            raise Conflict(f"{self.name} stores text as {encoding}; make one with ENCODING 'UTF8'. Nothing was changed")
        if tables := inspect(self._engine).get_table_names():
            raise Conflict(
                f"{self.name} holds tables already, such as {tables[0]}; name an empty one. Nothing was changed"
            )

    def examine(self) -> str:
        """Lets the database look at itself; returns `ok`, or what is wrong. Of PostgreSQL all rows are read once."""
        with self.session() as session:
            if self.is_sqlite:
                return str(session.scalar(text("PRAGMA quick_check")))
            for table in Base.metadata.sorted_tables:
                session.execute(select(func.count()).select_from(table)).one()
        return "ok"

    def require_schema(self) -> None:
        """Checks that the database has this version's schema; changes nothing. `serve` migrates an older one.

        Raises:
            Conflict: the schema is an earlier version's, or a later one's.
            StateDamaged: the database holds no schema at all.
        """
        if self.require_no_later() < SCHEMA:
            raise Conflict(
                f"{self.name} is an earlier version's; `coordinator serve` brings it to this version's schema when it "
                "starts. Back it up, start `serve` once, then repeat this command; nothing was changed"
            )

    def require_no_later(self) -> str:
        """Checks that the database has this version's schema or an earlier one, and returns which.

        Raises:
            Conflict: the schema is a later version's.
            StateDamaged: the database holds no schema at all.
        """
        self.require_tables()
        with self.session() as session:
            version = str(session.scalar(text("SELECT version_num FROM alembic_version")) or "")
        if version > SCHEMA:
            raise Conflict(f"{self.name} is a later version's; install that version again. Nothing was changed")
        return version

    def is_current(self) -> bool:
        """True if the database has this version's schema."""
        try:
            self.require_schema()
        except Conflict:
            return False
        return True

    def require_tables(self) -> None:
        """Raises StateDamaged if the database holds no schema at all: it was emptied, or is another one."""
        if not inspect(self._engine).has_table("alembic_version"):
            raise StateDamaged(f"{self.name} holds no federation's tables. {remedy(self._engine.url)}")

    @property
    def url(self) -> str:
        """SQLAlchemy URL of the database; a password is never in it."""
        return self._engine.url.render_as_string(hide_password=False)

    def close(self) -> None:
        """Closes every connection."""
        self._engine.dispose()

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Runs one transaction: committed at the end, rolled back on an error."""
        try:
            with self._sessions.begin() as session:
                yield session
        except NoConnectionFree as err:
            raise StoreUnavailable(
                f"{self.name} cannot be used just now: all connections to it are taken. What is committed stays"
            ) from err

    @contextmanager
    def moment(self) -> Iterator[Connection]:
        """Gives a connection that sees the database as it is at its first read, whatever others write meanwhile."""
        if self.is_sqlite:
            with self._engine.connect() as connection:
                connection.exec_driver_sql("BEGIN")
                yield connection
            return
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with self._engine.connect().execution_options(**options) as connection:
            yield connection

    @contextmanager
    def filling(self) -> Iterator[Connection]:
        """Gives one transaction in which the tables are made and filled, all or nothing."""
        with self._engine.begin() as connection:
            yield connection

    @contextmanager
    def alone(self, about: str) -> Iterator[Session]:
        """Runs one transaction in which nobody else who writes `about` the same is at work, from its first read on.

        So what it reads stays true until its commit. SQLite has one writer at a time, whatever it is about.

        Raises:
            StoreUnavailable: another process has held it for 20 s.
        """
        with self.session() as session:
            if self.is_sqlite:
                session.connection().exec_driver_sql("BEGIN IMMEDIATE")
            else:
                session.execute(select(func.pg_advisory_xact_lock(_lock_number(about))))
            yield session

    @property
    def is_sqlite(self) -> bool:
        """True if the database is a file in the home."""
        return self._engine.dialect.name == "sqlite"

    def log_action(self, session: Session, action: str, *, actor: str | None = None, **fields: Any) -> Head:
        """Appends an entry to the audit log inside `session`'s transaction, and returns the log's new head.

        Args:
            action: one of `actions.ACTIONS`, which has its fields.
            actor: None for who acts in this process.
        """
        return audit_log.append(session, actor or acting(), action, fields)

    def nodes(self) -> list[NodeRow]:
        """Lists every invited or enrolled node, by name."""
        with self.session() as session:
            rows = list(session.scalars(select(NodeRow)))
        return sorted(rows, key=lambda row: row.name)  # here, because each database has an order of its own for text

    def nodes_mark(self) -> tuple[object, ...]:
        """Returns a mark that is another one once a node has been enrolled or revoked; cheaper than all rows."""
        changes = func.count(NodeRow.transport_key), func.max(NodeRow.enrolled_at), func.max(NodeRow.revoked_at)
        with self.session() as session:
            return tuple(session.execute(select(*changes, func.count(NodeRow.revoked_at))).one())

    def node(self, name: str) -> NodeRow:
        """Finds the node called `name`. Raises `NotFound`."""
        with self.session() as session:
            node = session.get(NodeRow, name)
        if node is None:
            raise NotFound(f"no site is called {name!r}; `coordinator site list` shows them")
        return node

    def successions(self) -> dict[str, list[Succession]]:
        """Lists the successions of identity keys by site, each site's in the order in which they follow one another."""
        with self.session() as session:
            rows = list(session.scalars(select(SuccessionRow)))
        by_old: dict[str, dict[str, Succession]] = {}
        for row in rows:
            by_old.setdefault(row.site, {})[row.old] = row.succession()
        return {site: _in_order(stated) for site, stated in by_old.items()}

    def identities(self, site: str) -> tuple[str, ...]:
        """Lists the identity keys that a node has had, hex, the present one last; none of one that never enrolled."""
        with self.session() as session:
            node = session.get(NodeRow, site)
            rows = list(session.scalars(select(SuccessionRow).where(SuccessionRow.site == site)))
        if node is None or node.identity is None:
            return ()
        return *(each.old for each in _in_order({row.old: row.succession() for row in rows})), node.identity

    def study(self, name_or_hash: str) -> StudyRow:
        """Finds the one study of that name, or the one whose hash begins so.

        Raises:
            NotFound: there is no such study.
            Conflict: there are several.
        """
        with self.session() as session:
            by_name = select(StudyRow).where(StudyRow.name == name_or_hash).order_by(StudyRow.created_at)
            rows = session.scalars(by_name).all()
            if not rows and len(name_or_hash) >= 8:
                by_hash = select(StudyRow).where(StudyRow.hash.startswith(name_or_hash, autoescape=True))
                rows = session.scalars(by_hash.order_by(StudyRow.created_at)).all()
        if not rows:
            raise NotFound(f"no study is called {name_or_hash!r}; `coordinator study list` shows them")
        if len(rows) > 1:
            listed = "".join(f"\n  {row.hash}" for row in rows)
            raise Conflict(f"{len(rows)} studies are called {name_or_hash!r}; name one by its hash:{listed}")
        return rows[0]

    def studies(self) -> list[StudyRow]:
        """Lists every study, oldest first."""
        with self.session() as session:
            return list(session.scalars(select(StudyRow).order_by(StudyRow.created_at)))

    def decisions(self, *studies: str) -> list[DecisionRow]:
        """Lists what nodes have told of their decisions on the studies of these hashes; on all for none."""
        wanted = select(DecisionRow).where(DecisionRow.study.in_(studies)) if studies else select(DecisionRow)
        with self.session() as session:
            return list(session.scalars(wanted))

    def unbegun_studies(self, most: int) -> list[StudyRow]:
        """Lists studies of which no run was started and a node has told its decision, the newest `most` first."""
        begun, told = select(Run.study), select(DecisionRow.study)
        waits = StudyRow.hash.in_(told), StudyRow.hash.not_in(begun)
        with self.session() as session:
            return list(
                session.scalars(select(StudyRow).where(*waits).order_by(StudyRow.created_at.desc()).limit(most))
            )

    def runs(self) -> list[Run]:
        """Lists every run, oldest first."""
        with self.session() as session:
            return list(session.scalars(select(Run).order_by(Run.created_at)))

    def unfinished_runs(self) -> list[Run]:
        """Lists every run that needs a driver, oldest first."""
        waits = Run.state.not_in([state for state in RunState if state.is_over])
        with self.session() as session:
            return list(session.scalars(select(Run).where(waits).order_by(Run.created_at)))

    def figures(self) -> Figures:
        """Counts runs by state, and sums their committed rounds."""
        summed = select(func.count(), func.coalesce(func.sum(Round.bytes_per_site), 0)).select_from(Round)
        with self.session() as session:
            runs = {state: int(count) for state, count in session.execute(_BY_STATE)}
            rounds, sent = session.execute(summed).one()
        return Figures(runs=runs, rounds=rounds, bytes_per_site=int(sent))

    def size_bytes(self) -> int:
        """Asks the database for its size, in bytes."""
        size = "page_count * page_size FROM pragma_page_count(), pragma_page_size()"
        with self.session() as session:
            asked = size if self.is_sqlite else "pg_database_size(current_database())"
            return int(session.execute(text(f"SELECT {asked}")).scalar_one())

    def last_commit(self, run_id: str) -> tuple[int, float]:
        """Finds the number of a run's last committed round, and when that was (0, 0 before the first)."""
        newest = select(Round.number, Round.committed_at).where(Round.run == run_id).order_by(Round.number.desc())
        with self.session() as session:
            found = session.execute(newest.limit(1)).first()
        return (0, 0.0) if found is None else (found.number, found.committed_at)

    def run(self, run_id: str) -> Run:
        """Finds the run of that id. Raises `NotFound`."""
        with self.session() as session:
            row = session.get(Run, run_id)
        if row is None:
            raise NotFound(f"no run is called {run_id!r}; `coordinator run list` shows them")
        return row

    def rounds(self, run_id: str, *, with_evidence: bool = True, numbers: Collection[int] | None = None) -> list[Round]:
        """Lists the committed rounds of a run, in order.

        Args:
            with_evidence: False for who does not read what the aggregators have signed, which is most of each row.
            numbers: those that are wanted; None for all.
        """
        wanted = select(Round).where(Round.run == run_id).order_by(Round.number)
        if numbers is not None:
            wanted = wanted.where(Round.number.in_(numbers))
        if not with_evidence:
            wanted = wanted.options(defer(Round.evidence, raiseload=True))
        with self.session() as session:
            return list(session.scalars(wanted))

    def evaluation(self, run_id: str) -> Evaluation | None:
        """Finds the evaluation of a run; None before it is made, or if the study has none."""
        with self.session() as session:
            return session.get(Evaluation, run_id)

    def prototype(self, run_id: str) -> Prototype | None:
        """Finds the prototype of a run; None before it is made, or if the study has none."""
        with self.session() as session:
            return session.get(Prototype, run_id)

    def opened(
        self, run_id: str, *, with_evidence: bool = True, numbers: Collection[int] | None = None
    ) -> list[Round | Prototype | Evaluation]:
        """Lists all opened sums of a run, in order: its rounds and, where they came to be, prototype and evaluation.

        Args:
            with_evidence: as of `rounds`.
            numbers: as of `rounds`.
        """
        closing = [row for row in (self.prototype(run_id), self.evaluation(run_id)) if row and row.problem is None]
        rounds = self.rounds(run_id, with_evidence=with_evidence, numbers=numbers)
        return [*rounds, *(row for row in closing if numbers is None or row.number in numbers)]

    def sums_of(self, study: str) -> list[tuple[str, tuple[str, ...], int]]:
        """Lists the committed updates of the study of that hash: the run, whose updates a sum holds, and how often."""
        each = select(Round.run, Round.sites, func.count()).join(Run, Run.id == Round.run).where(Run.study == study)
        with self.session() as session:  # without the evidence, which is large
            rows = session.execute(each.group_by(Round.run, Round.sites)).all()
        return [(run, Round(run=run, sites=sites).summed, count) for run, sites, count in rows]

    def openings_of(self, study: str) -> list[tuple[int, float]]:
        """Lists the opened sums of all runs of the study of that hash: the number in its run, and when."""
        rounds = select(Round.number, Round.committed_at).join(Run, Run.id == Round.run).where(Run.study == study)
        closing = [
            select(kind.number, kind.committed_at)
            .join(Run, Run.id == kind.run)
            .where(Run.study == study, kind.problem.is_(None))
            for kind in (Prototype, Evaluation)
        ]
        with self.session() as session:  # without the evidence, which is large
            return [(number, at) for each in (rounds, *closing) for number, at in session.execute(each)]

    def last_round(self, run_id: str) -> CommittedRound:
        """Finds the last committed round of a run."""
        newest = select(Round.number, Round.state_hash).where(Round.run == run_id).order_by(Round.number.desc())
        with self.session() as session:
            found = session.execute(newest.limit(1)).first()
        if found is None:
            return CommittedRound(number=0, state_hash=None)
        return CommittedRound(number=found.number, state_hash=found.state_hash)

    def last_rounds(self) -> dict[str, int]:
        """Finds the number of the last committed round of each run; without those that have none."""
        newest = select(Round.run, func.max(Round.number)).group_by(Round.run)
        with self.session() as session:
            return {row[0]: row[1] for row in session.execute(newest)}

    def standbys(self) -> list[str]:
        """Lists the machines on which a server stands by; with SQLite none is known."""
        if self.is_sqlite:
            return []
        with self.session() as session:
            return sorted(set(session.scalars(select(ServerRow.host).where(ServerRow.term == 0))))

    def acquire_lease(self, run_id: str) -> int:
        """Takes a new lease of a run: the token grows, so an older driver can no longer commit."""
        with self.session() as session:
            taken = update(Run).where(Run.id == run_id).values(lease=Run.lease + 1, heartbeat=time.time())
            return session.scalars(taken.returning(Run.lease)).one()

    def beat(self, run_id: str, lease: int, step: str | None = None) -> None:
        """Stores the heartbeat and the current step of the driver that holds `lease`. Raises `LeaseLost`."""
        values: dict[str, Any] = {"heartbeat": time.time()}
        if step is not None:
            values["step"] = _fitting(step, MAX_STEP)
        with self.session() as session:
            self._fenced(session, run_id, lease, values)

    def note_trouble(self, run_id: str, lease: int, trouble: str, *, skipped: int = 0) -> None:
        """Stores why the driver that holds `lease` ends before the run does, and skips leases. Raises `LeaseLost`."""
        told = {"error": _fitting(trouble, MAX_ERROR), "step": _fitting(trouble, MAX_STEP)}
        with self.session() as session:
            self._fenced(session, run_id, lease, {**told, "lease": Run.lease + skipped})

    def note_waiting(self, run_id: str, why: str, *, silent_s: float) -> None:
        """Stores why a run has no driver, unless it is over or has shown a heartbeat in the last `silent_s` seconds."""
        waits = Run.state.not_in([state for state in RunState if state.is_over])
        silent = Run.heartbeat < time.time() - silent_s
        with self.session() as session:
            session.execute(update(Run).where(Run.id == run_id, waits, silent).values(step=_fitting(why, MAX_STEP)))

    def begin_driving(self, run_id: str, lease: int) -> None:
        """Marks a run as driven by the holder of `lease`, without a line in the audit log; raises as `move_run`."""
        with self.session() as session:
            self._move(session, run_id, BEGIN, lease)
            self._fenced(session, run_id, lease, {"step": "asks the nodes"})  # what it waited for is over

    def move_run(
        self, run_id: str, transition: Transition, *, lease: int | None = None, error: str | None = None
    ) -> RunState:
        """Changes a run's state, with a line in the audit log.

        Args:
            lease: the driver's; None for an operator's transition.
            error: the run's error from now on.

        Raises:
            TransitionRefused: the transition may not start from the run's state; nothing was written.
            LeaseLost: another driver has taken over.
            NotFound: there is no such run.
        """
        with self.session() as session:
            state = self._move(session, run_id, transition, lease, error)
            who = SELF if transition.by == "driver" else None
            error = None if error is None else _fitting(error, MAX_ERROR)
            self.log_action(session, f"run.{transition.name}", actor=who, run=run_id, state=state.value, error=error)
        return state

    def commit_round(
        self, row: Round | Prototype | Evaluation, absent: Mapping[str, Absence] = MappingProxyType({})
    ) -> None:
        """Commits a round, or what follows the last one. Raises `LeaseLost` unless `row.lease` is the run's now.

        Args:
            absent: why sites are not in the sum; of one that is stored already the reason stays.
        """
        if isinstance(row, Prototype | Evaluation) and row.problem is not None:
            row.problem = _fitting(row.problem, MAX_ERROR)
        with self.session() as session:
            self._fenced(session, row.run, row.lease, {"heartbeat": time.time()})
            session.add(row)
            for site, why in absent.items():
                if session.get(LeftOut, (row.run, row.number, site)) is None:
                    session.add(LeftOut(run=row.run, round=row.number, site=site, why=why))

    def leave_out(self, run_id: str, lease: int, number: int, sites: Sequence[str]) -> None:
        """Stores, once, sites whose vectors were too long, with lines in the audit log. Raises `LeaseLost`."""
        with self.session() as session:
            self._fenced(session, run_id, lease, {"heartbeat": time.time()})
            for site in sites:
                if session.get(LeftOut, (run_id, number, site)) is None:
                    session.add(LeftOut(run=run_id, round=number, site=site, why="long"))
                    self.log_action(session, "run.toolong", actor=SELF, run=run_id, round=number, site=site)

    def note_outdated(self, run_id: str, lease: int, number: int, sites: Sequence[str]) -> None:
        """Stores in the audit log that sites are left out for their ledgers. Raises `LeaseLost`."""
        with self.session() as session:
            self._fenced(session, run_id, lease, {"heartbeat": time.time()})
            self.log_action(session, "run.outdated", actor=SELF, run=run_id, round=number, sites=list(sites))

    def left_out(self, run_id: str) -> dict[int, dict[str, Absence]]:
        """Lists by round the sites that are in no sum, by name, and why; only rounds of which a reason is known."""
        with self.session() as session:
            rows = list(session.scalars(select(LeftOut).where(LeftOut.run == run_id)))
        rows.sort(key=lambda row: (row.round, row.site))
        by_round = groupby(rows, lambda row: row.round)
        return {number: {row.site: row.absence for row in group} for number, group in by_round}

    @contextmanager
    def holding_ledger(self, site: str) -> Iterator[Session]:
        """Runs one transaction in which nobody else appends to the replica of `site`, from its first read on."""
        with self.alone(f"the ledger of {site}") as session:
            yield session

    def ledger(self, session: Session, site: str, *, since: int = 0) -> list[LedgerRow]:
        """Lists the replicated entries of `site` from number `since` on, in order."""
        wanted = select(LedgerRow).where(LedgerRow.site == site, LedgerRow.seq >= since).order_by(LedgerRow.seq)
        return list(session.scalars(wanted))

    def last_ledger_row(self, session: Session, site: str) -> LedgerRow | None:
        """Finds the newest replicated entry of `site`; None if there is none."""
        newest = select(LedgerRow).where(LedgerRow.site == site).order_by(LedgerRow.seq.desc()).limit(1)
        return session.scalars(newest).first()

    def ledger_length(self, site: str) -> int:
        """Counts the replicated entries of `site`."""
        with self.session() as session:
            return session.scalars(select(func.count()).where(LedgerRow.site == site)).one()

    def ledger_lengths(self) -> dict[str, int]:
        """Counts the replicated entries of each site; without those that have none."""
        with self.session() as session:
            found = session.execute(select(LedgerRow.site, func.count()).group_by(LedgerRow.site))
            return {row[0]: row[1] for row in found}

    def ledger_hashes(self, site: str, since: int) -> list[str]:
        """Lists the hashes of the replicated entries of `site` from number `since` on, in order."""
        wanted = select(LedgerRow.hash).where(LedgerRow.site == site, LedgerRow.seq >= since).order_by(LedgerRow.seq)
        with self.session() as session:
            return list(session.scalars(wanted))

    def add_privacy_test(self, row: PrivacyTest, said: str) -> None:
        """Stores the result of a privacy test, with the line `said` in the audit log. No earlier result is replaced."""
        with self.session() as session:
            session.add(row)
            self.log_action(session, "audit.privacy", run=row.run, result=said)

    def privacy_tests(self, run_id: str, kind: Literal["audit", "membership"]) -> list[str]:
        """Lists the facts of every privacy test of that kind, oldest first."""
        wanted = select(PrivacyTest.facts).where(PrivacyTest.run == run_id, PrivacyTest.kind == kind)
        with self.session() as session:
            return list(session.scalars(wanted.order_by(PrivacyTest.seq)))

    def _move(
        self, session: Session, run_id: str, transition: Transition, lease: int | None, error: str | None = None
    ) -> RunState:
        """Checks and changes the state in one statement, so that no other process can change it in between."""
        assert (lease is not None) == (transition.by == "driver"), "a driver moves a run under its lease, nobody else"
        after = case(
            *((Run.state == source, literal(target, Run.state.type)) for source, target in transition.moves.items())
        )
        ends = [source for source, target in transition.moves.items() if target.is_over]
        moved = (
            update(Run)
            .where(Run.id == run_id, Run.state.in_(transition.moves), *([] if lease is None else [Run.lease == lease]))
            .values(
                state=after,
                error=None if error is None else _fitting(error, MAX_ERROR),
                ended_at=case((Run.state.in_(ends), time.time()), else_=None),
                lease=Run.lease + int(transition.fences),
            )
        )
        state = session.scalars(moved.returning(Run.state)).one_or_none()
        if state is not None:
            return state
        run = self.run(run_id)  # its state is the same: this transaction, though it wrote nothing, blocks all others
        if lease is not None and run.lease != lease:
            raise _lost(run_id, lease)
        raise TransitionRefused(run_id, run.state, transition.refusal)

    @staticmethod
    def _fenced(session: Session, run_id: str, lease: int, values: dict[str, Any]) -> None:
        held = update(Run).where(Run.id == run_id, Run.lease == lease).values(**values)
        if len(session.scalars(held.returning(Run.id)).all()) != 1:
            raise _lost(run_id, lease)


def open_engine(url: URL) -> Engine:
    """Opens an engine on a database, with the guarantees that `Store` needs and with errors of ours.

    Raises:
        StoreUnavailable: the driver of PostgreSQL is not installed.
    """
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url)
        event.listen(engine, "connect", _sqlite_pragmas)
    else:
        try:
            # A statement sees what others have committed when it begins: who waited for a lock reads what is new.
            engine = create_engine(
                url, isolation_level="READ COMMITTED", pool_pre_ping=True, pool_timeout=HELD_S,
                connect_args={name: value for name, value in _TO_SERVER.items() if name not in url.query},
            )  # fmt: skip
        except ModuleNotFoundError as err:
            raise StoreUnavailable(
                "the driver of PostgreSQL is not installed: pip install 'confide[postgresql]'"
            ) from err
        event.listen(engine, "connect", _postgresql_settings)
    event.listen(engine, "handle_error", turn_into_ours)
    return engine


def _in_order(by_old: dict[str, Succession]) -> list[Succession]:
    later = {stated.new for stated in by_old.values()}
    found: list[Succession] = []
    key = next((old for old in by_old if old not in later), "")
    while (stated := by_old.get(key)) is not None and stated not in found:
        found.append(stated)
        key = stated.new
    return found


def migrate(url: str | URL, to: str = SCHEMA) -> None:
    """Migrates the database at `url` to a schema, the newest by default; on the way back newer tables go, with rows."""
    engine = open_engine(make_url(url))
    try:
        if engine.dialect.name == "sqlite":
            event.remove(engine, "connect", _sqlite_pragmas)  # foreign keys are off while tables are made anew
        with engine.begin() as connection:
            if engine.dialect.name != "sqlite":
                connection.execute(select(func.pg_advisory_xact_lock(_lock_number("the schema"))))
            migrate_on(connection, to)
    finally:
        engine.dispose()


def migrate_on(connection: Connection, to: str = SCHEMA) -> None:
    """Migrates, inside the transaction of `connection`, to a schema."""
    from alembic import command
    from alembic.config import Config
    from alembic.migration import MigrationContext

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).resolve().parent / "migrations"))
    config.attributes["connection"] = connection
    now = MigrationContext.configure(connection).get_current_revision() or ""
    (command.downgrade if now > to else command.upgrade)(config, to)


def _lock_number(about: str) -> int:
    """Makes a number of PostgreSQL's advisory locks of what the lock is about."""
    return int.from_bytes(hashlib.sha256(f"confide: {about}".encode()).digest()[:8], "big", signed=True)


def _fitting(text: str, most: int) -> str:
    """Makes a text that a column takes on each database: of `most` characters, without NUL."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")[:most]


def _lost(run_id: str, lease: int) -> LeaseLost:
    return LeaseLost(f"run {run_id}: another driver has taken over from lease {lease}; nothing was written")


def _sqlite_pragmas(connection: Any, _: Any) -> None:
    for pragma in ("busy_timeout=20000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _postgresql_settings(connection: Any, _: Any) -> None:
    """Sets what a server's administrator may have set otherwise: a commit that is on disk, and an end to waiting."""
    before, connection.autocommit = connection.autocommit, True  # else a rollback would take them back
    for name, value in (
        ("synchronous_commit", "on"),
        ("lock_timeout", f"{HELD_S}s"),
        ("idle_in_transaction_session_timeout", "120s"),  # of a process that stands still while others wait for it
    ):
        connection.execute(f"SET SESSION {name} = '{value}'")
    connection.autocommit = before

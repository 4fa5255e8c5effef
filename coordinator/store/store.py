"""The coordinator's database: sites, studies, runs, rounds, leases, the ledger replica, the audit log.

Only this database counts; Flower's own state is a cache. A round exists once its row is committed, and only the holder
of the run's current lease commits it.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import (
    case,
    create_engine,
    event,
    func,
    inspect,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.orm import Session, sessionmaker

from ...client_node.login import login_name
from ..errors import (
    Conflict,
    LeaseLost,
    NotFound,
    StateDamaged,
    TransitionRefused,
)
from .faults import REMEDY, faults_of, turn_into_ours
from .states import BEGIN, RunState, Transition
from .tables import (
    MAX_STEP,
    ActionRow,
    Evaluation,
    LedgerRow,
    LeftOut,
    NodeRow,
    PrivacyTest,
    Prototype,
    Round,
    Run,
    StudyRow,
)

SCHEMA = "0005"  # the newest of the migrations
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

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url)
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _sqlite_pragmas)
        event.listen(self._engine, "handle_error", turn_into_ours)
        self._sessions = sessionmaker(self._engine, expire_on_commit=False)

    @classmethod
    def create(cls, home: Path) -> "Store":
        """Creates a new database under `home`, with its tables."""
        store = cls.open(home)
        migrate(store.url)
        return store

    @classmethod
    def open(cls, home: Path) -> "Store":
        """Opens the database under `home`."""
        return cls(f"sqlite:///{home.resolve() / 'coordinator.db'}")

    def require_schema(self) -> None:
        """Checks that the database has this version's schema; changes nothing. `serve` migrates an older one.

        Raises:
            Conflict: the schema is an earlier version's, or a later one's.
            StateDamaged: the database holds no schema at all.
        """
        self.require_tables()
        name = self._engine.url.database
        with self.session() as session:
            version = session.scalar(text("SELECT version_num FROM alembic_version")) or ""
        if version < SCHEMA:
            raise Conflict(
                f"{name} is an earlier version's; `coordinator serve` brings it to this version's schema when it "
                "starts. Back it up, start `serve` once, then repeat this command; nothing was changed"
            )
        if version > SCHEMA:
            raise Conflict(f"{name} is a later version's; install that version again. Nothing was changed")

    def require_tables(self) -> None:
        """Raises StateDamaged if the database holds no schema at all: it was emptied, or is another one."""
        if not inspect(self._engine).has_table("alembic_version"):
            raise StateDamaged(f"{self._engine.url.database} holds no federation's tables. {REMEDY}")

    @property
    def url(self) -> str:
        """SQLAlchemy URL of the database."""
        return self._engine.url.render_as_string(hide_password=False)

    def close(self) -> None:
        """Closes every connection."""
        self._engine.dispose()

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Runs one transaction: committed at the end, rolled back on an error."""
        with self._sessions.begin() as session:
            yield session

    def log_action(self, session: Session, what: str) -> None:
        """Adds a line to the audit log inside `session`'s transaction, with the account that runs this process."""
        session.add(ActionRow(at=time.time(), what=f"{what} (by {login_name()})"))

    def nodes(self) -> list[NodeRow]:
        """Lists every invited or enrolled node, by name."""
        with self.session() as session:
            return list(session.scalars(select(NodeRow).order_by(NodeRow.name)))

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

    def rounds(self, run_id: str) -> list[Round]:
        """Lists the committed rounds of a run, in order."""
        with self.session() as session:
            return list(session.scalars(select(Round).where(Round.run == run_id).order_by(Round.number)))

    def evaluation(self, run_id: str) -> Evaluation | None:
        """Finds the evaluation of a run; None before it is made, or if the study has none."""
        with self.session() as session:
            return session.get(Evaluation, run_id)

    def prototype(self, run_id: str) -> Prototype | None:
        """Finds the prototype of a run; None before it is made, or if the study has none."""
        with self.session() as session:
            return session.get(Prototype, run_id)

    def opened(self, run_id: str) -> list[Round | Prototype | Evaluation]:
        """Lists all opened sums of a run, in order: its rounds and, where they came to be, prototype and evaluation."""
        closing = (self.prototype(run_id), self.evaluation(run_id))
        return [*self.rounds(run_id), *(row for row in closing if row is not None and row.problem is None)]

    def last_round(self, run_id: str) -> CommittedRound:
        """Finds the last committed round of a run."""
        with self.session() as session:
            newest = select(Round).where(Round.run == run_id).order_by(Round.number.desc()).limit(1)
            found = session.scalars(newest).first()
        if found is None:
            return CommittedRound(number=0, state_hash=None)
        return CommittedRound(number=found.number, state_hash=found.state_hash)

    def acquire_lease(self, run_id: str) -> int:
        """Takes a new lease of a run: the token grows, so an older driver can no longer commit."""
        with self.session() as session:
            taken = update(Run).where(Run.id == run_id).values(lease=Run.lease + 1, heartbeat=time.time())
            return session.scalars(taken.returning(Run.lease)).one()

    def beat(self, run_id: str, lease: int, step: str | None = None) -> None:
        """Stores the heartbeat and the current step of the driver that holds `lease`. Raises `LeaseLost`."""
        values: dict[str, Any] = {"heartbeat": time.time()}
        if step is not None:
            values["step"] = step[:MAX_STEP]
        with self.session() as session:
            self._fenced(session, run_id, lease, values)

    def note_trouble(self, run_id: str, lease: int, trouble: str) -> None:
        """Stores why the driver that holds `lease` ends before the run does. Raises `LeaseLost`."""
        with self.session() as session:
            self._fenced(session, run_id, lease, {"error": trouble[:2000], "step": trouble[:MAX_STEP]})

    def note_waiting(self, run_id: str, why: str, *, silent_s: float) -> None:
        """Stores why a run has no driver, unless it is over or has shown a heartbeat in the last `silent_s` seconds."""
        waits = Run.state.not_in([state for state in RunState if state.is_over])
        silent = Run.heartbeat < time.time() - silent_s
        with self.session() as session:
            session.execute(update(Run).where(Run.id == run_id, waits, silent).values(step=why[:MAX_STEP]))

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
            self.log_action(session, f"run {run_id} is {state}" + (f": {error}" if error else ""))
        return state

    def commit_round(self, row: Round | Prototype | Evaluation) -> None:
        """Commits a round, or what follows the last one. Raises `LeaseLost` unless `row.lease` is the run's now."""
        with self.session() as session:
            self._fenced(session, row.run, row.lease, {"heartbeat": time.time()})
            session.add(row)

    def leave_out(self, run_id: str, lease: int, number: int, sites: Sequence[str]) -> None:
        """Stores, once, sites whose vectors were too long, with lines in the audit log. Raises `LeaseLost`."""
        with self.session() as session:
            self._fenced(session, run_id, lease, {"heartbeat": time.time()})
            for site in sites:
                if session.get(LeftOut, (run_id, number, site)) is None:
                    session.add(LeftOut(run=run_id, round=number, site=site))
                    self.log_action(session, f"run {run_id}: round {number} without {site}, whose vector was too long")

    def note_outdated(self, run_id: str, lease: int, number: int, sites: Sequence[str]) -> None:
        """Stores in the audit log that sites are left out for their ledgers. Raises `LeaseLost`."""
        with self.session() as session:
            self._fenced(session, run_id, lease, {"heartbeat": time.time()})
            names = ", ".join(sites)
            self.log_action(session, f"run {run_id}: round {number} without {names}, whose ledger is an older copy")

    def left_out(self, run_id: str) -> dict[int, tuple[str, ...]]:
        """Lists by round the sites whose vectors were too long; only rounds with such sites."""
        wanted = select(LeftOut).where(LeftOut.run == run_id).order_by(LeftOut.round, LeftOut.site)
        with self.session() as session:
            rows = list(session.scalars(wanted))
        return {number: tuple(row.site for row in group) for number, group in groupby(rows, lambda row: row.round)}

    @contextmanager
    def holding_ledger(self, site: str) -> Iterator[Session]:
        """Runs one transaction in which nobody else appends to the replica of `site`, from its first read on."""
        with self.session() as session:
            # An update locks the row, or all of SQLite's database, even if it changes nothing.
            session.execute(update(NodeRow).where(NodeRow.name == site).values(name=NodeRow.name))
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

    def ledger_hashes(self, site: str, since: int) -> list[str]:
        """Lists the hashes of the replicated entries of `site` from number `since` on, in order."""
        wanted = select(LedgerRow.hash).where(LedgerRow.site == site, LedgerRow.seq >= since).order_by(LedgerRow.seq)
        with self.session() as session:
            return list(session.scalars(wanted))

    def add_privacy_test(self, row: PrivacyTest, said: str) -> None:
        """Stores the result of a privacy test, with the line `said` in the audit log. No earlier result is replaced."""
        with self.session() as session:
            session.add(row)
            self.log_action(session, said)

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
                error=error,
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


def migrate(url: str) -> None:
    """Migrates the database at `url` to the newest schema."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).resolve().parent / "migrations"))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    with faults_of(url):
        command.upgrade(config, "head")


def _lost(run_id: str, lease: int) -> LeaseLost:
    return LeaseLost(f"run {run_id}: another driver has taken over from lease {lease}; nothing was written")


def _sqlite_pragmas(connection: Any, _: Any) -> None:
    for pragma in ("busy_timeout=20000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")

"""Sees to it that one server of a federation leads, and that one that stands by takes over when it dies.

A server leads while it holds two things. The lock of its home ends with its process, and so decides at once where two
servers share a home. The other is its row in a database of PostgreSQL, for servers whose homes are on several machines,
where a lock may outlive its holder or not be seen at all: the leader counts up a beat there, and who has seen the same
beat for `LAPSE_S`, by a clock of its own, may take its place. A leader that finds its row gone ends, and so does one
that has reached no database for `GIVE_UP_S` while another server stands by.

Two that lead for a moment harm nothing: a run's driver holds a lease of that run, without which it commits nothing and
nodes answer it nothing (`Store.acquire_lease`).
"""

import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from sqlalchemy import delete, func, inspect, select, update
from sqlalchemy.orm import Session

from ...client_node.enrolment.sessions import place_of
from ..errors import AlreadyLed, CoordinatorError, LeadLost, StoreUnavailable
from ..federation.serving import LOCK, is_served
from ..store import Store
from ..store.tables import ServerRow

logger = logging.getLogger(__name__)

BEAT_S = 2.0
LAPSE_S = 15.0  # without a beat, after which a leader counts as dead
_FORGET_S = 60.0  # likewise, after which one that stood by is forgotten
GIVE_UP_S = 60.0  # without a database, after which a leader ends if another server stands by
_BLIND_S = 6.0  # between two looks, after which the time before counts no more
_LOOK_S = 0.5
_ABOUT = "the servers"


class Seat:
    """The place of one server among those of its federation. Its methods are for one thread.

    With SQLite it does nothing: the database lies in the home, whose lock decides.
    """

    def __init__(self, store: Store, home: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._home, self._clock = store, home, clock
        self._id, self._host = secrets.token_hex(16), socket.gethostname()[:255]
        self._seen: dict[str, tuple[int, float]] = {}  # server -> its beat, and when that was new
        self._next = self._looked = self._kept = 0.0
        self._others: list[str] = []  # machines on which servers stand by
        self._leads = self._has_table = False

    @classmethod
    @contextmanager
    def at(cls, home: Path) -> Iterator[Self]:
        """Opens the database of `home` for a seat; when it is left, the server is gone from there."""
        store = Store.open(home)
        seat = cls(store, home)
        try:
            yield seat
        finally:
            seat.leave()
            store.close()

    def stand_by(self) -> str | None:
        """Shows a sign of life of a server that stands by, and looks for the leader; call it every second or so.

        Returns:
            Where the leader runs; None if none lives.
        """
        self._leads, is_held = False, is_served(self._home)
        held_by = "this machine or another one" if is_held else None
        if not self._is_counted:
            return held_by
        with self._store.session() as session:
            self._beat(session, term=0)
            leader = self._leader(session, is_dead_here=not is_held)
        self._note_look()
        return held_by if leader is None else leader.host

    def take(self, stop: threading.Event) -> bool:
        """Takes the lead. Where an earlier leader has noted no end, it waits for a sign of life of that one first.

        Call it while this process holds the lock of the home.

        Returns:
            False if `stop` was set before it could be told.

        Raises:
            AlreadyLed: the leader lives.
        """
        if self._leads or not self._is_counted:
            return True
        first: dict[str, int] = {}
        while True:
            with self._store.alone(_ABOUT) as session:
                leader = self._leader(session, is_dead_here=True)
                if leader is None:
                    before = session.scalar(select(func.max(ServerRow.term))) or 0
                    session.execute(delete(ServerRow).where(ServerRow.term > 0, ServerRow.id != self._id))
                    self._beat(session, term=before + 1)
                    break
            self._note_look()
            if leader.id not in first:
                logger.info(
                    "a server on %s led this federation and noted no end: waits up to %.0f s for a sign of life",
                    leader.host, LAPSE_S,
                )  # fmt: skip
            if leader.beat != first.setdefault(leader.id, leader.beat):
                raise AlreadyLed(
                    f"a server on {leader.host} leads this federation; stop it first, or use --standby to take over "
                    "when it dies"
                )
            if stop.wait(_LOOK_S):
                return False
        self._leads, self._kept = True, self._clock()
        return True

    def keep(self) -> None:
        """Shows a sign of life of the leader, every few seconds; call it as often as you like.

        Raises:
            LeadLost: another server has taken over; or the database has been away for `GIVE_UP_S`, and a server that
                stands by may reach it.
            StoreUnavailable: the database cannot be used just now.
        """
        if not self._leads or self._clock() < self._next:
            return
        self._next = self._clock() + BEAT_S
        try:
            with self._store.session() as session:
                beaten = update(ServerRow).where(ServerRow.id == self._id, ServerRow.term > 0)
                if not session.scalar(beaten.values(beat=ServerRow.beat + 1).returning(ServerRow.id)):
                    raise LeadLost(
                        "another server has taken this federation over, as this one showed no sign of life for "
                        f"{LAPSE_S:.0f} s; nothing is lost, and runs go on there"
                    )
                others = session.scalars(select(ServerRow).where(ServerRow.term == 0)).all()
        except StoreUnavailable as err:
            if self._others and self._clock() - self._kept > GIVE_UP_S:
                raise LeadLost(
                    f"the database has been away for {GIVE_UP_S:.0f} s: this server ends, as the one on "
                    f"{', '.join(self._others)} may reach it ({err})"
                ) from err
            raise
        silent = [other.id for other in others if self._silent_s(other) > _FORGET_S]
        self._note_look()
        self._kept, self._others = self._clock(), sorted({other.host for other in others if other.id not in silent})
        if silent:
            with self._store.session() as session:
                session.execute(delete(ServerRow).where(ServerRow.id.in_(silent), ServerRow.term == 0))

    def leave(self) -> None:
        """Notes that this server ends; a database that cannot be written just now keeps its row, without beats."""
        with suppress(CoordinatorError):
            if self._is_counted:
                with self._store.session() as session:
                    session.execute(delete(ServerRow).where(ServerRow.id == self._id))

    @property
    def _is_counted(self) -> bool:
        if not (self._store.is_sqlite or self._has_table):
            with self._store.session() as session:  # an earlier version's database has none
                self._has_table = inspect(session.connection()).has_table(ServerRow.__tablename__)
        return self._has_table

    def _beat(self, session: Session, *, term: int) -> None:
        of_this = update(ServerRow).where(ServerRow.id == self._id).values(beat=ServerRow.beat + 1, term=term)
        if not session.scalar(of_this.returning(ServerRow.id)):
            session.add(ServerRow(id=self._id, host=self._host, place=self._place, term=term, beat=0))

    def _leader(self, session: Session, *, is_dead_here: bool) -> ServerRow | None:
        """Finds a living leader other than this server.

        Args:
            is_dead_here: one of this very home must be dead, as its lock is free or ours.
        """
        leading = select(ServerRow).where(ServerRow.term > 0, ServerRow.id != self._id)
        row = session.scalars(leading.order_by(ServerRow.term.desc())).first()
        if row is None or self._silent_s(row) > LAPSE_S or (is_dead_here and row.place == self._place):
            return None
        return row

    def _note_look(self) -> None:
        self._looked = self._clock()

    @property
    def _place(self) -> str:
        return place_of(self._home / LOCK)

    def _silent_s(self, row: ServerRow) -> float:
        """Counts the seconds in which it was looked for a beat of that server, and none came."""
        now = self._clock()
        if now - self._looked > _BLIND_S:  # the database was away, or this process stood still
            self._seen.clear()
        beat, since = self._seen.get(row.id, (row.beat - 1, now))
        if beat != row.beat:
            self._seen[row.id] = row.beat, now
            return 0.0
        return now - since

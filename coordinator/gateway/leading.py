"""Sees to it that one server of a federation leads, and that one that stands by takes over when it dies.

A server leads while it holds two things. The lock of its home ends with its process, and so decides at once where two
servers share a home. The other is its row in a database of PostgreSQL, for servers whose homes are on several machines,
where a lock may outlive its holder or not be seen at all: the leader counts up a beat there, and who has seen the same
beat for `LAPSE_S`, by a clock of its own, may take its place. A leader that finds its row gone ends.

Two that lead for a moment harm nothing: a run's driver holds a lease of that run, without which it commits nothing and
nodes answer it nothing (`Store.acquire_lease`).
"""

import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from sqlalchemy import delete, func, inspect, select
from sqlalchemy.orm import Session

from ...client_node.enrolment.sessions import place_of
from ..errors import AlreadyLed, LeadLost, StoreUnavailable
from ..federation.serving import LOCK, is_served
from ..store import Store
from ..store.tables import ServerRow

BEAT_S = 2.0
LAPSE_S = 15.0  # without a beat, after which a leader counts as dead
_FORGET_S = 60.0  # likewise, after which one that stood by is forgotten
_LOOK_S = 0.5
_ABOUT = "the servers"


class Seat:
    """The place of one server among those of its federation. Its methods are for one thread.

    With SQLite it does nothing: the database lies in the home, whose lock decides.
    """

    def __init__(self, store: Store, home: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._home, self._clock = store, home, clock
        self._id, self._host, self._since = secrets.token_hex(16), socket.gethostname()[:255], time.time()
        self._seen: dict[str, tuple[int, float]] = {}  # server -> its beat, and when that was new
        self._next = 0.0
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
        is_held = is_served(self._home)
        if not self._is_counted:
            return self._host if is_held else None
        with self._store.alone(_ABOUT) as session:
            self._beat(session)
            leader = self._leader(session, is_dead_here=not is_held)
            return (None if leader is None else leader.host) or (self._host if is_held else None)

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
                    session.execute(delete(ServerRow).where(ServerRow.term > 0))
                    self._beat(session).term = before + 1
                    break
                if leader.beat != first.setdefault(leader.id, leader.beat):
                    raise AlreadyLed(
                        f"a server on {leader.host} leads this federation; stop it first, or use --standby to take "
                        "over when it dies"
                    )
            if stop.wait(_LOOK_S):
                return False
        self._leads = True
        return True

    def keep(self) -> None:
        """Shows a sign of life of the leader, every few seconds; call it as often as you like.

        Raises:
            LeadLost: another server has taken over.
        """
        if not self._leads or self._clock() < self._next:
            return
        with self._store.alone(_ABOUT) as session:
            row = session.get(ServerRow, self._id)
            if row is None:
                raise LeadLost(
                    f"another server has taken this federation over, as this one was silent for {LAPSE_S:.0f} s; "
                    "nothing is lost, and runs go on there"
                )
            row.beat += 1
            for other in session.scalars(select(ServerRow).where(ServerRow.term == 0)):
                if self._silent_s(other) > _FORGET_S:
                    session.delete(other)
        self._next = self._clock() + BEAT_S

    def leave(self) -> None:
        """Notes that this server ends; a database that cannot be written just now keeps its row, without beats."""
        with suppress(StoreUnavailable):
            if self._is_counted:
                with self._store.alone(_ABOUT) as session:
                    session.execute(delete(ServerRow).where(ServerRow.id == self._id))

    @property
    def _is_counted(self) -> bool:
        if not (self._store.is_sqlite or self._has_table):
            with self._store.session() as session:  # an earlier version's database has none
                self._has_table = inspect(session.connection()).has_table(ServerRow.__tablename__)
        return self._has_table

    def _beat(self, session: Session) -> ServerRow:
        row = session.get(ServerRow, self._id)
        if row is None:
            row = ServerRow(id=self._id, host=self._host, place=self._place, term=0, beat=0, since=self._since)
            session.add(row)
        row.beat += 1
        return row

    def _leader(self, session: Session, *, is_dead_here: bool) -> ServerRow | None:
        """Finds the leader; `is_dead_here` if one of this very home must be dead, as its lock is free or ours."""
        row = session.scalars(select(ServerRow).where(ServerRow.term > 0).order_by(ServerRow.term.desc())).first()
        if row is None or self._silent_s(row) > LAPSE_S or (is_dead_here and row.place == self._place):
            return None
        return row

    @property
    def _place(self) -> str:
        return place_of(self._home / LOCK)

    def _silent_s(self, row: ServerRow) -> float:
        now = self._clock()
        beat, since = self._seen.get(row.id, (row.beat - 1, now))
        if beat != row.beat:
            self._seen[row.id] = row.beat, now
            return 0.0
        return now - since

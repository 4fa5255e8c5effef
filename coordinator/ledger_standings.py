"""Keeps the standings of all replicated ledgers against their caps."""

import logging
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..privacy.errors import PrivacyError
from .errors import CoordinatorError, ReplicaBroken
from .store import LedgerReplica, Store

if TYPE_CHECKING:
    from ..privacy.ledger.charges import Books
    from ..privacy.ledger.standings import Course, Standing

logger = logging.getLogger(__name__)

_STOP_S = 2.0
_LEDGERS_S = 15.0  # how often ledgers are looked at; of one that has grown the new entries are read


class Ledgers:
    """The standings of all replicated ledgers, kept up to date by a thread: reading a long one takes a while.

    Args:
        with_courses: True for who draws spending over time; the gate's process, which does not, is spared the work.
    """

    def __init__(self, store: Store, *, with_courses: bool = False) -> None:
        self._store, self._replica, self._with_courses = store, LedgerReplica(store), with_courses
        self._lengths: dict[str, int] = {}
        self._standings: dict[str, list[Standing]] = {}
        self._courses: dict[str, list[Course]] = {}
        self._readable: dict[str, bool] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)  # one a site
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="confide-standings", daemon=True)

    def start(self) -> None:
        """Starts to follow the ledgers."""
        self._thread.start()

    def stop(self) -> None:
        """Ends that; a long ledger that is being read is left to end with the process."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)

    def standings(self) -> "dict[str, list[Standing]]":
        """The accounts of each site, as far as they are read."""
        return dict(self._standings)

    def accounts(self) -> "list[tuple[str, Standing]]":
        """Lists every account with its site, by name, as far as ledgers are read."""
        return [(site, each) for site, found in sorted(self._standings.copy().items()) for each in found]

    def courses(self) -> "dict[str, list[Course]]":
        """The course of each account of each site, as far as they are read."""
        return dict(self._courses)

    def readable(self) -> dict[str, bool]:
        """Tells for each site with a ledger whether its replica holds together."""
        return dict(self._readable)

    @contextmanager
    def books(self, site: str) -> "Iterator[Books]":
        """Gives what the newest entries of a site's ledger add up to; nothing is added to it meanwhile.

        Raises:
            ReplicaBroken: the ledger does not hold together.
            StoreUnavailable: the database cannot be read.
        """
        with self._locks[site]:
            yield self._replica.books(site)

    def look(self) -> None:
        """Reads what has come since the last look. Raises `StoreUnavailable`, `StateDamaged`."""
        from ..privacy.ledger.standings import courses, standings  # seconds, with all accountants

        lengths = self._store.ledger_lengths()
        for node in self._store.nodes():
            length = lengths.get(node.name, 0)
            if length == self._lengths.get(node.name, 0):
                continue
            try:
                with self.books(node.name) as books:
                    self._standings[node.name] = standings(books)
                    if self._with_courses:
                        self._courses[node.name] = courses(books)
                self._readable[node.name] = True
            except (ReplicaBroken, PrivacyError) as err:
                self._readable[node.name] = False
                logger.warning("the budget of %s is not told by the monitor: %s", node.name, err)
            self._lengths[node.name] = length  # a database that is away is asked again at the next look

    def _follow(self) -> None:
        while True:
            try:
                self.look()
            except CoordinatorError as err:
                logger.warning("ledgers are read again in %.0f s: %s", _LEDGERS_S, err)
            if self._ended.wait(_LEDGERS_S):
                return

"""Keeps a daemon's trust in its coordinator's CA up to date while it goes on: a daemon may run for months.

The gate tells with every answer which CAs it wants trusted, as a digest. Where that is not what this node trusts, the
signed list is fetched in a thread of its own, and taken up for the connections that are opened from then on. It is
fetched until that has once gone well to its end, for each digest and each connection: so a confirmation that was lost
is sent again, and a lost note of the last list is written again. What a command has written to `ca.crt` meanwhile is
taken up too. The same list tells of a new signing key of the coordinator's, which is then followed and confirmed.
"""

import logging
import threading
import time
from pathlib import Path

from . import authority
from .diary import Diary
from .enrolment import Enrolment
from .enrolment.protocol import enrolment_stamp
from .errors import ClientNodeError
from .files import stamp
from .flower import Connection

logger = logging.getLogger(__name__)

_AGAIN_S = 60.0  # before what was asked for is asked for again


class AuthorityKeeper:
    """Looks after the trust of one daemon's connection."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._seen: object = None  # stamps of the files, when they were read
        self._trusted = ""  # `authority.mark` of what `ca.crt` lists, and of the coordinator's keys
        self._settled: tuple[Connection, str] | None = None  # for whom, and what it was told, the last fetch went well
        self._tried = ""  # what it was told at the last fetch, which went well or not
        self._due = 0.0  # when the same is fetched again
        self._thread: threading.Thread | None = None
        self._troubles = Diary(logger, again_s=3600.0)

    def look(self, connection: Connection) -> None:
        """Takes up a changed `ca.crt`, and begins to fetch the coordinator's list if it is another; returns at once."""
        try:
            seen = [stamp(self._home / "ca.crt"), enrolment_stamp(self._home)]
            if None in seen or seen != self._seen:
                trust, coordinators = authority.trusted(self._home), Enrolment.load(self._home).coordinators
                if connection.trust_anew():
                    logger.info("the coordinator's CA is trusted from now on by: %s", ", ".join(trust.digests))
                self._seen, self._trusted = seen, authority.mark(trust.digests, coordinators)
        except (ClientNodeError, OSError) as err:
            self._troubles.note("the coordinator's CA is trusted as before: %s", err, level=logging.ERROR)
            return
        told = connection.told_authorities
        is_open = told != "" and (told != self._trusted or self._settled != (connection, told))
        is_due = told != self._tried or time.monotonic() >= self._due
        if is_open and is_due and not (self._thread and self._thread.is_alive()):
            self._tried, self._due = told, time.monotonic() + _AGAIN_S
            self._thread = threading.Thread(
                target=self._fetch, args=(connection, told), name="confide-authority", daemon=True
            )
            self._thread.start()

    def _fetch(self, connection: Connection, told: str) -> None:
        try:
            authority.fetch(self._home)
            self._settled = connection, told
        except (ClientNodeError, OSError) as err:
            self._troubles.note("the coordinator's list of CAs is not confirmed: %s", err, level=logging.WARNING)

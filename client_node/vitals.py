"""Counts what passes between this node and its coordinator, for those who watch the node.

All of it the coordinator sees as well, no earlier and no later: a message is counted when it comes or goes. In between,
while a message is answered, nothing here moves, so that nothing tells how long a step takes (`training.public_time`).
"""

import json
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from ..models.strict import StrictModel
from .diary import Diary
from .files import read_json, write_private
from .supervision import Pulse

logger = logging.getLogger(__name__)

FILE = "daemon.json"
NOTE_S = 30.0
_NOTE_REMEDY = "It says how the daemon was doing: restart the daemon, which writes it anew"

KINDS = ("prepare", "replay", "step", "topup", "fetch", "deposit", "aggregate", "settle")
POLL = "the loop that asks for messages"
_POLL_S = 180.0  # a poll is held for 50 s; behind a proxy that swallows it, given up after 75 s


class Vitals:
    """The counts of one daemon. One thread writes them; others may read."""

    def __init__(self, pulse: Pulse | None = None) -> None:
        self.pulse = pulse or Pulse()
        self.is_connected = self.has_begun = False  # has_begun: has tried to connect
        self.trouble = "it has just started"  # why it is not connected, in words that its log has too
        self.last_contact = 0.0  # seconds since 1970; 0 before the first
        self.questions: Counter[str] = Counter()  # by kind
        self.answers: Counter[tuple[str, str]] = Counter()  # by kind, and answered or failed
        self.sent_bytes = 0

    def polls(self) -> None:
        """Notes that the node is about to ask for a message, or to connect."""
        self.has_begun = True
        self.pulse.beat(POLL, within_s=_POLL_S)

    def connected(self) -> None:
        """Notes that the coordinator has let this node in."""
        self.is_connected, self.trouble = True, ""
        self.heard()

    def disconnected(self, trouble: str) -> None:
        """Notes that the connection is lost, or was refused."""
        self.is_connected, self.trouble = False, trouble
        self.polls()  # it tries again

    def heard(self) -> None:
        """Notes that the coordinator has answered."""
        self.last_contact = time.time()

    def asked(self, kind: str) -> None:
        """Counts a message that has come. The answer takes as long as it takes: no sign of life is due meanwhile."""
        self.heard()
        self.questions[known_kind(kind)] += 1
        self.pulse.rest(POLL)

    def replied(self, kind: str, *, failed: bool) -> None:
        """Counts an answer that has left."""
        self.heard()
        self.answers[known_kind(kind), "failed" if failed else "answered"] += 1
        self.polls()

    def sent(self, num_bytes: int) -> None:
        """Counts the bytes of a request's body."""
        self.sent_bytes += num_bytes


class Standing(StrictModel):
    """The standing of a daemon, as it noted it last for other processes of this machine."""

    version: Annotated[str, Field(max_length=64)]
    since: float  # seconds since 1970, as the others
    noted: float
    is_connected: bool
    trouble: Annotated[str, Field(max_length=4096)]
    last_contact: float  # 0 before the first


_STANDING_FORM = TypeAdapter(Standing)


class Notes:
    """Notes how a daemon is doing in `daemon.json` under its home: when that changes, and every `NOTE_S` seconds."""

    def __init__(self, home: Path, version: str, vitals: Vitals) -> None:
        self._path, self._version, self._vitals = home / FILE, version, vitals
        self._since, self._noted = time.time(), (False, "", -NOTE_S)
        self._diary = Diary(logger)

    def tick(self) -> None:
        """Writes what there is to write; what cannot be written is logged."""
        vitals, now = self._vitals, time.monotonic()
        standing = vitals.is_connected, vitals.trouble
        if standing == self._noted[:2] and now - self._noted[2] < NOTE_S:
            return
        self._noted = *standing, now
        told = Standing(
            version=self._version, since=self._since, noted=time.time(), is_connected=vitals.is_connected,
            trouble=vitals.trouble[:4096], last_contact=vitals.last_contact,
        )  # fmt: skip
        try:
            write_private(self._path, json.dumps(told.model_dump(mode="json")).encode())
        except OSError as err:
            self._diary.note("how this daemon is doing cannot be noted: %s", err, level=logging.WARNING)


def noted(home: Path) -> Standing | None:
    """Reads how the daemon of `home` was doing when it noted it last; None if it never did.

    Raises:
        FileDamaged: the file is damaged.
    """
    return read_json(home / FILE, _STANDING_FORM, remedy=_NOTE_REMEDY, max_bytes=2**16)


def known_kind(kind: str) -> str:
    """Names a kind of message; whoever sends kinds that do not exist adds no series."""
    return kind if kind in KINDS else "other"

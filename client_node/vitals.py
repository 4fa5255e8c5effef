"""Counts what passes between this node and its coordinator, for those who watch the node.

All of it the coordinator sees as well, no earlier and no later: a message is counted when it comes or goes. In between,
while a message is answered, nothing here moves, so that nothing tells how long a step takes (`training.public_time`).
"""

import time
from collections import Counter

from .supervision import Pulse

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
        self.questions[_known(kind)] += 1
        self.pulse.rest(POLL)

    def replied(self, kind: str, *, failed: bool) -> None:
        """Counts an answer that has left."""
        self.heard()
        self.answers[_known(kind), "failed" if failed else "answered"] += 1
        self.polls()

    def sent(self, num_bytes: int) -> None:
        """Counts the bytes of a request's body."""
        self.sent_bytes += num_bytes


def _known(kind: str) -> str:
    """A kind of message; whoever sends kinds that do not exist adds no series."""
    return kind if kind in KINDS else "other"

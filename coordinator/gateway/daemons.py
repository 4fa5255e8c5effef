"""Remembers the daemon that speaks for each key, as the gate saw at its last activation.

Flower knows a key alone. Two daemons with copies of one key would take each other's messages, and a daemon that was
killed would keep its successor out for as long as Flower counts it as online.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ...client_node.enrolment.sessions import Hello

SILENT_S = 20.0  # without a request, after which a daemon counts as gone; Flower's own measure


@dataclass(slots=True)
class _Daemon:
    hello: Hello | None  # None: it sends no introduction, but an earlier one of its key did
    heard_at: float | None  # None: it said that it stops


class Daemons:
    """The daemon of each connected key.

    A node of an earlier version sends no introduction, and its key has no daemon here. A key that was introduced once
    stays one whose daemons are told apart, so that leaving the introduction out is no way around that.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._current: dict[str, _Daemon] = {}

    def connected(self, key_id: str, hello: Hello | None) -> bool:
        """Notes that this daemon was activated; returns True if it is another one than before."""
        before = self._current.get(key_id)
        if before is None and hello is None:
            return False
        self._current[key_id] = _Daemon(hello, self._clock())
        return before is None or _session(before.hello) != _session(hello)

    def may_connect(self, key_id: str, hello: Hello | None) -> bool:
        """True unless a daemon without an introduction comes to a key whose own daemon is not silent."""
        current = self._current.get(key_id)
        if hello is not None or current is None or current.hello is None or current.heard_at is None:
            return True
        return self._clock() - current.heard_at >= SILENT_S

    def may_take_over(self, key_id: str, hello: Hello | None) -> bool:
        """True if the daemon that counts as connected is this one itself, or is dead for sure."""
        current = self._current.get(key_id)
        if current is None or current.hello is None or hello is None:
            return False
        return hello.succeeds(current.hello)

    def hear(self, key_id: str, session: bytes | None) -> bool:
        """Notes a request with this session's name; returns True if it is of the daemon that was activated last."""
        current = self._current.get(key_id)
        if current is None:
            return True
        if session != _session(current.hello):
            return False
        current.heard_at = self._clock()
        return True

    def left(self, key_id: str) -> None:
        """Notes that the daemon of a key said that it stops."""
        if current := self._current.get(key_id):
            current.heard_at = None


def _session(hello: Hello | None) -> bytes | None:
    return None if hello is None else hello.session.encode()

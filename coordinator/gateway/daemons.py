"""Remembers the daemon that speaks for each key, as the gate saw at its last activation.

Flower knows a key alone. Two daemons with copies of one key would take each other's messages, and a daemon that was
killed would keep its successor out for as long as Flower counts it as online.
"""

from ...client_node.enrolment.sessions import Hello


class Daemons:
    """The daemon of each connected key."""

    def __init__(self) -> None:
        self._current: dict[str, Hello] = {}

    def connected(self, key_id: str, hello: Hello) -> bool:
        """Notes that this daemon was activated; returns True if it is another one than before."""
        before = self._current.get(key_id)
        self._current[key_id] = hello
        return before is None or before.session != hello.session

    def may_take_over(self, key_id: str, hello: Hello) -> bool:
        """True if the daemon that counts as connected is this one itself, or is dead for sure."""
        current = self._current.get(key_id)
        return current is not None and hello.succeeds(current)

    def may_speak(self, key_id: str, session: bytes | None) -> bool:
        """True if a request with this session's name is of the daemon that was activated last, or none was yet."""
        current = self._current.get(key_id)
        return current is None or session == current.session.encode()

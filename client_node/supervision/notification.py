"""Tells systemd that this process is ready, that it lives, and that it ends: the protocol of sd_notify(3).

Without a supervisor that asks for it, nothing is sent.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, MutableMapping

logger = logging.getLogger(__name__)

_A_SECOND = 1_000_000  # microseconds


class Supervisor:
    """The supervisor that started this process.

    Args:
        environment: it is taken out of there, since child processes must not speak for this one.
        clock: monotonic, in seconds.
    """

    def __init__(
        self, environment: MutableMapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = environment.pop("NOTIFY_SOCKET", "")
        asked, of = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", str(os.getpid()))
        is_asked = asked.isdigit() and of == str(os.getpid())
        self._every_s = int(asked) / _A_SECOND / 3 if is_asked else None  # a third: one that is late harms nothing
        self._clock, self._next = clock, 0.0
        self._is_ready = self._has_failed = False

    def ready(self) -> None:
        """Says that the start is over; from the second call on nothing."""
        if not self._is_ready:
            self._is_ready = True
            self._tell("READY=1")

    def live(self) -> None:
        """Says that this process lives, as often as it is asked to; call it as often as you like."""
        if self._every_s is not None and self._clock() >= self._next:
            self._next = self._clock() + self._every_s
            self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """Says that the end has begun."""
        self._tell("STOPPING=1")

    def _tell(self, line: str) -> None:
        """Sends a line; one that is not taken is told once in the log, since the supervisor will act upon its lack."""
        if not self._address.startswith(("/", "@")):  # none, or of a kind that systemd uses for machines
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
                to.settimeout(1.0)
                to.connect(address)
                to.sendall(line.encode())
        except OSError as err:
            if not self._has_failed:
                logger.warning("the supervisor does not hear %s: %s", line, err.strerror or type(err).__name__)
            self._has_failed = True

"""A child process and the conversation with it; whatever breaks the conversation ends the process."""

import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Never, TypeVar

from .. import errors
from ..errors import FrameRejected, JournalBroken, MpcError, NormExceeded, PartyDied
from ..links import Channel
from ..links.frames import take, take_names

_START_S = 180.0  # importing torch and CrypTen takes 3 s on an idle machine
_STOP_S = 5.0
_T = TypeVar("_T")
_STARTED: set[subprocess.Popen[bytes]] = set()

PATIENCE = 30  # of the silence that parties bear from each other: silence after which a process is taken for hung


class Child:
    """A process that this one started, with one thread of torch and the other end of a socket pair."""

    def __init__(self, module: str, what: str, first: dict[str, Any]) -> None:
        """Starts it, and returns while it is still loading.

        Args:
            module: its main module.
            what: what it is called in an error.
            first: the message that it is given first.

        Raises:
            OSError: the system starts no more processes.
            PartyDied: it ended at once.
        """
        self._what, self._is_ready = what, False
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-m", module, str(theirs.fileno())],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    start_new_session=True,  # a Ctrl-C is for the parent, which decides
                )
            except OSError:
                self._channel.close()
                raise
        _STARTED.add(self._process)
        with self._talking():
            self._channel.send(**first)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """True if the process is gone."""
        return self._process.poll() is not None

    @property
    def is_ready(self) -> bool:
        """True if the process has loaded; asks without waiting.

        Raises:
            PartyDied, MpcError: as `wait_ready`.
        """
        if not self._is_ready and not self.has_ended and not _has_word(self._channel):
            return False
        self.wait_ready()
        return True

    def wait_ready(self) -> None:
        """Waits for the process to have loaded."""
        if self._is_ready:
            return
        with self._talking():
            self._channel.settimeout(_START_S)
            answer = self._channel.receive()
            if answer.get("kind") != "error":
                take(answer, "ready")
                self._is_ready = True
                return
            self._raise(answer)

    def ask(
        self,
        message: dict[str, Any],
        read: Callable[[dict[str, Any]], _T],
        *,
        patience_s: float,
        array_bytes: int | None,
    ) -> _T:
        """Sends a message and reads the answer.

        Args:
            read: takes the answer apart; what it refuses with `FrameRejected` ends the process.
            patience_s: silence after which the process is taken for hung.
            array_bytes: as for `Channel.receive`.

        Raises:
            PartyDied: the process ended, did not answer in time, or answered something else.
            MpcError: what the process raised.
        """
        with self._talking():
            self._channel.settimeout(patience_s)
            self._channel.send(**message)
            answer = self._channel.receive(array_bytes=array_bytes)
            if answer.get("kind") == "error":
                self._raise(answer)
            return read(answer)

    def end(self) -> int:
        """Ends the process and returns its exit code."""
        self._channel.close()  # it ends by itself then
        try:
            return self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            _STARTED.discard(self._process)

    def _raise(self, answer: dict[str, Any]) -> Never:
        """Raises here what the process raised."""
        name, message, names, kept = take(answer, "error", error=str, message=str, names=tuple, kept=tuple)
        kind = getattr(errors, name, None)
        if not (isinstance(kind, type) and issubclass(kind, MpcError)):
            raise FrameRejected(f"unknown error {name}")
        if not self._is_ready or kind in (JournalBroken, FrameRejected):  # after these it ends
            self.end()
        if kind is NormExceeded:
            raise _Reported(NormExceeded(message, take_names(names), take_names(kept)))
        raise _Reported(kind(message, take_names(names)))

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except _Reported as report:
            raise report.error from None
        except (EOFError, OSError, FrameRejected) as err:
            raise PartyDied(f"{self._what} ended ({self.end()})") from err
        except BaseException:  # interrupted half-way: what comes next on the channel is not ours to read
            self.end()
            raise


def kill_all() -> None:
    """Ends every process that this one has started, at once: none holds what must outlive it."""
    for process in list(_STARTED):
        process.kill()
        process.wait()


def _has_word(channel: Channel) -> bool:
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    return bool(poll.poll(0))


class _Reported(Exception):
    """Carries an error of the child past the handling of broken conversations."""

    def __init__(self, error: MpcError) -> None:
        super().__init__(error)
        self.error = error

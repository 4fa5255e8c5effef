"""An aggregator's handle on its party process. Imports neither torch nor CrypTen."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Never, Self

import numpy as np

from .. import errors
from ..errors import FrameRejected, JournalBroken, MpcError, NormExceeded, PartyDied
from ..links import Channel, OpenedTotal, Order, PartyConfig
from ..links.certificates import make_certificate
from ..links.frames import config_to_wire, order_to_wire, paths_to_wire, take, take_names

__all__ = ["OpenedTotal", "Order", "PartyConfig", "PartyProcess", "make_certificate"]

_START_S = 180.0  # importing torch and CrypTen takes 3 s on an idle machine
_STOP_S = 5.0
_NO_TOPUPS: Mapping[str, Path] = MappingProxyType({})
_PATIENCE = 30  # of `timeout_s`: silence of the process itself after which it is taken for hung


class PartyProcess:
    """One long-lived child process; started on demand, and anew after it died.

    `aggregate` may be called from any thread, one call at a time; `stop` also during a call, which then raises
    `PartyDied`.
    """

    def __init__(self, config: PartyConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Process id, or None while there is no process."""
        child = self._child
        return None if child is None else child.pid

    def start(self) -> None:
        """Starts the process if there is none, and returns while it is still loading."""
        with self._lock:
            self._running()

    def wait_ready(self) -> None:
        """Waits until the process can take orders, starting it if there is none.

        Raises:
            PartyDied: it ended, or was not ready within three minutes.
            MpcError: its configuration or journal cannot be used.
        """
        with self._lock:
            self._running().wait_ready()

    def aggregate(
        self, order: Order, envelopes: Mapping[str, Path], topups: Mapping[str, Path] = _NO_TOPUPS
    ) -> OpenedTotal:
        """Carries out one order; blocks until all three parties are through, or one is lost.

        Args:
            order: what the other two parties are given as well, with this aggregator's private key.
            envelopes: by site, the file of its envelope for this aggregator, which the process reads when it comes
                to it. A site may be absent; whatever is not a sound envelope of that site counts as absent.
            topups: the same of top-ups for exactly the order's cohort.

        Raises:
            PartyDied: the process ended; call again and a new one starts.
            PartyLost: another party is gone or silent; repeat the order as the next attempt.
            MpcError: `aggregation.aggregate` lists the others.
        """
        with self._lock:
            child = self._running()
            child.wait_ready()
            return child.aggregate(order, envelopes, topups)

    def stop(self) -> None:
        """Ends the process; harmless where there is none."""
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def _running(self) -> "_Child":
        child = self._child
        if child is None or child.has_ended:
            self.stop()
            child = self._child = _Child(self._config)
        return child


class _Child:
    """One child process and the conversation with it; whatever breaks the conversation ends the process."""

    def __init__(self, config: PartyConfig) -> None:
        self._config = config
        self._is_ready = False
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-m", "confide.mpc.party.process", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # a Ctrl-C is for the parent, which decides
            )
        with self._talking():
            self._channel.send("config", config=config_to_wire(config))

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """True if the process is gone."""
        return self._process.poll() is not None

    def wait_ready(self) -> None:
        """Waits for the process to have loaded."""
        if self._is_ready:
            return
        self._channel.settimeout(_START_S)
        with self._talking():
            answer = self._channel.receive()
            if answer.get("kind") != "error":
                take(answer, "ready")
                self._is_ready = True
                return
            self._raise(answer)

    def aggregate(self, order: Order, envelopes: Mapping[str, Path], topups: Mapping[str, Path]) -> OpenedTotal:
        """Sends the order and where the envelopes lie, then waits for the total."""
        self._channel.settimeout(_PATIENCE * (order.timeout_s or self._config.timeout_s))
        with self._talking():
            files = {"envelopes": paths_to_wire(envelopes), "topups": paths_to_wire(topups)}
            self._channel.send("order", order=order_to_wire(order), **files)
            answer = self._channel.receive(array_bytes=order.dim * order.ring_bits // 8)
            if answer.get("kind") == "error":
                self._raise(answer)
            kept, rejected, digest, total, tag_share = take(
                answer, "total", kept=tuple, rejected=tuple, set_digest=bytes, total=np.ndarray, tag_share=bytes
            )
            kept, rejected = take_names(kept), take_names(rejected)
            return OpenedTotal(
                kept=kept, rejected=rejected, set_digest=digest, total=total.tobytes(), tag_share=tag_share
            )

    def end(self) -> int:
        """Ends the process and returns its exit code."""
        self._channel.close()  # it ends by itself then
        try:
            return self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

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
            code = self.end()
            raise PartyDied(f"the party process of aggregator {self._config.aggregator_id} ended ({code})") from err
        except BaseException:  # interrupted half-way: what comes next on the channel is not ours to read
            self.end()
            raise


class _Reported(Exception):
    """Carries an error of the child past the handling of broken conversations."""

    def __init__(self, error: MpcError) -> None:
        super().__init__(error)
        self.error = error

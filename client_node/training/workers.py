"""Computes a site's training step in several processes, one for each GPU if there are GPUs.

The node starts them and talks to the first, the leading worker. It draws the sample, hands out whole units, adds up the
results and adds the noise. The node sends the records to the leading worker over a private socket pair; each other
worker gets from it only the records that it computes on. If one worker ends, all are ended and the step fails; the next
step starts new ones.
"""

import logging
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...mpc.errors import FrameRejected
from ...mpc.links import Channel
from ..data import Records
from ..errors import WorkersFailed
from ..policy import LimitPolicy
from ..study import Study
from .record_arrays import Arrays, to_arrays

logger = logging.getLogger(__name__)


class Workers:
    """A `trainer.Trainer` that computes in worker processes. Only `stop` may be called from another thread."""

    def __init__(
        self,
        study: Study,
        backbone: Path,
        read: Callable[[], Records],
        *,
        site: str,
        site_noise: int,
        limits: LimitPolicy,
    ) -> None:
        """Starts the processes and waits until each has loaded its part of the backbone; reads no record.

        Args:
            backbone: directory whose hash must be the study's.
            read: returns the records; called at the first step of every set of processes.
            site: name of this site in the study.
            site_noise: std of this site's noise in ring units.

        Raises:
            WorkersFailed: a worker could not start; the message gives its reason.
        """
        self._read, self._count = read, limits.workers
        self._settings: dict[str, Any] = {
            "study": study.canonical(),
            "backbone": str(backbone.absolute()),
            "site": site,
            "site_noise": site_noise,
            "max_rows": limits.max_rows_per_batch,
            "threads": max(1, limits.threads // limits.workers),
            "offload": limits.offload,
        }
        running = _Processes(self._count, self._settings)
        self._running: _Processes | None = running
        self._has_records = False
        self.start = running.start  # the state of round 0

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids, the leading one first; empty while none run."""
        return () if self._running is None else self._running.pids

    @property
    def is_warm(self) -> bool:
        """True: workers gather all layers together in every pass, and keep no states."""
        return True

    @property
    def starts_from(self) -> Literal["tokens", "kept states"]:
        """See `Trainer`."""
        return "tokens"

    def look_at_kept(self) -> None:
        """Does nothing, see `is_warm`."""

    def keep(self, *, seconds: float) -> None:
        """Does nothing, see `is_warm`."""

    def release(self, state: np.ndarray, round_number: int) -> np.ndarray:
        """Computes the same as `Trainer.release`.

        Raises:
            WorkersFailed: a worker ended or failed, the log says why; all workers are ended.
        """
        return self._of_the_table("release", {"state": state}, round=round_number)

    def prototype(self, round_number: int, *, site_noise: int) -> np.ndarray:
        """Computes the same as `Trainer.prototype`; raises as `release` does."""
        return self._of_the_table("prototype", {}, round=round_number, site_noise=site_noise)

    def _of_the_table(self, kind: str, arrays: dict[str, np.ndarray], **fields: int) -> np.ndarray:
        """Asks for a vector of the site's records, which are sent once."""
        processes = self._started()
        sent = arrays if self._has_records else {**arrays, **to_arrays(self._read())}
        with self._ended_by_failure():
            vector = processes.ask(kind, sent, **fields)
        self._has_records = True
        return vector

    def histogram(
        self, state: np.ndarray, read: Callable[[], Records], round_number: int, *, site_noise: int
    ) -> np.ndarray:
        """Computes the same as `Trainer.histogram`; raises as `release` does."""
        arrays = {"state": state, **to_arrays(read())}
        processes = self._started()
        with self._ended_by_failure():
            return processes.ask("histogram", arrays, round=round_number, site_noise=site_noise)

    def stop(self) -> None:
        """Ends the processes; does nothing if none run."""
        running, self._running, self._has_records = self._running, None, False
        if running is not None:
            running.end()

    def _started(self) -> "_Processes":
        """Returns the processes; starts new ones if they have ended."""
        if self._running is None or self._running.have_ended:
            self.stop()
            self._running = _Processes(self._count, self._settings)
        return self._running

    @contextmanager
    def _ended_by_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:  # what would come next on their channels is not known
            self.stop()
            raise


class _Processes:
    """One set of workers, from start to end."""

    def __init__(self, count: int, settings: dict[str, Any]) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._channels: list[Channel] = []
        links = [socket.socketpair() for _ in range(count - 1)]  # of the leading worker with each of the others
        try:
            # A directory that only this user can enter, for a file by which they find each other.
            with tempfile.TemporaryDirectory(prefix="confide-") as meeting:
                self._start([near for near, _ in links], settings["threads"])
                for _, far in links:
                    self._start([far], settings["threads"])
                for worker_id, channel in enumerate(self._channels):
                    place: dict[str, Any] = {
                        "worker_id": worker_id,
                        "num_workers": count,
                        "meeting": str(Path(meeting) / "meeting"),
                    }
                    with self._talking():
                        channel.send("begin", **settings, **place)
                self.start: np.ndarray = self._answers(set(range(count)))[0]["start"]
        except BaseException:
            self.end()
            raise
        finally:
            for link in links:
                for end in link:
                    end.close()
        logger.info("%d workers have loaded the backbone", count)

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids."""
        return tuple(process.pid for process in self._processes)

    @property
    def have_ended(self) -> bool:
        """True if any process has ended; the others are then useless too."""
        return any(process.poll() is not None for process in self._processes)

    def ask(self, kind: str, arrays: Arrays, **fields: Any) -> np.ndarray:
        """Sends the leading worker an order and returns its answer; waits as long as all processes live."""
        with self._talking():
            self._channels[0].send(kind, **arrays, **fields)
        vector: np.ndarray = self._answers({0})[0]["vector"]
        return vector

    def end(self) -> None:
        """Ends them at once; they have no state to save."""
        for channel in self._channels:
            channel.close()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()

    def _start(self, links: list[socket.socket], threads: int) -> None:
        ours, theirs = socket.socketpair()
        self._channels.append(Channel(ours))
        passed = [end.fileno() for end in (theirs, *links)]
        with theirs:
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-I", "-m", "confide.client_node.training.worker_process", *map(str, passed)],
                    pass_fds=passed,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,  # DeepSpeed talks there
                    env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                    start_new_session=True,  # a Ctrl-C is for the node, which decides
                )
            )

    def _answers(self, expected: set[int]) -> dict[int, dict[str, Any]]:
        """Waits for one message of success from each expected worker; any other message is a failure."""
        poll = select.poll()
        worker_of = {channel.fileno(): worker_id for worker_id, channel in enumerate(self._channels)}
        for descriptor in worker_of:
            poll.register(descriptor, select.POLLIN)
        answers: dict[int, dict[str, Any]] = {}
        while answers.keys() != expected:
            for worker_id in sorted(worker_of[descriptor] for descriptor, _ in poll.poll()):
                with self._talking(worker_id):
                    answer = self._channels[worker_id].receive(array_bytes=None)
                    if answer["kind"] not in ("done", "failed") or worker_id not in expected - answers.keys():
                        raise FrameRejected(f"a message {answer['kind']} that nobody waits for")
                if answer["kind"] == "failed":
                    raise WorkersFailed(f"worker {worker_id}: {answer.get('reason')}")
                answers[worker_id] = answer
        return answers

    @contextmanager
    def _talking(self, worker_id: int | None = None) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError, FrameRejected) as err:
            name = "a worker" if worker_id is None else f"worker {worker_id} of {len(self._processes)}"
            raise WorkersFailed(f"{name} ended; what it said last stands above in this log") from err

"""Sees to it that each unfinished run has a driver: starts it, watches it, says in the run's row what it waits for.

Drivers are forked from one worker process (`coordinator.run.worker`), which has imported everything. A driver that ends
before its run is over is replaced after a pause, which doubles with each failure in a row: a fault that stays costs
little, and one run's fault starves no other run.
"""

import json
import logging
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import StoreUnavailable, SuperLinkFailed
from ..store import Store
from ..store.tables import Run
from .superlink import SuperLink

logger = logging.getLogger(__name__)

WORKER = (sys.executable, "-P", "-m", "confide.coordinator.run.worker")
HUNG_S = 60.0  # a driver beats every second; one that lives and is silent for so long is ended
PAUSES_S = (0.5, 60.0)  # between two drivers of a run, from the first failure on
LASTED_S = 60.0  # a driver that lived for so long ends a row of failures, and so does one that committed a round
FAREWELL_S = 5.0  # for the driver of a run that is over to end by itself
KILL_S = 10.0  # for the worker to tell of the end of a driver that it was to kill
SILENT_S = 5.0  # a run without a heartbeat for so long is told what it waits for
_WORKER_LOG = "driver-worker.log"


@dataclass(slots=True)
class _Driver:
    """The driver of one run, or the wait for the next one."""

    flower_run: int | None = None  # ended with the driver
    pid: int | None = None  # None until the worker says that it has forked
    since: float = 0.0  # monotonic, as all times here: clocks may be set
    is_alive: bool = False
    beat: float = 0.0  # the last heartbeat in the run's row, and when it changed
    beat_at: float = 0.0
    killed_at: float = 0.0  # 0 if nobody has ended it
    failures: int = 0  # in a row
    committed: int = 0  # rounds of the run when it started
    not_before: float = 0.0
    last_words: str = ""


class Drivers:
    """The drivers of one coordinator's runs, and the worker that they are forked from."""

    def __init__(self, home: Path, store: Store, superlink: SuperLink) -> None:
        self._store, self._superlink = store, superlink
        self._drivers: dict[str, _Driver] = {}  # by run
        self._worker = _Worker(home, superlink)
        self._superlink_pid: int | None = None

    @property
    def is_ready(self) -> bool:
        """True if a driver can be started at once."""
        return self._worker.is_ready

    @property
    def log_path(self) -> Path:
        """Path of the log with the output of the worker and its drivers."""
        return self._worker.log_path

    def tick(self) -> None:
        """Does what is due.

        Raises:
            SuperLinkFailed: the SuperLink does not take an order.
            StoreUnavailable: the database cannot be used just now.
        """
        for event in self._worker.events():
            self._take_in(event)
        if self._superlink.pid != self._superlink_pid:
            self._superlink_pid = self._superlink.pid
            for driver in self._drivers.values():  # their tokens were the earlier SuperLink's
                driver.flower_run = None
                self._end(driver, "the SuperLink was started anew")
        for run in self._store.runs():
            if not run.state.is_over:
                self._see_to(run, self._drivers.setdefault(run.id, _Driver()))
            elif run.id in self._drivers:
                self._see_off(run.id, self._drivers[run.id])

    def stop(self) -> None:
        """Ends the worker and all drivers; their runs go on at the next start."""
        self._worker.stop()

    def _see_to(self, run: Run, driver: _Driver) -> None:
        now = time.monotonic()
        if driver.is_alive:
            if run.heartbeat != driver.beat:
                driver.beat, driver.beat_at = run.heartbeat, now
            if now - max(driver.since, driver.beat_at) > HUNG_S:
                self._end(driver, f"it was silent for {HUNG_S:.0f} s")
            return
        self._withdraw(driver)
        if waits_for := self._waits_for(driver, now):
            self._store.note_waiting(run.id, waits_for, silent_s=SILENT_S)
            return
        logger.info("run %s (%s): a driver starts%s", run.id, run.state, driver.last_words)
        driver.committed = self._store.last_round(run.id).number
        try:
            task = self._superlink.submit()
        except SuperLinkFailed as err:
            self._store.note_waiting(run.id, f"waits for the SuperLink: {err}", silent_s=SILENT_S)
            raise
        driver.flower_run, driver.since, driver.is_alive, driver.pid = task.flower_run, now, True, None
        driver.beat, driver.killed_at, driver.last_words = run.heartbeat, 0.0, ""
        self._worker.order(drive=run.id, token=task.token)

    def _see_off(self, run_id: str, driver: _Driver) -> None:
        """Forgets the driver of a run that is over once it has ended; one that goes on would keep others waiting."""
        if driver.is_alive:
            if time.monotonic() - max(driver.since, driver.beat_at) > FAREWELL_S:
                self._end(driver, "its run is over")
            return
        self._withdraw(driver)
        del self._drivers[run_id]

    def _withdraw(self, driver: _Driver) -> None:
        if driver.flower_run is not None:
            with suppress(SuperLinkFailed):  # it may have ended by itself
                self._superlink.withdraw(driver.flower_run)
            driver.flower_run = None

    def _waits_for(self, driver: _Driver, now: float) -> str:
        """Says what the start of a driver waits for; nothing if it can start."""
        if not self._superlink.is_up:
            return f"waits for the SuperLink, which starts (its log: {self._superlink.log_path})"
        if not self._worker.is_ready:
            return f"waits for the drivers' worker, which starts (its log: {self._worker.log_path})"
        if now < driver.not_before:
            left = driver.not_before - now
            return f"the next driver starts in {left:.0f} s, {driver.failures} ended before{driver.last_words}"
        return ""

    def _take_in(self, event: dict[str, Any]) -> None:
        """Takes in what the worker has told. Nothing here may fail: an event is told once."""
        for run_id, driver in self._drivers.items():
            if not driver.is_alive:
                continue
            if event.get("began") is not None and event.get("run") == run_id:
                driver.pid = event["began"]
            elif event.get("refused") == run_id:
                driver.last_words = f" ({event.get('why')})"
                self._note_end(run_id, driver, None)
            elif "lost" in event:
                self._note_end(run_id, driver, None)
            elif driver.pid is not None and driver.pid == event.get("ended"):
                self._note_end(run_id, driver, event.get("code"))

    def _note_end(self, run_id: str, driver: _Driver, code: int | None) -> None:
        now = time.monotonic()
        driver.is_alive, driver.pid = False, None
        if code == 0:  # it came to an end, or another one has the lease
            driver.failures, driver.last_words, driver.not_before = 0, "", now + PAUSES_S[0]
            return
        has_lasted = now - driver.since > LASTED_S
        with suppress(StoreUnavailable):
            has_lasted = has_lasted or self._store.last_round(run_id).number > driver.committed
        driver.failures = 1 if has_lasted else driver.failures + 1
        driver.not_before = now + _pause(driver.failures)
        if not driver.last_words:
            told = "see its log"
            with suppress(StoreUnavailable):
                told = self._store.run(run_id).error or told
            driver.last_words = f" ({_words(code)}; {told})"
        logger.warning(
            "run %s: its driver ended%s; the next one starts in %.1f s",
            run_id, driver.last_words, _pause(driver.failures),
        )  # fmt: skip

    def _end(self, driver: _Driver, why: str) -> None:
        """Kills a driver; if its end is not told soon, the worker hangs, and is started anew with all drivers."""
        now = time.monotonic()
        if not driver.is_alive:
            return
        if not driver.killed_at:
            driver.last_words, driver.killed_at = f" ({why})", now
            if driver.pid is not None:
                self._worker.order(kill=driver.pid)
        elif now - driver.killed_at > KILL_S:
            logger.warning("the drivers' worker does not answer; it is started anew")
            self._worker.kill()
            driver.killed_at = now


def _pause(failures: int) -> float:
    return float(min(PAUSES_S[0] * 2.0 ** min(failures - 1, 16), PAUSES_S[1]))


def _words(code: int | None) -> str:
    if code is None:
        return "with the worker"
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


class _Worker:
    """The process that forks drivers; started again if it ends."""

    def __init__(self, home: Path, superlink: SuperLink) -> None:
        self._command = [*WORKER, str(home.resolve()), str(superlink.port)]
        self._environment: Callable[[], dict[str, str]] = superlink.driver_environment
        self.log_path = superlink.log_path.with_name(_WORKER_LOG)
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._child: subprocess.Popen[str] | None = None
        self._ear = threading.Thread()  # listens to the child
        self._not_before, self._failures = 0.0, 0
        self.is_ready = False

    def events(self) -> list[dict[str, Any]]:
        """Lists what the worker has told since the last call; starts it if it does not run."""
        found = []
        if self._child is None:
            self._start()
        with suppress(queue.Empty):
            while True:
                event = self._events.get_nowait()
                if event.get("ready"):
                    self.is_ready, self._failures = True, 0
                if "lost" in event:
                    self._lost()
                found.append(event)
        return found

    def order(self, **order: Any) -> None:
        """Sends an order; one that a worker does not take any more is answered by the loss of all drivers."""
        if self._child is None:
            return
        assert self._child.stdin is not None, "it was started with pipes"
        with suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps(order) + "\n")
            self._child.stdin.flush()

    def kill(self) -> None:
        """Ends the worker and its drivers; it is started anew."""
        if self._child is not None:
            self._child.kill()

    def stop(self) -> None:
        """Ends the worker; its drivers end with it."""
        if self._child is not None:
            self._child.kill()
            self._forget(self._child)

    def _start(self) -> None:
        if time.monotonic() < self._not_before:
            return
        self._not_before = time.monotonic() + _pause(self._failures + 1)  # if it cannot be started at all
        with self.log_path.open("ab") as log:
            self._child = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=self._environment(), start_new_session=True,
            )  # fmt: skip
        assert self._child.stdout is not None, "it was started with pipes"
        self._ear = threading.Thread(
            target=self._listen, args=(self._child.stdout,), name="drivers' worker", daemon=True
        )
        self._ear.start()

    def _listen(self, lines: IO[str]) -> None:
        with lines, suppress(ValueError):  # a line that is cut off by its end
            for line in lines:
                self._events.put(json.loads(line))
        self._events.put({"lost": True})

    def _forget(self, child: subprocess.Popen[str]) -> int:
        """Waits for the end of a worker that is lost, and returns its exit code."""
        code = child.wait()
        self._ear.join()
        if child.stdin is not None:
            with suppress(BrokenPipeError):  # of an order that it has not taken
                child.stdin.close()
        self._child, self.is_ready = None, False
        return code

    def _lost(self) -> None:
        assert self._child is not None, "only a worker that was started is lost"
        self._child.kill()  # it may live and have closed its output
        code, self._failures = self._forget(self._child), self._failures + 1
        pause = _pause(self._failures)
        self._not_before = time.monotonic() + pause
        logger.warning(
            "the drivers' worker ended (%s); it starts again in %.1f s (its log: %s)",
            _words(code), pause, self.log_path,
        )  # fmt: skip

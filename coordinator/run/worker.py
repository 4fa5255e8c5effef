"""The process from which drivers are forked: `python -m confide.coordinator.run.worker HOME PORT`.

`coordinator serve` starts one and keeps it. It imports all that a driver needs, once, so a run starts in milliseconds
of processor time, also on a machine where an import takes a minute. Each driver is a process of its own: a run that
fails, or is killed, harms no other. The worker itself starts no thread, so that it can be forked at any time.

Orders come on the standard input and events go to the standard output, a line of JSON each:

    {"drive": RUN, "token": TOKEN}  ->  {"began": PID, "run": RUN}, and when it has ended {"ended": PID, "code": CODE};
                                        or {"refused": RUN, "why": TEXT}
    {"kill": PID}

The worker and its drivers end with the process that started it.
"""

import json
import logging
import os
import select
import signal
import sys
import threading
from pathlib import Path
from typing import IO, Any

from ...log_lines import log_to_stderr
from ...mpc.crash import TextLeftOut
from ..federation import Pki
from ..fleet.flower import Fleet, open_grid
from .driver import drive

UNFINISHED = 75  # exit code of a driver whose run needs another one
_MAX_LINE = 64 << 10


class Worker:
    """Forks a driver for each order, and tells how it ended."""

    def __init__(self, home: Path, port: int, events: IO[str]) -> None:
        self._home, self._port, self._events = home, port, events
        self._drivers: set[int] = set()
        self._alive = os.pipe()  # drivers keep the reading end, and so notice that the worker is gone
        self._woken, waker = os.pipe()
        for end in (self._woken, waker):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(waker)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Takes orders until the standard input is closed."""
        self._tell(ready=True)
        pending = b""
        while True:
            readable, _, _ = select.select([sys.stdin.fileno(), self._woken], [], [])
            if self._woken in readable:
                os.read(self._woken, 4096)
                self._reap()
            if sys.stdin.fileno() in readable:
                data = os.read(sys.stdin.fileno(), _MAX_LINE)
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._follow(json.loads(line))

    def _follow(self, order: dict[str, Any]) -> None:
        if "drive" in order:
            self._fork(str(order["drive"]), str(order["token"]))
        elif order.get("kill") in self._drivers:  # not reaped yet, so the number is still this driver's
            os.kill(order["kill"], signal.SIGKILL)
        else:
            self._tell(ended=order.get("kill"), code=None)

    def _fork(self, run_id: str, token: str) -> None:
        try:
            pid = os.fork()
        except OSError as err:  # the machine is short of processes or memory; other drivers go on
            self._tell(refused=run_id, why=f"no process can be started: {err.strerror}")
            return
        if pid == 0:
            code = UNFINISHED
            try:
                code = self._drive(run_id, token)
            finally:
                os._exit(code)
        self._drivers.add(pid)
        self._tell(began=pid, run=run_id)

    def _drive(self, run_id: str, token: str) -> int:
        """Drives the run in a new process; returns its exit code."""
        try:
            self._become_driver()
            with open_grid(self._port, Pki.load(self._home).loopback_ca_path, token) as grid:
                drive(Fleet(grid), self._home, run_id, fenced=lambda: os._exit(0))
            return 0
        except BaseException as err:
            logging.getLogger(__name__).error("the driver of run %s ended", run_id, exc_info=TextLeftOut.of(err))
            return UNFINISHED
        finally:
            logging.shutdown()
            sys.stderr.flush()

    def _become_driver(self) -> None:
        """Leaves the worker's pipes and signals, and ends this process as soon as the worker has ended."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Flower's heartbeat sends it if the task is over
        reading, writing = self._alive
        os.close(writing)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (sys.stdin, self._events):
            os.dup2(null, stream.fileno())

        def watch() -> None:
            os.read(reading, 1)
            os._exit(UNFINISHED)

        threading.Thread(target=watch, name="worker watch", daemon=True).start()

    def _reap(self) -> None:
        while self._drivers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._drivers.discard(pid)
            self._tell(ended=pid, code=os.waitstatus_to_exitcode(status))

    def _tell(self, **event: Any) -> None:
        self._events.write(json.dumps(event) + "\n")
        self._events.flush()


def main() -> None:
    """Serves as the worker of the coordinator at the home in the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent, which decides
    log_to_stderr(logging.WARNING)
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is for the log, and no event
    Worker(Path(sys.argv[1]), int(sys.argv[2]), events).serve()


if __name__ == "__main__":
    main()

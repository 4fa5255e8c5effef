"""Measures for the benchmarks: processor time of one thread, and the peak memory of a process."""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path


def taken(call: Callable[[], object]) -> float:
    """Seconds of processor time of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def best(call: Callable[[], object], turns: int = 5) -> float:
    """Seconds of processor time of the quickest of some turns."""
    return min(taken(call) for _ in range(turns))


def medians(calls: dict[str, Callable[[], object]], *, seconds: float) -> dict[str, float]:
    """Median processor milliseconds; the calls alternate, three times or more."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(found.values()))) < 3:
        for name, call in calls.items():
            found[name].append(1000 * taken(call))
    return {name: statistics.median(times) for name, times in found.items()}


def allocated_mib(pid: int | str = "self") -> float:
    """Private memory of a process. Files that it maps are not in it: the kernel may drop those from memory any time."""
    return status_mib("RssAnon", pid)


def status_mib(name: str, pid: int | str = "self") -> float:
    """A line of /proc/PID/status: VmRSS is all resident memory, VmHWM the most of it so far."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status[name].split()[0]) / 1024


def restart_peak() -> None:
    """Lets VmHWM of this process begin again at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def in_child(program: str, *arguments: object, threads: int = 1) -> dict[str, float]:
    """Runs a program with `--child` and these arguments as a JSON list, and returns the JSON that it prints.

    Freed blocks go back to the system at once, so that a peak of its memory is that of live tensors.
    """
    variables = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, program, "--child", json.dumps(arguments)]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


class Peak:
    """The most memory that a process had allocated while it was watched, looked at 500 times a second."""

    def __init__(self, pid: int | str = "self") -> None:
        self.mib, self._pid, self._is_over = 0.0, pid, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.002):
            self.mib = max(self.mib, allocated_mib(self._pid))

"""Measures for the benchmarks: processor time of one thread, and the peak memory of a process."""

import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path


def best(call: Callable[[], object], turns: int = 5) -> float:
    """Seconds of processor time of the quickest of some turns."""
    times = []
    for _ in range(turns):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def medians(calls: dict[str, Callable[[], object]], *, seconds: float) -> dict[str, float]:
    """Median processor milliseconds; the calls alternate, three times or more."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(taken.values()))) < 3:
        for name, call in calls.items():
            start = time.process_time_ns()
            call()
            taken[name].append((time.process_time_ns() - start) / 1e6)
    return {name: statistics.median(times) for name, times in taken.items()}


def allocated_mib(pid: int | str = "self") -> float:
    """Private memory of a process. Files that it maps are not in it: the kernel may drop those from memory any time."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1024


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

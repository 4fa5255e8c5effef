"""Times and memory of calls on a device: a GPU by its own events, the CPU by its processor time."""

import statistics
import time
from collections.abc import Callable

import torch
from measuring import Peak, allocated_mib, medians, taken

Call = Callable[[], object]


def medians_on(device: torch.device, calls: dict[str, Call], *, seconds: float) -> dict[str, float | None]:
    """Median milliseconds; the calls alternate, three times or more. None for one that the GPU has no memory for.

    With no seconds each call runs once, which says that it runs and no more. On a GPU from the first kernel's start to
    the last one's end, so that a wait for the CPU between them counts.
    """
    if not seconds:
        return {name: 1000 * taken(call) for name, call in calls.items()}
    if device.type != "cuda":
        return dict(medians(calls, seconds=seconds))
    fitting = [name for name, call in calls.items() if _fits(call)]
    found: dict[str, list[float]] = {name: [] for name in fitting}
    torch.cuda.synchronize(device)
    end = time.perf_counter() + seconds
    while fitting and (time.perf_counter() < end or len(found[fitting[0]]) < 3):
        marks = {}
        for name in fitting:
            marks[name] = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            marks[name][0].record()
            calls[name]()
            marks[name][1].record()
        torch.cuda.synchronize(device)
        for name, (start, stop) in marks.items():
            found[name].append(start.elapsed_time(stop))
    return {name: statistics.median(found[name]) if name in found else None for name in calls}


def _fits(call: Call) -> bool:
    """Runs it twice, as the first run compiles."""
    try:
        call()
        call()
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    return True


class DevicePeak:
    """The most MiB that this process had allocated on a GPU inside."""

    def __init__(self, device: torch.device) -> None:
        self.mib, self._device = 0.0, device

    def __enter__(self) -> "DevicePeak":
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        return self

    def __exit__(self, *_: object) -> None:
        torch.cuda.synchronize(self._device)
        self.mib = torch.cuda.max_memory_allocated(self._device) / 2**20


def peak_on(device: torch.device) -> DevicePeak | Peak:
    """Watches the memory of the device, or of this process on the CPU."""
    return DevicePeak(device) if device.type == "cuda" else Peak()


def allocated_on(device: torch.device) -> float:
    """MiB that this process has on the device."""
    return torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else allocated_mib()


def added_mib(device: torch.device, call: Call) -> float:
    """MiB that a call adds at its highest."""
    before = allocated_on(device)
    with peak_on(device) as peak:
        call()
    return peak.mib - before

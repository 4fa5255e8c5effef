"""What a process asks of the machine below it: which cores it may use, and to end when its parent does."""

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_CGROUP = Path("/sys/fs/cgroup/cpu.max")  # "QUOTA PERIOD", the former "max" without one
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None  # loaded before any fork


def die_with_parent() -> None:
    """Makes the kernel (Linux) kill this process when the thread that started it ends, for any reason.

    A `preexec_fn`, or what a forked or started process does first.
    """
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def cores() -> int:
    """Counts the cores that this process may use, by its affinity and by its control group."""
    here = len(os.sched_getaffinity(0))
    try:
        quota, period = _CGROUP.read_text().split()
        return here if quota == "max" else max(1, min(here, int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # another kind of control group, or none
        return here

"""What a process asks of the machine below it: cores it may use, ports that stay free, to end when its parent does."""

import ctypes
import os
import secrets
import signal
import socket
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PORTS = range(20_000, 32_000)  # outgoing connections are given those from 32768 on (Linux; elsewhere from 49152)
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


def free_ports(count: int) -> list[int]:
    """Finds loopback ports that are free at this moment, and that systems give to no outgoing connection by default.

    A server at a port that its system does give may find it taken when it starts anew, for as long as a connection
    lasts.

    Raises:
        OSError: there are too few.
    """
    found: list[int] = []
    for port in secrets.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:  # another process has it
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"fewer than {count} ports of 127.0.0.1 are free from {_PORTS.start} to {_PORTS.stop - 1}")

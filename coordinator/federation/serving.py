"""Tells other processes of this machine whether `coordinator serve` runs, and what it sees: a lock and a small file.

The lock ends with its process, in whatever way, so `read_serving` never takes a file that was left behind for a server.
"""

import fcntl
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ...client_node.files import write_private
from ..errors import AlreadyLed

LOCK = "serve.lock"  # under the home; held by its server
_FILE = "serve.json"
_LOCK_TRIES = 10
ONLINE_S = 60.0  # a node that has asked for nothing for so long counts as away; it asks every few seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenNode:
    """The last request of a node that the gate has let in."""

    at: float  # seconds since 1970
    version: str = ""  # of confide there, as it says; empty if it does not
    protocol: int = 0  # that both speak; 0 before it connects

    def was_online(self, moment: float) -> bool:
        """True if the node had asked for something a short time before `moment`."""
        return moment - self.at < ONLINE_S


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """Describes the running server, as it noted about itself a few seconds ago."""

    since: float  # seconds since 1970
    noted: float  # when this was written
    version: str
    superlink: bool  # True if Flower's server answers
    worker: bool  # True if drivers can be started
    trouble: str = ""  # what it cannot do at this moment, and why
    page: str = ""  # address of the operator's page; empty while there is none
    nodes: Mapping[str, SeenNode] = field(default_factory=dict)
    apart: Mapping[str, str] = field(default_factory=dict)  # nodes that are refused for their version, with the reason

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


_SCHEMA = TypeAdapter(Serving)


@contextmanager
def only_server(home: Path) -> Iterator[None]:
    """Holds the home for one server. Raises `AlreadyLed` if another process serves it."""
    with (home / LOCK).open("a+") as lock:
        for _ in range(_LOCK_TRIES):
            if is_free := _locks(lock, fcntl.LOCK_EX):
                break
            time.sleep(0.05)  # a command that looks just now lets go of it at once
        if not is_free:
            raise AlreadyLed(f"another `coordinator serve` serves {home} already; stop it first")
        (home / _FILE).unlink(missing_ok=True)  # an earlier server's
        yield


def is_served(home: Path) -> bool:
    """True if a process holds the home as its server; with a shared disk, one of any machine."""
    with (home / LOCK).open("a+") as lock:
        return not _locks(lock, fcntl.LOCK_SH)


def note_serving(home: Path, serving: Serving) -> None:
    """Writes what `read_serving` reads in other processes."""
    write_private(home / _FILE, json.dumps(asdict(serving)).encode())


def read_serving(home: Path) -> Serving | None:
    """Reads what the running server noted last; None if no server runs."""
    if not (home / LOCK).exists():
        return None
    with (home / LOCK).open("a+") as lock:
        if _locks(lock, fcntl.LOCK_SH):
            return None
        try:
            return _SCHEMA.validate_json((home / _FILE).read_bytes())
        except (FileNotFoundError, ValidationError):  # not there yet, or another version's
            now = time.time()
            return Serving(since=now, noted=now, version="", superlink=False, worker=False, trouble="it starts")


def _locks(file: IO[str], kind: int) -> bool:
    """Locks a file that is open for reading and writing: NFS knows no shared lock of one that is only written."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

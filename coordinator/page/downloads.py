"""Makes what is downloaded: budget reports, and adapters, which a process of their own writes."""

import json
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from starlette.responses import Response, StreamingResponse

from ...privacy.report.build import render_html
from ...privacy.report.language import load
from ..errors import AuditMissing, Conflict, CoordinatorError, StateDamaged
from ..oversight.operators import Operator
from ..results.reports import budget_report
from ..store import Store

FOLDER = "page-exports"  # in the home; what is in it lasts while an adapter is written
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox"
)
_KEPT_S = 60.0
_PATIENCE_S = 2.0  # for a report or an adapter that somebody else is having made
_LONGEST_S = 1800.0
_CHUNK = 1 << 18
_ERRORS = {each.__name__: each for each in (AuditMissing, Conflict, StateDamaged)}
_ODD = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(slots=True)
class _Made:
    key: object
    at: float  # monotonic
    json: bytes
    pages: dict[str, bytes] = field(default_factory=dict)  # by language


class Reports:
    """Budget reports: one is made at a time, and the newest is kept for a minute.

    Methods may be called from any thread. A report takes seconds for 100,000 charges and is tens of megabytes long.
    """

    def __init__(self) -> None:
        self._one = threading.Lock()
        self._made: _Made | None = None

    def json(self, store: Store, home: Path, study: str | None) -> bytes:
        """Makes the report of `budget report --json`.

        Raises:
            Conflict: another one is being made.
            NotFound: there is no such study, or no ledger.
            LedgerBroken: a ledger does not hold together.
            ReportInvalid: it would be too long.
        """
        with _alone(self._one, "another budget report is being made"):
            return self._newest(store, home, study).json

    def html(self, store: Store, home: Path, study: str | None, language: str) -> bytes:
        """Makes the page of `budget report --html`; arguments and errors are those of `json`."""
        load(language)  # before what takes long
        with _alone(self._one, "another budget report is being made"):
            made = self._newest(store, home, study)
            if language not in made.pages:
                made.pages[language] = render_html(json.loads(made.json), language=language).encode()
            return made.pages[language]

    def _newest(self, store: Store, home: Path, study: str | None) -> _Made:
        key = study, _heads(store)
        made = self._made
        if made is None or made.key != key or time.monotonic() - made.at > _KEPT_S:
            self._made = None  # so that two are never held at once
            report = budget_report(store, home, study)
            made = self._made = _Made(key, time.monotonic(), json.dumps(report, indent=2, allow_nan=False).encode())
        return made


class Exports:
    """Adapters as zip archives, written one at a time by a process that loads the model.

    Its method may be called from any thread.
    """

    def __init__(self) -> None:
        self._one = threading.Lock()

    def zip(self, home: Path, run_id: str, operator: Operator | None, override_audit: str | None) -> BinaryIO:
        """Writes a run's adapter as `adapter export` does; returns the open archive, which is in no folder any more.

        Raises:
            Conflict: another one is being written, no round is committed yet, or a charge is missing.
            AuditMissing: the study claims privacy, and no reason is given where an audit is required.
            CoordinatorError: it cannot be written.
        """
        with _alone(self._one, "another adapter is being written"):
            parent = home / FOLDER
            shutil.rmtree(parent, ignore_errors=True)  # of a process that was ended
            folder = parent / secrets.token_hex(8)  # an older one, if it still runs, has another
            try:
                parent.mkdir(mode=0o700)
                folder.mkdir(mode=0o700)
                _write(home, run_id, folder, operator, override_audit)
                return (folder / "adapter.zip").open("rb")
            except OSError as err:
                raise CoordinatorError(f"{folder} cannot be written: {err.strerror}; nothing is kept of it") from err
            finally:
                shutil.rmtree(parent, ignore_errors=True)


def attached(body: bytes | BinaryIO, name: str, kind: str, *, is_shown: bool = False) -> Response:
    """Answers with a file to be kept under a name; `is_shown` if the browser may show it first."""
    manner = "inline" if is_shown else "attachment"
    headers = {"Content-Disposition": f'{manner}; filename="{_ODD.sub("-", name)}"', "Content-Type": kind}
    if isinstance(body, bytes):
        return Response(body, headers=headers)
    body.seek(0, 2)
    headers["Content-Length"] = str(body.tell())
    body.seek(0)
    return StreamingResponse(_chunks(body), headers=headers)


@contextmanager
def _alone(lock: threading.Lock, problem: str) -> Iterator[None]:
    """Holds a lock; raises `Conflict` if another has it for long."""
    if not lock.acquire(timeout=_PATIENCE_S):
        raise Conflict(f"{problem} for somebody else, and nothing was made for you; try again in a minute")
    try:
        yield
    finally:
        lock.release()


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _heads(store: Store) -> tuple[tuple[str, int, str], ...]:
    found = []
    for node in store.nodes():
        if length := store.ledger_length(node.name):
            found.append((node.name, length, "".join(store.ledger_hashes(node.name, length - 1))))
    return tuple(found)


def _write(home: Path, run_id: str, folder: Path, operator: Operator | None, override_audit: str | None) -> None:
    """Lets another process load the model and write: it takes hundreds of megabytes, which this one must not keep."""
    order = {
        "home": str(home), "run": run_id, "folder": str(folder), "override_audit": override_audit,
        "operator": None if operator is None else operator.name,
    }  # fmt: skip
    command = [sys.executable, "-P", "-m", "confide.coordinator.page.exporting"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    with child:
        assert child.stdin is not None, "it was started with pipes"
        assert child.stdout is not None, "it was started with pipes"
        with suppress(BrokenPipeError):  # it has ended, as its exit code then says
            child.stdin.write(json.dumps(order).encode() + b"\n")
            child.stdin.flush()
        ending = threading.Timer(_LONGEST_S, child.kill)
        ending.start()
        try:
            told = child.stdout.read()
            child.wait()
        finally:
            ending.cancel()
            child.kill()
    if child.returncode != 0 or not told:
        raise CoordinatorError("the adapter was not written: its process ended; the page's log says why")
    found = json.loads(told)
    if problem := found.get("problem"):
        raise _ERRORS.get(found["kind"], CoordinatorError)(problem)

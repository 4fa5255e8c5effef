"""Makes budget reports for a download, and answers with files."""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from starlette.responses import Response, StreamingResponse

from ...privacy.report.build import render_html
from ...privacy.report.language import load
from ..errors import Conflict
from ..results.reports import budget_report
from ..store import Store

REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox"
)
_KEPT_S = 60.0
_PATIENCE_S = 2.0  # for a report that somebody else is having made
_CHUNK = 1 << 18
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
        with alone(self._one, "another budget report is being made", _PATIENCE_S):
            return self._newest(store, home, study).json

    def html(self, store: Store, home: Path, study: str | None, language: str) -> bytes:
        """Makes the page of `budget report --html`; arguments and errors are those of `json`."""
        load(language)  # before what takes long
        with alone(self._one, "another budget report is being made", _PATIENCE_S):
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


def busy(problem: str) -> Conflict:
    """Makes the error for who finds that somebody else is served."""
    return Conflict(f"{problem} for somebody else, and nothing was made for you; try again in a minute")


@contextmanager
def alone(lock: threading.Lock, problem: str, patience_s: float) -> Iterator[None]:
    """Holds a lock; raises `Conflict` if another has it for longer."""
    if not lock.acquire(timeout=patience_s):
        raise busy(problem)
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

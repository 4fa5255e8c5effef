"""The audit log: who did what, newest first, and how far others vouch for it."""

import re
import shlex
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.responses import Response

from ..errors import Conflict
from ..oversight import trail
from ..oversight.checkpoints import witnesses
from ..store import audit_log
from ..store.audit_log import Action
from .visits import Visit

ENTRIES_A_PAGE = 50
MOST_VERIFIED = 25_000  # entries and signatures, 3 to 7 s; a longer log is left to the command
_MOST_NUMBER = 15  # digits of an entry's number
_PAGES: Mapping[str, str] = {"run": "runs", "site": "sites", "hash": "studies"}  # by the names of fields
_HASH = re.compile(r"[0-9a-f]{32,64}")
_VERIFYING = threading.Lock()  # it keeps one core busy, and every viewer may ask


@dataclass(frozen=True, slots=True)
class Chosen:
    """The filter that stands in the address; "" where nothing is chosen."""

    actor: str
    action: str
    since: str

    @property
    def query(self) -> dict[str, str]:
        """The part of the address behind its question mark, as names and values."""
        return {name: each for name in ("actor", "action", "since") if (each := getattr(self, name))}


def show(visit: Visit) -> Response:
    """Shows the entries of the audit log, newest first, and the state of its chain."""
    return _render(visit)


def verify(visit: Visit) -> Response:
    """Verifies the log, as `coordinator audit verify` does, and shows what was found."""
    with visit.store.session() as session:
        work = audit_log.work(session)
    if work > MOST_VERIFIED:
        raise Conflict(
            f"the log has {work:,} entries and signatures, and this page verifies at most {MOST_VERIFIED:,}: run "
            "`coordinator audit verify` on the coordinator's machine"
        )
    if not _VERIFYING.acquire(blocking=False):
        raise Conflict("somebody has the log verified just now; try again in a few seconds")
    try:
        found = trail.verify(visit.store, visit.home)
    finally:
        _VERIFYING.release()
    return _render(visit, found)


def _render(visit: Visit, verified: trail.Verified | None = None) -> Response:
    chosen = Chosen(visit.asked("actor").strip(), visit.asked("action"), visit.asked("since").strip())
    asked = visit.asked("before")
    before = int(asked) if asked.isascii() and asked.isdecimal() and len(asked) <= _MOST_NUMBER else None
    problem, found = "", []
    try:
        found = trail.newest(
            visit.store, ENTRIES_A_PAGE + 1, before=before, since=chosen.since or None, actor=chosen.actor or None,
            action=chosen.action or None,
        )  # fmt: skip
    except Conflict as err:  # of the filter, which stays on the page to be mended
        problem = str(err)
    with visit.store.session() as session:
        head, signed, work = audit_log.head(session), audit_log.newest_checkpoint(session), audit_log.work(session)
    shown = found[:ENTRIES_A_PAGE]
    return visit.render(
        "log.html", status=400 if problem else 200, entries=list(map(_Shown.of, shown)), chosen=chosen,
        problem=problem, older=shown[-1].seq if len(found) > len(shown) else None, is_newest=before is None,
        nouns=trail.nouns(), head=head, signed=signed, witnesses=witnesses(visit.store), verified=verified,
        can_verify=work <= MOST_VERIFIED, at=shlex.quote(str(visit.home)),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Part:
    """A field of an entry as the page shows it."""

    name: str
    text: str
    page: str  # the part of the page that shows what is named; "" for none
    is_hash: bool


@dataclass(frozen=True, slots=True)
class _Shown:
    """An entry, with its fields for people."""

    entry: Action
    parts: list[_Part]

    @classmethod
    def of(cls, entry: Action) -> "_Shown":
        return cls(entry, [_part(name, each) for name, each in entry.fields.items() if each is not None])


def _part(name: str, value: object) -> _Part:
    text = value if isinstance(value, str) else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return _Part(name, text, _PAGES.get(name, "") if text else "", bool(_HASH.fullmatch(text)))

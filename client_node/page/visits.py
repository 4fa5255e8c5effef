"""One request of a person who was let in: of which node, in whose name, and how it is answered."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..errors import ApprovalRefused
from ..files import stamp
from ..web.entering import Session
from ..web.rendering import Renderer

NAV = (
    ("/", "Overview"), ("/studies", "Studies"), ("/budget", "Budget"), ("/traffic", "What left"),
    ("/decisions", "Decisions"), ("/policy", "Policy"), ("/log", "Log"),
)  # fmt: skip
A_PAGE = 25  # rows of a long list
_LAPSE_S = 3600.0  # budget that is held for a run of which nobody hears lapses by itself
_OF_LEDGER = (
    "ledger.db", "ledger.db-wal", "decisions.json", "holds.json", "site.toml", "keys/ledger.head", "keys/identity.key",
    "studies",
)  # fmt: skip
T = TypeVar("T")


class Node:
    """The node that the page is about. Methods may be called from any thread."""

    def __init__(self, home: Path, name: str, roles: Sequence[str], renderer: Renderer) -> None:
        self.home, self.name, self.roles, self.renderer = home, name, tuple(roles), renderer
        self._kept: dict[str, tuple[object, Any]] = {}
        self._mutex = threading.Lock()

    @property
    def trains(self) -> bool:
        """True if the node has a ledger."""
        return "train" in self.roles

    def of_ledger(self, name: str, compute: Callable[[Path], T]) -> T:
        """Returns what `compute` found when the ledger and what belongs to it were as they are now.

        One is computed at a time: a whole ledger may take seconds.
        """
        with self._mutex:
            now = *(stamp(self.home / each) for each in _OF_LEDGER), time.time() // _LAPSE_S
            if name not in self._kept or self._kept[name][0] != now:
                self._kept[name] = now, compute(self.home)
            found: T = self._kept[name][1]
            return found


@dataclass(frozen=True, slots=True)
class Visit:
    """One request, in the name of the login that made the session's link."""

    request: Request
    node: Node
    session: Session
    form: Mapping[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """The node's home."""
        return self.node.home

    @property
    def login(self) -> str:
        """The login in whose name is decided."""
        return self.session.who or ""

    def part(self, name: str) -> str:
        """Returns a part of the address, as the study's hash."""
        return str(self.request.path_params[name])

    def page_of(self, rows: Sequence[T]) -> tuple[Sequence[T], int, int]:
        """Returns the part of a long list that is asked for behind the question mark, its number, and how many."""
        count = max(1, -(-len(rows) // A_PAGE))
        asked = self.request.query_params.get("page", "1")[:9]
        page = min(max(1, int(asked) if asked.isascii() and asked.isdigit() else 1), count)
        return rows[(page - 1) * A_PAGE : page * A_PAGE], page, count

    def render(self, template: str, *, status: int = 200, **facts: Any) -> Response:
        """Answers with a page."""
        path = self.request.url.path
        here = max((to for to, _ in NAV if path == to or (to != "/" and path.startswith(to + "/"))), default="")
        notice, self.session.notice = self.session.notice, ""
        nav = [(to, name) for to, name in NAV if to != "/budget" or self.node.trains]
        return self.node.renderer.page(
            self.request, template, status=status, visit=self, federation=self.node.name, nav=nav, here=here,
            notice=notice, **facts,
        )  # fmt: skip

    def go(self, *parts: str, notice: str = "") -> Response:
        """Answers a form that was carried out: goes on to another page, where `notice` is shown once."""
        self.session.notice = notice
        return RedirectResponse("/" + "/".join(quote(each, safe="") for each in parts), status_code=303)

    def require_own_form(self) -> None:
        """Raises `ApprovalRefused` unless the form was filled in on a page of this session."""
        if not self.session.has_sent(self.form):
            raise ApprovalRefused(
                "this form is of an earlier session, so nothing was done; go back, reload, and try again"
            )

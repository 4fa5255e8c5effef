"""One request of a person who was let in: of which node, in whose name, and how it is answered."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from ..errors import ApprovalRefused
from ..files import stamp
from ..web.entering import Session
from ..web.rendering import Renderer
from ..web.routing import Visiting

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

    def __init__(self, home: Path, name: str, roles: Sequence[str], renderer: Renderer, daemon_log: Path) -> None:
        self.home, self.name, self.roles, self.renderer = home, name, tuple(roles), renderer
        self.daemon_log = daemon_log
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
class Visit(Visiting):
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

    def render(self, template: str, *, status: int = 200, **facts: Any) -> Response:
        """Answers with a page."""
        nav = [(to, name) for to, name in NAV if to != "/budget" or self.node.trains]
        return self.node.renderer.page(
            self.request, template, status=status, visit=self, federation=self.node.name, nav=nav,
            here=self.here(NAV), notice=self.take_notice(), **facts,
        )  # fmt: skip

    def require_own_form(self) -> None:
        """Raises `ApprovalRefused` unless the form was filled in on a page of this session."""
        if not self.session.has_sent(self.form):
            raise ApprovalRefused(
                "this form is of an earlier session, so nothing was done; go back, reload, and try again"
            )

"""One request of a person who was let in: who asks, of which federation, and how it is answered."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ...client_node.web.entering import Session
from ...client_node.web.rendering import Renderer
from ..errors import AccessRefused
from ..ledger_standings import Ledgers
from ..oversight import roles
from ..oversight.operators import Operator
from ..store import Store
from .downloads import Exports, Reports
from .statements import Statements
from .trained import Trained

NAV = (
    ("/", "Overview"), ("/runs", "Runs"), ("/studies", "Studies"), ("/sites", "Sites"), ("/budgets", "Budgets"),
    ("/adapters", "Adapters"), ("/log", "Log"), ("/settings", "Settings"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Federation:
    """The federation that the page is about."""

    home: Path
    name: str
    store: Store
    ledgers: Ledgers
    renderer: Renderer
    statements: Statements = field(default_factory=Statements)
    reports: Reports = field(default_factory=Reports)
    exports: Exports = field(default_factory=Exports)
    trained: dict[str, Trained] = field(default_factory=dict)  # by run


@dataclass(frozen=True, slots=True)
class Visit:
    """One request. `operator` is None for the home's account, as long as there are no operators."""

    request: Request
    federation: Federation
    session: Session
    operator: Operator | None
    form: Mapping[str, str] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        """The federation's store."""
        return self.federation.store

    @property
    def home(self) -> Path:
        """The federation's home."""
        return self.federation.home

    def part(self, name: str) -> str:
        """Returns a part of the address, as the run's id."""
        return str(self.request.path_params[name])

    def asked(self, name: str, default: str = "") -> str:
        """Returns what stands behind the address's question mark under a name, at most 200 characters of it."""
        return self.request.query_params.get(name, default)[:200]

    def page_of(self, pages: int) -> int:
        """Returns which page of a list is asked for, from 1 to `pages`."""
        asked = self.asked("page", "1")
        return min(max(1, int(asked) if asked.isdecimal() else 1), pages)

    def may(self, command: str) -> bool:
        """True if this person may use the command."""
        if self.operator is None:
            return True
        least = roles.least_role(command)
        return least == "anyone" or roles.is_enough(self.operator.role, least)

    def render(self, template: str, *, status: int = 200, **facts: Any) -> Response:
        """Answers with a page."""
        path = self.request.url.path
        here = max((to for to, _ in NAV if path == to or (to != "/" and path.startswith(to + "/"))), default="")
        notice = ""
        if "x-live" not in self.request.headers:  # else a page that looks by itself takes another one's notice
            notice, self.session.notice = self.session.notice, ""
        return self.federation.renderer.page(
            self.request, template, status=status, visit=self, federation=self.federation.name, nav=NAV, here=here,
            notice=notice, **facts,
        )  # fmt: skip

    def go(self, *parts: str, notice: str = "") -> Response:
        """Answers a form that was carried out: goes on to another page, where `notice` is shown once."""
        self.session.notice = notice
        return RedirectResponse("/" + "/".join(quote(each, safe="") for each in parts), status_code=303)

    def require_own_form(self) -> None:
        """Raises `AccessRefused` unless the form was filled in on a page of this session."""
        if not self.session.has_sent(self.form):
            raise AccessRefused(
                "this form is of an earlier session, so nothing was done; go back, reload, and try again"
            )

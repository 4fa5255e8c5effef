"""One request of a person who was let in: who asks, of which federation, and how it is answered."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ...client_node.web.entering import Session
from ...client_node.web.rendering import Renderer
from ...client_node.web.routing import Visiting
from ..errors import AccessRefused
from ..ledger_standings import Ledgers
from ..oversight import roles
from ..oversight.operators import Operator
from ..store import Store
from .downloads import Reports
from .model_work import ModelWork
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
    statements: Statements
    reports: Reports = field(default_factory=Reports)
    models: ModelWork = field(default_factory=ModelWork)
    trained: dict[str, Trained] = field(default_factory=dict)  # by run


@dataclass(frozen=True, slots=True)
class Visit(Visiting):
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

    def may(self, command: str) -> bool:
        """True if this person may use the command."""
        if self.operator is None:
            return True
        least = roles.least_role(command)
        return least == "anyone" or roles.is_enough(self.operator.role, least)

    def render(self, template: str, *, status: int = 200, **facts: Any) -> Response:
        """Answers with a page."""
        return self.federation.renderer.page(
            self.request, template, status=status, visit=self, federation=self.federation.name, nav=NAV,
            here=self.here(NAV), notice=self.take_notice(), **facts,
        )  # fmt: skip

    def require_own_form(self) -> None:
        """Raises `AccessRefused` unless the form was filled in on a page of this session."""
        if not self.session.has_sent(self.form):
            raise AccessRefused(
                "this form is of an earlier session, so nothing was done; go back, reload, and try again"
            )

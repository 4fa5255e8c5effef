"""Puts a site's page together: the routes of `views`, in whose name they act, and what an error looks like."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ... import __version__
from ...models.errors import ModelError
from ...mpc.crash import TextLeftOut
from ...mpc.errors import MpcError
from ...privacy.errors import PrivacyError
from ..enrolment import Enrolment
from ..errors import ApprovalRefused, ClientNodeError, SecondPersonMissing, StudyUnknown
from ..login import in_name_of
from ..telling import said
from ..web.forms import FormInvalid
from ..web.rendering import Renderer, small
from ..web.routing import aftermath, routes_of
from . import budget
from .door import SiteDoor
from .views import VIEWS
from .visits import Node, Visit

logger = logging.getLogger(__name__)

_TROUBLES = (ClientNodeError, ModelError, MpcError, PrivacyError, FormInvalid, OSError)
_STATUS: Mapping[type[Exception], int] = {
    StudyUnknown: 404, ApprovalRefused: 409, SecondPersonMissing: 409, OSError: 503,
}  # fmt: skip


class PageApp:
    """The page of the node at `home`, as an ASGI app.

    Args:
        home: the node's home.
        daemon_log: where the daemon logs; by default the standard error of this process's parent, which it is.

    Raises:
        NotEnrolled: the node belongs to no federation.
    """

    def __init__(self, home: Path, *, daemon_log: Path | None = None) -> None:
        log = daemon_log or Path(f"/proc/{os.getppid()}/fd/2")
        enrolment = Enrolment.load(home)
        renderer = Renderer(__name__, version=__version__, said=_said)
        self._node = Node(home, enrolment.name, enrolment.roles, renderer, log)
        self._door = SiteDoor(self._node)
        self.app = Starlette(
            routes=[*renderer.routes(), *self._door.routes(), *routes_of(VIEWS, self._answer, self._refused)],
            exception_handlers={404: self._not_there, 405: self._not_there},
        )

    def warm_up(self) -> None:
        """Does once what takes long only the first time, so that nobody waits: templates, accountants, the budget."""
        self._node.renderer.warm_up()
        if self._node.trains:
            try:
                budget.accounts_drawn(self._node)
            except _TROUBLES as err:
                logger.warning("the budget cannot be shown until this is mended: %s", err)

    def _answer(
        self,
        request: Request,
        command: str,
        look: Callable[[Visit], Response],
        form: Mapping[str, str] | None,
    ) -> Response:
        session = self._door.session_of(request)
        if session is None:
            if form is not None or request.headers.get("x-live"):
                return self._bare(request, "the session has ended; open another link", 401)
            return RedirectResponse("/login", status_code=303)
        visit = Visit(request, self._node, session, form or {})
        try:
            if form is not None:
                visit.require_own_form()
            with in_name_of(visit.login):
                return look(visit)
        except _TROUBLES as err:
            status = next((status for kind, status in _STATUS.items() if isinstance(err, kind)), 400)
            said = aftermath(status, has_begun=form is not None)
            return visit.render("trouble.html", status=status, problem=str(err), **said)
        except Exception as err:
            logger.error("%s could not be shown", command, exc_info=TextLeftOut.of(err))
            problem = "an error that should not happen; the page's log says where"
            said = aftermath(500, has_begun=form is not None)
            return visit.render("trouble.html", status=500, problem=problem, **said)

    def _refused(self, request: Request, err: Exception, status: int) -> Response:
        return self._bare(request, str(err), status)

    def _bare(self, request: Request, problem: str, status: int) -> Response:
        return self._node.renderer.page(
            request, "outside.html", status=status, federation=self._node.name, problem=problem,
            **aftermath(status),
        )  # fmt: skip

    async def _not_there(self, request: Request, err: Exception) -> Response:
        status = err.status_code if isinstance(err, HTTPException) else 404
        return self._bare(request, "there is no such page", status)


def _said(value: Any) -> str:
    """Writes a setting's value, a small number as reports do."""
    return small(value) if isinstance(value, float) else said(value)

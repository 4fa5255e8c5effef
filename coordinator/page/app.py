"""Puts the operator's page together: the routes of `views`, who may ask for which, and what an error looks like."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount

from ... import __version__
from ...client_node.errors import ClientNodeError, KeysSealed
from ...client_node.web.forms import FormInvalid
from ...client_node.web.rendering import Renderer
from ...client_node.web.routing import aftermath, routes_of
from ...mpc.crash import TextLeftOut
from ...privacy.errors import PrivacyError
from ..api.app import PREFIX, make_api
from ..errors import AccessRefused, Conflict, CoordinatorError, NotFound, StoreUnavailable
from ..federation import load_settings
from ..ledger_standings import Ledgers
from ..oversight import access, roles
from ..oversight.tokens import Tokens
from ..run.progress import live_run
from ..store import Store
from ..store.actions import acting_as
from ..studies.catalogue import load_study
from . import model_work, studies
from .login import Login
from .statements import Statements
from .tones import tone
from .views import VIEWS, Look
from .visits import Federation, Visit

logger = logging.getLogger(__name__)

_TROUBLES = (CoordinatorError, ClientNodeError, PrivacyError, FormInvalid)
_WARM_S = 60.0  # for a ledger of some length
_STATUS: Mapping[type[Exception], int] = {
    AccessRefused: 403, NotFound: 404, Conflict: 409, KeysSealed: 409, StoreUnavailable: 503,
}  # fmt: skip


class PageApp:
    """The operator's page over one home, as an ASGI app. `close` ends its threads."""

    def __init__(self, home: Path, store: Store, *, is_https: bool) -> None:
        model_work.clear(home)
        renderer = Renderer(__name__, version=__version__, tone=tone)
        ledgers = Ledgers(store, with_courses=True)
        self._federation = Federation(
            home, load_settings(home).federation, store, ledgers, renderer, Statements(ledgers)
        )
        tokens = Tokens(store)  # wrong ones are counted together, of the form and of the API
        self._login = Login(self._federation, tokens, is_https=is_https)
        api = make_api(home, store, self._federation.ledgers, tokens)
        self._federation.ledgers.start()
        self.app = Starlette(
            routes=[
                *renderer.routes(),
                *self._login.routes(),
                Mount(PREFIX, api),
                *routes_of(VIEWS, self._answer, self._refused),
            ],
            exception_handlers={404: self._not_there, 405: self._not_there},
        )
        self.app.router.redirect_slashes = False  # it would lead to the name that the request gives itself

    def warm_up(self) -> None:
        """Does once what takes long only the first time, so that nobody waits: templates, accountants, open runs."""
        self._federation.renderer.warm_up()
        store = self._federation.store
        with suppress(*_TROUBLES):  # whoever opens the page is told
            runs, rows = [*store.unfinished_runs(), *store.runs()[-1:]], store.studies()[-studies.STUDIES_A_PAGE :]
            for run in runs:
                with suppress(*_TROUBLES):
                    live_run(store, run.id)
                    studies.prices(load_study(store.study(run.study)))
            for row in rows:
                with suppress(*_TROUBLES):
                    studies.planned(load_study(row))
            first = next((node.name for node in store.nodes() if store.ledger_length(node.name)), None)
            if first is not None:
                self._federation.statements.of(store, first, wait_s=_WARM_S)

    def close(self) -> None:
        """Ends the thread that follows the ledgers, and what a loaded model is needed for."""
        self._federation.models.close()
        self._federation.ledgers.stop()

    def _answer(self, request: Request, command: str, look: Look, form: Mapping[str, str] | None) -> Response:
        session = self._login.session_of(request)
        if session is None:
            return self._to_login(request, form)
        try:
            operator = access.still(self._federation.store, session.who, session.proof, command=command)
        except AccessRefused as err:
            self._login.end(request)
            return self._refused(request, err, 403)
        except CoordinatorError as err:
            return self._refused(request, err, 503)
        visit = Visit(request, self._federation, session, operator, form or {})
        try:
            if form is not None:
                visit.require_own_form()
            least = roles.least_role(command)
            if least != "anyone":
                access.permit(self._federation.store, operator, least, command=command)
            with acting_as(None if operator is None else operator.name):
                return look(visit)
        except _TROUBLES as err:
            status = next((status for kind, status in _STATUS.items() if isinstance(err, kind)), 400)
            return self._troubled(visit, err, status)
        except Exception as err:
            logger.error("%s could not be shown", command, exc_info=TextLeftOut.of(err))
            trouble = CoordinatorError("an error that should not happen; the page's log says where")
            return self._troubled(visit, trouble, 500)

    def _to_login(self, request: Request, form: Mapping[str, str] | None) -> Response:
        if form is not None or request.headers.get("x-live"):
            return self._refused(request, AccessRefused("the session has ended; log in again"), 401)
        return RedirectResponse("/login", status_code=303)

    def _troubled(self, visit: Visit, err: Exception, status: int) -> Response:
        said = aftermath(status, has_begun=visit.request.method == "POST")
        return visit.render("trouble.html", status=status, problem=str(err), **said)

    def _refused(self, request: Request, err: Exception, status: int) -> Response:
        return self._bare(request, str(err), status)

    def _bare(self, request: Request, problem: str, status: int) -> Response:
        return self._federation.renderer.page(
            request, "outside.html", status=status, federation=self._federation.name, problem=problem,
            **aftermath(status),
        )  # fmt: skip

    async def _not_there(self, request: Request, err: Exception) -> Response:
        status = err.status_code if isinstance(err, HTTPException) else 404
        return self._bare(request, "there is no such page", status)

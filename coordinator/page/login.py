"""The door of the operator's page: a form for an operator's token, and links that `coordinator page` prints."""

import threading

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ...client_node.web.entering import Attempts, Session, Sessions, cookie_name, is_led_here, open_link
from ...client_node.web.forms import FormInvalid, read_form
from ..errors import AccessRefused, CoordinatorError
from ..oversight import access
from ..oversight.operators import any_operator
from ..store.actions import acting_as
from .visits import Federation

COMMAND = "page"  # under which the audit log has who was refused
_AT_ONCE_S = 10.0  # argon2id takes 64 MiB, so one token is looked at at a time


class Login:
    """Sessions of one page, and the routes by which they begin and end."""

    def __init__(self, federation: Federation, *, is_https: bool) -> None:
        self._federation, self._is_https = federation, is_https
        self._sessions, self._attempts = Sessions(), Attempts()
        self._one = threading.Lock()

    def routes(self) -> list[Route]:
        """Lists the routes of the door."""
        return [
            Route("/login", self._show, methods=["GET"]),
            Route("/login", self._take_token, methods=["POST"]),
            Route("/enter", self._take_link, methods=["GET"]),
            Route("/logout", self._leave, methods=["POST"]),
        ]

    def session_of(self, request: Request) -> Session | None:
        """Finds the session of a request."""
        return self._sessions.find(request.cookies.get(self._cookie(request)), by_itself="x-live" in request.headers)

    def end(self, request: Request) -> None:
        """Ends the session of a request."""
        self._sessions.close(request.cookies.get(self._cookie(request)))

    def _cookie(self, request: Request) -> str:
        return cookie_name(request, is_https=self._is_https)

    async def _show(self, request: Request) -> Response:
        return self._page(request)

    async def _take_token(self, request: Request) -> Response:
        try:
            token = (await read_form(request)).get("token", "")
        except FormInvalid as err:
            return self._page(request, str(err), 400)
        return await run_in_threadpool(self._try, request, token)

    def _try(self, request: Request, token: str) -> Response:
        if wait_s := self._attempts.wait_s():
            return self._busy(request, wait_s)
        if not self._one.acquire(timeout=_AT_ONCE_S):
            return self._busy(request, 5.0)
        try:
            if wait_s := self._attempts.wait_s():  # while this one waited
                return self._busy(request, wait_s)
            if not any_operator(self._federation.store):
                return self._page(request, "there are no operators yet, so no token opens this page", 403)
            try:
                operator = access.recognise(self._federation.store, token, command=COMMAND)
            except AccessRefused as err:
                self._attempts.note_failure()
                return self._page(request, str(err), 403)
        except CoordinatorError as err:
            return self._page(request, str(err), 503)
        finally:
            self._one.release()
        return self._let_in(request, operator.name, operator.token_hash, by="token")

    async def _take_link(self, request: Request) -> Response:
        return await run_in_threadpool(self._open_link, request)

    def _open_link(self, request: Request) -> Response:
        if is_led_here(request):
            return self._page(request, "another page has led here; paste the link into the address bar", 403)
        found = open_link(self._federation.home, request.query_params.get("link", "")[:100])
        if found is None:
            return self._page(request, "this link was used, or is older than five minutes; make another one", 403)
        try:
            access.still(self._federation.store, *found, command=COMMAND)
        except CoordinatorError as err:
            return self._page(request, str(err), 403)
        return self._let_in(request, *found, by="link")

    async def _leave(self, request: Request) -> Response:
        session = self.session_of(request)
        try:
            form = await read_form(request)
        except FormInvalid as err:
            return self._page(request, str(err), 400)
        if session is not None and form.get("form_key") != session.form_key:
            return self._page(request, "this form is of an earlier session; nothing was done", 403)
        self.end(request)
        answer = RedirectResponse("/login", status_code=303)
        answer.delete_cookie(self._cookie(request), path="/", secure=self._is_https, httponly=True, samesite="strict")
        return answer

    def _let_in(self, request: Request, who: str | None, proof: str, *, by: str) -> Response:
        store = self._federation.store
        try:
            with acting_as(who), store.session() as session:
                store.log_action(session, "page.enter", by=by)
        except CoordinatorError as err:
            return self._page(request, str(err), 503)
        self.end(request)  # who enters anew leaves no earlier session open
        secret = self._sessions.open(who, proof)
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(
            self._cookie(request), secret, path="/", secure=self._is_https, httponly=True, samesite="strict",
        )  # fmt: skip
        return answer

    def _busy(self, request: Request, wait_s: float) -> Response:
        answer = self._page(request, f"too many wrong tokens; try again in {wait_s:.0f} s, or use a link", 429)
        answer.headers["Retry-After"] = f"{max(1.0, wait_s):.0f}"
        return answer

    def _page(self, request: Request, problem: str = "", status: int = 200) -> Response:
        return self._federation.renderer.page(
            request, "login.html", status=status, federation=self._federation.name, problem=problem
        )

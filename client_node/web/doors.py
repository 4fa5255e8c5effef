"""The door of a page: its sessions in a cookie, links that let a browser in once, and the way out."""

from abc import ABC, abstractmethod
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from .accounts import of_browser
from .entering import Session, Sessions, cookie_name, is_led_here, open_link
from .forms import FormInvalid, read_form


class Door(ABC):
    """Sessions of one page, and the routes by which they begin and end."""

    def __init__(self, home: Path, *, is_https: bool) -> None:
        self._home, self._is_https, self._sessions = home, is_https, Sessions()

    @abstractmethod
    def objection(self, who: str | None, proof: str) -> str:
        """Says why whoever holds a link of that name is not let in; "" lets them in."""

    @abstractmethod
    def note(self, who: str | None, by: str) -> str:
        """Notes that a browser is let in, by a token or a link; says why it cannot be, or ""."""

    @abstractmethod
    def page(self, request: Request, problem: str = "", status: int = 200) -> Response:
        """Shows the door, and what went wrong there."""

    def routes(self) -> list[Route]:
        """Lists the routes of the door."""
        return [
            Route("/login", self._show, methods=["GET"]),
            Route("/enter", self._take_link, methods=["GET"]),
            Route("/logout", self._leave, methods=["POST"]),
        ]

    def session_of(self, request: Request) -> Session | None:
        """Finds the session of a request."""
        secret = request.cookies.get(self._cookie(request))
        if not secret:
            return None
        return self._sessions.find(secret, account=of_browser(request), by_itself="x-live" in request.headers)

    def end(self, request: Request) -> None:
        """Ends the session of a request."""
        self._sessions.close(request.cookies.get(self._cookie(request)))

    def let_in(self, request: Request, who: str | None, proof: str, *, by: str) -> Response:
        """Begins a session, and goes on to the first page."""
        if why := self.note(who, by):
            return self.page(request, why, 503)
        self.end(request)  # who enters anew leaves no earlier session open
        secret = self._sessions.open(who, proof, of_browser(request))
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(
            self._cookie(request), secret, path="/", secure=self._is_https, httponly=True, samesite="strict",
        )  # fmt: skip
        return answer

    def _cookie(self, request: Request) -> str:
        return cookie_name(request, is_https=self._is_https)

    async def _show(self, request: Request) -> Response:
        return self.page(request)

    async def _take_link(self, request: Request) -> Response:
        return await run_in_threadpool(self._open_link, request)

    def _open_link(self, request: Request) -> Response:
        if is_led_here(request):
            return self.page(request, "another page has led here; paste the link into the address bar", 403)
        found = open_link(self._home, request.query_params.get("link", "")[:100])
        if found is None:
            return self.page(request, "this link was used, or is older than five minutes; make another one", 403)
        if why := self.objection(*found):
            return self.page(request, why, 403)
        return self.let_in(request, *found, by="link")

    async def _leave(self, request: Request) -> Response:
        session = self.session_of(request)
        try:
            form = await read_form(request)
        except FormInvalid as err:
            return self.page(request, str(err), 400)
        if session is not None and not session.has_sent(form):
            return self.page(request, "this form is of an earlier session; nothing was done", 403)
        self.end(request)
        answer = RedirectResponse("/login", status_code=303)
        answer.delete_cookie(self._cookie(request), path="/", secure=self._is_https, httponly=True, samesite="strict")
        return answer

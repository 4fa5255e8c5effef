"""The door of a page: its sessions in a cookie, links that let a browser in once, and the way out."""

from abc import ABC, abstractmethod
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from .entering import Session, Sessions, open_link
from .forms import FormInvalid, read_form


class Door(ABC):
    """Sessions of one page, and the routes by which they begin and end.

    Args:
        cookie: name of the cookie. Browsers send the cookies of a host to all its ports, so that pages of one machine
            that shall be open side by side need names of their own.
    """

    def __init__(self, home: Path, *, is_https: bool, cookie: str = "confide") -> None:
        self._home, self._is_https = home, is_https
        # A cookie of this name is taken by browsers from us alone, and by TLS.
        self._cookie = f"__Host-{cookie}" if is_https else cookie
        self._sessions = Sessions()

    @abstractmethod
    def objection(self, who: str | None, proof: str) -> str:
        """Says why whoever holds a link of that name is not let in; "" lets them in."""

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
        return self._sessions.find(request.cookies.get(self._cookie))

    def end(self, request: Request) -> None:
        """Ends the session of a request."""
        self._sessions.close(request.cookies.get(self._cookie))

    def let_in(self, who: str | None, proof: str) -> Response:
        """Begins a session, and goes on to the first page."""
        secret = self._sessions.open(who, proof)
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(
            self._cookie, secret, path="/", secure=self._is_https, httponly=True, samesite="strict",
        )  # fmt: skip
        return answer

    async def _show(self, request: Request) -> Response:
        return self.page(request)

    async def _take_link(self, request: Request) -> Response:
        return await run_in_threadpool(self._open_link, request)

    def _open_link(self, request: Request) -> Response:
        found = open_link(self._home, request.query_params.get("link", "")[:100])
        if found is None:
            return self.page(request, "this link was used, or is older than five minutes; make another one", 403)
        if why := self.objection(*found):
            return self.page(request, why, 403)
        return self.let_in(*found)

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
        answer.delete_cookie(self._cookie, path="/", secure=self._is_https, httponly=True, samesite="strict")
        return answer

"""Makes routes of a table of pages and forms, and holds what their requests have in common."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from anyio import move_on_after, to_thread
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ..errors import PageUnavailable
from .entering import Session
from .forms import FormInvalid, read_form

VIEW_S = 30.0  # for what a browser is shown; a lock in a database is waited for by 20 s
T = TypeVar("T")


class Visiting:
    """Base of the requests of people who were let in; they have a request, a session and a form's fields."""

    __slots__ = ()
    request: Request
    session: Session
    form: Mapping[str, str]

    def part(self, name: str) -> str:
        """Returns a part of the address, as the run's id."""
        return str(self.request.path_params[name])

    def asked(self, name: str, default: str = "") -> str:
        """Returns what stands behind the address's question mark under a name, at most 200 characters of it."""
        return self.request.query_params.get(name, default)[:200]

    def page_of(self, rows: Sequence[T], size: int) -> tuple[Sequence[T], int, int]:
        """Returns the part of a long list that the address asks for, its number, and how many there are."""
        count, asked = max(1, -(-len(rows) // size)), self.asked("page", "1")
        page = min(max(1, int(asked) if asked.isdecimal() else 1), count)
        return rows[(page - 1) * size : page * size], page, count

    def here(self, nav: Sequence[tuple[str, str]]) -> str:
        """Finds the part of the pages that the address is in; "" for none."""
        path = self.request.url.path
        return max((to for to, _ in nav if path == to or (to != "/" and path.startswith(to + "/"))), default="")

    def take_notice(self) -> str:
        """Takes what the session's next page shall say once; a page that looks by itself leaves it to the next one."""
        if "x-live" in self.request.headers:
            return ""
        notice, self.session.notice = self.session.notice, ""
        return notice

    def go(self, *parts: str, notice: str = "") -> Response:
        """Answers a form that was carried out: goes on to another page, where `notice` is shown once."""
        self.session.notice = notice
        return RedirectResponse("/" + "/".join(quote(each, safe="") for each in parts), status_code=303)


class Viewed(Protocol):
    """A page, and the form on it if it has one, beside the commands that do the same."""

    @property
    def command(self) -> str:
        """The command that shows the same."""

    @property
    def look(self) -> Callable[[Any], Response]:
        """Shows the page."""

    @property
    def change(self) -> str | None:
        """The command that the form carries out."""

    @property
    def carry_out(self) -> Callable[[Any], Response] | None:
        """Carries the form out."""


Answer = Callable[[Request, str, Callable[[Any], Response], Mapping[str, str] | None], Response]


def routes_of(
    views: Mapping[str, Viewed], answer: Answer, refuse: Callable[[Request, Exception, int], Response]
) -> list[Route]:
    """Makes the routes of a table, each answered in a thread of its own.

    Args:
        answer: takes the request, the command that does the same, the function that answers it, and a form's fields.
        refuse: answers what is no form of ours, and what takes too long to be shown.
    """
    found = []
    for path, view in views.items():
        found.append(Route(path, _shown(view, answer, refuse), methods=["GET"]))
        if view.carry_out is not None:
            found.append(Route(path, _carried_out(view, view.carry_out, answer, refuse), methods=["POST"]))
    return found


def aftermath(status: int, *, has_begun: bool = False) -> dict[str, str]:
    """Says what came of a request that failed, and what to do; `has_begun` of an action that may be done in part."""
    if status < 500:
        return {"heading": "Nothing was done", "advice": ""}
    if has_begun:
        said = "Look at what stands now before you do it again."
        return {"heading": "It is not certain that this was done", "advice": said}
    said = "Nothing was changed. Try again in a moment: the page itself needs no restart."
    return {"heading": "This cannot be answered just now", "advice": said}


def _shown(
    view: Viewed, answer: Answer, refuse: Callable[[Request, Exception, int], Response]
) -> Callable[[Request], Awaitable[Response]]:
    async def shown(request: Request) -> Response:
        with move_on_after(VIEW_S):  # what hangs, as a database may, must not keep a person waiting
            return await to_thread.run_sync(answer, request, view.command, view.look, None, abandon_on_cancel=True)
        return refuse(request, PageUnavailable(f"this was not ready within {VIEW_S:.0f} s, and is not waited for"), 503)

    return shown


def _carried_out(
    view: Viewed,
    carry_out: Callable[[Any], Response],
    answer: Answer,
    refuse: Callable[[Request, Exception, int], Response],
) -> Callable[[Request], Awaitable[Response]]:
    async def carried_out(request: Request) -> Response:
        try:
            form = await read_form(request)
        except FormInvalid as err:
            return refuse(request, err, 400)
        return await run_in_threadpool(answer, request, str(view.change), carry_out, form)

    return carried_out

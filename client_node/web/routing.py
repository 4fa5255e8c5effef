"""Makes routes of a table of pages and forms."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .forms import FormInvalid, read_form


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
        refuse: answers what is no form of ours.
    """
    found = []
    for path, view in views.items():
        found.append(Route(path, _shown(view, answer), methods=["GET"]))
        if view.carry_out is not None:
            found.append(Route(path, _carried_out(view, view.carry_out, answer, refuse), methods=["POST"]))
    return found


def _shown(view: Viewed, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
    async def shown(request: Request) -> Response:
        return await run_in_threadpool(answer, request, view.command, view.look, None)

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

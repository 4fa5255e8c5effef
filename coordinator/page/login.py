"""The door of the operator's page: a form for an operator's token, and links that `coordinator page` prints."""

import threading

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...client_node.web.doors import Door
from ...client_node.web.entering import Attempts
from ...client_node.web.forms import FormInvalid, read_form
from ..errors import AccessRefused, CoordinatorError
from ..oversight import access
from ..oversight.operators import any_operator
from .visits import Federation

COMMAND = "page"  # under which the audit log has who was refused
_AT_ONCE_S = 10.0  # argon2id takes 64 MiB, so one token is looked at at a time


class Login(Door):
    """Sessions of operators."""

    def __init__(self, federation: Federation, *, is_https: bool) -> None:
        super().__init__(federation.home, is_https=is_https)
        self._federation, self._attempts = federation, Attempts()
        self._one = threading.Lock()

    def routes(self) -> list[Route]:
        """Lists the routes of the door."""
        return [*super().routes(), Route("/login", self._take_token, methods=["POST"])]

    def objection(self, who: str | None, proof: str) -> str:
        """Says why the operator of a link is not let in any more; "" lets them in."""
        try:
            access.still(self._federation.store, who, proof, command=COMMAND)
        except CoordinatorError as err:
            return str(err)
        return ""

    def page(self, request: Request, problem: str = "", status: int = 200) -> Response:
        """Shows the form for a token, and what went wrong."""
        return self._federation.renderer.page(
            request, "login.html", status=status, federation=self._federation.name, problem=problem
        )

    async def _take_token(self, request: Request) -> Response:
        try:
            token = (await read_form(request)).get("token", "")
        except FormInvalid as err:
            return self.page(request, str(err), 400)
        return await run_in_threadpool(self._try, request, token)

    def _try(self, request: Request, token: str) -> Response:
        if not self._one.acquire(timeout=_AT_ONCE_S):
            return self._busy(request, 5.0)
        try:
            if wait_s := self._attempts.wait_s():
                return self._busy(request, wait_s)
            if not any_operator(self._federation.store):
                return self.page(request, "there are no operators yet, so no token opens this page", 403)
            try:
                operator = access.recognise(self._federation.store, token, command=COMMAND)
            except AccessRefused as err:
                self._attempts.note_failure()
                return self.page(request, str(err), 403)
        except CoordinatorError as err:
            return self.page(request, str(err), 503)
        finally:
            self._one.release()
        return self.let_in(operator.name, operator.token_hash)

    def _busy(self, request: Request, wait_s: float) -> Response:
        answer = self.page(request, f"too many wrong tokens; try again in {wait_s:.0f} s, or use a link", 429)
        answer.headers["Retry-After"] = f"{max(1.0, wait_s):.0f}"
        return answer

"""The door of the operator's page: a form for an operator's token, and links that `coordinator page` prints."""

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...client_node.web.doors import Door
from ...client_node.web.forms import FormInvalid, read_form
from ..errors import AccessRefused, AttemptsExceeded, CoordinatorError
from ..oversight import access
from ..oversight.operators import any_operator
from ..oversight.tokens import Tokens
from ..store.actions import acting_as
from .visits import Federation

COMMAND = "page"  # under which the audit log has who was refused


class Login(Door):
    """Sessions of operators."""

    def __init__(self, federation: Federation, tokens: Tokens, *, is_https: bool) -> None:
        super().__init__(federation.home, is_https=is_https)
        self._federation, self._tokens = federation, tokens

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

    def note(self, who: str | None, by: str) -> str:
        """Notes in the audit log who is let in; says why it cannot be, or ""."""
        store = self._federation.store
        try:
            with acting_as(who), store.session() as session:
                store.log_action(session, "page.enter", by=by)
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
        try:
            if not any_operator(self._federation.store):
                return self.page(request, "there are no operators yet, so no token opens this page", 403)
            operator = self._tokens.recognise(token, command=COMMAND)
        except AttemptsExceeded as err:
            answer = self.page(request, f"{err}, or use a link", 429)
            answer.headers["Retry-After"] = f"{err.wait_s:.0f}"
            return answer
        except AccessRefused as err:
            return self.page(request, str(err), 403)
        except CoordinatorError as err:
            return self.page(request, str(err), 503)
        return self.let_in(request, operator.name, operator.token_hash, by="token")

"""The one way into the API: a route names its command, and lets nobody through without a token of its role.

The token is looked at before anything else of a request is read. A cookie opens nothing here, so no page of another
site can send a request in somebody's name.
"""

import hashlib
import logging
import re
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Depends
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ...mpc.crash import TextLeftOut
from ..errors import AccessRefused, AttemptsExceeded, CoordinatorError
from ..ledger_standings import Ledgers
from ..oversight import access, roles
from ..oversight.operators import Operator, any_operator
from ..oversight.tokens import Tokens
from ..store import Store
from ..store.actions import acting_as
from . import problems

logger = logging.getLogger(__name__)

T = TypeVar("T")

WAIT_S = 5.0
_BEARER = re.compile(r"(?i:bearer) +([A-Za-z0-9._~+/-]+=*)")
_NOBODY = "there are no operators yet, so no token opens the API; add one: coordinator operator add NAME --role admin"
_JSON = "application/json"
_OF_FRAME = (408, 413)  # statuses of what did not come in time, or is too long


@dataclass(frozen=True, slots=True)
class Federation:
    """The federation that the API is about."""

    home: Path
    store: Store
    ledgers: Ledgers
    tokens: Tokens
    busy: threading.Lock

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Does what takes a processor for long one at a time; who cannot wait is refused, and takes up no thread."""
        if not self.busy.acquire(timeout=WAIT_S):
            raise problems.Refusal(503, "another report or study is being made; try again", {"Retry-After": "10"})
        try:
            yield
        finally:
            self.busy.release()


@dataclass(frozen=True, slots=True)
class Call:
    """One request of an operator whose role is enough for it."""

    request: Request
    federation: Federation
    operator: Operator

    @property
    def store(self) -> Store:
        """The federation's store."""
        return self.federation.store

    @property
    def home(self) -> Path:
        """The federation's home."""
        return self.federation.home


def _call(request: Request) -> Call:
    """Gives the admitted call to an endpoint; there is none unless the route has admitted it."""
    call: Call = request.state.call
    return call


Asked = Annotated[Call, Depends(_call)]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address of the API, and the command of `coordinator` that does the same."""

    method: str
    path: str
    command: str
    answer: Callable[..., Any]
    status: int


ENDPOINTS: list[Endpoint] = []


def endpoint(
    method: str, path: str, command: str, *, status: int = 200
) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Adds a function to the API; it runs as the operator who asks, which the audit log then says."""

    def add(function: Callable[..., T]) -> Callable[..., T]:
        @wraps(function)
        def answered(**values: Any) -> T:
            with acting_as(values["call"].operator.name):
                return function(**values)

        answered.command = command  # type: ignore[attr-defined]
        ENDPOINTS.append(Endpoint(method, path, command, answered, status))
        return answered

    return add


class GuardedRoute(APIRoute):
    """A route that lets through only operators whose role is enough for its command."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        command = getattr(endpoint, "command", None)
        if command is None:
            raise AccessRefused(f"{path} names no command, so no role is known for it and nobody may ask for it")
        role = roles.least_role(command)
        if role == roles.ANYONE:
            raise AccessRefused(f"{path} names `{command}`, which takes no role; the API lets in nobody without one")
        self.command, self._role = command, role
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Makes the handler: admits, answers, and turns every error into a problem."""
        answer = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                request.state.call = await run_in_threadpool(self._admit, request)
                self._require_form(request)
                return _with_etag(request, await answer(request))
            except problems.Refusal as err:
                return problems.of_status(err.status, str(err), err.headers)
            except RequestValidationError as err:
                return problems.of_faults(err.errors())
            except HTTPException as err:
                said = err.detail if err.status_code in _OF_FRAME else "the request cannot be read"
                return problems.of_status(err.status_code, said, err.headers)
            except problems.OURS as err:
                return problems.of_error(err)
            except Exception as err:
                logger.error("%s %s could not be answered", self.methods, self.path, exc_info=TextLeftOut.of(err))
                return problems.of_error(
                    CoordinatorError("an error that should not happen; the page's log says where"), 500
                )

        return guarded

    def _admit(self, request: Request) -> Call:
        """Lets the request through as its operator's."""
        federation: Federation = request.app.state.federation
        if not any_operator(federation.store):
            raise AccessRefused(_NOBODY)
        given = request.headers.getlist("authorization")
        found = _BEARER.fullmatch(given[0].strip()) if len(given) == 1 else None
        if found is None:
            raise problems.Refusal(
                401, "the API takes an operator's token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )
        try:
            operator = federation.tokens.recognise(found[1], command=self.command)
        except AttemptsExceeded:
            raise
        except AccessRefused as err:
            headers = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
            raise problems.Refusal(401, str(err), headers) from err
        access.permit(federation.store, operator, self._role, command=self.command)
        return Call(request, federation, operator)

    def _require_form(self, request: Request) -> None:
        """Refuses parameters that the address does not have, and a body in another form than JSON."""
        asked = [name for name, _ in request.query_params.multi_items()]
        known = {field.alias for field in self.dependant.query_params}
        if {*asked} - known:
            raise problems.Refusal(422, f"query: there is a parameter that nobody knows; known: {sorted(known)}")
        if len({*asked}) < len(asked):
            raise problems.Refusal(422, "query: a parameter is given twice")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if self.body_field is not None and kind != _JSON:
            raise problems.Refusal(415, f"the body is sent as {_JSON}")


def _with_etag(request: Request, response: Response) -> Response:
    """Marks what a GET gives with a digest, and leaves out what the asker has already."""
    response.headers["Vary"] = "Authorization"
    if request.method != "GET" or response.status_code != 200:
        response.headers["Cache-Control"] = "no-store"
        return response
    tag = f'"{hashlib.sha256(response.body).hexdigest()[:32]}"'
    kept = {"ETag": tag, "Cache-Control": "private, no-cache", "Vary": "Authorization"}
    held = {each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")}
    if tag in held or "*" in held:
        return Response(status_code=304, headers=kept)
    response.headers.update(kept)
    return response

"""Puts the API together: every endpoint behind its guard, and the description by which programs find their way."""

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ... import __version__
from ..errors import AccessRefused
from ..ledger_standings import Ledgers
from ..oversight.tokens import Tokens
from ..store import Store
from . import endpoints as _endpoints  # noqa: F401 (fills ENDPOINTS)
from . import problems
from .routes import ENDPOINTS, Asked, Endpoint, Federation, GuardedRoute, endpoint

PREFIX = "/api/v1"
_DESCRIPTION = (
    "What the command `coordinator` does, for programs. Every request takes an operator's token; its role is that of "
    "the command which stands beside each address. Errors are problem details (RFC 9457). Lists come in pages: ask "
    "again with `cursor` as `next` says, until it is null. What a GET gives has an ETag."
)


def make_api(home: Path, store: Store, ledgers: Ledgers, tokens: Tokens) -> FastAPI:
    """Makes the API of the federation at `home`, to be mounted at `PREFIX`."""
    app = FastAPI(
        title="confide", version=__version__, description=_DESCRIPTION, openapi_url=None, docs_url=None,
        redoc_url=None, redirect_slashes=False, servers=[{"url": PREFIX}],
        exception_handlers={HTTPException: _not_there},
    )  # fmt: skip
    app.router.route_class = GuardedRoute
    app.state.federation = Federation(home, store, ledgers, tokens, Lock())
    for each in ENDPOINTS:
        add(app, each)
    if bare := [route for route in app.routes if not isinstance(route, GuardedRoute)]:
        raise AccessRefused(f"{bare[0]} is served without a guard")
    app.openapi = _described(app)  # type: ignore[method-assign]
    return app


def add(app: FastAPI, each: Endpoint) -> None:
    """Adds an endpoint to an app. Raises `AccessRefused` if its command has no role."""
    problem = {"content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    responses: dict[int | str, dict[str, Any]] = {
        "4XX": {"description": "Refused; nothing was done", **problem},
        "5XX": {"description": "Not possible just now, or damaged", **problem},
    }
    if each.method == "GET":
        responses[304] = {"description": "As the asker has it, by If-None-Match"}
    said = (each.answer.__doc__ or "").strip()
    app.router.add_api_route(
        each.path, each.answer, methods=[each.method], status_code=each.status, responses=responses,
        description=f"{said}\n\nAs `coordinator {each.command}`.", operation_id=each.answer.__name__,
        include_in_schema=each.path != "/openapi.json",
    )  # fmt: skip


def commands() -> dict[str, str]:
    """Lists the command of each address, as `POST /runs`."""
    return {f"{each.method} {each.path}": each.command for each in ENDPOINTS}


@endpoint("GET", "/openapi.json", "status")
def describe(call: Asked) -> dict[str, Any]:
    """Describe every address of the API, as OpenAPI."""
    described: dict[str, Any] = call.request.app.openapi()
    return described


def _described(app: FastAPI) -> Callable[[], dict[str, Any]]:
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = plain()
            parts = found.setdefault("components", {})
            parts.setdefault("schemas", {})["Problem"] = TypeAdapter(problems.Problem).json_schema()
            parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            found["security"] = [{"token": []}]
            app.openapi_schema = found
        return app.openapi_schema

    return openapi


async def _not_there(request: Request, err: Exception) -> Response:
    if isinstance(err, HTTPException) and err.status_code == 405:
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        routes = [each for each in request.app.routes if isinstance(each, GuardedRoute) and each.path_regex.match(path)]
        able = sorted({method for each in routes for method in each.methods or ()})
        return problems.of_status(405, f"this address takes {' and '.join(able)}", {"Allow": ", ".join(able)})
    return problems.of_status(404, "there is no such address")

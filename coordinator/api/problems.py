"""Errors as the API tells them: RFC 9457 problem details, with the sentence of the error and nothing that was sent."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from ...client_node.errors import ClientNodeError, KeysSealed, StudyInvalid
from ...models.errors import ModelError
from ...mpc.errors import MpcError
from ...privacy.errors import PrivacyError
from ..errors import (
    AccessRefused,
    AttemptsExceeded,
    Conflict,
    CoordinatorError,
    NotFound,
    PkiMissing,
    StateDamaged,
    StoreUnavailable,
    StudyRefused,
)

MEDIA_TYPE = "application/problem+json"
OURS = (CoordinatorError, ClientNodeError, PrivacyError, ModelError, MpcError)
_STATUS: Mapping[type[Exception], int] = {  # the first that fits
    AttemptsExceeded: 429,
    AccessRefused: 403,
    NotFound: 404,
    Conflict: 409,
    KeysSealed: 409,
    StudyRefused: 422,
    StudyInvalid: 422,
    ModelError: 422,  # of a draft's backbone
    MpcError: 422,  # of a draft's sums
    StoreUnavailable: 503,
    StateDamaged: 500,
    PkiMissing: 500,
}
_MOST_NAMED = 10  # faults of a request
_ABOUT_BLANK = "about:blank"  # of RFC 9457: no more than the status says


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """The body of every answer that is none of success (RFC 9457)."""

    type: str  # urn:confide: and the error's name; about:blank for what HTTP itself refuses
    title: str  # the same for every error of a type
    status: int
    detail: str  # a sentence or more, for people


class Refusal(Exception):
    """A request that HTTP refuses, before any error of ours."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.headers = status, dict(headers or {})


def of_error(err: Exception, status: int | None = None) -> Response:
    """Answers with an error of ours."""
    found = status or next((code for kind, code in _STATUS.items() if isinstance(err, kind)), 400)
    title = (inspect.getdoc(type(err)) or type(err).__name__).splitlines()[0].rstrip(".")
    problem = Problem(type=f"urn:confide:{type(err).__name__}", title=title, status=found, detail=str(err))
    headers = {"Retry-After": f"{err.wait_s:.0f}"} if isinstance(err, AttemptsExceeded) else {}
    return answer(problem, headers)


def of_status(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """Answers with a refusal of HTTP's."""
    problem = Problem(type=_ABOUT_BLANK, title=HTTPStatus(status).phrase, status=status, detail=detail)
    return answer(problem, headers)


def of_faults(faults: Sequence[Mapping[str, Any]]) -> Response:
    """Answers with what is wrong about a request, by pydantic's errors: where and why, and nothing that was sent."""
    told = [_told(each) for each in faults[:_MOST_NAMED]]
    if len(faults) > _MOST_NAMED:
        told.append(f"and {len(faults) - _MOST_NAMED} more")
    return of_status(422, "; ".join(dict.fromkeys(told)))


def answer(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Makes the answer of a problem."""
    body = {"type": problem.type, "title": problem.title, "status": problem.status, "detail": problem.detail}
    kept = {"Cache-Control": "no-store", **(headers or {})}
    return Response(json.dumps(body), problem.status, headers=kept, media_type=MEDIA_TYPE)


def _told(fault: Mapping[str, Any]) -> str:
    parts = [str(part) for part in fault["loc"]]
    if fault["type"] == "extra_forbidden":  # its name is the sender's
        return f"{'.'.join(parts[:-1])}: there is a field that nobody knows"
    if fault["type"] == "json_invalid":
        return "body: this is no JSON"
    return f"{'.'.join(parts)}: {fault['msg']}"

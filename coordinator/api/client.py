"""Asks a federation's JSON API from Python: typed answers, pages as iterators, errors with their sentences.

>>> from confide.coordinator.api.client import Federation
>>> with Federation("https://fed.example:9449", "confide_anna.SECRET") as federation:  # doctest: +SKIP
...     run = federation.start_run("thyroid")
...     print(federation.wait(run).state)
"""

import ssl
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast
from urllib.parse import quote, urlsplit

import httpx
from pydantic import TypeAdapter, ValidationError

from ...listening import is_loopback
from ..errors import CoordinatorError
from ..federation.members import Invitation
from ..oversight.operators import OperatorStanding
from ..oversight.roles import Role
from ..results.metrics import Measurement
from ..run.glance import Glance, MemberStanding
from ..run.overview import OpenedRound, RunStanding
from ..store.audit_log import Action
from ..studies.summary import StudySummary
from .facts import (
    Account,
    ChangedOperator,
    ChangedRun,
    ChangedSite,
    ListedStudy,
    NewToken,
    Page,
    ResumedRun,
    RoundsPage,
    RunFacts,
    SiteFacts,
    StartedRun,
    StudyFacts,
)
from .problems import MEDIA_TYPE, Problem

T = TypeVar("T")

MOST_BYTES = 256 << 20  # of one answer
_PREFIX = "/api/v1"
_PAGE = 200  # items asked for at a time
_TIMEOUT_S = 120.0  # a report or a study takes a while


class ApiError(CoordinatorError):
    """Base of what goes wrong between a client and the API."""


class Unreachable(ApiError):
    """An API that gave no answer, or one that is none of the API's."""


class Refused(ApiError):
    """A request that the API has refused; the message is its sentence, `problem` all that it said."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


class TokenRefused(Refused):
    """A token that opens nothing, or whose role is not enough (401, 403)."""


class Missing(Refused):
    """A thing that does not exist (404)."""


class NotNow(Refused):
    """A request that the present state does not allow (409)."""


class Wrong(Refused):
    """A request, or a draft in it, that is wrong by itself (400, 413, 415, 422)."""


class TooMany(Refused):
    """A token that was not looked at, after too many wrong ones (429)."""


class Unavailable(Refused):
    """An API that cannot do it: just now, or because something is damaged (5xx)."""


_KINDS: Mapping[int, type[Refused]] = {401: TokenRefused, 403: TokenRefused, 404: Missing, 409: NotNow, 429: TooMany}


class Federation:
    """A federation, asked as one operator.

    Args:
        address: of the operator's page, as https://fed.example:9449. Without TLS it must be this machine's, else others
            could read the token.
        token: as `coordinator operator add` printed it.
        verify: PEM file of the CA that signed the page's certificate, or a context; None for the system's CAs.

    Raises:
        ValueError: the address is none, or would send the token in the clear.
    """

    def __init__(self, address: str, token: str, *, verify: Path | ssl.SSLContext | None = None) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or parts.query:
            raise ValueError(f"{address!r} is no address of a page; write https://HOST:PORT")
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            raise ValueError(f"{address!r} would send the token in the clear; the page has TLS where others reach it")
        context = ssl.create_default_context(cafile=verify) if isinstance(verify, Path) else verify
        self._client = httpx.Client(
            base_url=f"{parts.scheme}://{parts.netloc}{_PREFIX}",
            headers={"Authorization": f"Bearer {token.strip()}", "Accept": "application/json"},
            verify=True if context is None else context,
            timeout=_TIMEOUT_S,
            trust_env=parts.scheme == "https",  # no proxy is told a token
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def status(self) -> Glance:
        """Looks at the whole federation."""
        return self._get(Glance, "status")

    def runs(self, *, state: str | None = None, study: str | None = None) -> Iterator[RunStanding]:
        """Yields runs, the newest first: all, those in a state, or those of a study."""
        return self._pages(Page[RunStanding], "runs", state=state, study=study)

    def run(self, run: str) -> RunFacts:
        """Looks at a run."""
        return self._get(RunFacts, "runs", run)

    def rounds(self, run: str) -> Iterator[OpenedRound]:
        """Yields the rounds that a run has opened, in their order."""
        cursor: str | None = None
        while True:
            page = self._get(RoundsPage, "runs", run, "rounds", limit=_PAGE, cursor=cursor)
            yield from page.items
            if (cursor := page.next) is None:
                return

    def metrics(self, run: str) -> Measurement:
        """Returns how good a run's model is, as far as noise and chance let one tell."""
        return self._get(Measurement, "runs", run, "metrics")

    def start_run(self, study: str, *, again: bool = False) -> str:
        """Starts a run of a study, and returns its id."""
        return self._post(StartedRun, {"study": study, "again": again}, "runs").run

    def stop_run(self, run: str) -> ChangedRun:
        """Stops a run after the question in progress."""
        return self._post(ChangedRun, None, "runs", run, "stop")

    def resume_run(self, run: str) -> ResumedRun:
        """Goes on with a stopped or failed run."""
        return self._post(ResumedRun, None, "runs", run, "resume")

    def abandon_run(self, run: str) -> ChangedRun:
        """Gives a run up for good."""
        return self._post(ChangedRun, None, "runs", run, "abandon")

    def wait(
        self, run: str, tell: Callable[[RunFacts], None] | None = None, *, every_s: float = 1.0,
        within_s: float | None = None,
    ) -> RunFacts:  # fmt: skip
        """Follows a run until it is over, and returns its end; `tell` hears of every change.

        Raises:
            TimeoutError: it is not over `within_s` seconds later; it goes on.
        """
        until, tag, told = None if within_s is None else time.monotonic() + within_s, "", None
        while True:
            response, body = self._ask("GET", self._path("runs", run), headers={"If-None-Match": tag} if tag else {})
            if response.status_code != 304:
                tag, facts = response.headers.get("etag", ""), _read(RunFacts, body)
                if facts != told and tell is not None:
                    tell(facts)
                told = facts
            if told is not None and told.is_over:
                return told
            if until is not None and time.monotonic() >= until:
                raise TimeoutError(f"run {run} is not over after {within_s:g} s; it goes on")
            time.sleep(every_s)

    def studies(self) -> Iterator[ListedStudy]:
        """Yields studies, the newest first."""
        return self._pages(Page[ListedStudy], "studies")

    def study(self, study: str) -> StudyFacts:
        """Returns a study with its text, by its name or hash."""
        return self._get(StudyFacts, "studies", study)

    def create_study(
        self, toml: str, *, units: int | None = None, accept: bool = False, accept_unused_experts: bool = False
    ) -> StudySummary:
        """Makes the text of a study.toml an immutable study."""
        body = {"toml": toml, "units": units, "accept": accept, "accept_unused_experts": accept_unused_experts}
        return self._post(StudySummary, body, "studies")

    def sites(self) -> Iterator[MemberStanding]:
        """Yields sites and aggregators, by name."""
        return self._pages(Page[MemberStanding], "sites")

    def site(self, site: str) -> SiteFacts:
        """Looks at a site."""
        return self._get(SiteFacts, "sites", site)

    def invite_site(self, name: str, *roles: Literal["train", "aggregate"]) -> Invitation:
        """Invites a site, to train unless roles are named; the answer alone has the one-time code."""
        return self._post(Invitation, {"name": name, "roles": list(roles) or ["train"]}, "sites")

    def let_leave(self, site: str) -> ChangedSite:
        """Lets a site leave."""
        return self._post(ChangedSite, None, "sites", site, "leave")

    def revoke_site(self, site: str) -> ChangedSite:
        """Turns a site out for good."""
        return self._post(ChangedSite, None, "sites", site, "revoke")

    def budgets(self) -> list[Account]:
        """Lists every account of every site's ledger."""
        return self._get(list[Account], "budgets")

    def budget_report(self, study: str | None = None) -> dict[str, Any]:
        """Returns the signed budget report, over all sites or those of a study."""
        return self._get(dict[str, Any], "budgets", "report", study=study)

    def log(self, *, since: str | None = None, actor: str | None = None, action: str | None = None) -> Iterator[Action]:
        """Yields entries of the audit log, oldest first."""
        return self._pages(Page[Action], "log", since=since, actor=actor, action=action)

    def operators(self) -> Iterator[OperatorStanding]:
        """Yields operators, by name."""
        return self._pages(Page[OperatorStanding], "operators")

    def add_operator(self, name: str, role: Role, *, days: int | None = None) -> NewToken:
        """Adds an operator; the answer alone has the token."""
        return self._post(NewToken, {"name": name, "role": role, "days": days}, "operators")

    def renew_operator(self, name: str, *, days: int | None = None) -> NewToken:
        """Gives an operator a new token, which replaces the old one at once."""
        return self._post(NewToken, {"days": days}, "operators", name, "renew")

    def revoke_operator(self, name: str) -> ChangedOperator:
        """Turns an operator out."""
        return self._post(ChangedOperator, None, "operators", name, "revoke")

    def _get(self, form: type[T], *parts: str, **asked: str | int | None) -> T:
        return _read(form, self._ask("GET", self._path(*parts), params=_given(asked))[1])

    def _post(self, form: type[T], body: Mapping[str, Any] | None, *parts: str) -> T:
        return _read(form, self._ask("POST", self._path(*parts), json=body)[1])

    def _pages(self, form: type[Page[T]], *parts: str, **asked: str | int | None) -> Iterator[T]:
        cursor: str | None = None
        while True:
            page = self._get(form, *parts, limit=_PAGE, cursor=cursor, **asked)
            yield from page.items
            if (cursor := page.next) is None:
                return

    def _path(self, *parts: str) -> str:
        return "/" + "/".join(quote(part, safe="") for part in parts)

    def _ask(self, method: str, path: str, **how: Any) -> tuple[httpx.Response, bytes]:
        """Sends a request, and returns the answer with its body. Raises `Unreachable`, or what was refused."""
        how = {name: value for name, value in how.items() if value is not None}
        try:
            with self._client.stream(method, path, **how) as response:
                body = bytearray()
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > MOST_BYTES:
                        raise Unreachable(f"{response.url} answered with more than {MOST_BYTES >> 20} MiB")
        except (httpx.HTTPError, httpx.InvalidURL) as err:
            raise Unreachable(f"{self._client.base_url} gave no answer: {err}") from err
        if response.is_success or response.status_code == 304:
            return response, bytes(body)
        if response.headers.get("content-type", "").partition(";")[0] != MEDIA_TYPE:
            raise Unreachable(f"{response.url} answered {response.status_code}, which is not the API's")
        problem = _read(Problem, bytes(body))
        other = Unavailable if response.status_code >= 500 else Wrong
        raise _KINDS.get(response.status_code, other)(problem)


@cache
def _form(form: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, form))


def _read(form: type[T], body: bytes) -> T:
    try:
        found: T = _form(cast(Hashable, form)).validate_json(body)
    except ValidationError as err:
        where = ".".join(str(part) for part in err.errors(include_input=False)[0]["loc"])
        raise Unreachable(f"the answer has another form than this version of confide knows: {where or 'all'}") from err
    return found


def _given(asked: Mapping[str, str | int | None]) -> dict[str, str | int]:
    return {name: value for name, value in asked.items() if value is not None}

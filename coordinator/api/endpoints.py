"""Answers each address of the API by a short function, over the functions that the commands call."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Path, Query, Response
from pydantic import BeforeValidator, Field

from ...client_node.spoken_hash import words
from ...models.strict import StrictModel
from ..errors import Conflict, NotFound
from ..federation import Pki, members
from ..federation.members import Invitation
from ..federation.serving import read_serving
from ..oversight import operators, trail
from ..oversight.operators import OperatorStanding
from ..results import reports
from ..results.metrics import Measurement, measurement
from ..run import control
from ..run.approvals import approvals, every_approval
from ..run.glance import Glance, MemberStanding, look, member_standings
from ..run.overview import RunStanding, opened_rounds, run_standing
from ..run.progress import live_run
from ..store.audit_log import Action
from ..store.states import RunState
from ..store.tables import StudyRow
from ..studies.catalogue import load_study
from ..studies.create import store_study
from ..studies.summary import StudySummary, summary
from . import drafts
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
from .routes import Asked, Call, endpoint

T = TypeVar("T")

MOST_ITEMS = 200
_WORD = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_SITE = r"^[a-z0-9][a-z0-9_-]*$"

Limit = Annotated[int, Query(ge=1, le=MOST_ITEMS, description="Items of an answer, at most.")]
Cursor = Annotated[
    str | None, Query(max_length=100, pattern=_WORD, description="As `next` of the page before; left out, the start.")
]
Number = Annotated[
    str | None, Query(pattern=r"^[0-9]{1,15}$", description="As `next` of the page before; left out, the start.")
]
RunName = Annotated[str, Path(alias="run", max_length=100, pattern=_WORD, description="A run's id.")]
StudyName = Annotated[str, Path(alias="study", max_length=100, pattern=_WORD, description="A study's name or hash.")]
SiteName = Annotated[str, Path(alias="site", max_length=63, pattern=_SITE)]
OperatorName = Annotated[str, Path(alias="name", max_length=63, pattern=_SITE)]
_Some = Annotated[str | None, Query(max_length=100, pattern=_WORD)]


def _whole(value: object) -> object:
    """Takes 90.0 for 90: in JSON both are whole."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Days = Annotated[
    Annotated[int, Field(ge=1, le=operators.MOST_DAYS)] | None,
    BeforeValidator(_whole),
    Field(description="Until the token expires; null: never."),
]


class NewRun(StrictModel):
    """A run to start."""

    study: Annotated[str, Field(max_length=100, pattern=_WORD, description="A study's name or hash.")]
    again: Annotated[
        bool, Field(description="Start another run though one is not done; each site must have approved it.")
    ] = False


class NewStudy(StrictModel):
    """A study to create."""

    toml: Annotated[str, Field(min_length=1, max_length=drafts.MOST_TEXT, description="The text of a study.toml.")]
    units: Annotated[
        Annotated[int, Field(ge=1, lt=2**48)] | None,
        BeforeValidator(_whole),
        Field(description="Persons at all sites together, as the sites told."),
    ] = None
    accept: Annotated[bool, Field(description="Questionable settings are meant.")] = False
    accept_unused_experts: Annotated[
        bool, Field(description="Adapt routed experts too that no public token is sent to.")
    ] = False


class NewSite(StrictModel):
    """A site to invite."""

    name: Annotated[str, Field(max_length=63, pattern=_SITE)]
    roles: Annotated[list[Literal["train", "aggregate"]], Field(default=["train"], min_length=1, max_length=2)]


class NewOperator(StrictModel):
    """An operator to add."""

    name: Annotated[str, Field(max_length=63, pattern=_SITE)]
    role: Literal["viewer", "operator", "admin"]
    days: _Days = None


class Renewal(StrictModel):
    """The end of a new token."""

    days: _Days = None


@endpoint("GET", "/status", "status")
def status(call: Asked) -> Glance:
    """Show who is online, the runs, and what an operator should know."""
    return look(call.store, call.home)


@endpoint("GET", "/runs", "run list")
def list_runs(
    call: Asked, limit: Limit = 50, cursor: Cursor = None, state: RunState | None = None, study: _Some = None
) -> Page[RunStanding]:
    """List runs, the newest first: all, those in a state, or those of a study."""
    wanted = None if study is None else call.store.study(study).hash
    rows = [
        run
        for run in reversed(call.store.runs())
        if (state is None or run.state == state) and (wanted is None or run.study == wanted)
    ]
    found = _page(rows, lambda run: run.id, limit, cursor)
    return Page([run_standing(call.store, run) for run in found.items], found.next)


@endpoint("POST", "/runs", "run start", status=201)
def start_run(call: Asked, body: NewRun, response: Response) -> StartedRun:
    """Start a run of a study."""
    warning = approvals(call.store, call.store.study(body.study)).warning
    run = control.start_run(call.store, body.study, again=body.again)
    return _made(call, response, f"runs/{run}", StartedRun(run=run, warning=warning))


@endpoint("GET", "/runs/{run}", "run watch")
def show_run(call: Asked, run: RunName) -> RunFacts:
    """Show a run as it stands; ask again with If-None-Match to follow it."""
    live = live_run(call.store, run)
    event = live.event
    return RunFacts(
        run=run, study=live.study.name, study_hash=live.run.study, state=event.state, step=event.step,
        rounds=event.rounds, rounds_planned=event.rounds_planned, epsilon=event.epsilon,
        epsilon_planned=event.epsilon_planned, bytes_per_site=event.bytes_per_site, started=live.run.created_at,
        ended=live.run.ended_at, seconds_left=live.seconds_left, is_silent=live.is_silent, orders=live.orders,
        error=event.error,
    )  # fmt: skip


@endpoint("GET", "/runs/{run}/rounds", "run rounds")
def list_rounds(call: Asked, run: RunName, limit: Limit = 50, cursor: Number = None) -> RoundsPage:
    """List the rounds that a run has opened, in their order: whose updates each sum holds, and who is missing."""
    found = opened_rounds(call.store, run)
    since = -1 if cursor is None else int(cursor)
    rest = [each for each in found.rounds if each.round > since]
    following = str(rest[limit - 1].round) if len(rest) > limit else None
    return RoundsPage(items=rest[:limit], too_long=found.too_long, next=following)


@endpoint("GET", "/runs/{run}/metrics", "run metrics")
def show_metrics(call: Asked, run: RunName) -> Measurement:
    """Show how good a run's model is on records that its sites hold out, from one noised and charged histogram."""
    return measurement(call.store, run)


@endpoint("POST", "/runs/{run}/stop", "run stop")
def stop_run(call: Asked, run: RunName) -> ChangedRun:
    """Stop a run after the question in progress; committed rounds stay."""
    return ChangedRun(run=run, state=control.stop_run(call.store, run))


@endpoint("POST", "/runs/{run}/resume", "run resume")
def resume_run(call: Asked, run: RunName) -> ResumedRun:
    """Go on with a stopped or failed run from its last committed round."""
    number = control.resume_run(call.store, run)
    return ResumedRun(run=run, state=call.store.run(run).state, round=number)


@endpoint("POST", "/runs/{run}/abandon", "run abandon")
def abandon_run(call: Asked, run: RunName) -> ChangedRun:
    """Give a run up for good; what sites were charged stays charged, and committed rounds stay."""
    return ChangedRun(run=run, state=control.abandon_run(call.store, run))


@endpoint("GET", "/studies", "study list")
def list_studies(call: Asked, limit: Limit = 50, cursor: Cursor = None) -> Page[ListedStudy]:
    """List studies, the newest first."""
    found = _page(call.store.studies()[::-1], lambda row: row.hash, limit, cursor)
    told = every_approval(call.store, found.items)

    def listed(row: StudyRow) -> ListedStudy:
        spelt = " ".join(words(row.hash))
        return ListedStudy(name=row.name, hash=row.hash, words=spelt, created=row.created_at, **told[row.hash].counts)

    return Page([listed(row) for row in found.items], found.next)


@endpoint("POST", "/studies", "study create", status=201)
def create_study(call: Asked, body: NewStudy, response: Response) -> StudySummary:
    """Make the text of a study.toml an immutable study of enrolled sites.

    It names its backbone by a folder in `backbones` of the federation's home. Refused with all problems, and with
    the questions that a person must answer unless `accept` says that questionable settings are meant.
    """
    with call.federation.alone():
        found = drafts.examine_text(
            call.store, call.home, body.toml, units=body.units, accept_unused_experts=body.accept_unused_experts
        )
        if found.questions and not body.accept:
            asked = "\n  ".join(found.questions)
            raise Conflict(f"nothing was stored; answer by `accept` if this is meant:\n  {asked}")
        made = summary(store_study(call.store, Pki.load(call.home), call.home, found))
    return _made(call, response, f"studies/{made.hash}", made)


@endpoint("GET", "/studies/{study}", "study show")
def show_study(call: Asked, study: StudyName) -> StudyFacts:
    """Show a study as sites see it, with its hash in words, the cost of a run, and who has told that they approve."""
    row = call.store.study(study)
    return StudyFacts(
        summary=summary(load_study(row)), words=" ".join(words(row.hash)), created=row.created_at,
        canonical=row.canonical.decode(), signature=row.signature,
        approvals=[*approvals(call.store, row).parties],
    )  # fmt: skip


@endpoint("GET", "/sites", "site list")
def list_sites(call: Asked, limit: Limit = 50, cursor: Cursor = None) -> Page[MemberStanding]:
    """List sites and aggregators, by name: roles, state, and when they were last seen."""
    return _page(member_standings(call.store, read_serving(call.home)), lambda each: each.name, limit, cursor)


@endpoint("POST", "/sites", "site invite", status=201)
def invite_site(call: Asked, body: NewSite, response: Response) -> Invitation:
    """Invite a site; the one-time code stands in this answer alone."""
    (invited,) = members.invite(call.store, call.home, [(body.name, body.roles)])
    return _made(call, response, f"sites/{invited.name}", invited)


@endpoint("GET", "/sites/{site}", "site list")
def show_site(call: Asked, site: SiteName) -> SiteFacts:
    """Show a site, with its accounts."""
    call.store.node(site)
    standing = next(each for each in member_standings(call.store, read_serving(call.home)) if each.name == site)
    return SiteFacts(member=standing, accounts=[each for each in _accounts(call) if each.site == site])


@endpoint("POST", "/sites/{site}/leave", "site leave")
def let_leave(call: Asked, site: SiteName) -> ChangedSite:
    """Let a site leave: its next request is refused; an invitation lets it back."""
    members.leave(call.store, call.home, site)
    return ChangedSite(name=site, state="left")


@endpoint("POST", "/sites/{site}/revoke", "site revoke")
def revoke_site(call: Asked, site: SiteName) -> ChangedSite:
    """Turn a site out for good: the name of one that had enrolled is never used again."""
    members.revoke(call.store, call.home, site)
    return ChangedSite(name=site, state="revoked")


@endpoint("GET", "/budgets", "budget report")
def list_budgets(call: Asked) -> list[Account]:
    """List every account of every site's ledger, beside its cap, as far as ledgers are read."""
    return _accounts(call)


@endpoint("GET", "/budgets/report", "budget report")
def report_budgets(call: Asked, study: _Some = None) -> dict[str, Any]:
    """Report what was spent at every site, from the signed ledgers; one report is made at a time.

    `coordinator budget verify` recomputes it from its entries, on any machine.
    """
    with call.federation.alone():
        return reports.budget_report(call.store, call.home, study)


@endpoint("GET", "/log", "audit log")
def list_log(
    call: Asked,
    limit: Limit = 50,
    cursor: Number = None,
    since: Annotated[
        str | None,
        Query(
            pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}:[0-9]{2}Z)?$",
            description="From then on, UTC: 2026-03-01 or 2026-03-01T12:00:00Z.",
        ),
    ] = None,
    actor: Annotated[
        str | None, Query(max_length=80, pattern=r"^[!-~]+$", description="Of this operator, login or site.")
    ] = None,
    action: Annotated[
        str | None, Query(max_length=32, pattern=r"^[a-z.]+$", description="As run.stop, or all of a noun: run.")
    ] = None,
) -> Page[Action]:
    """List entries of the audit log, oldest first: who did what, and when."""
    after = -1 if cursor is None else int(cursor)
    found = trail.actions(call.store, since=since, actor=actor, action=action, after=after, most=limit + 1)
    return Page(found[:limit], str(found[limit - 1].seq) if len(found) > limit else None)


@endpoint("GET", "/operators", "operator list")
def list_operators(call: Asked, limit: Limit = 50, cursor: Cursor = None) -> Page[OperatorStanding]:
    """List operators by name: the role, and until when the token is valid."""
    return _page(operators.standings(call.store), lambda each: each.name, limit, cursor)


@endpoint("POST", "/operators", "operator add", status=201)
def add_operator(call: Asked, body: NewOperator, response: Response) -> NewToken:
    """Add an operator; the token stands in this answer alone."""
    token = operators.add(call.store, body.name, body.role, days=body.days)
    return _made(call, response, "operators", NewToken(name=body.name, role=body.role, token=token))


@endpoint("POST", "/operators/{name}/renew", "operator renew")
def renew_operator(call: Asked, name: OperatorName, body: Renewal) -> NewToken:
    """Give an operator a new token, which replaces the old one at once and stands in this answer alone."""
    token = operators.renew(call.store, name, days=body.days)
    (role,) = (each.role for each in operators.standings(call.store) if each.name == name)
    return NewToken(name=name, role=role, token=token)


@endpoint("POST", "/operators/{name}/revoke", "operator revoke")
def revoke_operator(call: Asked, name: OperatorName) -> ChangedOperator:
    """Turn an operator out: the token opens nothing from now on, and the name is not used again."""
    operators.revoke(call.store, name)
    return ChangedOperator(name=name, state="revoked")


def _page(rows: Sequence[T], key: Callable[[T], str], limit: int, cursor: str | None) -> Page[T]:
    """Cuts a page out of a list whose rows stay in it: those behind the row that `cursor` names."""
    begin = 0
    if cursor is not None:
        begin = 1 + next((at for at, row in enumerate(rows) if key(row) == cursor), -2)
        if begin < 0:
            raise NotFound("nothing of this list ends at that cursor; begin again without one")
    end = begin + limit
    return Page(list(rows[begin:end]), key(rows[end - 1]) if len(rows) > end else None)


def _made(call: Call, response: Response, where: str, facts: T) -> T:
    response.headers["Location"] = f"{call.request.scope.get('root_path', '')}/{where}"
    return facts


def _accounts(call: Call) -> list[Account]:
    return [
        Account(
            site=site, dataset=each.dataset, unit=each.unit, cap=each.cap, filled=each.filled,
            guaranteed=each.guaranteed if math.isfinite(each.guaranteed) else None,
        )
        for site, each in call.federation.ledgers.accounts()
    ]  # fmt: skip

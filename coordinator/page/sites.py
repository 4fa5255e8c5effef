"""Sites and aggregators: the list, one of them with all that is known of it, and what a person may do with it."""

import datetime as dt
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.responses import Response

from ...client_node.errors import ClientNodeError
from ...client_node.spoken_hash import fingerprint
from .. import ca_rotation, key_rotation
from ..errors import Conflict, CoordinatorError, StateDamaged
from ..federation import members, serving
from ..oversight.checkpoints import WitnessStanding, witnesses
from ..results.reports import ledger_download
from ..run.glance import MemberStanding, member_standings
from ..store import Store
from ..store.tables import NodeRow, Run, StudyRow
from . import charts
from .visits import Visit

if TYPE_CHECKING:  # accounting takes seconds to import
    from ...privacy.ledger.standings import Course, Standing

SITES_A_PAGE, RUNS_SHOWN, GUESTS = 50, 25, 100
STATES = ("invited", "enrolled", "left", "revoked")
WARN_DAYS = 30  # before an aggregator's certificate ends


@dataclass(frozen=True, slots=True)
class Certificate:
    """The end of an aggregator's certificate, or why it cannot be read."""

    ends: dt.datetime | None
    problem: str = ""

    @property
    def days(self) -> float:
        """Days until it ends."""
        return 0.0 if self.ends is None else (self.ends - dt.datetime.now(dt.UTC)).total_seconds() / 86_400

    @property
    def is_near(self) -> bool:
        """True if it ends soon, has ended, or cannot be read."""
        return bool(self.problem) or self.days < WARN_DAYS


@dataclass(frozen=True, slots=True)
class Listed:
    """A member as the list shows it."""

    standing: MemberStanding
    spoken: str  # the identity key's fingerprint as people read it to each other; empty before it enrols
    certificate: Certificate | None  # None of one that does not aggregate


@dataclass(frozen=True, slots=True)
class LedgerAccount:
    """An account of a site's ledger, with the picture of its course."""

    standing: "Standing"
    course: "Course"
    chart: str


def show_all(visit: Visit) -> Response:
    """Shows every member, by name."""
    standings = member_standings(visit.store, serving.read_serving(visit.home))
    rows = {row.name: row for row in visit.store.nodes()}  # after them: names are added, and never taken away
    state, name = visit.asked("state"), visit.asked("name").strip().lower()
    found = [each for each in standings if name in each.name and state in ("", each.state)]
    part, page, pages = visit.page_of(found, SITES_A_PAGE)
    shown = [_listed(each, rows[each.name]) for each in part]
    return visit.render(
        "sites.html", sites=shown, count=len(found), all=len(rows), page=page, pages=pages, states=STATES,
        state=state, name=name,
    )  # fmt: skip


def show(visit: Visit) -> Response:
    """Shows one member: its keys, its membership, what it takes part in, its ledger here, what it countersigned."""
    row, running = visit.store.node(visit.part("site")), serving.read_serving(visit.home)
    (standing,) = [each for each in member_standings(visit.store, running) if each.name == row.name]
    seen = None if running is None else running.nodes.get(row.name)
    studies, unread, runs = _takes_part(visit.store, row.name)
    accounts = list(_accounts(visit, row.name))
    return visit.render(
        "site.html", row=row, site=_listed(standing, row),
        apart="" if running is None else running.apart.get(row.name, ""), protocol=seen.protocol if seen else 0,
        successions=visit.store.successions().get(row.name, []), trust=_trust(visit, row.name),
        studies=studies, unread=unread, runs=runs[:RUNS_SHOWN], more_runs=max(0, len(runs) - RUNS_SHOWN),
        accounts=accounts,
        entries=visit.store.ledger_length(row.name), readable=visit.federation.ledgers.readable().get(row.name),
        witness=_witness(visit.store, row.name), orders=orders(row), now=time.time(), infinity=math.inf,
        runs_shown=RUNS_SHOWN,
    )  # fmt: skip


def ask_guests(visit: Visit) -> Response:
    """Shows the form that invites sites; an address may name them already."""
    roles = [role for role in ("train", "aggregate") if visit.asked(role)] or ["train"]
    return visit.render("invite.html", names=visit.asked("names"), roles=roles, problem="")


def invite(visit: Visit) -> Response:
    """Invites sites, as `coordinator site invite` does; the codes stand in this answer and nowhere else."""
    names = visit.form.get("names", "")
    roles = [role for role in ("train", "aggregate") if visit.form.get(role)]
    try:
        guests = names.split()
        if not guests:
            raise Conflict("no name was typed, so nobody was invited")
        if len(guests) > GUESTS:
            raise Conflict(f"{len(guests)} names are too many at once; invite at most {GUESTS}. Nobody was invited")
        if not roles:
            raise Conflict("no role was chosen: train, aggregate or both. Nobody was invited")
        invited = members.invite(visit.store, visit.home, [(name, roles) for name in guests])
    except Conflict as err:
        return visit.render("invite.html", status=409, names=names[:4000], roles=roles, problem=str(err))
    texts = [(each, members.join_text(each, visit.home)) for each in invited]
    return visit.render("invited.html", texts=texts)


def orders(row: NodeRow) -> list[str]:
    """Names what a person may do with a member now."""
    is_there = row.enrolled_at is not None and row.revoked_at is None
    has_left = row.left_at is not None
    able = {
        "leave": is_there or (has_left and row.invite_digest is not None),
        "revoke": is_there or has_left or (row.revoked_at is None and row.invite_digest is not None),
        "invite": not is_there and (row.enrolled_at is None or has_left),
    }
    return [name for name, is_able in able.items() if is_able]


def ask_leave(visit: Visit) -> Response:
    """Asks whether a site shall leave."""
    return _ask(visit, "leave")


def ask_revoke(visit: Visit) -> Response:
    """Asks whether a site shall be turned out."""
    return _ask(visit, "revoke")


def leave(visit: Visit) -> Response:
    """Lets a site leave, as `coordinator site leave` does."""
    name = visit.part("site")
    members.leave(visit.store, visit.home, name)
    return visit.go("sites", name, notice=f"{name} has left. Invite it again to let it back with the key that it had.")


def revoke(visit: Visit) -> Response:
    """Turns a site out, as `coordinator site revoke` does, if its name was typed."""
    row = visit.store.node(visit.part("site"))
    if row.enrolled_at is not None and visit.form.get("typed", "").strip() != row.name:
        raise Conflict("the site's name was not typed as it is, so nothing was done")
    members.revoke(visit.store, visit.home, row.name)
    return visit.go("sites", row.name, notice=f"{row.name} is revoked. A running server refuses it from now on.")


def ask_ledger(visit: Visit) -> Response:
    """Asks whether a site's ledger shall be downloaded."""
    row = visit.store.node(visit.part("site"))
    return visit.render("site_ledger.html", site=row.name, entries=visit.store.ledger_length(row.name))


def download_ledger(visit: Visit) -> Response:
    """Answers with a site's ledger as `coordinator budget export` writes it; it stands in the audit log likewise."""
    name = visit.store.node(visit.part("site")).name
    data = ledger_download(visit.store, name)
    return Response(
        data, media_type="application/jsonl", headers={"Content-Disposition": f'attachment; filename="{name}.jsonl"'}
    )


def certificate_of(row: NodeRow) -> Certificate | None:
    """Reads when an aggregator's certificate ends; None of a node without one."""
    try:
        ends = members.party_certificate_ends(row)
    except StateDamaged as err:
        return Certificate(None, str(err))
    return None if ends is None else Certificate(ends)


def _listed(standing: MemberStanding, row: NodeRow) -> Listed:
    return Listed(standing, fingerprint(row.identity) if row.identity else "", certificate_of(row))


def _ask(visit: Visit, order: str) -> Response:
    row = visit.store.node(visit.part("site"))
    if order not in orders(row):
        raise Conflict(f"{row.name} is not enrolled" if order == "leave" else f"{row.name} is turned out already")
    return visit.render("site_order.html", row=row, order=order)


def _takes_part(store: Store, site: str) -> tuple[list[StudyRow], list[StudyRow], list[Run]]:
    """Lists the studies that name a node, those that nobody can read, and the runs of the first, each newest first.

    Of each study its text alone is read.
    """
    named, unread = [], []
    for row in store.studies()[::-1]:
        try:
            text = json.loads(row.canonical)
            if site in {each["name"] for each in (*text["sites"], *text["aggregators"])}:
                named.append(row)
        except (ValueError, KeyError, TypeError, RecursionError):
            unread.append(row)
    hashes = {row.hash for row in named}
    return named, unread, [run for run in store.runs() if run.study in hashes][::-1]


def _trust(visit: Visit, name: str) -> Mapping[str, object]:
    """Returns what a node says that it trusts; a sentence under `problem` if a key here cannot be read."""
    try:
        trusts = {each.name: each.trusts for each in ca_rotation.standing(visit.store, visit.home).nodes}
        keys = key_rotation.standing(visit.store, visit.home)
    except (CoordinatorError, ClientNodeError) as err:
        return {"problem": str(err)}
    known = next((each for each in keys.nodes if each.name == name), None)
    return {"problem": "", "cas": trusts.get(name), "key": known, "is_first": not keys.successions}


def _accounts(visit: Visit, name: str) -> Iterator[LedgerAccount]:
    ledgers = visit.federation.ledgers
    found: Sequence[Course] = ledgers.courses().get(name, [])
    standings = {(each.dataset, each.unit): each for each in ledgers.standings().get(name, [])}
    for course in found:
        standing = standings.get((course.dataset, course.unit))
        if standing is not None:
            yield LedgerAccount(standing, course, charts.spending(course, standing.cap))


def _witness(store: Store, name: str) -> WitnessStanding | None:
    return next((each for each in witnesses(store) if each.site == name), None)

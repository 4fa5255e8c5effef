"""The first page: whether all is well, what runs, who is there, what was spent, and what needs a person."""

from dataclasses import dataclass

from starlette.responses import Response

from ..run.approvals import Approvals, every_approval
from ..run.glance import MemberStanding, look
from ..run.progress import live_run
from ..store.states import RunState
from ..store.tables import StudyRow
from .visits import Visit

MOST_WAITING = 5  # studies without a run, the newest first
MOST_ROWS = 12  # of nodes, those away first, and of accounts, the fullest first


@dataclass(frozen=True, slots=True)
class Spending:
    """One account of a site's ledger, beside its cap."""

    site: str
    dataset: str
    unit: str
    guaranteed: float
    cap: float | None
    filled: float  # 0 to 1


def show(visit: Visit) -> Response:
    """Shows the federation at a glance, as `coordinator status` does."""
    found = look(visit.store, visit.home)
    going = [live_run(visit.store, each.run) for each in found.runs if each.heartbeat is not None]
    waiting = [each for each in found.runs if each.state == "pending" and each.heartbeat is None]
    present = [each for each in found.members if each.state not in ("left", "revoked")]
    accounts = sorted(spending(visit), key=lambda each: -each.filled)
    over = [each for each in found.runs if RunState(each.state).is_over]
    return visit.render(
        "overview.html", found=found, going=going, waiting=waiting, over=over[-5:][::-1],
        nodes=sorted(present, key=lambda each: each.online is not False)[:MOST_ROWS], left_out=len(present) - MOST_ROWS,
        accounts=accounts[:MOST_ROWS], accounts_left_out=len(accounts) - MOST_ROWS, counts=_counts(found.members),
        unbegun=unbegun(visit),
    )  # fmt: skip


def unbegun(visit: Visit) -> list[tuple[StudyRow, Approvals]]:
    """Lists the newest studies of which no run was ever started and some node has told its decision."""
    rows = visit.store.unbegun_studies(MOST_WAITING)
    told = every_approval(visit.store, rows)
    return [(row, told[row.hash]) for row in rows]


def spending(visit: Visit) -> list[Spending]:
    """Lists every account of every ledger, as far as they are read."""
    return [
        Spending(site, each.dataset, each.unit, each.guaranteed, each.cap, each.filled)
        for site, each in visit.federation.ledgers.accounts()
    ]


def _counts(members: list[MemberStanding]) -> dict[str, int]:
    enrolled = [each for each in members if each.state == "enrolled"]
    return {"enrolled": len(enrolled), "online": sum(bool(each.online) for each in enrolled)}

"""Messages that came to the node and what left it, by day and kind."""

from starlette.responses import Response

from ..traffic import Passed, Traffic
from .visits import A_PAGE, Visit

SAID = {
    "prepare": "gets ready for a run", "replay": "takes the server's step over", "step": "trains a round, and seals it",
    "topup": "adds the noise of sites that are missing", "fetch": "hands out sealed shares",
    "deposit": "takes sealed shares", "aggregate": "adds shares up with the other aggregators",
    "settle": "notes which sites a sum holds",
    "decisions": "tells, unasked, which studies are approved or revoked", "other": "what this version does not know",
}  # fmt: skip


def show(visit: Visit) -> Response:
    """Shows what passed, as `client-node traffic` does: all of it by kind, and then day by day."""
    days = Traffic(visit.home).days()
    kinds: dict[str, Passed] = {}
    for day in days.values():
        for kind, passed in day.items():
            kinds[kind] = kinds.get(kind, Passed()) + passed
    rows, page, pages = visit.page_of(
        [(day * 86_400.0, sum(of.values(), Passed())) for day, of in days.items()], A_PAGE
    )
    most = max((of.left_bytes for _, of in rows), default=0)
    return visit.render(
        "traffic.html", kinds=dict(sorted(kinds.items())), said_of=SAID, rows=rows, page=page, pages=pages, most=most,
    )  # fmt: skip

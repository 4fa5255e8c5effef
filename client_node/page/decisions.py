"""The decision log: who decided what here, and whether it holds."""

from starlette.responses import Response

from ..policy import decision_log
from .visits import A_PAGE, Visit


def show(visit: Visit) -> Response:
    """Shows the decision log, the newest first."""
    return _show(visit, None)


def verify(visit: Visit) -> Response:
    """Checks its chain and signatures, as `client-node decisions --verify` does."""
    return _show(visit, decision_log.verify(visit.home))


def _show(visit: Visit, verified: decision_log.Verified | None) -> Response:
    entries, unread = decision_log.read(visit.home)
    rows, page, pages = visit.page_of(entries[::-1], A_PAGE)
    return visit.render(
        "decisions.html", rows=rows, page=page, pages=pages, unread=unread, verified=verified, count=len(entries),
    )  # fmt: skip

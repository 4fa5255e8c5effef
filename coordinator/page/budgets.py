"""Budgets: every account beside its cap, one site's spending over time, and the signed report to take away."""

from datetime import UTC, datetime

from starlette.responses import Response

from ...client_node.errors import ClientNodeError
from ...privacy.report.language import DEFAULT, languages
from ..errors import CoordinatorError
from ..federation import Pki
from . import charts
from .downloads import REPORT_POLICY, attached
from .overview import Spending, spending
from .visits import Visit

ACCOUNTS_A_PAGE = 25
_MOST_BARS = 30
_WAIT_S = 0.6  # for a ledger that is being read; the page asks again by itself
_NEAR = 0.9


def show_all(visit: Visit) -> Response:
    """Shows every account of every site, the fullest first."""
    found = sorted(spending(visit), key=lambda each: (-each.filled, each.site, each.dataset))
    asked = visit.asked("site").strip()
    shown = [each for each in found if asked.lower() in each.site.lower()]
    rows, page, pages = visit.page_of(shown, ACCOUNTS_A_PAGE)
    return visit.render(
        "budgets.html", accounts=rows, count=len(shown),
        page=page, pages=pages, asked=asked, chart=_chart(shown), sites=sorted({each.site for each in found}),
        unread=[name for name, is_read in sorted(visit.federation.ledgers.readable().items()) if not is_read],
        studies=sorted({row.name for row in visit.store.studies()}), languages=languages(), default=DEFAULT,
        verifying=_verifying(visit, found),
    )  # fmt: skip


def show(visit: Visit) -> Response:
    """Shows what was spent on the data of one site, over time and by study."""
    site = visit.part("site")
    node = visit.store.node(site)
    entries = visit.store.ledger_length(site)
    found = visit.federation.statements.of(visit.store, site, wait_s=_WAIT_S) if entries else None
    names = {row.hash: row.name for row in visit.store.studies()}
    answer = visit.render("budget.html", site=node, entries=entries, found=found, names=names)
    if entries and found is None:
        answer.headers["Refresh"] = "2"  # for who has no JavaScript
    return answer


def send_json(visit: Visit) -> Response:
    """Sends the signed report, as `coordinator budget report --json` prints it."""
    study = visit.asked("study") or None
    body = visit.federation.reports.json(visit.store, visit.home, study)
    return attached(body, _name(study, "json"), "application/json")


def send_html(visit: Visit) -> Response:
    """Sends the report's page, as `coordinator budget report --html` writes it."""
    study, language = visit.asked("study") or None, visit.asked("lang") or DEFAULT
    body = visit.federation.reports.html(visit.store, visit.home, study, language)
    answer = attached(body, _name(study, "html"), "text/html; charset=utf-8", is_shown=True)
    answer.headers["Content-Security-Policy"] = REPORT_POLICY  # its styles stand in it, and it has no script
    return answer


def _name(study: str | None, kind: str) -> str:
    return f"budget-report-{study or 'all'}-{datetime.now(UTC):%Y-%m-%d}.{kind}"


def _chart(found: list[Spending]) -> object:
    bars = [
        charts.Bar(
            f"{each.site} · {each.dataset} · {each.unit}",
            each.filled,
            "full" if each.filled >= 1 else f"{100 * each.filled:.0f} %",
            "over" if each.filled >= 1 else "part" if each.filled >= _NEAR else "whole",
        )
        for each in found[:_MOST_BARS]
    ]
    story = "; ".join(f"{bar.name}: {bar.text}" for bar in bars[:5])
    return charts.bars(bars, "How full each budget is", f"The fullest first. {story}.")


def _verifying(visit: Visit, found: list[Spending]) -> str:
    """Writes the command that checks a report, with the keys that this federation knows; else why they are not."""
    try:
        issuer = Pki.load(visit.home).identity_hex
    except (CoordinatorError, ClientNodeError) as err:  # sealed or damaged, which takes away no figure
        return str(err)
    parts = ["coordinator budget verify report.json", f"--issuer {issuer}"]
    with_ledger = {each.site for each in found}
    parts += [f"--site {node.name}={node.identity}" for node in visit.store.nodes() if node.name in with_ledger]
    return " \\\n  ".join(parts)

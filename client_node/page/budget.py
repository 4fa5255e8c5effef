"""The site's budget: each account beside its cap, its spending over time, its runs, and the report to download."""

import json
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from starlette.responses import Response

from ...privacy.report import build, figures, language, schema
from ..approval import site_budget
from ..approval.site_budget import SiteAccount
from ..enrolment import Enrolment
from ..policy import pending
from .visits import Node, Visit


@dataclass(frozen=True, slots=True)
class Drawn:
    """An account as a report tells it: its chart, and the points behind it."""

    chart: Markup
    course: list[schema.Point]


def show(visit: Visit) -> Response:
    """Shows every account, as `client-node budget show` does, with its spending over time."""
    accounts, drawn = accounts_drawn(visit.node) if visit.node.trains else ([], {})
    first = pending.waiting(visit.home, "cap", "budget")
    return visit.render(
        "budget.html", accounts=accounts, drawn=drawn, first="" if first is None else first.told(),
    )  # fmt: skip


def accounts_drawn(node: Node) -> tuple[list[SiteAccount], dict[tuple[str, str], Drawn]]:
    """Lists the site's accounts, and draws each; only what is new in the ledger is computed."""
    return node.of_ledger("accounts", site_budget.accounts), node.of_ledger("drawn", _drawn)


def page(visit: Visit) -> Response:
    """Hands out the report as a page to print."""
    text = build.render_html(site_budget.budget_report(visit.home))
    return _download(text, "text/html; charset=utf-8", f"{visit.node.name}-budget.html")


def report(visit: Visit) -> Response:
    """Hands out the report for programs, and for `client-node budget verify` elsewhere."""
    text = json.dumps(site_budget.budget_report(visit.home), indent=2, allow_nan=False)
    return _download(text, "application/json", f"{visit.node.name}-budget.json")


def _download(text: str, kind: str, name: str) -> Response:
    headers = {"Content-Type": kind, "Content-Disposition": f'attachment; filename="{name}"'}
    return Response(text.encode(), headers=headers)


def _drawn(home: Path) -> dict[tuple[str, str], Drawn]:
    told, name = schema.parse(site_budget.budget_report(home)), Enrolment.load(home).name
    words = language.load(language.DEFAULT)
    sheets = figures.Sheet(words), figures.Sheet(words, is_narrow=True)
    found = {}
    for site in told.sites:
        assert site.name == name, "a site's own report is of one site"
        for account in site.accounts:
            pair = [figures.over_time(account, told.issued, sheet) for sheet in sheets]
            chart = Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(*pair)
            found[account.dataset, account.unit] = Drawn(chart if all(pair) else Markup(""), account.course)
    return found

"""The table of all pages and forms, each beside the command that does the same."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.responses import Response

from . import budget, decisions, log, overview, policy, studies, traffic
from .visits import Visit

Look = Callable[[Visit], Response]


@dataclass(frozen=True, slots=True)
class View:
    """A page, and the form on it if it has one.

    `command` is that of `client-node` which shows the same, and `change` the one that the form carries out.
    """

    command: str
    look: Look
    change: str | None = None
    carry_out: Look | None = None


VIEWS: Mapping[str, View] = {
    "/": View("status", overview.show),
    "/studies": View("study list", studies.show_all, "study list", studies.fetch),
    "/studies/{hash}": View("study show", studies.show),
    "/studies/{hash}/rules": View("policy explain", studies.rules),
    "/studies/{hash}/check": View("study show", studies.show, "data check", studies.check),
    "/studies/{hash}/confirm": View("study show", studies.show, "site confirm", studies.confirm),
    "/studies/{hash}/assess": View("study show", studies.ask, "study approve", studies.assess),
    "/studies/{hash}/approve": View("study show", studies.ask, "study approve", studies.approve),
    "/studies/{hash}/revoke": View("study show", studies.ask_revoke, "study revoke", studies.revoke),
    "/budget": View("budget show", budget.show),
    "/budget/report.html": View("budget report", budget.page),
    "/budget/report.json": View("budget report", budget.report),
    "/traffic": View("traffic", traffic.show),
    "/decisions": View("decisions", decisions.show, "decisions", decisions.verify),
    "/policy": View("policy show", policy.show),
    "/log": View("status", log.show),
}

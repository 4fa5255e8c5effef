"""The table of all pages and forms, each beside the command that does the same."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.responses import Response

from . import (
    adapters,
    budgets,
    comparing,
    drafts,
    log,
    overview,
    rotations,
    runs,
    settings,
    sites,
    studies,
)
from .visits import Visit

Look = Callable[[Visit], Response]


@dataclass(frozen=True, slots=True)
class View:
    """A page, and the form on it if it has one.

    `command` is that of `coordinator` which shows the same, and takes the same role; `change` the one that the form
    carries out.
    """

    command: str
    look: Look
    change: str | None = None
    carry_out: Look | None = None


VIEWS: Mapping[str, View] = {
    "/": View("status", overview.show),
    "/runs": View("run list", runs.show_all),
    "/runs/{run}": View("run rounds", runs.show),
    "/runs/{run}/stop": View("run stop", runs.ask("stop"), "run stop", runs.stop),
    "/runs/{run}/resume": View("run resume", runs.ask("resume"), "run resume", runs.resume),
    "/runs/{run}/abandon": View("run abandon", runs.ask("abandon"), "run abandon", runs.abandon),
    "/compare": View("run metrics", comparing.show),
    "/studies": View("study list", studies.show_all),
    "/studies/new": View("study create", drafts.show, "study create", drafts.answer),
    "/studies/{study}": View("study show", studies.show),
    "/studies/{study}/study.json": View("study show", studies.download),
    "/studies/{study}/start": View("run start", studies.ask_start, "run start", studies.start),
    "/budgets": View("budget report", budgets.show_all),
    "/budgets/report.json": View("budget report", budgets.send_json),
    "/budgets/report.html": View("budget report", budgets.send_html),
    "/budgets/{site}": View("budget report", budgets.show),
    "/adapters": View("run metrics", adapters.show_all),
    "/adapters/{run}": View("run metrics", adapters.show),
    "/adapters/{run}/export": View(
        "adapter export", adapters.ask("adapter"), "adapter export", adapters.send("adapter")
    ),
    "/adapters/{run}/merge": View("adapter merge", adapters.ask("merged"), "adapter merge", adapters.send("merged")),
    "/adapters/{run}/map": View("run metrics", adapters.show, "adapter map", adapters.begin_map),
    "/sites": View("site list", sites.show_all),
    # Deeper than a site's page, because a site may be called "invite".
    "/sites/invite/new": View("site invite", sites.ask_guests, "site invite", sites.invite),
    "/sites/{site}": View("site list", sites.show),
    "/sites/{site}/leave": View("site leave", sites.ask_leave, "site leave", sites.leave),
    "/sites/{site}/revoke": View("site revoke", sites.ask_revoke, "site revoke", sites.revoke),
    "/sites/{site}/ledger": View("budget export", sites.ask_ledger, "budget export", sites.download_ledger),
    "/log": View("audit log", log.show, "audit verify", log.verify),
    "/settings": View("operator list", settings.show),
    "/settings/ca/rotate": View("ca rotate", rotations.ask("ca-rotate"), "ca rotate", rotations.begin_ca),
    "/settings/ca/cancel": View("ca cancel", rotations.ask("ca-cancel"), "ca cancel", rotations.cancel_ca),
    "/settings/ca/finish": View("ca finish", rotations.ask("ca-finish"), "ca finish", rotations.finish_ca),
    "/settings/keys/rotate": View("keys rotate", rotations.ask("keys-rotate"), "keys rotate", rotations.rotate_key),
    "/settings/operators/add": View("operator add", settings.ask_operator, "operator add", settings.add_operator),
    "/settings/operators/{operator}/renew": View(
        "operator renew", settings.ask_renewal, "operator renew", settings.renew_operator
    ),
    "/settings/operators/{operator}/revoke": View(
        "operator revoke", settings.ask_revocation, "operator revoke", settings.revoke_operator
    ),
}

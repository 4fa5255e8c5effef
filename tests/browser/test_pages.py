"""Every web page of confide in Chromium. A new page is a line in `PAGES`; `conftest.py` has the fixtures that serve."""

from dataclasses import dataclass

import pytest
from starlette.routing import compile_path

from confide.coordinator.page.views import VIEWS
from confide.privacy.report.language import languages

from .looking import look

pytestmark = [pytest.mark.process, pytest.mark.slow]


@dataclass(frozen=True, slots=True)
class Page:
    """A page by the name of its pictures: the fixture that gives its `Place`, and the path from there."""

    name: str
    place: str
    path: str = ""
    status: int = 200
    who: str = ""  # the operator's role who looks, where a federation has operators
    is_brief: bool = False  # True where the same template is looked at whole in another state


# Every page of coordinator/page/views.py, each whole in one state; parts of an address in braces are the state's own.
OPERATORS_PAGES = (
    Page("login", "running", "/login", who="nobody"),
    Page("nothing-there", "running", "/nothing", 404, who="nobody"),
    Page("trouble", "running", "/runs/nothing", 404, who="viewer"),
    Page("overview-empty", "empty", "/", is_brief=True),
    Page("overview-running", "running", "/", who="admin"),
    Page("overview-viewer", "running", "/", who="viewer", is_brief=True),
    Page("overview-stale", "stale", "/", who="operator", is_brief=True),
    Page("overview-large", "large", "/", is_brief=True),
    Page("runs-empty", "empty", "/runs", is_brief=True),
    Page("runs", "running", "/runs", who="operator"),
    Page("runs-large", "large", "/runs", is_brief=True),
    Page("run-running", "running", "/runs/{run}", who="viewer", is_brief=True),
    Page("run-done", "running", "/runs/{done}", who="operator", is_brief=True),
    Page("run-failed", "running", "/runs/{failed}", who="operator"),
    Page("run-silent", "stale", "/runs/{run}", who="operator", is_brief=True),
    Page("run-large", "large", "/runs/{run}", is_brief=True),
    Page("stop", "running", "/runs/{run}/stop", who="operator", is_brief=True),
    Page("resume", "running", "/runs/{stopped}/resume", who="operator", is_brief=True),
    Page("abandon", "running", "/runs/{stopped}/abandon", who="operator"),
    Page("studies-empty", "empty", "/studies", is_brief=True),
    Page("studies", "running", "/studies", who="operator"),
    Page("study", "running", "/studies/{study}", who="operator"),
    Page("study-large", "large", "/studies/{study}", is_brief=True),
    Page("study-start", "running", "/studies/{study}/start", who="operator", is_brief=True),
    Page("study-new", "running", "/studies/new", who="operator"),
    Page("study-new-empty", "empty", "/studies/new", is_brief=True),
    Page("compare", "running", "/compare?run={done}&run={run}&run={failed}", who="viewer"),
    Page("compare-none", "empty", "/compare", is_brief=True),
    Page("sites-empty", "empty", "/sites", is_brief=True),
    Page("sites", "running", "/sites", who="admin"),
    Page("sites-large", "large", "/sites", is_brief=True),
    Page("site", "running", "/sites/{site}", who="admin"),
    Page("site-large", "large", "/sites/{site}", is_brief=True),
    Page("site-away", "stale", "/sites/{site}", who="viewer", is_brief=True),
    Page("invite", "running", "/sites/invite/new", who="admin"),
    Page("site-leave", "running", "/sites/{site}/leave", who="admin", is_brief=True),
    Page("site-revoke", "running", "/sites/{site}/revoke", who="admin", is_brief=True),
    Page("site-ledger", "running", "/sites/{site}/ledger", who="admin", is_brief=True),
    Page("log", "running", "/log", who="admin"),
    Page("log-large", "large", "/log", is_brief=True),
    Page("settings", "running", "/settings", who="admin"),
    Page("settings-empty", "empty", "/settings", is_brief=True),
    Page("operator-add", "running", "/settings/operators/add", who="admin", is_brief=True),
    Page("operator-renew", "running", "/settings/operators/{person}/renew", who="admin", is_brief=True),
    Page("operator-revoke", "running", "/settings/operators/{person}/revoke", who="admin", is_brief=True),
    Page("ca-rotate", "running", "/settings/ca/rotate", who="admin", is_brief=True),
    Page("keys-rotate", "running", "/settings/keys/rotate", who="admin", is_brief=True),
    Page("settings-rotating", "stale", "/settings", who="admin", is_brief=True),
    Page("ca-cancel", "stale", "/settings/ca/cancel", who="admin", is_brief=True),
    Page("ca-finish", "stale", "/settings/ca/finish", who="admin", is_brief=True),
    Page("budgets-empty", "empty", "/budgets", is_brief=True),
    Page("budgets", "running", "/budgets", who="viewer"),
    Page("budgets-large", "large", "/budgets", is_brief=True),
    Page("budget", "running", "/budgets/{site}", who="viewer"),
    Page("budget-large", "large", "/budgets/{site}", is_brief=True),
    Page("adapters-empty", "empty", "/adapters", is_brief=True),
    Page("adapters", "running", "/adapters", who="operator"),
    Page("adapter", "running", "/adapters/{done}", who="operator"),
    Page("adapter-export", "running", "/adapters/{done}/export", who="operator", is_brief=True),
)

FILES = (
    "/budgets/report.json",
    "/budgets/report.html",
    "/studies/{study}/study.json",
)  # paths of views that are downloaded

PAGES = (
    *(Page(f"budget-report-{code}", "reports", f"{code}.html", is_brief=code != "en") for code in languages()),
    Page("routing", "routing"),
    Page("ladder", "ladder"),
    *OPERATORS_PAGES,
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_can_be_read_by_everybody_everywhere(request, browser, pictures, page):
    place = request.getfixturevalue(page.place)
    place = (place.by(page.who) if page.who else place).at(page.path, status=page.status)
    seen = look(browser, place, pictures, page.name, is_brief=page.is_brief)
    figures = {"page": page.name, "first_paint_ms": seen.first_paint_ms, "seconds": seen.seconds}
    request.node.user_properties += figures.items()
    assert seen.faults == [], str(seen)


def test_no_two_pages_share_a_name():
    assert len({page.name for page in PAGES}) == len(PAGES)


def test_every_view_of_the_operators_page_is_looked_at():
    routes = {path: compile_path(path)[0] for path in VIEWS}
    asked = [*(page.path for page in OPERATORS_PAGES), *FILES]
    found = {
        next((path for path, route in routes.items() if route.match(each.partition("?")[0])), None) for each in asked
    }
    assert set(VIEWS) - found == set(), "add a line to OPERATORS_PAGES, or to FILES if it is downloaded"

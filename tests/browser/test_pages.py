"""Every web page of confide in Chromium. A new page is a line in `PAGES`; `conftest.py` has the fixtures that serve."""

from dataclasses import dataclass

import pytest
from starlette.routing import compile_path

from confide.client_node.page.views import VIEWS as SITES_VIEWS
from confide.coordinator.page.views import VIEWS as OPERATORS_VIEWS
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
    who: str = ""  # an operator's role, where a federation has operators; "nobody" has not come in
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
    Page("adapter-without-map", "running", "/adapters/{earlier}", who="operator", is_brief=True),
    Page("adapter-export", "running", "/adapters/{done}/export", who="operator", is_brief=True),
    Page("adapter-merge", "running", "/adapters/{done}/merge", who="operator", is_brief=True),
)

# Every page of client_node/page/views.py, in the same way; seen by who has a link, or by "nobody".
SITES_PAGES = (
    Page("node-door", "site_waits", "/login", who="nobody"),
    Page("node-door-closed", "site_waits", "/enter?link=used", 403, who="nobody", is_brief=True),
    Page("node-trouble", "site_waits", "/studies/nothing", 404, is_brief=True),
    Page("node-overview-empty", "site_empty", "/", is_brief=True),
    Page("node-overview-waits", "site_waits", "/", is_brief=True),
    Page("node-overview", "site_spent", "/"),
    Page("node-overview-refused", "site_refused", "/", is_brief=True),
    Page("node-overview-four-eyes", "site_of_two", "/", is_brief=True),
    Page("node-overview-aggregator", "aggregator", "/", is_brief=True),
    Page("node-studies-empty", "site_empty", "/studies", is_brief=True),
    Page("node-studies", "site_spent", "/studies"),
    Page("node-study", "site_waits", "/studies/{study}"),
    Page("node-study-hostile", "site_waits", "/studies/{other}", is_brief=True),
    Page("node-study-approved", "site_spent", "/studies/{study}", is_brief=True),
    Page("node-study-refused", "site_refused", "/studies/{study}", is_brief=True),
    Page("node-study-four-eyes", "site_of_two", "/studies/{study}", is_brief=True),
    Page("node-study-aggregator", "aggregator", "/studies/{study}", is_brief=True),
    Page("node-rules", "site_waits", "/studies/{study}/rules"),
    Page("node-approve", "site_waits", "/studies/{study}/approve"),
    Page("node-approve-four-eyes", "site_of_two", "/studies/{study}/approve", is_brief=True),
    Page("node-approve-aggregator", "aggregator", "/studies/{study}/approve", is_brief=True),
    Page("node-refuse", "site_waits", "/studies/{study}/revoke", is_brief=True),
    Page("node-withdraw", "site_spent", "/studies/{study}/revoke"),
    Page("node-budget-empty", "site_empty", "/budget", is_brief=True),
    Page("node-budget", "site_spent", "/budget"),
    Page("node-traffic-empty", "site_empty", "/traffic", is_brief=True),
    Page("node-traffic", "site_spent", "/traffic"),
    Page("node-decisions-empty", "site_empty", "/decisions", is_brief=True),
    Page("node-decisions", "site_spent", "/decisions"),
    Page("node-policy", "site_spent", "/policy"),
    Page("node-log-empty", "site_empty", "/log", is_brief=True),
    Page("node-log", "site_spent", "/log"),
)

FILES = (
    "/budgets/report.json",
    "/budgets/report.html",
    "/studies/{study}/study.json",
)  # paths of views that are downloaded
SITES_FILES = ("/budget/report.html", "/budget/report.json")

PAGES = (
    *(Page(f"budget-report-{code}", "reports", f"{code}.html", is_brief=code != "en") for code in languages()),
    Page("routing", "routing"),
    Page("ladder", "ladder"),
    Page("simulation", "simulated"),
    Page("simulation-begun", "simulating", is_brief=True),
    Page("sweep", "swept"),
    *OPERATORS_PAGES,
    *SITES_PAGES,
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


def unseen(views, pages, files):
    """Paths of views that no line asks for. Where some share a page, one of them is enough."""
    routes = {path: compile_path(path)[0] for path in views}
    asked = [*(page.path for page in pages), *files]
    found = {
        next((path for path, route in routes.items() if route.match(each.partition("?")[0])), None) for each in asked
    }
    looks = {view.look for path, view in views.items() if path in found}
    return {path for path, view in views.items() if view.look not in looks}


def test_every_view_of_the_operators_page_is_looked_at():
    assert unseen(OPERATORS_VIEWS, OPERATORS_PAGES, FILES) == set(), "add a line to OPERATORS_PAGES, or to FILES"


def test_every_view_of_a_sites_page_is_looked_at():
    assert unseen(SITES_VIEWS, SITES_PAGES, SITES_FILES) == set(), "add a line to SITES_PAGES, or to SITES_FILES"


def test_a_view_in_no_line_is_unseen():
    page = next(page for page in SITES_PAGES if page.path == "/traffic")
    others = [other for other in SITES_PAGES if other.path != page.path]
    assert unseen(SITES_VIEWS, others, SITES_FILES) == {page.path}

import json
import re
import shlex
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from confide.client_node.web.entering import make_link
from confide.client_node.web.framing import framed
from confide.coordinator.federation import Settings, create_home
from confide.coordinator.ledger_standings import Ledgers
from confide.coordinator.page import budgets, downloads
from confide.coordinator.page.app import PageApp
from confide.coordinator.page.budgets import ACCOUNTS_A_PAGE
from confide.coordinator.page.statements import Statements
from confide.coordinator.results.reports import budget_report
from confide.coordinator.store.ledger_replica import LedgerReplica
from confide.coordinator.store.tables import LedgerRow, NodeRow
from confide.listening import LOOPBACK_NAMES
from confide.privacy.ledger.standings import Standing
from confide.privacy.report.schema import parse
from confide.privacy.report.verify import known_keys, verify

from ...privacy.ledgers import ledger_with
from ..conftest import Federation

SETTINGS = Settings(federation="Four hospitals", address="fed.example:1", listen="127.0.0.1", port=1, superlink_port=2)


@pytest.fixture
def ledgered(federation: Federation) -> Federation:
    """A federation with a study whose site svi has charged some rounds and replicated its ledger."""
    create_home(federation.home, SETTINGS)
    federation.create()
    with ledger_with(federation.home / "svi.db", site="svi") as ledger:
        federation.change("svi", identity=ledger.public_key)
        LedgerReplica(federation.store).extend("svi", ledger.public_key, ledger.entries())
    return federation


@pytest.fixture
def app(ledgered: Federation) -> Iterator[PageApp]:
    app = PageApp(ledgered.home, ledgered.store, is_https=False)
    app._federation.ledgers.look()
    yield app
    app.close()


@pytest.fixture
def browser(app: PageApp, ledgered: Federation) -> Iterator[TestClient]:
    """A browser that was let in as the home's account."""
    client = TestClient(
        framed(app.app, LOOPBACK_NAMES, is_https=False), base_url="http://localhost", follow_redirects=False
    )
    assert client.get("/enter", params={"link": make_link(ledgered.home, None)}).status_code == 303
    yield client
    client.close()


def test_the_fullest_account_stands_first(browser, app):
    app._federation.ledgers._standings = {
        "other": [Standing("one", "patient", 8.0, 2.0, 0.1)], "svi": [Standing("two", "patient", 8.0, 8.0, 1.0)],
        "rest": [Standing("three", "patient", None, float("inf"), 1.0), Standing("four", "visit", 4.0, 3.7, 0.93)],
    }  # fmt: skip
    page = browser.get("/budgets").text
    table = page[page.index("<tbody>") :]
    assert re.findall(r"<td>(one|two|three|four)</td>", table) == ["three", "two", "four", "one"]
    assert re.findall(r'<rect class="(whole|part|over)"', page)[:4] == ["over", "over", "part", "whole"]
    assert "∞" in table
    assert ">none<" in table


def test_many_accounts_come_page_by_page_and_by_site(browser, app):
    many = {f"site-{number:03}": [Standing("d", "patient", 8.0, 1.0, number / 100)] for number in range(100)}
    app._federation.ledgers._standings = many
    first, last = browser.get("/budgets").text, browser.get("/budgets?page=4").text
    assert first.count('<th scope="row">') == last.count('<th scope="row">') == ACCOUNTS_A_PAGE
    assert 'href="/budgets/site-099"' in first
    assert 'href="/budgets/site-000"' in last
    assert first.count('<rect class="rail"') == 2 * 30  # on a wide page, and on a narrow one
    found = browser.get("/budgets?site=E-07").text
    assert re.findall(r'<a href="/budgets/(site-\d+)">', found) == [f"site-07{last}" for last in "9876543210"]
    for odd in ("0", "-1", "²", "9" * 300, "<b>"):
        assert browser.get("/budgets", params={"page": odd, "site": "<script>"}).status_code == 200
    assert "<script>alert" not in browser.get("/budgets?site=<script>alert").text


def test_a_federation_without_ledgers_says_when_they_come(browser, app):
    app._federation.ledgers._standings = {}
    page = browser.get("/budgets").text
    assert "a site sends it when a run begins" in page
    assert "budget verify" not in page
    assert "No ledger is here yet" in browser.get("/budgets/other").text
    assert browser.get("/budgets/nobody").status_code == 404


def test_a_site_s_page_shows_what_the_signed_report_says(browser, ledgered, app):
    facts = parse(budget_report(ledgered.store, ledgered.home)).sites[0].accounts[0]
    assert facts.course
    found = Statements(Ledgers(ledgered.store)).of(ledgered.store, "svi", wait_s=60).accounts[0]
    assert found.facts == facts
    counts = [sum(event.count for event in facts.events), sum(each.count for each in found.charged), facts.releases]
    assert len(set(counts)) == 1
    assert sum(each.filled for each in found.charged) == pytest.approx(found.filled, rel=1e-9)
    open_ones = sum(event.count for event in facts.events if not event.is_settled)
    assert sum(each.unsettled for each in found.charged) == open_ones
    statements = app._federation.statements
    with statements._one:  # another ledger is being read
        page = browser.get("/budgets/svi")
    assert "is being read for the first time" in page.text
    assert page.headers["refresh"] == "2"
    statements.of(ledgered.store, "svi", wait_s=60)
    page = browser.get("/budgets/svi")
    assert "refresh" not in page.headers
    assert page.text.count('<svg class="course"') == 4  # two charts, each on a wide page and on a narrow one
    assert facts.dataset in page.text


def test_a_statement_is_made_once_for_a_length_of_the_ledger(ledgered):
    statements, store = Statements(Ledgers(ledgered.store)), ledgered.store
    first = statements.of(store, "svi", wait_s=60)
    assert statements.of(store, "svi", wait_s=0) is first
    with store.session() as session:
        last = session.query(LedgerRow).order_by(LedgerRow.seq.desc()).first()
        session.delete(last)  # a shorter one stands for a longer one: it has another length
    with statements._one:  # another ledger is being read
        assert statements.of(store, "svi", wait_s=0) is first
    second = statements.of(store, "svi", wait_s=60)
    assert (second.length, first.length) == (last.seq, last.seq + 1)


def test_a_ledger_that_does_not_hold_together_is_no_page_of_figures(request, ledgered, monkeypatch):
    monkeypatch.setattr(budgets, "_WAIT_S", 60.0)
    with ledgered.store.session() as session:
        session.delete(session.query(LedgerRow).filter_by(seq=0).one())
    answer = request.getfixturevalue("browser").get("/budgets/svi")  # its app has read nothing before
    assert answer.status_code == 400
    assert "does not hold together" in answer.text


def test_the_report_and_the_command_that_is_shown_agree(browser):
    answer = browser.get("/budgets/report.json")
    assert answer.status_code == 200
    assert re.fullmatch(
        r'attachment; filename="budget-report-all-\d{4}-\d\d-\d\d.json"', answer.headers["content-disposition"]
    )
    shown = re.search(r"coordinator budget verify report\.json.*?</pre>", browser.get("/budgets").text, re.DOTALL)
    words = shlex.split(shown[0].removesuffix("</pre>"))
    issuer, sites = (
        words[words.index("--issuer") + 1],
        [words[at + 1] for at, word in enumerate(words) if word == "--site"],
    )
    found = verify(json.loads(answer.content), issuer=issuer, site_keys=known_keys(sites))
    assert found.ok, found.failures
    assert [site.partition("=")[0] for site in sites] == ["svi"]
    forged = known_keys([f"svi={'ab' * 32}"])
    assert not verify(json.loads(answer.content), issuer=issuer, site_keys=forged).ok


def test_the_report_s_page_runs_nothing_and_loads_nothing(browser):
    answer = browser.get("/budgets/report.html?lang=de")
    assert 'lang="de"' in answer.text
    assert answer.headers["content-disposition"].startswith('inline; filename="budget-report-all-')
    policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'", "style-src": "'unsafe-inline'", "img-src": "data:", "base-uri": "'none'",
        "form-action": "'none'", "frame-ancestors": "'none'", "sandbox": "",
    }  # fmt: skip
    assert "<script" not in answer.text
    other = browser.get("/budgets").headers["content-security-policy"]
    assert "unsafe" not in other


@pytest.mark.parametrize(
    ("asked", "status", "told"),
    [("lang=xx", 400, "no page in the language"), ("study=nothing", 404, "nothing"), ("lang=../en", 400, "language")],
)
def test_a_report_of_nothing_is_told(browser, asked, status, told):
    answer = browser.get(f"/budgets/report.html?{asked}")
    assert answer.status_code == status
    assert told in answer.text


def test_a_name_of_a_download_is_plain(browser):
    answer = downloads.attached(b"", 'a"\r\nX: é/../b.json', "application/json")
    assert answer.headers["content-disposition"] == 'attachment; filename="a-X-..-b.json"'
    assert "x" not in answer.headers


def test_a_report_is_made_anew_once_a_ledger_has_grown(ledgered):
    reports, store, home = downloads.Reports(), ledgered.store, ledgered.home
    first = reports.json(store, home, None)
    assert reports.json(store, home, None) is first
    assert reports.json(store, home, "thyroid") is not first
    with ledger_with(home / "rest.db", site="rest") as ledger:
        ledgered.change("rest", identity=ledger.public_key)
        LedgerReplica(store).extend("rest", ledger.public_key, ledger.entries())
    assert [site["name"] for site in json.loads(reports.json(store, home, None))["sites"]] == ["rest", "svi"]


def test_one_report_is_made_at_a_time(ledgered, monkeypatch, browser, app):
    monkeypatch.setattr(downloads, "_PATIENCE_S", 0.01)
    with app._federation.reports._one:
        answer = browser.get("/budgets/report.json")
    assert answer.status_code == 409
    assert "Another budget report is being made" in answer.text
    assert browser.get("/budgets/report.json").status_code == 200


def test_a_stranger_gets_no_report(app):
    stranger = TestClient(app.app, follow_redirects=False)
    for path in ("/budgets", "/budgets/svi", "/budgets/report.json", "/budgets/report.html"):
        answer = stranger.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")


def test_a_site_that_left_keeps_its_page(browser, ledgered):
    with ledgered.store.session() as session:
        session.get(NodeRow, "svi").left_at = 2.0
    assert "svi" in browser.get("/budgets/svi").text

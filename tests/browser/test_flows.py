"""What people do on the operator's page, in Chromium: with a script and without."""

import re
import time
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from confide.coordinator.store.states import RunState
from confide.coordinator.store.tables import OperatorRow, Run

from . import federations

pytestmark = [pytest.mark.process, pytest.mark.slow]

SOON_MS = 20_000  # of a machine with much else to do; a page asks every two seconds
with_and_without = pytest.mark.parametrize("has_script", [True, False], ids=["script", "no-script"])


@pytest.fixture
def here(copy):
    """A page over a federation of the test's own, with three operators and a run that goes on."""
    home, names = copy
    with federations.served(home, names) as served, federations.coordinating(served):
        yield served


@pytest.fixture
def open_page(browser, here):
    """Opens the page in a browser of its own, as somebody; who says something wrong on its console fails the test."""
    contexts, said = [], []

    def opened(who="", path="/", *, has_script=True, **options):
        context = browser.new_context(java_script_enabled=has_script, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda line: said.append(line.text) if "Content Security" in line.text else None)
        if who:
            page.goto(here.link(who))
            expect(page).to_have_url(f"{here.address}/")
        page.goto(here.address + path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []


def path_of(page):
    return urlsplit(page.url).path


@with_and_without
def test_a_person_logs_in_with_a_token_and_out_again(here, open_page, has_script):
    page = open_page(path="/runs", has_script=has_script)
    assert path_of(page) == "/login"
    page.get_by_label("Operator's token").fill("confide_oscar." + "x" * 43)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_contain_text("no operator's")
    page.get_by_label("Operator's token").fill(here.names["operator"])
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text("oscar, operator")).to_be_visible()
    assert path_of(page) == "/"
    page.get_by_role("button", name="Log out").click()
    expect(page).to_have_url(f"{here.address}/login")
    page.goto(f"{here.address}/runs")
    assert path_of(page) == "/login"


def test_a_link_opens_the_page_once(here, open_page):
    page, link = open_page(), here.link("viewer")
    page.goto(link)
    expect(page.get_by_text("vera, viewer")).to_be_visible()
    page.goto(link)
    expect(page.get_by_role("alert")).to_contain_text("this link was used", ignore_case=True)


@with_and_without
def test_an_operator_stops_a_run_goes_on_with_it_and_gives_it_up(here, open_page, has_script):
    page, run = open_page("operator", has_script=has_script), here.names["run"]

    def state():
        return here.store.run(run).state

    page.get_by_role("link", name=run).first.click()
    page.get_by_role("link", name="Stop…").click()
    page.get_by_role("link", name="Leave it as it is").click()
    assert state() == RunState.RUNNING
    page.get_by_role("link", name="Stop…").click()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("status").filter(has_text="stops after")).to_be_visible()
    assert state() == RunState.STOPPING
    with here.store.session() as session:  # as its driver does when it has obeyed
        session.get(Run, run).state = RunState.STOPPED
    page.reload()
    expect(page.get_by_text("stops after")).to_have_count(0)
    page.get_by_role("link", name="Resume…").click()
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("status").filter(has_text="goes on from round 13")).to_be_visible()
    page.get_by_role("link", name="Abandon…").click()
    page.get_by_label("Type the run's name").fill("thyroid")
    page.get_by_role("button", name="Abandon").click()
    expect(page.get_by_role("alert")).to_contain_text("nothing was done")
    assert state() == RunState.PENDING
    page.goto(f"{here.address}/runs/{run}/abandon")
    page.get_by_label("Type the run's name").fill(run)
    page.get_by_role("button", name="Abandon").click()
    expect(page.get_by_role("status").filter(has_text="given up")).to_be_visible()
    assert state() in (RunState.ABANDONING, RunState.ABANDONED)


def test_a_viewer_sees_no_orders_and_may_give_none(here, open_page):
    run = here.names["run"]
    page = open_page("viewer", f"/runs/{run}")
    expect(page.get_by_role("heading", name=run)).to_be_visible()
    expect(page.get_by_role("link", name=re.compile("…$"))).to_have_count(0)
    expect(page.get_by_role("heading", name="Log of the driver")).to_have_count(0)
    key = page.locator("[name=form_key]").first.get_attribute("value")
    for order in ("stop", "resume", "abandon"):
        address = f"{here.address}/runs/{run}/{order}"
        answer = page.goto(address)
        assert answer.status == 403
        assert page.request.post(address, form={"form_key": key, "typed": run}).status == 403
    assert here.store.run(run).state == RunState.RUNNING
    page.goto(here.address)
    expect(page.get_by_role("link", name="Start a run")).to_have_count(0)


def test_an_open_page_follows_the_run_where_one_has_scrolled_to(here, open_page):
    page = open_page("operator", f"/runs/{here.names['run']}", viewport={"width": 360, "height": 500})
    figure = page.locator("dt:has-text('Rounds') + dd")
    expect(figure).to_have_text("12 of 40")
    page.evaluate("globalThis.isTheSamePage = true")
    table = page.locator("#rounds-table")
    table.focus()
    table.evaluate("(box) => { box.scrollLeft = 90; }")
    down = page.evaluate("scrollY")
    assert down > 0
    here.commit(1)
    expect(figure).to_have_text("13 of 40", timeout=SOON_MS)
    expect(page.locator("#rounds-table tbody tr").first).to_contain_text("13")
    assert page.evaluate("isTheSamePage")
    assert page.evaluate("[document.activeElement.id, document.activeElement.scrollLeft]") == ["rounds-table", 90]
    assert abs(page.evaluate("scrollY") - down) <= 60  # a row more, or a line less, above what is looked at


def test_a_page_that_nobody_serves_says_so_until_somebody_does(here, open_page):
    page = open_page("operator", "/runs")
    expect(page.locator("#lost")).to_be_hidden()
    here.stop()
    expect(page.locator("#lost")).to_be_visible(timeout=SOON_MS)
    expect(page.get_by_role("heading", name="Runs")).to_be_visible()
    here.serve()
    expect(page.locator("#lost")).to_be_hidden(timeout=SOON_MS)
    assert path_of(page) == "/runs"


def test_a_page_that_a_server_lets_wait_says_so_until_it_is_answered(here, open_page):
    page = open_page("operator", "/runs")
    page.evaluate("() => { window.patient = AbortSignal.timeout; }")
    page.evaluate("() => { AbortSignal.timeout = () => window.patient.call(AbortSignal, 100); }")
    page.route("**/runs", lambda route: None)  # nobody answers, as a process that was stopped
    expect(page.locator("#lost")).to_be_visible(timeout=SOON_MS)
    page.unroute("**/runs")
    page.evaluate("() => { AbortSignal.timeout = window.patient; }")  # a server under load may take longer than 100 ms
    expect(page.locator("#lost")).to_be_hidden(timeout=SOON_MS)


def test_an_open_page_goes_to_the_door_when_its_session_ends(here, open_page):
    page = open_page("operator", "/runs")
    expect(page.get_by_role("heading", name="Runs")).to_be_visible()
    with here.store.session() as session:
        session.get(OperatorRow, federations.PEOPLE["operator"]).revoked_at = time.time()
    expect(page).to_have_url(f"{here.address}/login", timeout=SOON_MS)

"""What a site's people do on its page, in Chromium: with a script and without."""

import re

import pytest
from playwright.sync_api import expect

from confide.client_node.approval.run_reservations import RunReservations
from confide.client_node.policy import decision_log, load_decisions
from confide.client_node.policy import decisions as decided
from confide.client_node.spoken_hash import words

from . import sites
from .looking import glance

pytestmark = [pytest.mark.process, pytest.mark.slow]

with_and_without = pytest.mark.parametrize("has_script", [True, False], ids=["script", "no-script"])


@pytest.fixture
def here(tmp_path):
    """The page of a site where two studies wait."""
    with sites.served(*sites.waiting(tmp_path)) as served:
        yield served


@pytest.fixture
def come_in(browser):
    """Opens a site's page in a browser of its own, by a link; what goes wrong in a script fails the test."""
    contexts, said = [], []

    def came(here, *, has_script=True):
        context = browser.new_context(java_script_enabled=has_script, color_scheme="light")
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda line: said.append(line.text) if "Content Security" in line.text else None)
        page.goto(here.link())
        expect(page).to_have_url(f"{here.address}/")
        return page

    yield came
    for context in contexts:
        context.close()
    assert said == []


def assert_good(page, pictures, name):
    """Fails unless the answer of a form, which has no address of its own, can be read by everybody."""
    seen = glance(page, pictures, name)
    assert seen.faults == [], str(seen)


def decisions(here):
    return [(each.by, each.decision, each.about) for each in decision_log.read(here.site.home)[0]]


@with_and_without
def test_a_study_is_read_and_approved_and_another_refused(here, come_in, pictures, has_script):
    page, study, other = come_in(here, has_script=has_script), here.names["study"], here.names["other"]
    waits = page.locator("#health")
    expect(waits).to_contain_text("2 studies wait for a decision")
    waits.get_by_role("link", name="thyroid").click()
    expect(page.get_by_role("heading", name="All terms")).to_be_visible()
    expect(page.get_by_role("row", name="noise multiplier")).to_contain_text("1.19")
    assert page.locator("ol.spoken li").all_inner_texts() == list(words(study))

    page.get_by_role("link", name="Approve…").click()
    page.get_by_label("Who decides").fill("Dr. Ada")
    page.get_by_role("button", name="See what that means").click()
    expect(page.get_by_role("heading", name="What that means")).to_be_visible()
    expect(page.get_by_text("Approved by Dr. Ada.")).to_be_visible()
    if has_script:
        assert_good(page, pictures, "node-proposal")
    assert load_decisions(here.site.home).verdict(study) is None
    page.get_by_label("Type words").fill("one two three four")
    page.get_by_role("button", name="Approve", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("nothing was done")
    assert decisions(here) == []
    asked = re.findall(r"\d+", page.locator("label[for=typed]").inner_text())
    page.get_by_label("Type words").fill(" ".join(words(study)[int(each) - 1] for each in asked))
    page.get_by_role("button", name="Approve", exact=True).click()
    expect(page.get_by_role("status").filter(has_text="is approved for 1 run")).to_be_visible()
    assert page.url == f"{here.address}/studies/{study}"

    page.get_by_role("link", name="Overview").click()
    page.locator("#health").get_by_role("link", name="hostile").click()
    page.get_by_role("link", name="Refuse…").click()
    page.get_by_role("link", name="Leave it as it is").click()
    page.get_by_role("link", name="Refuse…").click()
    page.get_by_role("button", name="Refuse").click()
    expect(page.get_by_role("status").filter(has_text="is refused")).to_be_visible()

    page.get_by_role("link", name="Decisions").click()
    rows = page.locator("#decisions-table tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("revoke")
    expect(rows.last).to_contain_text("Dr. Ada")
    expect(rows.last).to_contain_text("ada, by the page")
    page.get_by_role("button", name="Verify the log").click()
    expect(page.get_by_role("status")).to_contain_text("Everything holds")
    if has_script:
        assert_good(page, pictures, "node-decisions-verified")
    assert decisions(here) == [("Dr. Ada", "approve", study), (sites.WHO, "revoke", other)]
    verdicts = load_decisions(here.site.home)
    assert [verdicts.verdict(name) for name in (study, other)] == ["approved", "revoked"]


@with_and_without
def test_an_approval_is_withdrawn_under_a_run_by_its_name_alone(tmp_path, come_in, has_script):
    with sites.served(*sites.under_way(tmp_path)) as here:
        page, study = come_in(here, has_script=has_script), here.names["study"]
        (run,) = RunReservations(here.site.home).of_study(study)
        page.goto(f"{here.address}/studies/{study}")
        page.get_by_role("link", name="Withdraw…").click()
        expect(page.get_by_text(f"{run} is under way and fails")).to_be_visible()
        page.get_by_label("Type the study's name").fill("other")
        page.get_by_role("button", name="Withdraw").click()
        expect(page.get_by_role("alert")).to_contain_text("nothing was done")
        page.go_back()
        page.get_by_label("Type the study's name").fill("thyroid")
        page.get_by_role("button", name="Withdraw").click()
        expect(page.get_by_role("status").filter(has_text="is withdrawn")).to_be_visible()
        assert load_decisions(here.site.home).verdict(study) == "revoked"


def test_what_speaks_against_an_approval_is_told(here, come_in, pictures):
    here.site.write(("epsilon = 10.0", "epsilon = 0.5"))
    page = come_in(here)
    page.goto(f"{here.address}/studies/{here.names['study']}/approve")
    page.get_by_role("button", name="See what that means").click()
    expect(page.get_by_role("alert")).to_contain_text("the budget cannot pay")
    assert_good(page, pictures, "node-objection")


def test_the_table_is_checked_and_what_does_not_fit_is_told(here, come_in, pictures):
    page = come_in(here)
    page.goto(f"{here.address}/studies/{here.names['study']}")
    page.get_by_role("button", name="Check the table").click()
    expect(page.get_by_text("It fits")).to_be_visible()
    assert_good(page, pictures, "node-check")
    table = here.site.home / "patients.csv"
    table.write_text(table.read_text().replace("34", "cell-" * 60, 1))
    page.goto(f"{here.address}/studies/{here.names['study']}")
    page.get_by_role("button", name="Check the table").click()
    expect(page.get_by_role("alert")).to_contain_text("line 2, column age")
    expect(page.get_by_text("cell-")).to_have_count(0)
    assert_good(page, pictures, "node-check-misfit")


def test_where_two_people_decide_no_button_approves(tmp_path, come_in, pictures):
    with sites.served(*sites.four_eyes(tmp_path)) as here:
        page, study = come_in(here), here.names["study"]
        expect(page.locator("#health")).to_contain_text("waits for a second person")
        page.goto(f"{here.address}/studies/{study}/approve")
        page.get_by_label("Runs").fill("2")
        page.get_by_role("button", name="See what that means").click()
        expect(page.get_by_text(f"client-node study approve {study} --runs 2")).to_be_visible()
        expect(page.get_by_role("button", name="Approve")).to_have_count(0)
        assert_good(page, pictures, "node-proposal-four-eyes")
        assert load_decisions(here.site.home).verdict(study) is None


def test_an_aggregator_confirms_a_key_by_what_its_people_heard(tmp_path, come_in, pictures):
    with sites.served(*sites.aggregator(tmp_path)) as here:
        page, study = come_in(here), here.names["study"]
        page.goto(f"{here.address}/studies/{study}/approve")
        heard = page.get_by_label("Fingerprint of rest")
        heard.fill("ABCD-" * 7 + "ABCD")
        page.get_by_role("button", name="Confirm rest").click()
        expect(page.get_by_role("alert")).to_contain_text("another key than this study gives it")
        decided.remove_sites(here.site.home, ["rest"])
        page.goto(f"{here.address}/studies/{study}/approve")
        heard.fill(here.names["rest"].lower())
        page.get_by_role("button", name="Confirm rest").click()
        expect(page.get_by_role("status").filter(has_text="The key of rest is confirmed")).to_be_visible()
        expect(heard).to_have_count(0)
        assert_good(page, pictures, "node-confirmed")
        assert [(decision, about) for _, decision, about in decisions(here)[-3:]] == [
            (decision, "rest") for decision in ("confirm", "remove", "confirm")
        ]


@pytest.mark.parametrize("width", [360, 640], ids=["a telephone", "half a wide window, as at 200 %"])
def test_no_line_of_the_policy_is_hidden_to_the_side(here, come_in, width):
    page = come_in(here)
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"{here.address}/policy")
    expect(page.get_by_role("rowheader").first).to_be_visible()
    sizes = page.evaluate("[...document.querySelectorAll('.scroll')].map((box) => [box.scrollWidth, box.clientWidth])")
    assert sizes
    assert all(inner <= outer for inner, outer in sizes), sizes

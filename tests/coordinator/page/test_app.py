"""What holds for every page and form of the table, those that come later included."""

import logging
import re

import pytest

from confide.client_node.web.routing import routes_of
from confide.coordinator.errors import Conflict, CoordinatorError, NotFound, StoreUnavailable
from confide.coordinator.oversight.roles import COMMANDS, is_enough
from confide.coordinator.page.views import VIEWS, View
from confide.coordinator.store import audit_log
from confide.coordinator.store.tables import Run, StudyRow
from confide.privacy.accounting import composition

from ..conftest import logged
from .conftest import a_browser, key_of, let_in

FORMS = [path for path, view in VIEWS.items() if view.carry_out is not None]
ROLES = ("viewer", "operator", "admin")
QUOTED = "the record of a person"


def address(path: str) -> str:
    """The address of a view, of things that are not there."""
    return re.sub(r"\{[^}]*\}", "nothing-9", path)


def is_refused_for_the_role(answer) -> bool:
    return answer.status_code == 403 and "takes the role" in answer.text


@pytest.fixture
def with_view(monkeypatch, page_app):
    """Serves one more page, and the form on it, at /odd."""

    def serve(look, command="status"):
        monkeypatch.setitem(VIEWS, "/odd", View(command, look, command, look))
        views = {"/odd": VIEWS["/odd"]}
        page_app.app.router.routes[:0] = routes_of(views, page_app._answer, page_app._refused)

    return serve


def test_every_view_names_commands_that_there_are():
    for view in VIEWS.values():
        assert view.command in COMMANDS
        assert (view.change is None) == (view.carry_out is None)
        assert view.change is None or view.change in COMMANDS


def test_a_page_that_is_warm_composes_nothing_anew_and_a_damaged_study_keeps_no_other_cold(page, page_app, federation):
    study = federation.create()
    with federation.store.session() as session:
        session.add(StudyRow(hash="ab" * 32, name="odd", canonical=b"{}", signature="", created_at=9.0))
        session.flush()
        session.add(Run(id="run-0", study="ab" * 32, state="running", created_at=6.0))
        session.add(Run(id="run-1", study=study.study_hash, state="running", created_at=7.0))
    composition.pld_bound.cache_clear()
    page_app.warm_up()
    composed = composition.pld_bound.cache_info().misses
    assert composed > 0
    for path in ("/runs/run-1", "/studies", f"/studies/{study.study_hash}"):
        assert page.get(path).status_code == 200
    assert composition.pld_bound.cache_info().misses == composed


@pytest.mark.parametrize("path", VIEWS)
def test_a_stranger_is_shown_no_page_and_led_to_the_door(stranger, federation, path):
    for asked in (address(path), address(path) + "?page=2"):
        answer = stranger.get(asked)
        assert (answer.status_code, answer.headers["location"], answer.text) == (303, "/login", "")
    assert stranger.head(address(path)).status_code == 303
    assert stranger.get(address(path), headers={"X-Live": "1"}).status_code == 401
    before = logged(federation.store)
    answer = stranger.post(address(path), data={"form_key": "x"})
    assert answer.status_code == (401 if path in FORMS else 405)
    assert logged(federation.store) == before


@pytest.mark.parametrize("role", ROLES)
def test_a_page_takes_the_role_of_its_command(as_role, role):
    client = as_role(role)
    for path, view in VIEWS.items():
        least = COMMANDS[view.command].role
        may = least == "anyone" or is_enough(role, least)
        answer = client.get(address(path))
        assert is_refused_for_the_role(answer) == (not may), (path, answer.status_code)
        assert answer.status_code != 500, path


@pytest.mark.parametrize("role", ROLES)
def test_a_form_takes_the_role_of_what_it_changes(as_role, role):
    client = as_role(role)
    key = key_of(client.get("/"))
    for path in FORMS:
        least = COMMANDS[str(VIEWS[path].change)].role
        may = least == "anyone" or is_enough(role, least)
        answer = client.post(address(path), data={"form_key": key})
        assert is_refused_for_the_role(answer) == (not may), (path, answer.status_code)
        assert answer.status_code != 500, path


@pytest.mark.parametrize("path", FORMS)
@pytest.mark.parametrize("data", [{"other": "x"}, {"form_key": ""}, {"form_key": "A" * 43}, {"form_key": "é"}])
def test_a_form_without_the_key_of_the_session_changes_nothing(page, federation, path, data):
    before = logged(federation.store)
    answer = page.post(address(path), data=data)
    assert (answer.status_code, "earlier session" in answer.text) == (403, True)
    assert logged(federation.store) == before


@pytest.mark.parametrize("path", FORMS)
def test_a_form_in_another_form_is_not_read(page, path):
    key = key_of(page.get("/"))
    assert page.post(address(path), json={"form_key": key}).status_code == 400
    body = f"form_key={key}&form_key={key}"
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    assert page.post(address(path), content=body, headers=kind).status_code == 400
    assert (
        page.post(address(path), content="form_key=" + key, headers={"Content-Type": "text/plain"}).status_code == 400
    )


@pytest.mark.parametrize("path", FORMS)
def test_a_form_of_another_site_changes_nothing_even_with_the_key(page, federation, path):
    data, before = {"form_key": key_of(page.get("/"))}, logged(federation.store)
    for headers in ({"Origin": "http://localhost:8000"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "null"}):
        assert page.post(address(path), data=data, headers=headers).status_code == 403
    assert logged(federation.store) == before


@pytest.mark.parametrize("path", VIEWS)
def test_pages_are_kept_by_nobody_and_take_odd_addresses(page, path):
    for query in ("", "?page=%C2%B2", "?page=-1", "?page=" + "9" * 5000, "?page=%00", "?" + "a&" * 20_000, "?page=٣"):
        answer = page.get(address(path) + query)
        taken = (400,) if "%00" in query else (200, 404, 409)
        assert answer.status_code in taken, (query[:20], answer.text[-400:])
        assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "part",
    ["<script>alert(1)</script>", "%00", "..", "%2e%2e", "a%2Fb", "%FF", "'; DROP TABLE run --", "x" * 5000, "🦊"],
)
@pytest.mark.parametrize("path", [path for path in VIEWS if "{" in path])
def test_an_odd_part_of_an_address_is_nothing_and_shown_as_text(page, path, part):
    answer = page.get(re.sub(r"\{[^}]*\}", part, path))
    assert answer.status_code in ((400,) if part == "%00" else (200, 404))  # two dots lead to another page
    assert "<script>alert" not in answer.text


def test_an_unknown_page_is_404_and_another_method_405_for_whom_it_may_be(page, stranger):
    for client in (page, stranger):
        assert client.get("/nowhere").status_code == 404
        assert client.request("DELETE", "/runs").status_code == 405
        assert "Four hospitals" in client.get("/nowhere").text


@pytest.mark.parametrize("path", ["/runs/", "//evil.example/", "/login/", "//evil.example/%2e%2e/"])
def test_nobody_is_led_to_a_place_that_the_request_names(page, path):
    answer = page.get(f"http://localhost{path}")
    assert (answer.status_code, answer.headers.get("location")) == (404, None)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotFound("no run x"), 404),
        (Conflict("it runs"), 409),
        (StoreUnavailable("the disk is full"), 503),
        (CoordinatorError("something else"), 400),
    ],
)
def test_an_error_of_ours_is_told_with_its_status(page, with_view, error, status):
    def look(visit):
        raise error

    with_view(look)
    answer = page.get("/odd")
    assert answer.status_code == status
    assert str(error)[1:] in answer.text
    assert 'role="alert"' in answer.text


def test_an_error_that_nobody_expects_tells_and_logs_no_value(page, with_view, caplog):
    def look(visit):
        raise ValueError(QUOTED)

    with_view(look)
    with caplog.at_level(logging.ERROR):
        answer = page.get("/odd")
    assert answer.status_code == 500
    assert QUOTED not in answer.text
    assert "Traceback" not in answer.text
    assert "ValueError" in caplog.text
    assert QUOTED not in caplog.text


def test_the_text_of_an_error_is_no_markup(page, with_view):
    def look(visit):
        raise Conflict('<img src=x onerror=alert(1)> "&')

    with_view(look)
    assert "&lt;img src=x onerror=alert(1)&gt; &#34;&amp;" in page.get("/odd").text


def test_a_view_whose_command_nobody_knows_is_refused(page, with_view):
    with_view(lambda visit: visit.render("runs.html", runs=[], studies={}), command="launch rockets")
    answer = page.get("/odd")
    assert (answer.status_code, "nobody may use it" in answer.text) == (403, True)


def test_what_a_form_does_stands_in_the_log_as_the_operators(as_role, federation, with_view):
    def act(visit):
        with visit.store.session() as session:
            visit.store.log_action(session, "keys.seal")
        return visit.go("runs", notice="It is done.")

    client = as_role("operator")
    with_view(act)
    answer = client.post("/odd", data={"form_key": key_of(client.get("/"))})
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs")
    with federation.store.session() as session:
        assert list(audit_log.entries(session))[-1].actor == "operator:oscar"
    assert client.get("/runs", headers={"X-Live": "1"}).text.count("It is done.") == 0  # it looks by itself
    assert client.get("/runs").text.count("It is done.") == 1
    assert "It is done." not in client.get("/runs").text


def test_a_place_to_go_on_to_is_always_here(page, with_view):
    with_view(lambda visit: visit.go("//evil.example", "a/b?c#d\r\nSet-Cookie: x", ".."))
    answer = page.get("/odd")
    assert answer.headers["location"].startswith("/%2F%2Fevil.example/a%2Fb%3Fc%23d%0D%0ASet-Cookie")
    assert "set-cookie" not in answer.headers


def test_a_page_that_the_browser_has_is_not_sent_again(page):
    first = page.get("/runs")
    again = page.get("/runs", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert page.get("/runs", headers={"If-None-Match": '"other"'}).status_code == 200


def test_of_a_page_the_head_alone_can_be_asked(page):
    answer = page.head("/runs")
    assert (answer.status_code, answer.content) == (200, b"")


def test_two_people_share_no_form_key_and_no_page(page, page_app, federation):
    other = a_browser(page_app)
    let_in(other, federation, None)
    first, second = page.get("/runs"), other.get("/runs")
    assert key_of(first) != key_of(second)
    assert other.get("/runs", headers={"If-None-Match": first.headers["ETag"]}).status_code == 200
    other.close()


def test_pages_hold_no_script_style_or_address_of_elsewhere(page, federation):
    study = federation.create()
    with federation.store.session() as session:
        session.add(Run(id="run-1", study=study.study_hash, state="running", created_at=0.0))
    for path in VIEWS:
        text = page.get(path.replace("{run}", "run-1")).text
        assert not re.search(r"<style|<script(?! src=\"/static/)|\son[a-z]+=|javascript:|\sstyle=", text), path
        assert not re.search(r"(?:src|href|action)=\"(?!/|#|\?)", text), path
        assert not re.search(r"(?:src|href|action)=\"//", text), path

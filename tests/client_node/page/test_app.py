import errno
import json
import os
import re
import socket
import time

import pytest
from starlette.testclient import TestClient
from typer.main import get_command

from confide.client_node import daemon, vitals
from confide.client_node.approval import study_decisions
from confide.client_node.cli.main import app
from confide.client_node.enrolment.sessions import only_one
from confide.client_node.errors import NotEnrolled, PageUnavailable
from confide.client_node.login import login_name
from confide.client_node.page import links, process, views
from confide.client_node.page.app import PageApp
from confide.client_node.page.traffic import SAID
from confide.client_node.policy import decision_log
from confide.client_node.traffic import TOLD, Passed, Traffic
from confide.client_node.vitals import KINDS, Notes, Vitals
from confide.client_node.web.entering import make_link, open_link
from confide.client_node.web.serving import Place

from ..conftest import site_in


def commands_of(group, *before):
    for name, each in group.commands.items():
        yield from commands_of(each, *before, name) if hasattr(each, "commands") else [" ".join((*before, name))]


def test_every_page_stands_beside_a_command_that_there_is():
    known = set(commands_of(get_command(app)))
    for view in views.VIEWS.values():
        for command in filter(None, (view.command, view.change)):
            assert command in known
        assert (view.change is None) == (view.carry_out is None)


def test_nobody_comes_in_without_a_link(site):
    study = site.keep(site.study())
    client = TestClient(PageApp(site.home).app, base_url="http://127.0.0.1")
    for path, view in views.VIEWS.items():
        where = path.replace("{hash}", study.study_hash)
        found = client.get(where, follow_redirects=False)
        assert (found.status_code, found.headers["location"]) == (303, "/login")
        if view.carry_out is not None:
            assert client.post(where, data={"form_key": ""}).status_code == 401
    assert "client-node page" in client.get("/login").text
    assert not (site.home / "decisions.json").exists()


def test_a_link_without_a_login_lets_nobody_in(site):
    client = TestClient(PageApp(site.home).app, base_url="http://127.0.0.1")
    answer = client.get("/enter", params={"link": make_link(site.home, None)})
    assert answer.status_code == 403
    assert "names no login" in answer.text


def test_a_link_works_once(site):
    page, link = PageApp(site.home).app, make_link(site.home, "ada")
    assert TestClient(page).get("/enter", params={"link": link}).status_code == 200
    assert TestClient(page).get("/enter", params={"link": link}).status_code == 403


def test_pages_of_one_machine_are_open_side_by_side(site, browser, tmp_path):
    """Browsers send the cookies of 127.0.0.1 to every port."""
    other = site_in(tmp_path / "other")
    page = TestClient(PageApp(other.home).app, base_url="http://127.0.0.1:81", cookies=browser.client.cookies)
    assert page.get("/", follow_redirects=False).status_code == 303
    page.get("/enter", params={"link": make_link(other.home, "bob")})
    assert len(page.cookies) == 2


def test_no_form_of_another_session_does_anything(site, browser, browse):
    study = site.keep(site.study())
    foreign = re.search(r'name="form_key" value="([^"]+)"', browse("bob").get("/policy").text)[1]
    forms = [path for path, view in views.VIEWS.items() if view.carry_out is not None]
    for path in forms:
        for fields in ({"typed": "thyroid"}, {"form_key": ""}, {"form_key": foreign}):
            answer = browser.client.post(path.replace("{hash}", study.study_hash), data=fields)
            assert "this form is of an earlier session" in answer.text.lower(), path
    assert not (site.home / "decisions.json").exists()


def test_the_page_is_for_this_machine_alone(site):
    for place in (Place(host="0.0.0.0"), Place(host="::"), Place(certificate=site.home, key=site.home)):
        with pytest.raises(PageUnavailable, match="for this machine alone"), process.opened(site.home, place):
            pass


def test_a_link_is_made_where_a_page_is_served_in_the_name_of_who_asks(site):
    with pytest.raises(PageUnavailable, match="no daemon runs here"):
        links.make(site.home)
    with only_one(site.home):
        with pytest.raises(PageUnavailable, match="has no page yet"):
            links.make(site.home)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            where = f"http://127.0.0.1:{listening.getsockname()[1]}"
            (site.home / daemon.PAGE_FILE).write_text(json.dumps({"address": where}))
            address, _, secret = links.make(site.home).partition("/enter?link=")
        assert address == where == daemon.status(site.home)["page"]
        assert open_link(site.home, secret) == (login_name(), "")
    assert daemon.status(site.home)["page"] is None  # a file that a killed daemon left behind


def test_without_a_federation_there_is_no_page(tmp_path):
    with pytest.raises(NotEnrolled):
        links.make(tmp_path)
    with pytest.raises(NotEnrolled):
        PageApp(tmp_path)


def test_the_overview_says_what_waits_first(site, browser):
    study = site.keep(site.study())
    shown = browser.get("/").text
    assert "no daemon runs" in shown.lower()
    assert "1 study waits for a decision" in shown
    study_decisions.approve_study(site.home, study_decisions.propose(site.home, study.study_hash))
    assert "waits for a decision" not in browser.get("/").text
    with only_one(site.home):
        watched = Vitals()
        watched.disconnected("it does not answer")
        Notes(site.home, "1.2.3", watched).tick()
        assert "is not reached: it does not answer" in browser.get("/").text
        watched.connected()
        Notes(site.home, "1.2.3", watched).tick()
        assert "All is well" in browser.get("/").text
        told = json.loads((site.home / vitals.FILE).read_text()) | {"noted": time.time() - 3600}
        (site.home / vitals.FILE).write_text(json.dumps(told))
        assert "shows no sign of life" in browser.get("/").text


def test_the_budget_is_that_of_the_command_and_the_report_verifies(site, browser, tmp_path):
    from confide.privacy.report import verify

    study = site.keep(site.study())
    assert "Nothing was spent yet" in browser.get("/budget").text
    study_decisions.approve_study(site.home, study_decisions.propose(site.home, study.study_hash))
    shown = browser.get("/budget").text
    assert "patients, per patient" in shown
    assert "of 10" in shown
    report = browser.get("/budget/report.json")
    assert report.headers["content-disposition"] == 'attachment; filename="svi-budget.json"'
    assert verify.verify(report.json()).ok
    assert "<html" in browser.get("/budget/report.html").text


def test_every_kind_that_is_counted_is_said_in_words():
    assert SAID.keys() == {*KINDS, TOLD, "other"}


def test_the_traffic_is_what_was_counted(site, browser):
    assert "Nothing was counted yet" in browser.get("/traffic").text
    passed = Passed(came=1, came_bytes=2500, answered=1, left_bytes=4_500_000)
    Traffic(site.home, clock=lambda: 86_400.0 * 20_000).note("step", passed)
    shown = browser.get("/traffic").text
    assert "4.5 MB" in shown
    assert "2.5 kB" in shown
    assert "2024-10-04" in shown


def test_the_decision_log_is_verified_where_it_was_changed(site, browser):
    study = site.keep(site.study())
    study_decisions.approve_study(site.home, study_decisions.propose(site.home, study.study_hash))
    assert "Everything holds." in browser.send("/decisions").text
    path = site.home / decision_log.FILE
    path.write_text(path.read_text().replace("runs 1", "runs 9"))
    assert "This log does not hold." in browser.send("/decisions").text


def test_a_long_log_comes_in_pages(site, browser):
    for number in range(30):
        decision_log.write(site.home, "forget", f"entry-{number:02}", "")
    assert "entry-29" in browser.get("/decisions").text
    assert "entry-04" not in browser.get("/decisions").text
    assert "entry-04" in browser.get("/decisions?page=2").text
    for page in ("9" * 400, "-1", "٣", "x"):
        assert browser.get("/decisions", params={"page": page}).status_code == 200


def test_an_unexpected_error_shows_none_of_its_text(site, browser, monkeypatch, caplog):
    cell = "-".join(("p1", "cell"))  # the source of a line may be shown, and a value not

    def fails(home):
        raise RuntimeError(cell)

    monkeypatch.setattr("confide.client_node.page.policy.effective", fails)
    answer = browser.get("/policy")
    assert answer.status_code == 500
    assert "should not happen" in answer.text
    assert cell not in answer.text + caplog.text


def test_nobody_is_told_that_nothing_was_done_where_the_disk_refused_midway(site, browser, monkeypatch):
    def fails(*arguments, **named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("confide.client_node.page.decisions.decision_log.verify", fails)
    answer = browser.send("/decisions")
    assert answer.status_code == 503
    assert "It is not certain that this was done" in answer.text
    assert "No space left on device" in answer.text
    monkeypatch.setattr("confide.client_node.page.policy.effective", fails)
    answer = browser.get("/policy")
    assert answer.status_code == 503
    assert "This cannot be answered just now" in answer.text


def test_a_damaged_file_is_told_with_what_to_do(site, browser):
    (site.home / "decisions.json").write_text("{")
    for path in ("/", "/studies", "/policy"):
        site.keep(site.study())
        answer = browser.get(path)
        assert answer.status_code == 400, path
        assert "Restore the newest copy from a backup" in answer.text


def test_the_log_is_that_of_the_daemon(site, browser, tmp_path):
    from confide.client_node.page import log

    (tmp_path / "daemon.log").write_text("first\nsvi is connected\n")
    assert log._of_daemon(tmp_path / "none")[1] is None
    (tmp_path / "link").symlink_to(tmp_path / "daemon.log")
    assert log._of_daemon(tmp_path / "link") == (str(tmp_path / "daemon.log"), "first\nsvi is connected\n")
    (site.home / "page.log").write_text("<b>warned</b>\n")
    assert "&lt;b&gt;warned" in browser.get("/log").text

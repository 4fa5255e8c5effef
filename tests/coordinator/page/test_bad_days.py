"""The page while something else is broken: it says so at once, and works again without a restart."""

import html
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from confide.client_node.web import routing
from confide.coordinator import key_sealing
from confide.coordinator.errors import StoreUnavailable
from confide.coordinator.page.visits import NAV
from confide.coordinator.store.tables import Run

from ..conftest import logged, only_postgresql, only_sqlite
from .conftest import key_of
from .test_app import with_view  # noqa: F401 (a fixture)

ELSEWHERE = "This cannot be answered just now"
UNSURE = "It is not certain that this was done"


@pytest.fixture
def empty_store(any_store):
    return any_store


@only_postgresql
def test_a_server_of_the_database_that_goes_away_is_told_and_found_again(page, federation, postgresql):
    study = federation.create()
    with federation.store.session() as session:
        session.add(Run(id="r-1", study=study.study_hash, state="pending", created_at=0.5))
    key = key_of(page.get("/runs/r-1/stop"))
    postgresql.stop()
    try:
        for ask in (lambda: page.get("/runs"), lambda: page.get("/runs", headers={"X-Live": "1"}),
                    lambda: page.post("/runs/r-1/stop", data={"form_key": key})):  # fmt: skip
            answer = ask()
            assert answer.status_code == 503
            assert "the connection to its server is lost. What is committed stays" in answer.text
            assert "Try again in a moment" in answer.text
        assert page.get("/login").status_code == 200
    finally:
        postgresql.start()
    assert page.get("/runs/r-1").status_code == 200  # the session has stayed
    assert "pending" in page.get("/runs").text
    assert page.post("/runs/r-1/stop", data={"form_key": key}).status_code == 303


@only_sqlite
def test_an_action_that_loses_the_database_on_the_way_is_not_said_to_be_undone(page, with_view):  # noqa: F811
    def look(visit):
        raise StoreUnavailable("the connection to its server is lost")

    with_view(look)
    shown = page.get("/odd")
    assert (shown.status_code, ELSEWHERE in shown.text, UNSURE in shown.text) == (503, True, False)
    done = page.post("/odd", data={"form_key": key_of(shown)})
    assert (done.status_code, UNSURE in done.text) == (503, True)
    assert "Nothing was done" not in shown.text + done.text


@only_sqlite
def test_a_view_that_hangs_is_answered_while_it_hangs(page, with_view, monkeypatch):  # noqa: F811
    monkeypatch.setattr(routing, "VIEW_S", 0.05)
    ended = threading.Event()
    with_view(lambda visit: ended.wait())
    try:
        answer = page.get("/odd")
    finally:
        ended.set()
    assert (answer.status_code, ELSEWHERE in answer.text) == (503, True)
    assert "was not ready within" in answer.text


@only_sqlite
def test_while_keys_are_sealed_all_is_shown_and_what_takes_a_key_says_why_not(page, federation, tmp_path):
    key = key_of(page.get("/"))
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse battery staple")
    secret.chmod(0o600)
    key_sealing.seal(federation.home, secret)  # and nothing gives this process the passphrase
    before = [(node.name, node.left_at) for node in federation.store.nodes()]
    for path, _ in NAV:
        assert page.get(path).status_code == 200, path
    for path in ("/sites/invite/new", "/sites/svi/leave", "/log"):
        answer = page.post(path, data={"form_key": key, "names": "north", "train": "1"})
        assert (answer.status_code, "Nothing was done" in answer.text) == (409, True), path
        assert "are sealed: set CONFIDE_PASSPHRASE_FILE" in answer.text
    assert [(node.name, node.left_at) for node in federation.store.nodes()] == before


FORMS = {  # a form, what a person types into it, and what it does
    "/studies/STUDY/start": ({"again": "yes"}, "run.start"),
    "/runs/r-1/stop": ({}, "run.stop"),
    "/runs/r-2/resume": ({}, "run.resume"),
    "/runs/r-2/abandon": ({"typed": "r-2"}, "run.abandon"),
    "/sites/svi/leave": ({}, "site.leave"),
    "/sites/svi/revoke": ({"typed": "svi"}, "site.revoke"),
    "/settings/operators/add": ({"name": "nora", "role": "viewer"}, "operator.add"),
    "/settings/operators/vera/renew": ({}, "operator.renew"),
    "/settings/operators/vera/revoke": ({"typed": "vera"}, "operator.revoke"),
    "/settings/keys/rotate": ({"typed": "rotate the key"}, "keys.rotate"),
    "/settings/ca/rotate": ({"typed": "rotate the CA"}, "ca.rotate"),
}


@only_sqlite
@pytest.mark.parametrize("path", FORMS)
def test_of_two_people_who_send_the_same_form_one_does_it_and_the_other_is_told(as_role, federation, path):
    typed, action = FORMS[path]
    study = federation.create()
    with federation.store.session() as session:
        for run, state, begun in (("r-1", "pending", 0.5), ("r-2", "stopped", 1.5)):
            session.add(Run(id=run, study=study.study_hash, state=state, created_at=begun))
    address = path.replace("STUDY", study.study_hash)
    forms = []
    for client in (as_role("admin"), as_role("admin")):  # both look, and then both act
        shown = client.get(address).text
        hidden = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', shown)
        forms.append((client, {name: html.unescape(value) for name, value in hidden} | typed))
    before = sum(each == action for each, _ in logged(federation.store))
    with ThreadPoolExecutor(2) as both:
        answers = list(both.map(lambda form: form[0].post(address, data=form[1]), forms))
    assert sorted(each.status_code for each in answers) in ([200, 409], [303, 409]), [each.text for each in answers]
    assert sum(each == action for each, _ in logged(federation.store)) == before + 1

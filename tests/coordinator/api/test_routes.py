"""Who may ask the API for what: the token, the role, and what an answer says to whom."""

import re
from typing import get_args

import pytest
from fastapi import FastAPI

from confide.coordinator.api.app import add, make_api
from confide.coordinator.api.problems import MEDIA_TYPE
from confide.coordinator.api.routes import ENDPOINTS, Endpoint, GuardedRoute
from confide.coordinator.cli.guard import commands
from confide.coordinator.cli.main import app as cli
from confide.coordinator.errors import AccessRefused
from confide.coordinator.ledger_standings import Ledgers
from confide.coordinator.oversight import operators
from confide.coordinator.oversight.roles import COMMANDS, Role, is_enough
from confide.coordinator.oversight.tokens import Tokens
from confide.coordinator.store.tables import OperatorRow

from ..conftest import logged

WRONG = "confide_admin." + "A" * 43


def path_of(each: Endpoint) -> str:
    return re.sub(r"\{\w+\}", "none-such", each.path)


def is_problem(response, status: int) -> bool:
    told = response.json()
    assert set(told) == {"type", "title", "status", "detail"}
    assert response.headers["content-type"] == MEDIA_TYPE
    assert response.headers["cache-control"] == "no-store"
    return response.status_code == told["status"] == status


def test_every_endpoint_names_a_command_of_the_cli_that_takes_a_role():
    assert {each.command for each in ENDPOINTS} <= {*commands(cli)}
    assert {COMMANDS[each.command].role for each in ENDPOINTS} == {*get_args(Role)}


def test_what_changes_something_is_a_post_and_its_command_is_in_the_audit_log():
    changing = {each.path for each in ENDPOINTS if COMMANDS[each.command].action is not None}
    assert changing == {each.path for each in ENDPOINTS if each.method == "POST"}


def bare():
    return "shown to everybody"


@pytest.mark.parametrize("command", [None, "praise", "init"])
def test_a_route_without_a_command_that_takes_a_role_is_refused_when_it_is_made(command):
    def answer():
        return "shown to everybody"

    if command is not None:
        answer.command = command
    app = FastAPI()
    app.router.route_class = GuardedRoute
    with pytest.raises(AccessRefused):
        add(app, Endpoint("GET", "/x", str(command), answer, 200))


def test_an_app_with_a_route_of_another_kind_is_not_made(home, store, monkeypatch):
    monkeypatch.setattr(FastAPI, "setup", lambda self: self.add_route("/x", bare))
    with pytest.raises(AccessRefused, match="without a guard"):
        make_api(home, store, Ledgers(store), Tokens(store))


def test_all_routes_of_the_api_are_guarded(page):
    (api,) = [route.app for route in page.app.routes if route.path == "/api/v1"]
    assert len(api.routes) == len(ENDPOINTS)
    assert all(type(route) is GuardedRoute for route in api.routes)


def test_as_long_as_there_are_no_operators_nothing_is_shown(page, store, home):
    from starlette.testclient import TestClient

    client = TestClient(page.app, base_url="http://localhost/api/v1")
    for each in ENDPOINTS:
        response = client.request(each.method, path_of(each), headers={"Authorization": f"Bearer {WRONG}"})
        assert is_problem(response, 403)
        assert "coordinator operator add NAME --role admin" in response.json()["detail"]


def test_nobody_is_answered_without_a_token(ask):
    stranger = ask(None)
    for each in ENDPOINTS:
        response = stranger.request(each.method, path_of(each))
        assert is_problem(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("role", get_args(Role))
def test_a_role_that_is_not_enough_is_refused_and_one_that_is_enough_is_not(ask, role):
    client = ask(role)
    for each in ENDPOINTS:
        least = COMMANDS[each.command].role
        response = client.request(each.method, path_of(each), json={} if each.method == "POST" else None)
        if is_enough(role, least):
            assert response.status_code in (200, 404, 422), response.text
        else:
            assert is_problem(response, 403)
            assert f"takes the role {least}" in response.json()["detail"]


def test_the_cookie_of_a_session_opens_nothing(ask, tokens):
    browser = ask(None)
    answer = browser.post("http://localhost/login", data={"token": tokens["admin"]})
    assert answer.status_code == 303
    assert browser.get("http://localhost/").status_code == 200
    assert browser.cookies
    assert is_problem(browser.get("/status"), 401)


def test_what_is_no_bearer_token_is_answered_like_none(ask):
    stranger = ask(None)
    for given in ("", "Bearer", "Bearer ", "Basic YTpi", "Bearer a b", "Bearer ö".encode(), "x" * 5000):
        response = stranger.get("/status", headers={"Authorization": given})
        assert is_problem(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"  # it was not even looked at


def test_two_tokens_at_once_are_none(ask, tokens):
    pair = [("Authorization", f"Bearer {tokens['admin']}"), ("Authorization", f"Bearer {tokens['viewer']}")]
    assert is_problem(ask(None).get("/status", headers=pair), 401)


def test_a_wrong_token_is_refused_and_stands_in_the_log(ask, store):
    response = ask(None).get("/runs", headers={"Authorization": f"Bearer {WRONG}"})
    assert is_problem(response, 401)
    assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert logged(store)[-1] == (
        "access.refused", {"operator": "admin", "reason": "wrong", "command": "run list"}
    )  # fmt: skip


def test_after_ten_wrong_tokens_none_is_looked_at_neither_here_nor_at_the_form(ask, tokens):
    known, stranger = ask("viewer"), ask(None)
    assert known.get("/status").status_code == 200
    for _ in range(10):
        assert stranger.get("/status", headers={"Authorization": f"Bearer {WRONG}"}).status_code == 401
    refused = ask("admin").get("/status")
    assert is_problem(refused, 429)
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert stranger.post("http://localhost/login", data={"token": tokens["admin"]}).status_code == 429
    assert known.get("/status").status_code == 200  # whose token was verified before: no stranger shuts them out


def test_wrong_tokens_at_the_form_count_here_too(ask):
    stranger = ask(None)
    for _ in range(10):
        assert stranger.post("http://localhost/login", data={"token": WRONG}).status_code == 403
    assert ask("admin").get("/status").status_code == 429


@pytest.mark.parametrize("end", ["renewed", "revoked", "expired"])
def test_a_token_that_was_verified_opens_nothing_once_it_has_ended(ask, store, end):
    viewer = ask("viewer")
    assert viewer.get("/status").status_code == 200
    if end == "renewed":
        operators.renew(store, "viewer")
    elif end == "revoked":
        operators.revoke(store, "viewer")
    else:
        with store.session() as session:
            session.get(OperatorRow, "viewer").expires_at = 1.0
    for _ in range(2):
        assert is_problem(viewer.get("/status"), 401)


def test_a_role_that_was_lowered_holds_at_once(ask, store):
    admin = ask("admin")
    assert admin.post("/sites", json={"name": "north"}).status_code == 201
    with store.session() as session:
        session.get(OperatorRow, "admin").role = "viewer"
    assert is_problem(admin.post("/sites", json={"name": "south"}), 403)


def test_what_an_operator_does_here_stands_in_the_log_under_the_operators_name(ask, store, run):
    assert ask("operator").post(f"/runs/{run}/stop").json() == {"run": run, "state": "stopped"}
    (entry,) = ask("viewer").get("/log", params={"action": "run.stop"}).json()["items"]
    assert (entry["actor"], entry["fields"]["run"]) == ("operator:operator", run)


def test_who_has_an_answer_already_is_told_so_alone(api, run):
    first = api.get(f"/runs/{run}")
    assert first.headers["cache-control"] == "private, no-cache"
    again = api.get(f"/runs/{run}", headers={"If-None-Match": f'W/"x", {first.headers["etag"]}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    api.post(f"/runs/{run}/stop")
    changed = api.get(f"/runs/{run}", headers={"If-None-Match": first.headers["etag"]})
    assert (changed.status_code, changed.json()["state"]) == (200, "stopped")


def test_answers_with_a_secret_are_kept_by_nobody(api):
    response = api.post("/sites", json={"name": "north"})
    assert (response.status_code, response.headers["cache-control"]) == (201, "no-store")
    assert "etag" not in response.headers


def test_a_lost_token_is_needed_for_what_one_has_already(ask, api):
    tag = api.get("/status").headers["etag"]
    assert is_problem(ask(None).get("/status", headers={"If-None-Match": tag}), 401)


JSON = {"Content-Type": "application/json"}
REFUSED = [
    ("GET", "/praise", {}, 404),
    ("GET", "/runs/", {}, 404),
    ("DELETE", "/runs", {}, 405),
    ("GET", "/runs/run-1", {}, 404),
    ("GET", "/runs/%00", {}, 400),
    ("GET", "/runs?limit=201", {}, 422),
    ("GET", "/runs?limit=1&limit=2", {}, 422),
    ("GET", "/runs?cursor=gone", {}, 404),
    ("GET", "/runs?order=up", {}, 422),
    ("GET", "/runs?state=praised", {}, 422),
    ("GET", "/log?since=yesterday", {}, 422),
    ("GET", "/log?action=praise", {}, 409),
    ("POST", "/runs", {"content": b"{", "headers": JSON}, 422),
    ("POST", "/runs", {"content": b"[" * 90_000, "headers": JSON}, 400),
    ("POST", "/runs", {"data": {"study": "x"}}, 415),
    ("POST", "/runs", {"content": b'{"study": "x"}', "headers": {"Content-Type": "text/plain"}}, 415),
    ("POST", "/runs", {"content": b'{"study": "x"}'}, 415),
    ("POST", "/runs", {"json": {"study": "x" * 101}}, 422),
    ("POST", "/runs", {"json": {"study": "x", "again": "yes"}}, 422),
    ("POST", "/runs", {"json": {"study": "x"}}, 404),
    ("POST", "/studies", {"json": {"toml": "x" * 300_000}}, 413),
    ("POST", "/studies", {"json": {"toml": "name = 1"}}, 422),
    ("POST", "/operators", {"json": {"name": "admin", "role": "viewer"}}, 409),
    ("POST", "/operators/admin/revoke", {}, 409),
]


def test_every_refusal_is_a_problem(api):
    for method, path, how, status in REFUSED:
        response = api.request(method, path, **how)
        told = response.json()
        assert set(told) == {"type", "title", "status", "detail"}
        assert (response.status_code, told["status"]) == (status, status), (method, path, response.text)
        assert response.headers["content-type"] == MEDIA_TYPE


def test_a_refusal_repeats_nothing_that_was_sent(api):
    for sent in ({"study": ["s3cret"]}, {"s3cret": 1, "study": "x"}, {"study": "x", "again": "s3cret"}, ["s3cret"]):
        response = api.post("/runs", json=sent)
        assert response.status_code == 422
        assert "s3cret" not in response.text
    assert "s3cret" not in api.get("/runs", params={"s3cret": "s3cret"}).text
    assert "s3cret" not in api.get("/runs", params={"limit": "s3cret"}).text


def test_an_address_says_which_methods_it_takes(api):
    assert api.put("/runs").headers["allow"] == "GET, POST"


def test_a_failure_of_ours_says_nothing_but_that(api, monkeypatch, caplog):
    said = "of patient 7"

    def fail(*_):
        raise RuntimeError(said)

    monkeypatch.setattr("confide.coordinator.api.endpoints.look", fail)
    response = api.get("/status")
    assert is_problem(response, 500)
    assert said not in response.text
    assert said not in caplog.text
    assert "could not be answered" in caplog.text


def test_a_page_of_another_site_cannot_send_what_a_program_may(ask):
    response = ask("admin").post("/sites", json={"name": "north"}, headers={"Origin": "https://evil.example"})
    assert response.status_code == 403
    assert response.headers["content-type"] == MEDIA_TYPE

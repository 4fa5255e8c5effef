import pytest
import sqlalchemy as sa

from confide.client_node.web.entering import make_link
from confide.coordinator.oversight import operators
from confide.coordinator.page import login
from confide.coordinator.page.app import PageApp
from confide.coordinator.store import audit_log
from confide.coordinator.store.tables import OperatorRow

from ..conftest import SITES, logged
from .conftest import SETTINGS, a_browser, add_people, key_of, let_in

COOKIE = "confide-80"


@pytest.fixture
def named(federation, people):
    """The operators, who are there before anybody logs in."""
    add_people(federation.store, people)
    return people


def is_in(client) -> bool:
    answer = client.get("/runs")
    assert answer.status_code in (200, 303, 403)
    assert answer.status_code != 303 or answer.headers["location"] == "/login"
    return answer.status_code == 200


def refusals(store):
    return [fields for action, fields in logged(store) if action == "access.refused"]


def changed(store, name, **values):
    with store.session() as session:
        session.execute(sa.update(OperatorRow).where(OperatorRow.name == name).values(**values))


def test_a_token_lets_its_operator_in(stranger, named):
    assert "Log in" in stranger.get("/login").text
    answer = stranger.post("/login", data={"token": f" {named['viewer'].token}\n"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert "vera, viewer" in stranger.get("/").text


def test_the_log_says_who_was_let_in_and_by_what(stranger, named, federation, page_app):
    stranger.post("/login", data={"token": named["viewer"].token})
    let_in(a_browser(page_app), federation, named["admin"])
    with federation.store.session() as session:
        found = [(each.actor, each.fields) for each in audit_log.entries(session, action="page.enter")]
    assert found == [("operator:vera", {"by": "token"}), (f"operator:{named['admin'].name}", {"by": "link"})]


def test_the_cookie_is_for_this_server_alone(stranger, named):
    cookie = stranger.post("/login", data={"token": named["viewer"].token}).headers["set-cookie"]
    name, *flags = [each.strip() for each in cookie.split(";")]
    assert name.startswith(f"{COOKIE}=")
    assert {each.lower() for each in flags} == {"httponly", "path=/", "samesite=strict"}
    assert named["viewer"].token not in cookie


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda token: token[:-1] + ("A" if token[-1] != "A" else "B"), "no operator"),
        (lambda token: token.replace("vera", "nobody"), "no operator"),
        (lambda token: token.replace("vera", "anna"), "no operator"),
        (lambda token: "", "no operator"),
        (lambda token: "x" * 200_000, "no operator"),
        (lambda token: "\0<script>", "no operator"),
    ],
)
def test_a_wrong_token_lets_nobody_in(stranger, named, change, reason):
    answer = stranger.post("/login", data={"token": change(named["viewer"].token)})
    assert answer.status_code == 403
    assert reason in answer.text
    assert "set-cookie" not in answer.headers
    assert not is_in(stranger)


@pytest.mark.parametrize(
    ("values", "words"),
    [({"revoked_at": 1.0}, "was revoked"), ({"expires_at": 1.0}, "has expired")],
)
def test_the_token_of_who_is_no_operator_any_more_lets_nobody_in(stranger, named, federation, values, words):
    changed(federation.store, "vera", **values)
    answer = stranger.post("/login", data={"token": named["viewer"].token})
    assert (answer.status_code, words in answer.text) == (403, True)
    assert not is_in(stranger)
    assert refusals(federation.store)[-1]["command"] == "page"


def test_before_there_are_operators_no_token_is_looked_at(stranger, federation, people):
    answer = stranger.post("/login", data={"token": people["admin"].token})
    assert (answer.status_code, "no operators yet" in answer.text) == (403, True)
    assert refusals(federation.store) == []


def test_after_ten_wrong_tokens_no_token_is_looked_at_for_a_while_but_links_are(stranger, named, federation):
    asked = []

    def wrong(store, token, *, command):
        asked.append(token)
        raise login.AccessRefused("this token is no operator's")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(login.access, "recognise", wrong)  # argon2id takes a while
        statuses = [stranger.post("/login", data={"token": "x"}).status_code for _ in range(12)]
    assert statuses == [403] * 10 + [429] * 2
    assert len(asked) == 10
    answer = stranger.post("/login", data={"token": named["admin"].token})
    assert answer.status_code == 429
    assert 0 < int(answer.headers["Retry-After"]) <= 60
    assert not is_in(stranger)
    let_in(stranger, federation, named["admin"])
    assert is_in(stranger)


@pytest.mark.parametrize("body", [b"token=a&token=b", b"token=%FF", b'{"token": "a"}'])
def test_a_form_that_is_not_ours_is_not_read(stranger, named, body):
    answer = stranger.post("/login", content=body, headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status_code in (400, 403)
    assert "set-cookie" not in answer.headers


def test_a_link_lets_one_browser_in(stranger, page_app, federation, people):
    link = make_link(federation.home, None)
    answer = stranger.get("/enter", params={"link": link})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert link not in answer.headers["set-cookie"]
    assert is_in(stranger)
    other = a_browser(page_app)
    answer = other.get("/enter", params={"link": link})
    assert (answer.status_code, "was used" in answer.text) == (403, True)
    assert not is_in(other)
    other.close()


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_link_on_another_page_lets_nobody_in_and_is_not_used_up(stranger, page_app, federation, site):
    link = make_link(federation.home, None)
    answer = stranger.get("/enter", params={"link": link}, headers={"Sec-Fetch-Site": site})
    assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)
    assert stranger.get("/enter", params={"link": link}, headers={"Sec-Fetch-Site": "none"}).status_code == 303


@pytest.mark.parametrize(
    "values",
    [{"revoked_at": 1.0}, {"expires_at": 1.0}, {"token": "$argon2id$renewed"}],
    ids=["revoked", "expired", "new"],
)
def test_a_link_of_who_is_no_operator_any_more_lets_nobody_in(stranger, named, federation, values):
    link = make_link(federation.home, "vera", named["viewer"].token_hash)
    changed(federation.store, "vera", **values)
    assert stranger.get("/enter", params={"link": link}).status_code == 403
    assert not is_in(stranger)


def test_a_link_of_the_account_lets_nobody_in_once_there_are_operators(stranger, federation, people):
    link = make_link(federation.home, None)
    add_people(federation.store, people)
    assert stranger.get("/enter", params={"link": link}).status_code == 403
    assert not is_in(stranger)


def test_a_renewed_token_ends_the_sessions_of_the_old_one(as_role, federation):
    client = as_role("viewer")
    assert is_in(client)
    token = operators.renew(federation.store, "vera")
    answer = client.get("/runs")
    assert (answer.status_code, "was renewed" in answer.text) == (403, True)
    assert client.get("/runs").status_code == 303  # to the door
    assert client.post("/login", data={"token": token}).status_code == 303
    assert is_in(client)


@pytest.mark.parametrize("values", [{"revoked_at": 1.0}, {"expires_at": 1.0}], ids=["revoked", "expired"])
def test_the_session_of_who_is_no_operator_any_more_ends_for_good(as_role, federation, values):
    client = as_role("operator")
    assert is_in(client)
    changed(federation.store, "oscar", **values)
    assert client.get("/runs").status_code == 403
    changed(federation.store, "oscar", revoked_at=None, expires_at=None)
    assert client.get("/runs").status_code == 303
    assert len(refusals(federation.store)) == 1  # not one for each look of an open page


def test_a_role_that_was_changed_holds_from_the_next_request_on(as_role, federation):
    client = as_role("admin")
    assert "anna, admin" in client.get("/").text
    changed(federation.store, "anna", role="viewer")
    assert "anna, viewer" in client.get("/").text


def test_the_first_operator_ends_the_sessions_of_the_account(page, federation, people):
    assert is_in(page)
    add_people(federation.store, people)
    answer = page.get("/")
    assert (answer.status_code, "There are operators now" in answer.text) == (403, True)
    assert page.get("/").status_code == 303


def test_whoever_enters_anew_has_another_session_and_the_earlier_one_ends(page, page_app, federation):
    before = page.cookies[COOKIE]
    let_in(page, federation, None)
    assert page.cookies[COOKIE] != before
    thief = a_browser(page_app)
    thief.cookies.set(COOKIE, before)
    assert not is_in(thief)
    thief.close()


def test_nobody_chooses_the_secret_of_a_session(stranger, page_app, federation):
    stranger.cookies.set(COOKIE, "A" * 43, domain="localhost.local", path="/")
    answer = stranger.get("/enter", params={"link": make_link(federation.home, None)})
    assert f"{COOKIE}=" in answer.headers["set-cookie"]
    assert "A" * 43 not in answer.headers["set-cookie"]
    thief = a_browser(page_app)
    thief.cookies.set(COOKIE, "A" * 43)
    assert not is_in(thief)
    thief.close()


def test_logging_out_ends_the_session_at_the_server(page, page_app):
    secret, key = page.cookies[COOKIE], key_of(page.get("/runs"))
    answer = page.post("/logout", data={"form_key": key})
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    page.cookies.clear()
    page.cookies.set(COOKIE, secret)
    assert not is_in(page)


@pytest.mark.parametrize("data", [{}, {"form_key": ""}, {"form_key": "A" * 43}, {"other": "x"}])
def test_logging_out_takes_the_key_of_the_session(page, data):
    assert page.post("/logout", data=data).status_code in (400, 403)
    assert is_in(page)


def test_a_key_of_another_session_logs_nobody_out(page, page_app, federation):
    other = a_browser(page_app)
    let_in(other, federation, None)
    assert page.post("/logout", data={"form_key": key_of(other.get("/"))}).status_code == 403
    assert is_in(page)
    other.close()


def test_who_is_not_in_can_log_out(stranger):
    assert stranger.post("/logout", data={"form_key": "x"}).headers["location"] == "/login"


def test_a_restart_ends_all_sessions(page, federation):
    again = PageApp(federation.home, federation.store, is_https=False)
    client = a_browser(again)
    client.cookies.set(COOKIE, page.cookies[COOKIE])
    assert not is_in(client)
    client.close()
    again.close()


def test_the_door_tells_a_stranger_no_more_than_the_federations_name(stranger, named):
    told = stranger.get("/login").text
    assert SETTINGS["federation"] in told
    assert not any(name in told for name in (*[each.name for each in named.values()], *SITES))

import html
import re
import shutil

import pytest

from confide.coordinator.errors import AccessRefused
from confide.coordinator.oversight import access, operators
from confide.coordinator.store.tables import NodeRow

from ..conftest import logged
from .conftest import key_of


@pytest.fixture(autouse=True)
def pki_here(federation, pki):
    """Keys and certificates in the home itself, for what loads them from there."""
    shutil.copytree(pki.folder, federation.home / "pki")


def form(client, path, **fields):
    """Sends the form of a page, as somebody who has looked at it."""
    return client.post(path, data={"form_key": key_of(client.get(path)), **fields})


def token_in(answer):
    found = re.search(r'<pre[^>]*aria-label="Token of [^"]+">([^<]+)</pre>', answer.text)
    return html.unescape(found[1])


def test_settings_show_the_federation_its_certificates_and_keys(page, federation, pki):
    text = page.get("/settings").text
    for words in ("Four hospitals", "fed.example:9443", "port 9444", f"{pki.certificate_ends:%Y-%m-%d}",
                  pki.identity_hex, "not encrypted", "coordinator.db", "There was no rotation"):  # fmt: skip
        assert words in text
    assert f"coordinator backup FILE --passphrase-file passphrase --home {federation.home}" in text


def test_a_home_without_its_keys_is_told_and_shown(page, federation):
    shutil.rmtree(federation.home / "pki")
    answer = page.get("/settings")
    assert answer.status_code == 200
    assert "restore a backup" in answer.text
    assert "Operators" in answer.text


def test_a_node_that_goes_by_a_strange_key_is_told(page, federation):
    federation.change("svi", known_key="ab" * 32)
    assert "has not had the key that is shown of: svi" in html.unescape(page.get("/settings").text)


def test_the_first_operator_ends_the_time_without(page, federation):
    assert "There are none" in page.get("/settings").text
    assert form(page, "/settings/operators/add", name="vera", role="viewer").status_code == 409
    answer = form(page, "/settings/operators/add", name="anna", role="admin", days="30")
    assert answer.headers["cache-control"] == "no-store"
    token = token_in(answer)
    assert access.require(federation.store, token, "admin", command="site invite").name == "anna"
    assert "This session has ended" in answer.text
    assert page.get("/settings").status_code == 403  # the home's account has no say any more
    assert token not in repr(logged(federation.store))


def test_a_token_is_shown_once_and_opens_what_its_role_allows(as_role, federation):
    anna = as_role("admin")
    answer = form(anna, "/settings/operators/add", name="bert", role="operator")
    token = token_in(answer)
    assert access.require(federation.store, token, "operator", command="run start").name == "bert"
    with pytest.raises(AccessRefused):
        access.require(federation.store, token, "admin", command="site invite")
    shown = anna.get("/settings").text + anna.get("/log").text + anna.get("/settings/operators/bert/renew").text
    assert token not in shown
    assert "bert" in shown
    (added,) = [fields for action, fields in logged(federation.store) if action == "operator.add"]
    assert added == {"operator": "bert", "role": "operator", "expires": None}


def test_a_renewed_token_replaces_the_old_one(as_role, federation):
    anna = as_role("admin")
    old = token_in(form(anna, "/settings/operators/add", name="bert", role="operator"))
    new = token_in(form(anna, "/settings/operators/bert/renew", days="7"))
    assert access.require(federation.store, new, "operator", command="run start").name == "bert"
    with pytest.raises(AccessRefused):
        access.require(federation.store, old, "operator", command="run start")
    assert 6.9 < (operators.named(federation.store, "bert").expires_at - operators.time.time()) / 86_400 <= 7


def test_who_renews_the_own_token_is_shown_it_and_has_to_log_in_again(as_role, federation):
    anna = as_role("admin")
    answer = form(anna, "/settings/operators/anna/renew")
    assert "This session has ended" in answer.text
    assert anna.get("/settings").status_code == 403
    assert access.require(federation.store, token_in(answer), "admin", command="site invite").name == "anna"


def test_an_operator_is_revoked_only_by_the_name(as_role, federation):
    anna = as_role("admin")
    assert form(anna, "/settings/operators/vera/revoke", typed="Vera").status_code == 409
    assert operators.named(federation.store, "vera").revoked_at is None
    assert form(anna, "/settings/operators/vera/revoke", typed="vera").status_code == 303
    assert operators.named(federation.store, "vera").revoked_at is not None
    text = anna.get("/settings").text
    assert "/operators/vera/" not in text
    assert "/operators/oscar/revoke" in text
    for order in ("renew", "revoke"):
        assert anna.get(f"/settings/operators/vera/{order}").status_code == 409


def test_the_last_admin_stays(as_role, federation):
    anna = as_role("admin")
    answer = form(anna, "/settings/operators/anna/revoke", typed="anna")
    assert answer.status_code == 409
    assert "last admin" in answer.text
    assert operators.named(federation.store, "anna").revoked_at is None


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"name": "bert", "role": "root"}, "No role was chosen"),
        ({"name": "bert"}, "No role was chosen"),
        ({"name": "bert", "role": "viewer", "days": "0"}, "is no number of days"),
        ({"name": "bert", "role": "viewer", "days": "3661"}, "is no number of days"),
        ({"name": "bert", "role": "viewer", "days": "1e3"}, "is no number of days"),
        ({"name": "bert", "role": "viewer", "days": "²"}, "is no number of days"),
        ({"name": "<b>", "role": "viewer"}, "is no name"),
        ({"name": "anna", "role": "viewer"}, "is or was an operator"),
    ],
)
def test_who_mistypes_adds_nobody(as_role, federation, fields, problem):
    anna = as_role("admin")
    answer = form(anna, "/settings/operators/add", **fields)
    assert answer.status_code == 409
    assert problem in answer.text
    assert "<b>" not in answer.text
    assert 'aria-label="Token' not in answer.text
    assert len(operators.operators(federation.store)) == 3


@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_others_see_who_may_do_what_and_change_nothing(as_role, federation, role):
    client = as_role(role)
    text = client.get("/settings").text
    assert "oscar" in text
    assert "/settings/operators/" not in text
    key = key_of(client.get("/settings"))
    for path in ("add", "oscar/renew", "oscar/revoke"):
        answer = client.post(f"/settings/operators/{path}", data={"form_key": key, "name": "eve", "role": "admin",
                                                                  "typed": "oscar"})  # fmt: skip
        assert answer.status_code == 403
    assert len(operators.operators(federation.store)) == 3
    assert all(each.revoked_at is None for each in operators.operators(federation.store))


def test_an_operator_that_is_none_is_told(page):
    for order in ("renew", "revoke"):
        answer = page.get(f"/settings/operators/nobody/{order}")
        assert answer.status_code == 404
    key = key_of(page.get("/settings"))
    assert page.post("/settings/operators/nobody/renew", data={"form_key": key}).status_code == 404


def test_an_operator_may_be_called_add(page, federation):
    form(page, "/settings/operators/add", name="add", role="admin")
    assert [each.name for each in operators.operators(federation.store)] == ["add"]


def test_many_nodes_are_folded_away(page, federation):
    with federation.store.session() as session:
        session.add_all(
            NodeRow(name=f"n{each}", roles="train", enrolled_at=1.0, identity=f"{each:064x}") for each in range(93)
        )
    text = page.get("/settings").text
    assert text.index("<summary>Which nodes trust it") < text.index('href="/sites/n0"')


def test_a_damaged_file_of_sealing_is_told_and_breaks_no_page(page, federation):
    (federation.home / "sealing.json").write_text("{")
    (federation.home / "sealing.json").chmod(0o600)
    answer = page.get("/settings")
    assert answer.status_code == 200
    assert "sealing.json" in answer.text
    assert page.get("/sites/svi").status_code == 200

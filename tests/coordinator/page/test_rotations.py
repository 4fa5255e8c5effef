import json
import re
import shutil

import pytest

from confide.coordinator.federation import Pki
from confide.coordinator.page.rotations import WORDS
from confide.coordinator.store.tables import NodeRow

from ..conftest import logged
from .conftest import key_of


@pytest.fixture(autouse=True)
def pki_here(federation, pki):
    """Keys and certificates in the home itself, for they are changed."""
    shutil.copytree(pki.folder, federation.home / "pki")


def order(client, name, **fields):
    """Sends a form with the words that it asks for, or others."""
    path = f"/settings/{name.replace('-', '/')}"
    present = re.findall(r'name="present" value="([0-9a-f]+)"', client.get(path).text)
    fields = {"present": present[0], **fields} if present else fields
    return client.post(path, data={"form_key": key_of(client.get("/settings")), "typed": WORDS[name], **fields})


def confirm(federation):
    """Lets every node say that it trusts all CAs that it is to trust."""
    from confide.client_node.authority import digest

    pki = Pki.load(federation.home)
    cas = json.dumps([digest(pki.certificate_of(is_next=each)) for each in (False, True)])
    for row in federation.store.nodes():
        federation.change(row.name, trusted_cas=cas)


def test_a_ca_is_followed_by_another_once_all_nodes_trust_it(page, federation):
    before = Pki.load(federation.home).ca_digest
    assert order(page, "ca-rotate").status_code == 303
    assert "Not known to trust the next CA yet" in page.get("/settings").text
    assert "so this form refuses" in page.get("/settings/ca/finish").text
    assert order(page, "ca-finish").status_code == 409
    assert Pki.load(federation.home).ca_digest == before
    confirm(federation)
    with federation.store.session() as session:
        session.add(NodeRow(name="north", roles="train", invite_digest="0" * 64, invite_expires=1e12))
    assert "their codes are void then: north" in page.get("/settings/ca/finish").text
    assert order(page, "ca-finish").status_code == 303
    assert Pki.load(federation.home).ca_digest != before
    assert federation.store.node("north").invite_digest is None
    rotated = [action for action, _ in logged(federation.store) if action.startswith("ca.")]
    assert rotated == ["ca.rotate", "ca.finish"]


def test_a_rotation_of_the_ca_is_cancelled(page, federation):
    order(page, "ca-rotate")
    assert page.get("/settings/ca/rotate").status_code == 409
    assert order(page, "ca-cancel").status_code == 303
    assert not Pki.load(federation.home).has_next
    for path in ("finish", "cancel"):
        assert page.get(f"/settings/ca/{path}").status_code == 409


def test_the_signing_key_is_followed_by_another(page, federation):
    before = Pki.load(federation.home).identity_hex
    assert "Backups of this home that are older are of no use" in page.get("/settings/keys/rotate").text
    assert order(page, "keys-rotate").status_code == 303
    after = Pki.load(federation.home).identity_hex
    assert after != before
    text = page.get("/settings").text
    assert after in text
    assert f'title="{before}"' in text
    assert logged(federation.store)[-1] == ("keys.rotate", {"old": before, "new": after})


def test_a_form_that_is_sent_twice_rotates_the_key_once(page, federation):
    before = Pki.load(federation.home).identity_hex
    assert order(page, "keys-rotate", present=before).status_code == 303
    after = Pki.load(federation.home).identity_hex
    again = order(page, "keys-rotate", present=before)
    assert again.status_code == 409
    assert "signs with another key" in again.text
    assert order(page, "keys-rotate", present="").status_code == 409
    signing = Pki.load(federation.home).signing
    assert signing.now.public == after
    assert not signing.is_cut_off


@pytest.mark.parametrize("name", WORDS)
def test_nothing_is_rotated_without_the_words_or_by_others(page, as_role, federation, name):
    before = Pki.load(federation.home).identity_hex
    assert order(page, name, typed="yes").status_code == 409
    for role in ("viewer", "operator"):
        client = as_role(role)
        assert order(client, name).status_code == 403
        assert "/settings/ca/" not in client.get("/settings").text
    found = Pki.load(federation.home)
    assert (found.identity_hex, found.has_next) == (before, False)

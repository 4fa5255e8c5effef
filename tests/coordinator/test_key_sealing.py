"""A federation's keys sealed: TLS, renewal and the audit log go on, and a new home is sealed from the start."""

import datetime as dt
import ssl
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from confide.client_node import passphrase, secret_files
from confide.client_node.errors import KeysSealed
from confide.coordinator import key_sealing
from confide.coordinator.errors import Conflict
from confide.coordinator.federation import Pki, Settings, create_home, opened_store
from confide.coordinator.federation.serving import only_server
from confide.coordinator.gateway.listener import serve_gate
from confide.coordinator.store import audit_log

SETTINGS = Settings(federation="clinics", address="127.0.0.1:8443", listen="127.0.0.1", port=8443, superlink_port=8444)
KEYS = ("ca.key", "signing.key", "server.key")


@pytest.fixture(autouse=True)
def _given(tmp_path, monkeypatch):
    monkeypatch.setattr(passphrase, "_SCRYPT_N", 2)
    monkeypatch.setattr(secret_files, "_keys", {})
    (tmp_path / "passphrase").write_text("correct horse battery")
    (tmp_path / "passphrase").chmod(0o600)
    monkeypatch.setenv("CONFIDE_PASSPHRASE_FILE", str(tmp_path / "passphrase"))


@pytest.fixture
def home(tmp_path):
    create_home(tmp_path / "home", SETTINGS)
    key_sealing.seal(tmp_path / "home")
    return tmp_path / "home"


def sealed(home: Path) -> set[str]:
    return {
        path.name for path in (home / "pki").glob("*.key") if path.read_bytes().startswith(b"confide-sealed-key-1\n")
    }


def actions(home: Path) -> list[str]:
    with opened_store(home) as store, store.session() as session:
        return [each.action for each in audit_log.entries(session)]


def test_the_audit_log_tells_of_both(home):
    key_sealing.unseal(home)
    assert sealed(home) == set()
    assert actions(home) == ["federation.init", "keys.seal", "keys.unseal"]


def test_while_it_is_served_nothing_is_changed(home):
    with only_server(home), pytest.raises(Conflict):
        key_sealing.unseal(home)
    assert sealed(home) == set(KEYS)
    assert actions(home)[-1] == "keys.seal"


def test_a_new_home_is_sealed_from_the_start(tmp_path):
    home = tmp_path / "new"
    key_sealing.seal(home)
    create_home(home, SETTINGS)
    assert sealed(home) == set(KEYS)
    assert Pki.load(home).identity_hex


def test_a_renewed_certificate_has_a_sealed_key_and_flowers_is_as_its_process_reads_it(home):
    pki = Pki.load(home)
    before = pki.key_path.read_bytes()
    soon_over = dt.datetime.now(dt.UTC) + dt.timedelta(days=390)
    assert pki.renew_if_due(soon_over)
    assert pki.key_path.read_bytes() != before
    assert sealed(home) == set(KEYS)
    assert not pki.renew_if_due(soon_over)
    _, key = pki.loopback_pair()
    load_pem_private_key(key.read_bytes(), None)
    assert pki.loopback_pair()[1].read_bytes() == key.read_bytes()


@pytest.mark.slow
def test_the_gate_shows_its_certificate_by_a_sealed_key_also_a_renewed_one(home):
    pki = Pki.load(home)

    async def here(request: Request) -> PlainTextResponse:
        return PlainTextResponse("here")

    app = Starlette(routes=[Route("/", here)])
    gate = serve_gate(app, "127.0.0.1", 0, pki.certificate_path, pki.key_path)
    trusting = ssl.create_default_context(cafile=str(pki.ca_path))
    try:
        assert httpx.get(f"https://127.0.0.1:{gate.port}/", verify=trusting, timeout=60).text == "here"
        before = ssl.get_server_certificate(("127.0.0.1", gate.port), timeout=60)
        pki.renew_server(["127.0.0.1"])
        gate.show(pki.certificate_path, pki.key_path)
        assert httpx.get(f"https://127.0.0.1:{gate.port}/", verify=trusting, timeout=60).text == "here"
        assert ssl.get_server_certificate(("127.0.0.1", gate.port), timeout=60) != before
    finally:
        gate.stop()


def test_without_the_passphrase_no_key_is_loaded(home, monkeypatch):
    monkeypatch.setattr(secret_files, "_keys", {})
    monkeypatch.delenv("CONFIDE_PASSPHRASE_FILE")
    with pytest.raises(KeysSealed):
        Pki.load(home)

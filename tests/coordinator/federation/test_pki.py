"""The federation's certificates, judged by OpenSSL's own verification."""

import ssl
import stat
from pathlib import Path

import pytest

from confide.coordinator.errors import PkiMissing
from confide.coordinator.federation.pki import Pki


def handshake(server: Pki, trusted: Path, name: str) -> None:
    """A whole TLS handshake in memory; raises ssl.SSLError when the client does not trust the server."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(server.certificate_path, server.key_path)
    trusting = ssl.create_default_context(cafile=str(trusted))
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        trusting.wrap_bio(to_client, to_server, server_hostname=name),
        serving.wrap_bio(to_server, to_client, server_side=True),
    ]
    while ends:
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                continue


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.create(tmp_path_factory.mktemp("coordinator"), ["fed.example.org", "10.1.2.3", "::1"])


@pytest.mark.parametrize("name", ["fed.example.org", "10.1.2.3", "::1", "127.0.0.1", "localhost"])
def test_clients_that_trust_the_ca_accept_every_name_and_loopback(pki: Pki, name: str) -> None:
    handshake(pki, pki.ca_path, name)


def test_clients_refuse_another_name(pki: Pki) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(pki, pki.ca_path, "evil.example.org")


def test_clients_of_another_federation_refuse_the_server(pki: Pki, tmp_path: Path) -> None:
    other = Pki.create(tmp_path, ["fed.example.org"])
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(pki, other.ca_path, "fed.example.org")


def test_private_files_are_for_their_owner_only(pki: Pki) -> None:
    assert stat.S_IMODE(pki.folder.stat().st_mode) == 0o700
    for name in ("ca.key", "server.key", "signing.key"):
        assert stat.S_IMODE((pki.folder / name).stat().st_mode) == 0o600


def test_creating_again_keeps_every_key(pki: Pki) -> None:
    before = {path.name: path.read_bytes() for path in pki.folder.iterdir()}
    Pki.create(pki.folder.parent, ["somewhere.else"])
    assert {path.name: path.read_bytes() for path in pki.folder.iterdir()} == before


def test_a_renewed_certificate_is_trusted_by_enrolled_nodes(tmp_path: Path) -> None:
    pki = Pki.create(tmp_path, ["old.example.org"])
    digest = pki.ca_digest
    pki.renew_server(["new.example.org"])
    handshake(pki, pki.ca_path, "new.example.org")
    assert pki.ca_digest == digest


def test_a_lost_file_is_named(tmp_path: Path) -> None:
    pki = Pki.create(tmp_path, ["localhost"])
    pki.key_path.unlink()
    with pytest.raises(PkiMissing, match=r"server\.key"):
        Pki.load(tmp_path)


def test_secrets_are_not_in_the_repr(pki: Pki) -> None:
    assert "signer" not in repr(pki)

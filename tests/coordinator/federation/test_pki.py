"""The federation's certificates, judged by OpenSSL's own verification."""

import datetime as dt
import shutil
import ssl
import stat
from pathlib import Path
from types import ModuleType

import pytest
from cryptography import x509

from confide.coordinator.errors import PkiMissing
from confide.coordinator.federation import pki as pki_module
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


DAY = dt.timedelta(days=1)
NOW = dt.datetime.now(dt.UTC)


def shown(pki: Pki) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pki.certificate_path.read_bytes())


def made(tmp_path: Path) -> Pki:
    return Pki.create(tmp_path, ["fed.example.org", "10.1.2.3"])


def test_a_certificate_that_holds_long_is_not_renewed(tmp_path: Path) -> None:
    pki = made(tmp_path)
    before = shown(pki)
    assert not pki.renew_if_due(NOW + 330 * DAY)
    assert shown(pki) == before


@pytest.mark.parametrize("days", [345, 398, 500, 3000])
def test_a_certificate_is_renewed_in_time_and_after_it_for_the_same_names(tmp_path: Path, days: int) -> None:
    pki = made(tmp_path)
    assert pki.renew_if_due(NOW + days * DAY)
    assert shown(pki).not_valid_after_utc > NOW + (days + 397) * DAY
    names = shown(pki).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org", "localhost"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["10.1.2.3", "127.0.0.1"]
    assert not pki.renew_if_due(NOW + days * DAY)


def test_a_renewal_that_was_cut_off_between_its_two_files_is_done_again(tmp_path: Path) -> None:
    pki, other = made(tmp_path / "a"), made(tmp_path / "b")
    pki.key_path.write_bytes(other.key_path.read_bytes())
    assert pki.renew_if_due(NOW)
    handshake(pki, pki.ca_path, "fed.example.org")


def test_a_certificate_made_while_the_clock_was_ahead_is_renewed(tmp_path: Path) -> None:
    pki = made(tmp_path)
    pki.renew_if_due(NOW + 1000 * DAY)
    assert pki.renew_if_due(NOW)
    handshake(pki, pki.ca_path, "fed.example.org")


def test_nothing_outlives_the_ca_and_its_end_is_told_a_year_before(tmp_path: Path) -> None:
    pki = made(tmp_path)
    ca_ends = x509.load_pem_x509_certificate(pki.ca_path.read_bytes()).not_valid_after_utc
    assert pki.renew_if_due(ca_ends - 100 * DAY)
    assert shown(pki).not_valid_after_utc == ca_ends
    assert not pki.renew_if_due(ca_ends - 10 * DAY)
    assert not pki.renew_if_due(ca_ends + DAY)
    assert pki.warnings(NOW) == []
    (line,) = pki.warnings(ca_ends - 364 * DAY)
    assert f"CA ends on {ca_ends:%Y-%m-%d}" in line


def test_a_certificate_that_could_not_be_renewed_is_warned_of(tmp_path: Path) -> None:
    pki = made(tmp_path)
    assert pki.warnings(NOW + 360 * DAY) == []
    assert "the server certificate ends on" in pki.warnings(NOW + 370 * DAY)[0]


def test_the_superlinks_certificate_is_for_loopback_alone_and_from_a_ca_of_its_own(tmp_path: Path) -> None:
    pki = made(tmp_path)
    path, key = pki.loopback_pair()
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(pki.loopback_ca_path.read_bytes()))
    with pytest.raises(ValueError, match="subject does not match"):  # not even a CA of that name
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(pki.ca_path.read_bytes()))
    assert certificate.not_valid_after_utc > NOW + 3600 * DAY
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each.value) for each in names] == ["127.0.0.1", "localhost"]
    before = path.read_bytes()
    pki.loopback_pair()
    assert path.read_bytes() == before
    for damaged in (path, key, pki.loopback_ca_path):
        damaged.write_bytes(b"")
        pki.loopback_pair()
        ca = x509.load_pem_x509_certificate(pki.loopback_ca_path.read_bytes())
        x509.load_pem_x509_certificate(path.read_bytes()).verify_directly_issued_by(ca)


def test_a_superlink_certificate_of_an_earlier_version_is_made_anew(tmp_path: Path) -> None:
    pki = made(tmp_path)
    shutil.copy(pki.certificate_path, pki.folder / "superlink.crt")
    shutil.copy(pki.key_path, pki.folder / "superlink.key")
    path, _ = pki.loopback_pair()
    assert path.read_bytes() != pki.certificate_path.read_bytes()


def test_a_superlink_certificate_made_while_the_clock_was_ahead_is_made_anew(tmp_path: Path, monkeypatch) -> None:
    class Ahead(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
            return dt.datetime.now(tz) + 3 * DAY

    pki, ahead = made(tmp_path), ModuleType("datetime")
    ahead.__dict__.update(dt.__dict__, datetime=Ahead)
    with monkeypatch.context() as patched:
        patched.setattr(pki_module, "dt", ahead)
        early = pki.loopback_pair()[0].read_bytes()
    for found in (pki.loopback_pair()[0], pki.loopback_ca_path):
        assert x509.load_pem_x509_certificate(found.read_bytes()).not_valid_before_utc <= dt.datetime.now(dt.UTC)
    kept = pki.loopback_pair()[0].read_bytes()
    assert kept != early
    assert pki.loopback_pair()[0].read_bytes() == kept


def test_a_ca_that_is_not_valid_yet_is_warned_of(tmp_path: Path) -> None:
    pki = made(tmp_path)
    begins = x509.load_pem_x509_certificate(pki.ca_path.read_bytes()).not_valid_before_utc
    assert any("CA is not valid before" in line for line in pki.warnings(begins - DAY))

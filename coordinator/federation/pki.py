"""Certificates and keys of a federation: a private CA, two server certificates, the coordinator's signing key.

The CA signs the certificate that the gate shows to nodes, and the one that the SuperLink shows on loopback; nodes trust
this CA and no other. Nodes have no certificates: they prove themselves with enrolled keys. The Ed25519 key signs
studies and rounds. All of it is made by `Pki.create` on the operator's machine; the files with secrets are readable by
their owner only.

The gate's certificate is renewed by `renew_if_due`. The CA is not: every node has it, so its end after ten years is the
end of all enrolments (docs/operator.md, Certificates).
"""

import datetime as dt
import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ...client_node.files import locked, write_private
from ..errors import PkiMissing
from . import pki_files

_DAY = dt.timedelta(days=1)
_CA_DAYS = 3650
_SERVER_DAYS = 398  # the longest that common TLS clients accept
_RENEWED_DAYS = 60  # before its end a certificate is renewed
_WARN_DAYS, _WARN_CA_DAYS = 30, 365  # a renewal is a matter of a second, a new CA of visits to every node
_LOOPBACK = ("127.0.0.1", "localhost")  # the gate reaches the SuperLink there under the same certificate


@dataclass(frozen=True, slots=True)
class Pki:
    """Certificates and keys in one folder, `home`/pki."""

    folder: Path
    signer: Ed25519PrivateKey = field(repr=False)  # signs studies, rounds and all other messages of the coordinator

    @classmethod
    def create(cls, home: Path, hosts: Sequence[str]) -> "Pki":
        """Makes all files that are missing under `home`; nodes connect to the names and addresses in `hosts`.

        Existing files are kept, so a second call cannot cut off a running federation. For other hosts use
        `renew_server`.
        """
        folder = home / "pki"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / "ca.key").exists():
            _write_ca(folder)
        if not (folder / "signing.key").exists():
            raw = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            write_private(folder / "signing.key", raw)
        if not (folder / "server.crt").exists():
            _write_server(folder, "server", _alternative_names((*hosts, *_LOOPBACK)), _SERVER_DAYS)
        return cls.load(home)

    @classmethod
    def load(cls, home: Path) -> "Pki":
        """Opens the folder.

        Raises:
            PkiMissing: a file is missing.
            StateDamaged: a file is damaged, belongs to another one, or is a key that others can read.
        """
        folder = home / "pki"
        names = ("ca.crt", "ca.key", "server.crt", "server.key", "signing.key")
        if missing := [name for name in names if not (folder / name).exists()]:
            raise PkiMissing(f"{folder} has no {', '.join(missing)}; run `coordinator init` or restore a backup")
        ca, _ = pki_files.authority(folder)
        if pki_files.is_cut_off(folder):
            with locked(folder / "server.crt"):  # whoever renews it just now is through then
                if pki_files.is_cut_off(folder):
                    _write_server(folder, "server", _names_of(_read_certificate(folder / "server.crt")), _SERVER_DAYS)
        certificate, _ = pki_files.server(folder)
        pki_files.require_issued(folder, certificate, ca)
        return cls(folder, pki_files.signing_key(folder))

    def renew_server(self, hosts: Sequence[str]) -> None:
        """Issues a new server certificate from the same CA, which enrolled nodes trust already."""
        with locked(self.certificate_path):
            _write_server(self.folder, "server", _alternative_names((*hosts, *_LOOPBACK)), _SERVER_DAYS)

    def renew_if_due(self, now: dt.datetime | None = None) -> bool:
        """Renews the gate's certificate, for the same names, if it is to end soon, or is not of its key or of this CA.

        Returns:
            True if it was renewed; whoever shows it must load it anew.

        Raises:
            PkiMissing: the CA's certificate or key cannot be used.
            OSError: the folder cannot be written.
        """
        clock = now or dt.datetime.now(dt.UTC)
        certificate, ca_ends = (
            _read_certificate(self.certificate_path),
            _read_certificate(self.ca_path).not_valid_after_utc,
        )
        ends = certificate.not_valid_after_utc
        lasts = ends - clock > _RENEWED_DAYS * _DAY or ends >= ca_ends
        if ca_ends <= clock:
            return False  # nothing that it signs would be accepted
        if lasts and certificate.not_valid_before_utc <= clock and self._is_whole(certificate, self.key_path):
            return False
        with locked(self.certificate_path):
            _write_server(self.folder, "server", _names_of(certificate), _SERVER_DAYS, clock)
        return True

    def warnings(self, now: dt.datetime | None = None) -> list[str]:
        """Tells which certificates end soon, in words for the operator."""
        clock = now or dt.datetime.now(dt.UTC)
        ends = _read_certificate(self.certificate_path).not_valid_after_utc
        ca_ends = _read_certificate(self.ca_path).not_valid_after_utc
        found = []
        if ends - clock < _WARN_DAYS * _DAY:
            found.append(
                f"the server certificate ends on {ends:%Y-%m-%d} and was not renewed: nodes are shut out from then on"
            )
        if ca_ends - clock < _WARN_CA_DAYS * _DAY:
            found.append(
                f"the federation's CA ends on {ca_ends:%Y-%m-%d}: nodes are shut out from then on. Found a new "
                "federation before, and invite every node to it"
            )
        return found

    def loopback_pair(self) -> tuple[Path, Path]:
        """Returns the certificate that the SuperLink shows on loopback, and its key; issues them if need be.

        It holds as long as the CA, because a running SuperLink cannot be given another one.
        """
        path, key = self.folder / "superlink.crt", self.folder / "superlink.key"
        try:
            holds = self._is_whole(_read_certificate(path), key)
        except (PkiMissing, FileNotFoundError):
            holds = False
        if not holds:
            _write_server(self.folder, "superlink", _alternative_names(_LOOPBACK), _CA_DAYS)
        return path, key

    def _is_whole(self, certificate: x509.Certificate, key_path: Path) -> bool:
        """True if the certificate is of the key beside it, and signed by the CA; a crash in a renewal leaves others."""
        try:
            key = load_pem_private_key(key_path.read_bytes(), None)
            certificate.verify_directly_issued_by(_read_certificate(self.ca_path))
        except (ValueError, TypeError, InvalidSignature):
            return False
        return key.public_key() == certificate.public_key()

    @property
    def ca_path(self) -> Path:
        """Path of the CA certificate, PEM."""
        return self.folder / "ca.crt"

    @property
    def certificate_path(self) -> Path:
        """Path of the server certificate, PEM."""
        return self.folder / "server.crt"

    @property
    def certificate_ends(self) -> dt.datetime:
        """The end of the server certificate."""
        return _read_certificate(self.certificate_path).not_valid_after_utc

    @property
    def key_path(self) -> Path:
        """Path of the server certificate's private key, PEM."""
        return self.folder / "server.key"

    @property
    def ca_digest(self) -> bytes:
        """SHA-256 of the CA certificate's DER form, which an invitation code pins."""
        return certificate_digest(self.ca_path.read_bytes())

    @property
    def identity_hex(self) -> str:
        """The coordinator's Ed25519 public key in hex, which every study names."""
        return self.signer.public_key().public_bytes_raw().hex()


def certificate_digest(pem: bytes) -> bytes:
    """Computes the SHA-256 of a certificate's DER form. Raises ValueError if `pem` is no certificate."""
    return hashlib.sha256(x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)).digest()


def _write_ca(folder: Path, now: dt.datetime | None = None) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    usage = x509.KeyUsage(
        digital_signature=False, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _builder("confide CA", "confide CA", key.public_key(), _CA_DAYS, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    write_private(folder / "ca.crt", certificate.public_bytes(Encoding.PEM))
    write_private(folder / "ca.key", _pem(key))


def _write_server(
    folder: Path, name: str, names: Sequence[x509.GeneralName], days: int, now: dt.datetime | None = None
) -> None:
    ca, ca_key = pki_files.authority(folder)
    authority = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    key = ec.generate_private_key(ec.SECP384R1())
    builder = _builder("confide coordinator", "confide CA", key.public_key(), days, now, ca.not_valid_after_utc)
    certificate = (
        builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        # Python 3.13 verifies with VERIFY_X509_STRICT, which wants the authority named.
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority), critical=False)
        .sign(ca_key, hashes.SHA384())
    )
    write_private(folder / f"{name}.key", _pem(key))
    write_private(folder / f"{name}.crt", certificate.public_bytes(Encoding.PEM))


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as err:
        raise PkiMissing(f"{path} is no certificate; restore a backup") from err


def _names_of(certificate: x509.Certificate) -> list[x509.GeneralName]:
    return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


def _alternative_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def _builder(
    subject: str,
    issuer: str,
    key: ec.EllipticCurvePublicKey,
    days: int,
    now: dt.datetime | None = None,
    at_most: dt.datetime | None = None,
) -> x509.CertificateBuilder:
    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = now or dt.datetime.now(dt.UTC)
    end = now + days * _DAY
    return (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)  # nodes' clocks may run behind
        .not_valid_after(end if at_most is None else min(end, at_most))
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

"""Certificates and keys of a federation: a private CA, the gate's certificate, the coordinator's signing key.

The CA signs the certificate that the gate shows to nodes; nodes trust this CA and no other. Nodes have no certificates:
they prove themselves with enrolled keys. The Ed25519 key signs studies and rounds. All of it is made by `Pki.create` on
the operator's machine; the files with secrets are readable by their owner only. The SuperLink, on loopback, has a
certificate that no node ever sees.

The gate's certificate is renewed by `renew_if_due`. The CA has a successor when an operator says so
(`coordinator.ca_rotation`).
"""

import datetime as dt
import hashlib
import ipaddress
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ...client_node.files import locked, move_durably, write_private
from ...client_node.secret_files import read_secret, write_secret
from ..errors import Conflict, PkiMissing, StateDamaged
from ..given import Given
from . import pki_files
from .signing_keys import SigningKeys

_OURS, _OTHERS = b"The CA is our own.\n", b"The CA is kept by others.\n"
_GIVEN = "ca.given"  # there if the gate's certificate is from a CA that others keep
_TAKING = "ca.taking"  # there while the next CA takes the place of the present one
_LOCK = "ca"  # what is locked by whoever changes the CA
_DAY = dt.timedelta(days=1)
_CA_DAYS = 3650
_SERVER_DAYS = 398  # the longest that common TLS clients accept
_RENEWED_DAYS = 60  # before its end a certificate is renewed
_WARN_DAYS, _WARN_CA_DAYS = 30, 365  # a renewal is a matter of a second, a new CA of visits to every node
_LOOPBACK = ("127.0.0.1", "localhost")


@dataclass(frozen=True, slots=True)
class Pki:
    """Certificates and keys in one folder, `home`/pki."""

    folder: Path
    signing: SigningKeys = field(repr=False)

    @classmethod
    def create(cls, home: Path, hosts: Sequence[str], given: Given | None = None) -> "Pki":
        """Makes all files that are missing under `home`; nodes connect to the names and addresses in `hosts`.

        Existing files are kept, so a second call cannot cut off a running federation. For other hosts use
        `renew_server`.

        Args:
            given: the gate's certificate from a CA that others keep; None for a CA of our own.
        """
        folder = home / "pki"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if given is not None:
            _write_given(folder, given, is_other=True)
            _take(folder, is_given=True)
        elif not (folder / "ca.key").exists():
            for name in (_GIVEN, "server.crt", "server.key"):  # of an `init` that was cut short, with another CA
                (folder / name).unlink(missing_ok=True)
            _write_ca(folder)
        SigningKeys.create(folder)
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
        if _is_changing(folder):
            with locked(folder / _LOCK):
                _put_in_place(folder)
        try:
            return cls._load(folder)
        except (PkiMissing, StateDamaged):
            if not (folder / f".{_LOCK}.lock").exists():  # no CA has ever been changed here
                raise
            with locked(folder / _LOCK):  # whoever puts another CA in place just now is through then
                return cls._load(folder)

    @classmethod
    def _load(cls, folder: Path) -> "Pki":
        is_given = (folder / _GIVEN).exists()
        names = ("ca.crt", *(() if is_given else ("ca.key",)), "server.crt", "server.key", "signing.key")
        if missing := [name for name in names if not (folder / name).exists()]:
            raise PkiMissing(f"{folder} has no {', '.join(missing)}; run `coordinator init` or restore a backup")
        if is_given:
            pki_files.given(folder, "")
            return cls(folder, SigningKeys(folder))
        ca, _ = pki_files.authority(folder)
        if pki_files.is_cut_off(folder):
            with locked(folder / "server.crt"):  # whoever renews it just now is through then
                if pki_files.is_cut_off(folder):
                    _write_server(folder, "server", _names_of(_read_certificate(folder / "server.crt")), _SERVER_DAYS)
        certificate, _ = pki_files.server(folder)
        pki_files.require_issued(folder, certificate, ca)
        return cls(folder, SigningKeys(folder))

    def renew_server(self, hosts: Sequence[str]) -> None:
        """Issues a new server certificate from the same CA, which enrolled nodes trust already.

        Raises:
            Conflict: the CA is kept by others.
        """
        if self.is_given:
            raise Conflict("the gate's certificate is from a CA that others keep: coordinator certificate use")
        with locked(self.certificate_path):
            _write_server(self.folder, "server", _alternative_names((*hosts, *_LOOPBACK)), _SERVER_DAYS)

    def renew_if_due(self, now: dt.datetime | None = None) -> bool:
        """Renews the gate's certificate, for the same names, if it is to end soon, or is not of its key or of this CA.

        One of a CA that others keep is renewed by them, and put in place by `use`.

        Returns:
            True if it was renewed; whoever shows it must load it anew.

        Raises:
            PkiMissing: the CA's certificate or key cannot be used.
            OSError: the folder cannot be written.
        """
        if self.is_given:
            return False
        clock = now or dt.datetime.now(dt.UTC)
        certificate, ca_ends = (
            _read_certificate(self.certificate_path),
            _read_certificate(self.ca_path).not_valid_after_utc,
        )
        ends = certificate.not_valid_after_utc
        lasts = ends - clock > _RENEWED_DAYS * _DAY or ends >= ca_ends
        if ca_ends <= clock:
            return False  # nothing that it signs would be accepted
        if (
            lasts
            and certificate.not_valid_before_utc <= clock
            and self._is_whole(certificate, self.key_path, self.ca_path)
        ):
            return False
        with locked(self.certificate_path):
            _write_server(self.folder, "server", _names_of(certificate), _SERVER_DAYS, clock)
        return True

    @property
    def next_ca_path(self) -> Path:
        """Path of the certificate of the CA that is to succeed the present one, PEM."""
        return self.folder / "ca.next.crt"

    @property
    def has_next(self) -> bool:
        """True if the CA has a successor, which nodes are told to trust too."""
        keys = self.folder / "ca.next.key", self.folder / "server.next.key"  # written last
        return self.next_ca_path.exists() and any(key.exists() for key in keys)

    @property
    def is_given(self) -> bool:
        """True if the gate's certificate is from a CA that others keep."""
        return (self.folder / _GIVEN).exists()

    @property
    def is_next_given(self) -> bool:
        """True if the next CA is one that others keep, and the gate's certificate of it lies ready."""
        return self.next_ca_path.exists() and (self.folder / "server.next.key").exists()

    def next_ends(self) -> dt.datetime:
        """Reads the end of the certificate that lies ready, or, if the next CA is our own, of that CA."""
        name = "server.next.crt" if self.is_next_given else "ca.next.crt"
        return _read_certificate(self.folder / name).not_valid_after_utc

    def next_begins(self) -> dt.datetime:
        """Reads the moment from which the next CA holds, and the certificate of it that lies ready, if one does.

        Raises:
            PkiMissing, StateDamaged: one of them is damaged.
        """
        begins = self.certificate_of(is_next=True).not_valid_before_utc
        if not self.is_next_given:
            return begins
        return max(begins, _read_certificate(self.folder / "server.next.crt").not_valid_before_utc)

    def certificate_of(self, *, is_next: bool) -> x509.Certificate:
        """Reads the certificate of the present or of the next CA. Raises StateDamaged if it is none."""
        return pki_files.authority_certificate(self.folder, ".next" if is_next else "")

    def authorities(self, *, with_next: bool = True) -> tuple[bytes, ...]:
        """Reads the certificates that nodes are to trust, PEM: the present CA's, and its successor's if it has one.

        Never while one takes the place of the other: nodes would be told to trust the one that ends alone.

        Args:
            with_next: False for the present CA's alone, as where its successor's is damaged.

        Raises:
            PkiMissing, StateDamaged: a file is missing or damaged, or belongs to another one.
        """
        with self.changing():
            _put_in_place(self.folder)
            found = [self._authority("", is_given=self.is_given)]
            if with_next and self.has_next:
                found.append(self._authority(".next", is_given=self.is_next_given))
        return tuple(each.public_bytes(Encoding.PEM) for each in found)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Holds the folder for whoever changes its CA, or waits for that."""
        with locked(self.folder / _LOCK):
            yield

    def _authority(self, name: str, *, is_given: bool) -> x509.Certificate:
        if is_given:
            return pki_files.given(self.folder, name)[0]
        return (pki_files.next_authority if name else pki_files.authority)(self.folder)[0]

    def make_next(self, given: Given | None = None, *, before_it_counts: Callable[[], object] = lambda: None) -> None:
        """Makes the CA that is to succeed the present one, or takes one that others keep; hold `changing`.

        Args:
            before_it_counts: is called when its certificate lies there, and before its key does, from which on nodes
                are told of it.
        """
        if given is None:
            _drop_next(self.folder)
            _write_ca(self.folder, name="ca.next", before_key=before_it_counts)
        else:
            _write_given(self.folder, given, is_other=True, before_key=before_it_counts)

    def use(self, given: Given) -> None:
        """Shows another certificate of the CA that others keep, which stays; hold `changing`."""
        _write_given(self.folder, given, is_other=False)
        _take(self.folder, is_given=True)

    def drop_next(self) -> None:
        """Deletes the CA that was to succeed the present one; hold `changing`."""
        _drop_next(self.folder)

    def begin_taking(self) -> None:
        """Says that the next CA takes the place of the present one; hold `changing`, and go on with `take_next`.

        From then on whoever loads the folder completes it, once `changing` is free.
        """
        self._authority(".next", is_given=self.is_next_given)
        _say_taking(self.folder, is_given=self.is_next_given)

    def stop_taking(self) -> None:
        """Takes `begin_taking` back; hold `changing` since then, so nothing was moved yet."""
        (self.folder / _TAKING).unlink(missing_ok=True)

    def take_next(self) -> None:
        """Puts the next CA in the place of the present one, and issues the gate's certificate by it; hold `changing`.

        The present CA's key is gone then. A cut-off on the way is completed by whoever loads the folder next.
        """
        _put_in_place(self.folder)

    def warnings(self, now: dt.datetime | None = None) -> list[str]:
        """Tells which certificates end soon, or do not hold yet, in words for the operator."""
        clock = now or dt.datetime.now(dt.UTC)
        ends = _read_certificate(self.certificate_path).not_valid_after_utc
        ca = _read_certificate(self.ca_path)
        ca_ends, found = ca.not_valid_after_utc, []
        if ca.not_valid_before_utc > clock:
            found.append(
                f"the federation's CA is not valid before {_moment(ca.not_valid_before_utc)}: nodes are shut out "
                "until then. This machine's clock was ahead when it was made, or is behind now"
            )
        try:
            next_begins = self.next_begins() if self.has_next else clock
        except (PkiMissing, StateDamaged):
            next_begins = clock  # whoever looks at the rotation, or announces it, tells of that
        if next_begins > clock:
            found.append(
                f"the next CA is not valid before {_moment(next_begins)}: this machine's clock was ahead when it was "
                "made, or is behind now. To make it anew: coordinator ca cancel, then coordinator ca rotate"
            )
        if self.is_given and ends - clock < _RENEWED_DAYS * _DAY:
            found.append(
                f"the gate's certificate ends on {ends:%Y-%m-%d}: nodes are shut out from then on. Have its CA issue "
                "another one, then: coordinator certificate use"
            )
        elif ends - clock < _WARN_DAYS * _DAY:
            found.append(
                f"the server certificate ends on {ends:%Y-%m-%d} and was not renewed: nodes are shut out from then on"
            )
        if ca_ends - clock < _WARN_CA_DAYS * _DAY:
            found.append(
                f"the federation's CA ends on {ca_ends:%Y-%m-%d}: nodes are shut out from then on. Give it a successor "
                f"before: coordinator {'certificate use --ca' if self.is_given else 'ca rotate'}"
            )
        return found

    def loopback_pair(self) -> tuple[Path, Path]:
        """Returns the certificate that the SuperLink shows on loopback, and its key; issues them if need be.

        Their CA is for them alone, and nobody keeps its key: what nodes trust may change while a SuperLink runs, which
        cannot be given another certificate.
        """
        path, key = self.folder / "superlink.crt", self.folder / "superlink.key"
        try:
            certificate = _read_certificate(path)
            now, pair = dt.datetime.now(dt.UTC), (certificate, _read_certificate(self.loopback_ca_path))
            lasts = all(  # one of a clock that was ahead holds for nobody yet
                each.not_valid_before_utc <= now and each.not_valid_after_utc - now > _SERVER_DAYS * _DAY
                for each in pair
            )
            holds = lasts and self._is_whole(certificate, key, self.loopback_ca_path)
        except (PkiMissing, FileNotFoundError):
            holds = False
        if not holds:
            ca_key = ec.generate_private_key(ec.SECP384R1())
            ca = _self_signed(ca_key, "confide loopback CA")
            write_private(self.loopback_ca_path, ca.public_bytes(Encoding.PEM))
            _write_server(self.folder, "superlink", _alternative_names(_LOOPBACK), _CA_DAYS, issuer=(ca, ca_key))
        return path, key

    @property
    def loopback_ca_path(self) -> Path:
        """Path of the CA certificate by which this machine's processes know the SuperLink, PEM."""
        return self.folder / "superlink-ca.crt"

    def _is_whole(self, certificate: x509.Certificate, key_path: Path, ca_path: Path) -> bool:
        """True if the certificate is of the key beside it, and signed by the CA; a crash in a renewal leaves others."""
        try:
            data = read_secret(key_path, remedy="It is made anew", error=PkiMissing)
            if data is None:
                return False
            key = load_pem_private_key(data, None)
            certificate.verify_directly_issued_by(_read_certificate(ca_path))
        except (ValueError, TypeError, InvalidSignature, PkiMissing):
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
    def signer(self) -> Ed25519PrivateKey:
        """The key that signs studies, rounds and all other messages of the coordinator at this moment."""
        return self.signing.now.key

    @property
    def identity_hex(self) -> str:
        """Its public key in hex, which every new study names."""
        return self.signing.now.public


def _is_changing(folder: Path) -> bool:
    """True if another CA is being put in place, or was when the process ended that did so."""
    return (folder / _TAKING).exists()


def _put_in_place(folder: Path) -> None:
    """Completes a change to the next CA, wherever it was cut off."""
    if not _is_changing(folder):  # another process was quicker
        return
    is_given = (folder / _TAKING).read_bytes() == _OTHERS
    with locked(folder / "server.crt"):
        for name in ("ca.{}key", "ca.{}crt", "server.{}key", "server.{}crt"):
            if (folder / name.format("next.")).exists():
                move_durably(folder / name.format("next."), folder / name.format(""))
        if is_given:
            write_private(folder / _GIVEN, _OTHERS)
            (folder / "ca.key").unlink(missing_ok=True)
        else:
            (folder / _GIVEN).unlink(missing_ok=True)
            _write_server(folder, "server", _names_of(_read_certificate(folder / "server.crt")), _SERVER_DAYS)
    (folder / _TAKING).unlink()


def _take(folder: Path, *, is_given: bool) -> None:
    """Puts what lies ready in its place; from the first line on nothing undoes it."""
    _say_taking(folder, is_given=is_given)
    _put_in_place(folder)


def _say_taking(folder: Path, *, is_given: bool) -> None:
    write_private(folder / _TAKING, _OTHERS if is_given else _OURS)


def _drop_next(folder: Path) -> None:
    """Deletes what lies ready, or was left of another attempt; the keys, by which it counts, first."""
    for name in ("ca.next.key", "server.next.key", "server.next.crt", "ca.next.crt"):
        (folder / name).unlink(missing_ok=True)


def _write_given(
    folder: Path, given: Given, *, is_other: bool, before_key: Callable[[], object] = lambda: None
) -> None:
    """Writes a certificate of a CA that others keep beside the present one, its key last; its CA too if it is new."""
    _drop_next(folder)
    if is_other:
        write_private(folder / "ca.next.crt", given.ca)
    write_private(folder / "server.next.crt", given.chain)
    before_key()
    write_secret(folder / "server.next.key", given.key)


def _moment(when: dt.datetime) -> str:
    """Writes a certificate's moment for people."""
    return f"{when:%Y-%m-%d %H:%M} UTC"


def certificate_digest(pem: bytes) -> bytes:
    """Computes the SHA-256 of a certificate's DER form. Raises ValueError if `pem` is no certificate."""
    return hashlib.sha256(x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)).digest()


def _write_ca(
    folder: Path,
    now: dt.datetime | None = None,
    *,
    name: str = "ca",
    before_key: Callable[[], object] = lambda: None,
) -> None:
    """Makes a CA of ten years: the files `name`.crt and, last, `name`.key."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_private(folder / f"{name}.crt", _self_signed(key, "confide CA", now).public_bytes(Encoding.PEM))
    before_key()
    write_secret(folder / f"{name}.key", _pem(key))


def _self_signed(key: ec.EllipticCurvePrivateKey, name: str, now: dt.datetime | None = None) -> x509.Certificate:
    usage = x509.KeyUsage(
        digital_signature=False, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return (
        _builder(name, name, key.public_key(), _CA_DAYS, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )


def _write_server(
    folder: Path,
    name: str,
    names: Sequence[x509.GeneralName],
    days: int,
    now: dt.datetime | None = None,
    *,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None,
) -> None:
    """Issues a certificate, by the federation's CA unless an `issuer` is given, and writes it after its key."""
    ca, ca_key = issuer or pki_files.authority(folder)
    authority = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    key = ec.generate_private_key(ec.SECP384R1())
    builder = _builder("confide coordinator", ca.subject, key.public_key(), days, now, ca.not_valid_after_utc)
    certificate = (
        builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        # Python 3.13 verifies with VERIFY_X509_STRICT, which wants the authority named.
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority), critical=False)
        .sign(ca_key, hashes.SHA384())
    )
    write_secret(folder / f"{name}.key", _pem(key))
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
    issuer: str | x509.Name,
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
        .issuer_name(name(issuer) if isinstance(issuer, str) else issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)  # nodes' clocks may run behind
        .not_valid_after(end if at_most is None else min(end, at_most))
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

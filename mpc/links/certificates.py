"""Self-signed TLS certificates of the parties. They are pinned whole, so no authority stands behind them."""

import os
import secrets
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from ..fields import text

_VALID = timedelta(days=5 * 365)


def make_certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """Writes a new certificate and its key to files.

    Args:
        directory: an existing folder; gets `party.pem` and `party.key`, both readable by their owner only.
        name: as for `new_certificate`.

    Returns:
        Paths of the certificate and of the key, in PEM.

    Raises:
        FileExistsError: one of the files is there already; nothing is overwritten.
    """
    certificate, key = new_certificate(name)
    key_path, certificate_path = directory / "party.key", directory / "party.pem"
    if certificate_path.exists():
        raise FileExistsError(certificate_path)
    _write_private(key_path, key)
    _write_private(certificate_path, certificate)
    return certificate_path, key_path


def load_chain(context: ssl.SSLContext, certificate: Path, key: Path | bytes) -> None:
    """Has TLS show a certificate, whose key is a file or bytes in PEM.

    Raises:
        OSError: one of them cannot be read, or they do not belong together.
    """
    if isinstance(key, Path):
        return context.load_cert_chain(certificate, key)
    # Python's ssl reads keys from files only. This one is memory, has no name, and is gone at the end.
    with os.fdopen(os.memfd_create("key", os.MFD_CLOEXEC), "wb") as file:
        file.write(key)
        file.flush()
        context.load_cert_chain(certificate, f"/proc/self/fd/{file.fileno()}")


def new_certificate(name: str) -> tuple[bytes, bytes]:
    """Makes an Ed25519 key and a certificate for it, valid for five years.

    Args:
        name: for people; part of the common name, beside random digits. Certificates are compared whole.

    Returns:
        The certificate and the key, in PEM.
    """
    key = Ed25519PrivateKey.generate()
    # OpenSSL looks a pinned certificate up by its subject, so no two parties may have the same one.
    unique = f"{text('name', name)[:40]} {secrets.token_hex(8)}"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, unique)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # the other parties' clocks may be behind
        .not_valid_after(now + _VALID)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, None)
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), pem


def _write_private(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

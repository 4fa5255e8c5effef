"""Reads the files of a federation's certificates and keys; whatever is wrong with one names it, and says what to do."""

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from ...client_node.files import damaged, read_own
from ...client_node.secret_files import read_secret
from ..errors import StateDamaged
from ..given import verifies

_MAX_BYTES = 2**16
_CA = (
    "Every node trusts this CA and no other: restore ca.crt and ca.key from one backup; without one, found the "
    "federation anew, and all nodes enrol anew"
)
_NEXT = "It is the CA that comes next: restore both of its files, or run `coordinator ca cancel` and begin anew"
_SERVER = "The gate shows it to every node: restore server.crt and server.key from one backup"
_OTHERS = (
    "It is of a CA that others keep: restore server.crt, server.key and ca.crt from one backup, then `coordinator "
    "certificate use` with the newest"
)
_SIGNING = (
    "Every node knows the coordinator by it, and studies name it: restore it from a backup; without one, found the "
    "federation anew, and all nodes enrol anew"
)


def signing_key(folder: Path, name: str = "signing.key", remedy: str = _SIGNING) -> Ed25519PrivateKey:
    """Reads the key that signs studies and rounds, or the one that comes next.

    Raises:
        StateDamaged: the file is none, or others can read it.
    """
    key = _key(folder / name, remedy)
    if not isinstance(key, Ed25519PrivateKey):
        raise damaged(folder / name, "is no Ed25519 key", remedy=remedy, error=StateDamaged)
    return key


def authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Reads the CA's certificate and key, which belong together; raises as `signing_key`."""
    return _pair(folder / "ca.crt", folder / "ca.key", _CA)


def authority_certificate(folder: Path, name: str) -> x509.Certificate:
    """Reads a CA's certificate alone, ".next" or ""; raises as `signing_key`."""
    return _certificate(folder / f"ca{name}.crt", _NEXT if name else _CA)


def next_authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Reads the certificate and key of the CA that comes next, which belong together; raises as `signing_key`."""
    return _pair(folder / "ca.next.crt", folder / "ca.next.key", _NEXT)


def server(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Reads the gate's certificate and key, which belong together; raises as `signing_key`."""
    return _pair(folder / "server.crt", folder / "server.key", _SERVER)


def given(folder: Path, name: str) -> tuple[x509.Certificate, bytes]:
    """Reads a CA that others keep, and the chain from the gate's certificate up to it; they and the key fit each other.

    Args:
        name: ".next" for those that lie ready; "" for those in use.

    Raises:
        StateDamaged: as `signing_key`; or the chain does not lead to the CA.
    """
    remedy, paths = _NEXT if name else _OTHERS, [folder / f"server{name}.crt", folder / f"server{name}.key"]
    ca = _certificate(folder / f"ca{name}.crt", remedy)
    leaf, key = _certificate(paths[0], remedy), _key(paths[1], remedy)
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) or leaf.public_key() != key.public_key():
        raise damaged(paths[0], f"is not of the key in {paths[1].name}", remedy=remedy, error=StateDamaged)
    pem = _read(paths[0], remedy, is_secret=False)
    try:
        fits = verifies(x509.load_pem_x509_certificates(pem), ca)
    except ValueError:
        fits = False
    if not fits:
        raise damaged(paths[0], f"does not lead to the CA in ca{name}.crt", remedy=remedy, error=StateDamaged)
    return ca, pem


def is_cut_off(folder: Path) -> bool:
    """True if a renewal of the gate's certificate was cut off between its two files, which are both whole."""
    certificate, key = _certificate(folder / "server.crt", _SERVER), _key(folder / "server.key", _SERVER)
    return isinstance(key, ec.EllipticCurvePrivateKey) and certificate.public_key() != key.public_key()


def require_issued(folder: Path, certificate: x509.Certificate, ca: x509.Certificate) -> None:
    """Raises StateDamaged unless the CA has issued the gate's certificate."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature) as err:
        raise damaged(
            folder / "server.crt", "is not from the CA in ca.crt", remedy=_SERVER, error=StateDamaged
        ) from err


def _pair(certificate_path: Path, key_path: Path, remedy: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key, certificate = _key(key_path, remedy), _certificate(certificate_path, remedy)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise damaged(key_path, "is no elliptic-curve key", remedy=remedy, error=StateDamaged)
    if certificate.public_key() != key.public_key():
        raise damaged(certificate_path, f"is not of the key in {key_path.name}", remedy=remedy, error=StateDamaged)
    return certificate, key


def _certificate(path: Path, remedy: str) -> x509.Certificate:
    pem = _read(path, remedy, is_secret=False)
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as err:
        raise damaged(path, "is no certificate", remedy=remedy, error=StateDamaged) from err
    return certificate


def _key(path: Path, remedy: str) -> object:
    try:
        return load_pem_private_key(_read(path, remedy, is_secret=True), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise damaged(path, "is no key: it was cut short or changed", remedy=remedy, error=StateDamaged) from err


def _read(path: Path, remedy: str, *, is_secret: bool) -> bytes:
    if is_secret:
        data = read_secret(path, remedy=remedy, error=StateDamaged, max_bytes=_MAX_BYTES)
    else:
        data = read_own(path, remedy=remedy, error=StateDamaged, max_bytes=_MAX_BYTES)
    if data is None:
        raise damaged(path, "is missing", remedy=remedy, error=StateDamaged)
    return data

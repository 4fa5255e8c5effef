"""The gate's certificate from a CA that others keep, such as a hospital's: checked before the gate shows it.

Nodes then trust that CA as they trust one of our own. Whoever gets a certificate of it for the gate's name can stand in
for the gate, as far as TLS goes; what the coordinator signs, he cannot sign.
"""

import datetime as dt
import ipaddress
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from ..client_node.files import read_own
from .errors import Conflict

_MAX_BYTES = 2**16
_LEAST_BITS = 2048  # of RSA
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_REMEDY = "Nothing was changed"
_LONGEST_CHAIN = 8


@dataclass(frozen=True, slots=True)
class Given:
    """A certificate that was checked, in the form in which the gate shows it."""

    ca: bytes  # the CA that nodes are to trust, PEM
    chain: bytes  # the gate's certificate, then those between it and the CA, PEM
    key: bytes = field(repr=False)  # PEM, without a passphrase
    ends: dt.datetime


def read_given(certificate: Path, key: Path, ca: Path, host: str, now: dt.datetime | None = None) -> Given:
    """Reads and checks a certificate for the gate at `host`; each thing that is wrong with it is said in one sentence.

    Args:
        certificate: PEM, the gate's own first, then those between it and the CA in any order.
        key: the private key, PEM, RSA of 2048 bits or more or ECDSA on a NIST curve; nobody else may read the file.
        ca: PEM, the one CA that nodes are to trust; self-signed.

    Raises:
        Conflict: a file cannot be used, or they do not fit each other, the host or the day.
    """
    chain = _certificates(certificate)
    found = _key(key)
    authorities = _certificates(ca)
    if len(authorities) != 1:
        raise Conflict(f"{ca} holds {len(authorities)} certificates; name the file of the one CA alone. {_REMEDY}")
    leaf, authority = chain[0], authorities[0]
    if leaf.public_key() != found.public_key():
        if any(each.public_key() == found.public_key() for each in chain):
            raise Conflict(f"the gate's certificate must come first in {certificate}, before its CAs. {_REMEDY}")
        raise Conflict(f"{certificate} is not of the key in {key}. {_REMEDY}")
    _require_authority(authority, ca)
    path = _path(leaf, chain[1:], authority, certificate, ca)
    _require_time((*path, authority), now or dt.datetime.now(dt.UTC), certificate, ca)
    _require_use(leaf, certificate)
    _require_host(leaf, host, certificate)
    given = Given(
        ca=authority.public_bytes(Encoding.PEM),
        chain=b"".join(each.public_bytes(Encoding.PEM) for each in path),
        key=found.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        ends=min(each.not_valid_after_utc for each in path),
    )
    _require_handshake(given, host, certificate, key)
    return given


def verifies(chain: Sequence[x509.Certificate], authority: x509.Certificate) -> bool:
    """True if each certificate is issued by the next one, and the last by the CA."""
    try:
        for issued, issuer in zip(chain, (*chain[1:], authority), strict=True):
            issued.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def names_of(certificate: x509.Certificate) -> list[str]:
    """Lists the names and addresses that a server's certificate is for; none without a subject alternative name."""
    with suppress(x509.ExtensionNotFound):
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return [*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))]
    return []


def is_for(certificate: x509.Certificate, host: str) -> bool:
    """True if a certificate is for `host`, by its own name or by that of all machines beside it (`*.example.org`)."""
    wanted = host.strip("[]").lower()
    with suppress(ValueError):
        wanted = str(ipaddress.ip_address(wanted))
    return not {wanted, "*." + wanted.partition(".")[2]}.isdisjoint(name.lower() for name in names_of(certificate))


def _certificates(path: Path) -> list[x509.Certificate]:
    data = read_own(path, remedy=_REMEDY, error=Conflict, max_bytes=_MAX_BYTES)
    if data is None:
        raise Conflict(f"{path} is missing. {_REMEDY}")
    try:
        found = x509.load_pem_x509_certificates(data)
        for each in found:
            each.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as err:
        raise Conflict(f"{path} holds no certificates in PEM form (-----BEGIN CERTIFICATE-----). {_REMEDY}") from err
    return found


def _key(path: Path) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    data = read_own(path, remedy=_REMEDY, error=Conflict, max_bytes=_MAX_BYTES, is_secret=True)
    if data is None:
        raise Conflict(f"{path} is missing. {_REMEDY}")
    try:
        found = load_pem_private_key(data, None)
    except TypeError as err:
        raise Conflict(
            f"{path} is locked by a passphrase; write it without one first: openssl pkey -in KEY -out NEW. {_REMEDY}"
        ) from err
    except (ValueError, UnsupportedAlgorithm) as err:
        raise Conflict(f"{path} is no private key in PEM form. {_REMEDY}") from err
    if isinstance(found, rsa.RSAPrivateKey) and found.key_size >= _LEAST_BITS:
        return found
    if isinstance(found, ec.EllipticCurvePrivateKey) and isinstance(found.curve, _CURVES):
        return found
    raise Conflict(
        f"{path} is neither a key of RSA, {_LEAST_BITS} bits or more, nor of ECDSA on P-256, P-384 or P-521. {_REMEDY}"
    )


def _path(
    leaf: x509.Certificate,
    between: Sequence[x509.Certificate],
    authority: x509.Certificate,
    certificate: Path,
    ca: Path,
) -> list[x509.Certificate]:
    """Finds the way from the gate's certificate up to the CA."""
    path = [leaf]
    while not verifies(path[-1:], authority):
        last = path[-1]
        issuers = [each for each in between if each not in path and verifies([last], each)]
        if not issuers or len(path) >= _LONGEST_CHAIN:
            name = last.issuer.rfc4514_string()[:200]
            if last.issuer == authority.subject:
                raise Conflict(f"{certificate} is not from the CA in {ca}, which has the same name. {_REMEDY}")
            if last.issuer == last.subject:
                raise Conflict(f"{certificate} is not from the CA in {ca}: it leads to {name}. {_REMEDY}")
            raise Conflict(
                f"{certificate} does not lead to the CA in {ca}: the certificate of {name} is missing. If that is a CA "
                f"below yours, add it to {certificate.name}; else the certificate is not from that CA. {_REMEDY}"
            )
        path.append(issuers[0])
    return path


def _require_authority(authority: x509.Certificate, ca: Path) -> None:
    try:
        is_ca = authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        is_ca = False
    if not is_ca:
        raise Conflict(f"{ca} is no CA's certificate (no basic constraint CA:TRUE). {_REMEDY}")
    if not verifies([authority], authority):
        raise Conflict(f"{ca} is a CA below another one; nodes trust only the topmost: name that one. {_REMEDY}")


def _require_time(path: Sequence[x509.Certificate], now: dt.datetime, certificate: Path, ca: Path) -> None:
    for each in path:
        what = f"the CA in {ca}" if each is path[-1] else str(certificate)
        if each is not path[-1] and each is not path[0]:
            what = f"{each.subject.rfc4514_string()[:200]} in {certificate}"
        if each.not_valid_after_utc <= now:
            raise Conflict(f"{what} has expired on {each.not_valid_after_utc:%Y-%m-%d}. {_REMEDY}")
        if each.not_valid_before_utc > now:
            begins = each.not_valid_before_utc
            raise Conflict(f"{what} is not valid before {begins:%Y-%m-%d %H:%M} UTC. {_REMEDY}")


def _require_use(leaf: x509.Certificate, certificate: Path) -> None:
    with suppress(x509.ExtensionNotFound):
        if ExtendedKeyUsageOID.SERVER_AUTH not in leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value:
            raise Conflict(f"{certificate} is not for servers (extended key usage without serverAuth). {_REMEDY}")


def _require_host(leaf: x509.Certificate, host: str, certificate: Path) -> None:
    if not is_for(leaf, host):
        listed = ", ".join(names_of(leaf)[:5]) or "no name at all (a subject alternative name is needed)"
        wanted = host.strip("[]")
        raise Conflict(f"{certificate} is for {listed}, not for {wanted}, at which nodes reach the gate. {_REMEDY}")


def _require_handshake(given: Given, host: str, certificate: Path, key: Path) -> None:
    """Has OpenSSL judge it as a node's does, by the strict rules that Python follows from 3.13 on."""
    trusting = ssl.create_default_context(cadata=given.ca.decode())
    trusting.minimum_version = ssl.TLSVersion.TLSv1_3
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        serving.load_cert_chain(certificate, key)
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = trusting.wrap_bio(to_client, to_server, server_hostname=host.strip("[]"))
        ends = [client, serving.wrap_bio(to_server, to_client, server_side=True)]
        while ends:
            for end in list(ends):
                with suppress(ssl.SSLWantReadError):
                    end.do_handshake()
                    ends.remove(end)
    except ssl.SSLCertVerificationError as err:
        raise Conflict(f"{certificate} would be refused by nodes: {err.verify_message}. {_REMEDY}") from err
    except ssl.SSLError as err:
        raise Conflict(f"{certificate} cannot be shown: {err.reason or err}. {_REMEDY}") from err

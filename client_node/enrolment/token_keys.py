"""Private keys that stay in a PKCS#11 token, behind the interface of keys in memory.

The token makes the key and signs with it; its private part cannot be read, not even by this process. So whoever takes
the machine's disk, or a backup, has no key. Whoever runs code in this process can have the token sign for as long as it
does.

An Ed25519 key signs by CKM_EDDSA, a P-384 key by CKM_ECDSA over a digest that is made here. One session a token serves
all threads of a process, one at a time. The PIN comes from where `passphrase.PIN` says. One more wrong PIN is never
tried where it would be the last: a service that is started again and again would lock the token.

python-pkcs11 (MIT) speaks to the module; it comes with `confide[pkcs11]` and is imported where a home has such keys.
"""

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature

from .. import passphrase
from ..errors import TokenUnusable
from .token_uri import TokenUri

if TYPE_CHECKING:
    import pkcs11

Kind = Literal["ed25519", "p384"]

_ED25519 = bytes.fromhex("06032b6570")  # OID 1.3.101.112
_P384 = bytes.fromhex("06052b81040022")  # OID 1.3.132.0.34
_ED25519_BYTES, _POINT_BYTES, _SCALAR_BYTES = 32, 97, 48
_sessions: dict[tuple[object, ...], "pkcs11.Session"] = {}
_using = threading.RLock()


class _Held:
    """A key in a token, found anew when its session has ended."""

    def __init__(self, uri: TokenUri, kind: Kind) -> None:
        self._uri, self._kind = uri, kind
        with _told(uri):
            self._key, public = _find(uri, kind)
            self.point = bytes(public[_attribute("EC_POINT")])

    def sign(self, data: bytes) -> bytes:
        """Signs by the token. Raises `TokenUnusable`."""
        with _told(self._uri):
            import pkcs11

            mechanism = pkcs11.Mechanism.EDDSA if self._kind == "ed25519" else pkcs11.Mechanism.ECDSA
            try:
                return bytes(self._key.sign(data, mechanism=mechanism))
            except _ended():
                _sessions.pop(_session_of(self._uri), None)
                self._key, _ = _find(self._uri, self._kind)
                return bytes(self._key.sign(data, mechanism=mechanism))


class TokenEd25519Key(Ed25519PrivateKey):
    """An Ed25519 private key in a token."""

    def __init__(self, uri: TokenUri) -> None:
        """Finds the key, and checks that it and the public key beside it are one pair. Raises `TokenUnusable`."""
        self._held = _Held(uri, "ed25519")
        # as DER (RFC 8410 in an OCTET STRING or a BIT STRING), or raw, as tokens have it
        self._public = Ed25519PublicKey.from_public_bytes(self._held.point[-_ED25519_BYTES:].rjust(32, b"\0"))
        _require_pair(uri, lambda challenge: self._public.verify(self.sign(challenge), challenge))

    def sign(self, data: Any) -> bytes:
        """Signs by the token. Raises `TokenUnusable`."""
        return self._held.sign(bytes(data))

    def public_key(self) -> Ed25519PublicKey:
        """Returns the public key."""
        return self._public

    def private_bytes(self, *_: object, **__: object) -> NoReturn:
        """Refuses: the key does not leave its token."""
        _stays()

    def private_bytes_raw(self) -> NoReturn:
        """Refuses: the key does not leave its token."""
        _stays()

    def __copy__(self) -> "TokenEd25519Key":
        return self

    def __deepcopy__(self, memo: dict[Any, Any]) -> "TokenEd25519Key":
        return self


class TokenP384Key(ec.EllipticCurvePrivateKey):
    """An ECDSA private key on P-384 in a token."""

    def __init__(self, uri: TokenUri) -> None:
        """Finds the key, and checks that it and the public key beside it are one pair. Raises `TokenUnusable`."""
        self._held = _Held(uri, "p384")
        try:
            point = self._held.point[-_POINT_BYTES:]
            self._public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point)
        except ValueError as err:
            raise TokenUnusable(f"{uri.text()} has a public key that is no point of P-384") from err
        algorithm = ec.ECDSA(hashes.SHA256())
        _require_pair(uri, lambda data: self._public.verify(self.sign(data, algorithm), data, algorithm))

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """Signs by the token, over a digest that is made here.

        Raises:
            TokenUnusable: the token does not sign.
            UnsupportedAlgorithm: it is asked for something else than ECDSA.
        """
        if not isinstance(signature_algorithm, ec.ECDSA):
            raise UnsupportedAlgorithm("a key in a token signs by ECDSA")
        chosen, digest = signature_algorithm.algorithm, bytes(data)
        if not isinstance(chosen, Prehashed):
            hasher = hashes.Hash(chosen)
            hasher.update(digest)
            digest = hasher.finalize()
        pair = self._held.sign(digest[:_SCALAR_BYTES])
        r, s = (int.from_bytes(half, "big") for half in (pair[: len(pair) // 2], pair[len(pair) // 2 :]))
        return encode_dss_signature(r, s)

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Returns the public key."""
        return self._public

    @property
    def curve(self) -> ec.EllipticCurve:
        """The curve."""
        return ec.SECP384R1()

    @property
    def key_size(self) -> int:
        """Bits of the key."""
        return 384

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:
        """Refuses: this key signs and does nothing else."""
        raise UnsupportedAlgorithm("a key in a token signs, and does nothing else")

    def private_numbers(self) -> NoReturn:
        """Refuses: the key does not leave its token."""
        _stays()

    def private_bytes(self, *_: object, **__: object) -> NoReturn:
        """Refuses: the key does not leave its token."""
        _stays()

    def __copy__(self) -> "TokenP384Key":
        return self

    def __deepcopy__(self, memo: dict[Any, Any]) -> "TokenP384Key":
        return self


def make(uri: TokenUri, kind: Kind, label: str) -> TokenUri:
    """Has a token make a key that cannot be read from it; returns the key's URI, by a new random id.

    Raises:
        TokenUnusable: the token cannot be used, or does not make such keys.
    """
    with _told(uri):
        import pkcs11

        session, key_id = _session(uri, may_write=True), secrets.token_bytes(16)
        key_type, curve, mechanism = {
            "ed25519": (pkcs11.KeyType.EC_EDWARDS, _ED25519, pkcs11.Mechanism.EC_EDWARDS_KEY_PAIR_GEN),
            "p384": (pkcs11.KeyType.EC, _P384, pkcs11.Mechanism.EC_KEY_PAIR_GEN),
        }[kind]
        parameters = session.create_domain_parameters(key_type, {pkcs11.Attribute.EC_PARAMS: curve}, local=True)
        flags = pkcs11.MechanismFlag.SIGN | pkcs11.MechanismFlag.VERIFY
        stays = {pkcs11.Attribute.PRIVATE: True, pkcs11.Attribute.SENSITIVE: True, pkcs11.Attribute.EXTRACTABLE: False}
        parameters.generate_keypair(
            id=key_id, label=label, store=True, capabilities=flags, mechanism=mechanism, private_template=stays
        )
        return uri.of(label, key_id)


def _find(uri: TokenUri, kind: Kind) -> tuple[Any, Any]:
    """The one private key that a URI names, and the public key beside it."""
    import pkcs11

    session = _session(uri)
    key_type = pkcs11.KeyType.EC_EDWARDS if kind == "ed25519" else pkcs11.KeyType.EC
    named: dict[Any, Any] = {pkcs11.Attribute.KEY_TYPE: key_type}
    named |= {} if uri.label is None else {pkcs11.Attribute.LABEL: uri.label}
    named |= {} if uri.key_id is None else {pkcs11.Attribute.ID: uri.key_id}
    found = list(session.get_objects({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY} | named))
    if len(found) != 1:
        raise TokenUnusable(f"{uri.text()} names {len(found)} private keys of kind {kind}, where it must name one")
    private = found[0]
    if private[pkcs11.Attribute.EXTRACTABLE] or not private[pkcs11.Attribute.SENSITIVE]:
        raise TokenUnusable(f"{uri.text()} is a key that can be read from its token; make one that cannot")
    beside = {pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PUBLIC_KEY, pkcs11.Attribute.KEY_TYPE: key_type}
    public = list(session.get_objects(beside | {pkcs11.Attribute.ID: private[pkcs11.Attribute.ID]}))
    if len(public) != 1:
        raise TokenUnusable(f"{uri.text()} has {len(public)} public keys beside it, where it must have one")
    return private, public[0]


def _session(uri: TokenUri, *, may_write: bool = False) -> "pkcs11.Session":
    place = _session_of(uri)
    if may_write:
        _close(place)
    if place not in _sessions:
        _sessions[place] = _opened(uri, may_write=may_write)
    return _sessions[place]


def _close(place: tuple[object, ...]) -> None:
    session = _sessions.pop(place, None)
    if session is not None:
        session.close()


def _session_of(uri: TokenUri) -> tuple[object, ...]:
    return uri.module, uri.token


def _opened(uri: TokenUri, *, may_write: bool) -> "pkcs11.Session":
    import pkcs11

    module = pkcs11.lib(uri.trusted_module())
    wanted = dict(uri.token)

    def is_it(token: Any) -> bool:
        said = {
            "token": token.label, "serial": _plain(token.serial), "manufacturer": token.manufacturer_id,
            "model": token.model,
        }  # fmt: skip
        return all(_plain(said[name]) == value for name, value in wanted.items())

    tokens = [token for slot in module.get_slots(token_present=True) if is_it(token := slot.get_token())]
    if len(tokens) != 1:
        raise TokenUnusable(f"{uri.text()} names {len(tokens)} tokens that are there now, where it must name one")
    token = tokens[0]
    if token.flags & (pkcs11.TokenFlag.USER_PIN_FINAL_TRY | pkcs11.TokenFlag.USER_PIN_LOCKED):
        raise TokenUnusable(
            f"the token of {uri.text()} had so many wrong PINs that it is locked, or would be by one more; nothing was "
            "tried. Log in to it by its own tool"
        )
    given = passphrase.given(passphrase.PIN)
    if given is None:
        raise TokenUnusable(
            f"the token of {uri.text()} needs its PIN: set {passphrase.PIN.variable} to a file that holds it, or give "
            f"the service the systemd credential {passphrase.PIN.credential} (docs/keys.md)"
        )
    try:
        return token.open(rw=may_write, user_pin=given[0].decode("utf-8", "replace"))
    except pkcs11.UserAlreadyLoggedIn:  # by a session under another URI of this token; a login is the process's
        return token.open(rw=may_write)


def _plain(value: Any) -> str:
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).rstrip("\0 ")


def _require_pair(uri: TokenUri, verify: Callable[[bytes], None]) -> None:
    try:
        verify(secrets.token_bytes(32))
    except InvalidSignature as err:
        raise TokenUnusable(f"{uri.text()} signs with another key than the public key beside it") from err


def _stays() -> NoReturn:
    raise TokenUnusable("this key is in a token, and does not leave it")


def _attribute(name: str) -> Any:
    import pkcs11

    return pkcs11.Attribute[name]


def _ended() -> tuple[type[Exception], ...]:
    """Errors of a session that is over: another process has closed it, or the token was taken out and put back."""
    from pkcs11 import exceptions

    return (
        exceptions.SessionHandleInvalid, exceptions.SessionClosed, exceptions.ObjectHandleInvalid,
        exceptions.KeyHandleInvalid, exceptions.UserNotLoggedIn, exceptions.DeviceRemoved,
    )  # fmt: skip


@contextmanager
def _told(uri: TokenUri) -> Iterator[None]:
    """Lets one thread at a time to the tokens, and turns errors of the library into ours."""
    try:
        from pkcs11.exceptions import PinIncorrect, PKCS11Error
    except ImportError as err:
        raise TokenUnusable(
            "a key of this home is in a PKCS#11 token, for which confide needs the package python-pkcs11: install "
            "confide[pkcs11]"
        ) from err
    with _using:
        try:
            yield
        except PinIncorrect as err:
            raise TokenUnusable(f"the token of {uri.text()} does not take the PIN that is given") from err
        except (PKCS11Error, RuntimeError) as err:
            _sessions.pop(_session_of(uri), None)
            said = f"{type(err).__name__} {err}".strip()
            raise TokenUnusable(f"the token of {uri.text()} cannot be used: {said}") from err

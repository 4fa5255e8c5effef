"""One byte string for one meaning: canonical JSON, frozen records as JSON, and Ed25519 signatures over both.

Canonical JSON: keys sorted, no spaces, ASCII with \\u escapes, whole numbers only. Real numbers are written as text
(hex floats as in C99, `0x1.3333333333333p+0`), so no two languages can disagree about how a number is printed.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

T = TypeVar("T")
MAX_TEXT = 256  # characters of a name in a record
MAX_LIST = 10_000
HEX_FLOAT = re.compile(r"-?0x[01]\.[0-9a-f]{1,13}p[+-]\d{1,4}")  # finite ones; what `float.hex` writes

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
_HINTS: dict[type, dict[str, Any]] = {}  # of records' classes: finding them takes longer than all the rest
_PLAIN = frozenset({str, int, bool, type(None)})


def encode(value: object) -> bytes:
    """Canonical JSON of `value`: dicts, lists, text, whole numbers, booleans and None, nothing else.

    Raises:
        ValueError: a float or another type is inside.
    """
    _reject_floats(value)
    return _ENCODER.encode(value).encode("ascii")


def decode(text: str | bytes) -> Any:
    """Parses JSON strictly: no repeated keys, no NaN, no text that is not UTF-8.

    Raises:
        ValueError: the text is not such JSON, or nests too deep.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError as err:
        raise ValueError("nested too deep") from err


def to_record(record: Any) -> dict[str, Any]:
    """A frozen dataclass as a JSON object: floats in hex, tuples as lists, dataclasses nested."""
    hints = _hints(type(record))
    return {name: _to_json(hint, getattr(record, name)) for name, hint in hints.items()}


def from_record(cls: type[T], value: object, **known: object) -> T:
    """Rebuilds the dataclass `cls` from what `to_record` made of it; its `__post_init__` has the last word.

    Args:
        known: values of fields, in place of what the record has there.

    Raises:
        ValueError: a field is missing, unknown, too long or of another type.
    """
    hints = _hints(cls)
    if not isinstance(value, Mapping) or set(value) != set(hints):
        raise ValueError(f"{cls.__name__} needs exactly the fields {', '.join(sorted(hints))}")
    read = {name: _from_json(hint, value[name], name) for name, hint in hints.items() if name not in known}
    return cls(**read, **known)


def sign(signer: Ed25519PrivateKey, domain: str, message: bytes) -> str:
    """Ed25519 signature in hex over `domain`, a newline and `message`; the domain keeps uses of one key apart."""
    return signer.sign(domain.encode() + b"\n" + message).hex()


def is_signed(public_key: str, domain: str, message: bytes, signature: str) -> bool:
    """True if `signature` (hex) is the one that `public_key` (hex, 32 bytes) gave for `domain` and `message`."""
    try:
        _public_key(public_key).verify(bytes.fromhex(signature), domain.encode() + b"\n" + message)
    except (InvalidSignature, ValueError):
        return False
    return True


def public_hex(signer: Ed25519PrivateKey) -> str:
    """The public key of `signer`, 64 hex digits."""
    return signer.public_key().public_bytes_raw().hex()


@lru_cache(maxsize=64)
def _public_key(public_key: str) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))


def _hints(cls: type) -> dict[str, Any]:
    if cls not in _HINTS:
        _HINTS[cls] = get_type_hints(cls)
    return _HINTS[cls]


def _reject_floats(value: object) -> None:
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise ValueError(f"names must be text, got {type(name).__name__}")
            if type(item) not in _PLAIN:  # a ledger of 100,000 entries asks this some million times
                _reject_floats(item)
    elif isinstance(value, list | tuple):
        for item in value:
            if type(item) not in _PLAIN:
                _reject_floats(item)
    elif not (value is None or isinstance(value, str | bool | int)):
        raise ValueError(f"{type(value).__name__} has no canonical form")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return names


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _to_json(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return to_record(value)
    if hint is float:
        return float(value).hex()  # a caller may have written 1 for 1.0
    return list(value) if get_origin(hint) is tuple else value


def _from_json(hint: Any, value: object, name: str) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_record(hint, value)
    if get_origin(hint) is tuple and isinstance(value, list) and len(value) <= MAX_LIST:
        return tuple(_from_json(get_args(hint)[0], item, name) for item in value)
    if hint is float and isinstance(value, str) and HEX_FLOAT.fullmatch(value):
        try:
            number = float.fromhex(value)
        except OverflowError as err:
            raise ValueError(f"{name} is too large") from err
        if number.hex() == value:  # one spelling for one number
            return number
    if hint is int and type(value) is int and abs(value) < 2**63:
        return value
    if (hint is str or get_origin(hint) is Literal) and isinstance(value, str) and 0 < len(value) <= MAX_TEXT:
        return value  # a Literal is text here; the record itself checks which
    raise ValueError(f"{name} has the wrong type or size")

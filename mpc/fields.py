"""Checked fields, and one byte string for a tuple of them.

Everything that is hashed, signed or used as a key-derivation context in this folder goes through `canonical`, so that
no two different tuples under one label give the same bytes.
"""

import re

from .errors import InvalidField

NUM_AGGREGATORS = 3
MAX_DIM = 2**27  # a 64-bit share is then 1 GiB
MAX_COHORT = 4096
MAX_ROWS = 1024  # of a sketch
MAX_TAGS = 16  # of a total
MAX_SHARDS = 64  # of a party's round
MAX_TEXT = 128  # bytes of UTF-8 in a name
MAX_ROUND = 2**31 - 1
Bytes = bytes | memoryview  # what came in, or views into it: a long share is not copied for being looked at
_HEX_64 = re.compile(r"[0-9a-f]{64}")


def text(name: str, value: object) -> str:
    """`value`, if it is 1 to 128 bytes of printable UTF-8 (so no newline either).

    Raises:
        InvalidField: it is not.
    """
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value.encode()) <= MAX_TEXT:
        raise InvalidField(f"{name} must be 1 to {MAX_TEXT} bytes of printable text, got {_shown(value)}")
    return value


def whole(name: str, value: object, low: int, high: int) -> int:
    """`value`, if it is an int in [low, high]; a bool is none.

    Raises:
        InvalidField: it is not.
    """
    if type(value) is not int or not low <= value <= high:
        raise InvalidField(f"{name} must be a whole number in [{low}, {high}], got {_shown(value)}")
    return value


def octets(name: str, value: object, size: int) -> bytes:
    """`value`, if it is exactly `size` bytes; it may be secret, so no error shows it.

    Raises:
        InvalidField: it is not.
    """
    if not isinstance(value, bytes) or len(value) != size:
        raise InvalidField(f"{name} must be {size} bytes")
    return value


def hex_64(name: str, value: object) -> str:
    """`value`, if it is 64 lower-case hex digits: a SHA-256 or a public key in its only spelling.

    Raises:
        InvalidField: it is not.
    """
    if not isinstance(value, str) or not _HEX_64.fullmatch(value):
        raise InvalidField(f"{name} must be 64 lower-case hex digits, got {_shown(value)}")
    return value


def canonical(label: str, *values: str | int | bytes) -> bytes:
    """Injective bytes for `values` under `label`, which names the use and its version.

    A text or byte string is a 4-byte big-endian length and its (UTF-8) bytes; a whole number is 8 bytes big-endian.
    The label comes first, as a text. Types and their order are fixed by the label, so nothing marks them.
    """
    return b"".join(_field(value) for value in (label, *values))


def _field(value: str | int | bytes) -> bytes:
    if isinstance(value, int):
        return value.to_bytes(8, "big")
    raw = value.encode() if isinstance(value, str) else value
    return len(raw).to_bytes(4, "big") + raw


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:80]}..."

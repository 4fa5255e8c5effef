"""Mutations of an input: bytes flipped, cut, doubled and spliced, and nodes of a JSON or msgpack tree changed."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

_ODD_BYTES = (b"\x00", b"\xff" * 4, b"\x80", b"\xed\xa0\x80", b"[" * 3000, b"\n", b"'\"\\", b"{}", b"=", b"..", b"/")
_ODD_WORDS = (
    b"-1", b"0", b"1e400", b"-0.0", b"nan", b"inf", b"NaN", b"Infinity", b"true", b"null", b"2147483648",
    b"18446744073709551616", b"9" * 400, b"9" * 5000, b"0x1p+9999", b"1_000", b"\xef\xbc\x91",
)  # fmt: skip
_ODD_NODES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 1e308, -0.0, float("nan"), float("inf"), 2**31, 2**53, 2**63 - 1, -(2**63),
    2**64 - 1, "", "a" * 70_000, "\x00", "\n", "../up", "a/b", "ünï", "\u202e", "0" * 64, "-", [], {}, [[]], {"": {}},
    [None] * 5000,
)  # fmt: skip
_UNWRITABLE = ("\ud800", 10**400)  # in JSON alone


def mutated(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Makes an input that differs from `data`, most often slightly; `others` give pieces."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(_WAYS)(data, others, rng)
    return data


def _flip(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    if not data:
        return b"\x00"
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def _set(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    if not data:
        return b"\xff"
    place = rng.randrange(len(data))
    return data[:place] + bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))]) + data[place + 1 :]


def _cut(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    begin, end = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
    return rng.choice((data[:begin], data[end:], data[:begin] + data[end:]))


def _double(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    begin, end = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
    return data[:end] + data[begin:end] * rng.choice((1, 2, 50)) + data[end:] if end - begin < 4096 else data + data


def _insert(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    place = rng.randint(0, len(data))
    return data[:place] + rng.choice(_ODD_BYTES) + data[place:]


def _splice(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    other = rng.choice(others)
    return data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]


def _word(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Puts an odd word in the place of a run of letters and digits."""
    if not data:
        return rng.choice(_ODD_WORDS)
    end = begin = rng.randrange(len(data))
    while begin and chr(data[begin - 1]).isalnum():
        begin -= 1
    while end < len(data) and chr(data[end]).isalnum():
        end += 1
    return data[:begin] + rng.choice(_ODD_WORDS) + data[end:]


def _tree(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Changes a node of what the bytes say in JSON or msgpack; of bytes that are neither, a byte."""
    for read, write, odd in (
        (json.loads, _json, (*_ODD_NODES, *_UNWRITABLE)),
        (_unpacked, _packed, (*_ODD_NODES, b"", b"\xff" * 33)),
    ):
        try:
            tree = read(data)
        except (ValueError, RecursionError):
            continue
        if isinstance(tree, dict | list):
            return write(_changed(tree, odd, rng))
    return _flip(data, others, rng)


def _changed(tree: Any, odd: Sequence[Any], rng: random.Random) -> Any:
    places = list(_places(tree))
    if not places:
        return rng.choice(odd)
    holder, key = rng.choice(places)
    kind = rng.randrange(7)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[str(key) + "x"] = holder.pop(key)
    elif kind == 2:
        other, place = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[place])) if _is_plain(other, place) else None
    elif kind == 3:
        holder[key] = [holder[key]]
    elif kind == 4 and isinstance(holder[key], str) and holder[key]:
        text = holder[key]
        place = rng.randrange(len(text))
        holder[key] = text[:place] + rng.choice(("", "0", "g", "F", " ", "\u0661", text)) + text[place + 1 :]
    elif kind == 5 and type(holder[key]) is int:
        holder[key] += rng.choice((-1, 1, 2**32, -(2**32)))
    else:
        holder[key] = rng.choice(odd)
    return tree


def _is_plain(holder: Any, key: Any) -> bool:
    try:
        json.dumps(holder[key])
    except (TypeError, ValueError, KeyError, IndexError, RecursionError):
        return False
    return True


def _places(tree: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    left = [tree]
    while left:
        node = left.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            found.append((node, key))
            if isinstance(node[key], dict | list):
                left.append(node[key])
    return found


def _json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def _unpacked(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False)
    except (TypeError, msgpack.UnpackException) as err:
        raise ValueError("no msgpack") from err


def _packed(tree: Any) -> bytes:
    try:
        return bytes(msgpack.packb(tree))
    except (OverflowError, ValueError):
        return b"\xc1"


_WAYS: tuple[Callable[[bytes, Sequence[bytes], random.Random], bytes], ...] = (
    _flip, _set, _cut, _double, _insert, _splice, _word, _word, _tree, _tree, _tree, _tree,
)  # fmt: skip

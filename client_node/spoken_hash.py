"""Spells a study's hash, and a node's identity, as people read them to each other by telephone.

The spelling of a hash is that of BIP-39 with its English list (words.txt, MIT licence in words-license.txt):
the 256 bits of the hash and the first 8 bits of the SHA-256 of the hash make 24 words of 11 bits each. All 256 bits are
there, because whoever writes studies may search for two with equal words: of half as many bits, 2**64 tries find some.
The last word also checks the others: of 256 phrases with a wrong word, 255 are noticed.

No word is a secret, although wallets spell their keys in the same way.
"""

import base64
import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib import resources

COUNT = 24
_BITS = 11  # of one word; the list has 2048
_CHECK_BITS = 8
_KEY_BYTES, _GROUP = 20, 4  # 160 bits: nobody finds a second key for a given fingerprint


def words(study_hash: str) -> tuple[str, ...]:
    """Spells a hash of 64 hexadecimal digits in 24 words."""
    data = bytes.fromhex(study_hash)
    number = int.from_bytes(data + hashlib.sha256(data).digest()[:1])
    listed = _list()
    return tuple(listed[number >> (_BITS * place) & (len(listed) - 1)] for place in reversed(range(COUNT)))


@lru_cache(maxsize=4096)  # of the parties of a few studies, of which each message asks anew
def fingerprint(identity: str) -> str:
    """Computes the fingerprint of an identity (hex Ed25519 key) for people: 160 bits of its SHA-256 in base32."""
    digest = hashlib.sha256(b"confide/identity/1" + bytes.fromhex(identity)).digest()
    letters = base64.b32encode(digest[:_KEY_BYTES]).decode()
    return "-".join(letters[i : i + _GROUP] for i in range(0, len(letters), _GROUP))


def parse(text: str) -> str:
    """Reads a hash that a person has typed: 64 hexadecimal digits, or its 24 words with blanks, commas or hyphens.

    Raises:
        ValueError: the text is neither; the message says which word is wrong, or what is missing.
    """
    typed = [word for word in re.split(r"[\s,.\-]+", text.lower()) if word]
    if len(typed) == 1 and re.fullmatch(r"[0-9a-f]{64}", typed[0]):
        return typed[0]
    if len(typed) < 2:
        raise ValueError("it is not the whole hash")
    return _of_words(typed)


def _of_words(typed: Sequence[str]) -> str:
    places = _places()
    for count, word in enumerate(typed, 1):
        if word not in places:
            near = difflib.get_close_matches(word, places, n=1)
            meant = f"; {near[0]}?" if near else ""
            raise ValueError(f"word {count}, {word!r}, is none of the words that spell a hash{meant}")
    if len(typed) != COUNT:
        raise ValueError(f"{len(typed)} words spell no hash; there are {COUNT}")
    number = 0
    for word in typed:
        number = number << _BITS | places[word]
    data = (number >> _CHECK_BITS).to_bytes(32)
    if hashlib.sha256(data).digest()[0] != number & 0xFF:
        raise ValueError("the words spell no hash: one of them, or their order, is not what was read out")
    return data.hex()


@cache
def _list() -> tuple[str, ...]:
    return tuple((resources.files(__package__) / "words.txt").read_text(encoding="ascii").split())


@cache
def _places() -> Mapping[str, int]:
    return {word: place for place, word in enumerate(_list())}

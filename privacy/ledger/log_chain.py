"""A hash chain over what somebody did, of which the links alone can be shown: they tell nothing of the contents.

A link covers its number, the digest of an entry's contents and the link before. So whoever keeps one link can be shown
that a later one follows from it, by digests alone, and who holds the contents can show any of them to fit. The digest
covers a salt, without which contents from a small set could be guessed. For a ledger, whose entries are read by all
who check it, see `chain`.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from . import canonical
from .chain import Head

CONTENTS_DOMAIN = "confide log contents 1"
LINK_DOMAIN = "confide log link 1"


def contents_digest(contents: Mapping[str, Any]) -> str:
    """Computes the digest of an entry's contents, its salt among them, in hex. Raises ValueError for floats."""
    return _digest(CONTENTS_DOMAIN, contents)


def link(head: Head, digest: str) -> Head:
    """Computes the link that follows `head` for contents of that digest."""
    following = {"seq": head.seq + 1, "contents": digest, "previous": head.hash}
    return Head(head.seq + 1, _digest(LINK_DOMAIN, following))


def follow(head: Head, digests: Iterable[str]) -> Head:
    """Computes the link to which contents of these digests, in order, lead from `head`."""
    for digest in digests:
        head = link(head, digest)
    return head


def _digest(domain: str, value: Mapping[str, Any]) -> str:
    return hashlib.sha256(domain.encode() + b"\n" + canonical.encode(value)).hexdigest()

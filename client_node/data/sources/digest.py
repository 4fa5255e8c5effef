"""A digest of rows in any order, by which a source without a stamp is known again."""

from collections.abc import Iterable
from hashlib import blake2b

_BITS = 256


class RowsDigest:
    """Adds keyed hashes of rows: the same rows in another order have the same digest, other rows have another.

    Equal rows count as often as they are there. The sum is modulo 2**256 (Bellare and Micciancio 1997, AdHash), and
    the key is the site's own, so that the digest tells nothing of the rows.
    """

    def __init__(self, key: bytes) -> None:
        self._key, self._sum, self._rows = key, 0, 0

    def add(self, rows: Iterable[object]) -> None:
        """Adds rows, each hashed as Python writes it: the type of a cell counts, as well as its value."""
        for row in rows:
            hashed = blake2b(repr(row).encode("utf-8", "backslashreplace"), key=self._key, digest_size=_BITS // 8)
            self._sum += int.from_bytes(hashed.digest(), "big")
            self._rows += 1
        self._sum %= 1 << _BITS

    def hex(self) -> str:
        """Returns the digest of all rows so far."""
        return f"{self._rows}-{self._sum:064x}"

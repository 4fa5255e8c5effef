"""Places in a site's chain of records: by them an aggregator notices that a site went back to an older copy.

What the records are is no business of this folder: each is 32 bytes that name it. A position says how many of them
there are, and its digest covers all of them in order. Two positions are of one chain if the later one's records go on
where those of the earlier one end, and whoever holds the names of the records in between can show that.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from ..fields import Bytes, canonical, octets, whole

RECORD_BYTES = 32
MAX_COUNT = 2**48
START = bytes(32)  # the digest before the first record
POSITION_BYTES = 48  # of `Position.to_bytes`


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a site's chain of records."""

    generation: int  # 0; a later one where the site owned up to a lost chain and began again, in [0, 2**48]
    count: int  # records up to here
    digest: bytes  # 32 bytes, over all of them

    def __post_init__(self) -> None:
        whole("generation", self.generation, 0, MAX_COUNT)
        whole("count", self.count, 0, MAX_COUNT)
        octets("digest", self.digest, RECORD_BYTES)

    def to_bytes(self) -> bytes:
        """Generation and count, 8 bytes each and big-endian, then the digest."""
        return self.generation.to_bytes(8, "big") + self.count.to_bytes(8, "big") + self.digest

    @classmethod
    def from_bytes(cls, data: Bytes) -> "Position":
        """Reads what `to_bytes` wrote.

        Raises:
            InvalidField: another length, or a number out of range.
        """
        view = bytes(data)
        octets("position", view, POSITION_BYTES)
        return cls(int.from_bytes(view[:8], "big"), int.from_bytes(view[8:16], "big"), view[16:])


def extend(digest: bytes, record: Bytes) -> bytes:
    """The digest one record further."""
    return sha256(canonical("confide/mpc/position/1", digest, bytes(record))).digest()


def digests(start: bytes, records: Iterable[Bytes]) -> list[bytes]:
    """The digest after each of `records`, in order, from the digest `start` on."""
    found = []
    for record in records:
        start = extend(start, record)
        found.append(start)
    return found

"""The durable record of how far each site's chain of records has been seen by one aggregator.

A site whose records were put back from an older copy would answer rounds that those records do not count. Such a site
stands on another chain than the one that was seen, from the first record it lost on. So an aggregator adds an update
only if its position is of one chain with every position that it has accepted of that site before, whatever the order in
which they come: an update of one run may be late and another run's ahead of it.

That two positions are of one chain follows from the names of the records between them, which anybody may bring: they
are checked against both digests, so a false list proves nothing. What is accepted stays, across runs and studies.

Of a site that was never seen the first position is believed. A higher generation begins a chain of its own, for a site
that owned up to a loss; from then on positions of lower ones are refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InvalidField
from ..fields import hex_64, whole
from ..sharing.position import MAX_COUNT, RECORD_BYTES, START, Position, digests
from .line_file import LineFile

MAX_RECORDS = 2**20  # in one history


@dataclass(frozen=True, slots=True)
class History:
    """The names of a site's records, from one that follows a known position on."""

    start: int  # records before the first one here
    records: bytes = field(repr=False)  # 32 bytes each

    def __post_init__(self) -> None:
        whole("start", self.start, 0, MAX_COUNT)
        if len(self.records) % RECORD_BYTES or len(self.records) > MAX_RECORDS * RECORD_BYTES:
            raise InvalidField(f"a history of {len(self.records)} bytes is not one of {RECORD_BYTES} for each record")

    @property
    def end(self) -> int:
        """Records up to the last one here."""
        return self.start + len(self.records) // RECORD_BYTES


@dataclass(slots=True)
class _Chain:
    """What was accepted of one site: the digest at each accepted count, of one generation."""

    generation: int
    accepted: dict[int, bytes] = field(default_factory=dict)

    def holds(self, position: Position, history: History) -> bool:
        """True if `history` shows that `position` is of one chain with all that were accepted."""
        if position.count in self.accepted:
            return self.accepted[position.count] == position.digest
        start = START if history.start == 0 else self.accepted.get(history.start)
        if start is None or position.count <= history.start:
            return False
        records = memoryview(history.records)
        names = (records[at : at + RECORD_BYTES] for at in range(0, len(records), RECORD_BYTES))
        found = dict(enumerate(digests(start, names), start=history.start + 1))
        wanted = {position.count: position.digest} | self.accepted
        return all(found.get(count) == digest for count, digest in wanted.items() if count > history.start)


class Positions:
    """The accepted positions of all sites, by their identities; one process has them open at a time.

    Raises:
        JournalBroken: see `LineFile`.
    """

    def __init__(self, path: Path) -> None:
        self._chains: dict[str, _Chain] = {}
        self._file = LineFile(path, self._take)

    def allow(self, identity: str, position: Position | None, history: History) -> bool:
        """True if an update that a site has sealed at `position` may be added.

        Args:
            identity: the site's public key, in hex.
            position: as the site has signed it; None in an envelope that states none, which only an unknown site may.
            history: that of the site, from an accepted position or from the beginning on, up to the newest record.
        """
        chain = self._chains.get(identity)
        if chain is None:
            return True
        if position is None or position.generation < chain.generation:
            return False
        return position.generation > chain.generation or chain.holds(position, history)

    def newest(self, identities: Sequence[str]) -> str:
        """Returns that one of a site's `identities` under which most was accepted; the first one if nothing was."""
        known = [identity for identity in identities if identity in self._chains]
        return max(known, key=lambda each: (self._chains[each].generation, self.seen(each)), default=identities[0])

    def seen(self, identity: str) -> int:
        """The most records that a site had at an accepted position of its newest generation; 0 of an unknown site."""
        chain = self._chains.get(identity)
        return max(chain.accepted) if chain else 0

    def accept(self, positions: Mapping[str, Position]) -> None:
        """Records positions that were allowed; on return they are on disk. Call it before anything is released.

        Raises:
            JournalBroken: the disk did not take them; these positions must then be opened anew.
        """
        fresh = {
            identity: [position.generation, position.count, position.digest.hex()]
            for identity, position in positions.items()
            if not self._is_known(identity, position)
        }
        if fresh:
            record = {"positions": fresh}
            self._file.append(record)
            self._take(record)

    def close(self) -> None:
        """Lets another process open them."""
        self._file.close()

    def _is_known(self, identity: str, position: Position) -> bool:
        chain = self._chains.get(identity)
        return (
            chain is not None
            and chain.generation == position.generation
            and chain.accepted.get(position.count) == position.digest
        )

    def _take(self, record: Any) -> bool:
        """Takes a line in; whether it contradicts none before it."""
        if sorted(record) != ["positions"]:
            raise ValueError("not positions")
        return all(self._add(hex_64("identity", identity), *stated) for identity, stated in record["positions"].items())

    def _add(self, identity: str, generation: int, count: int, digest: str) -> bool:
        position = Position(generation, count, bytes.fromhex(digest))
        chain = self._chains.get(identity)
        if chain is None or chain.generation < position.generation:
            chain = self._chains[identity] = _Chain(position.generation)
        is_consistent = chain.generation == position.generation
        return is_consistent and chain.accepted.setdefault(position.count, position.digest) == position.digest

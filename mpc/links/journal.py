"""The durable record of what a party must never do twice differently.

Two totals of one round over two sets differ by single updates, so a round that was, or may have been, released for a
set is bound to it for ever. Two signed totals of one set, one of them false, would lead sites to different states, so
the first one that all three had is bound too. Two sketches of one vector under the same masks show differences of its
entries, so a vector is tied to one seed, and to one opened sketch; and each try of a norm check can be bent into one
bit of another kind, so tries are counted. One JSON line for each, on disk before anything follows from it. Whoever
deletes the file takes these protections away.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ChecksExhausted, CommitmentBroken, SetConflict, TotalConflict
from ..fields import MAX_ROUND, text, whole
from .line_file import LineFile

MAX_TRIES = 8  # of one vector's norm check: parties that die in the middle of it are rare, and each try may leak a bit
_HASH = 32


class RoundId(NamedTuple):
    """The round whose release a binding is about."""

    study: str
    run: str
    round: int


class Binding(NamedTuple):
    """The set that a round is bound to."""

    set_digest: bytes  # 32 bytes, over names and sealed bytes
    sites: tuple[str, ...]


class Journal:
    """Bindings and norm checks of one party, held under an exclusive lock from opening to `close`.

    Raises:
        JournalBroken: in use by another process, not readable, or damaged anywhere but in a last line that was never
            finished (its round was not released: the line comes first).
    """

    def __init__(self, path: Path) -> None:
        self._bindings: dict[RoundId, Binding] = {}
        self._totals: dict[RoundId, bytes] = {}
        self._seeds: dict[bytes, bytes] = {}
        self._sketches: dict[bytes, bytes] = {}
        self._tries: dict[bytes, int] = {}
        self._file = LineFile(path, self._take)

    def bound(self, round_id: RoundId) -> Binding | None:
        """The set that the round is bound to; None if it is not bound."""
        return self._bindings.get(round_id)

    def bind(self, round_id: RoundId, binding: Binding) -> None:
        """Binds the round for ever; on return the binding is on disk. The same set again is no change.

        Raises:
            SetConflict: the round is bound to another set.
            JournalBroken: the disk did not take it; this journal must then be opened anew.
        """
        known = self._bindings.get(round_id)
        if known is not None:
            if known.set_digest != binding.set_digest:
                raise SetConflict(f"round {round_id.round} is bound to another set of sites", known.sites)
            return
        self._file.append({**round_id._asdict(), "set": binding.set_digest.hex(), "sites": binding.sites})
        self._bindings[round_id] = binding

    def bind_total(self, round_id: RoundId, total_digest: bytes) -> None:
        """Binds the round to one total for ever; on return that is on disk. The same total again is no change.

        Args:
            total_digest: SHA-256 of the total's ring elements.

        Raises:
            TotalConflict: the round is bound to another total.
            JournalBroken: see `bind`.
        """
        known = self._totals.get(round_id)
        if known is None:
            self._file.append({**round_id._asdict(), "total": total_digest.hex()})
            self._totals[round_id] = total_digest
        elif known != total_digest:
            raise TotalConflict(f"round {round_id.round} is bound to another total of its set")

    def tie_to_seeds(self, seeds: Mapping[bytes, bytes]) -> None:
        """Ties vectors to the seeds of their sketches for ever; on return that is on disk.

        Args:
            seeds: by vector, 32 bytes that name what was sealed, the hash of its seed.

        Raises:
            CommitmentBroken: a vector is tied to another seed.
            JournalBroken: see `bind`.
        """
        if any(self._seeds.get(vector, seed) != seed for vector, seed in seeds.items()):
            raise CommitmentBroken("a party's coins for a vector are not those of an earlier attempt")
        fresh = {vector: seed for vector, seed in seeds.items() if vector not in self._seeds}
        if fresh:
            self._file.append({"seeds": _in_hex(fresh)})
            self._seeds |= fresh

    def begin_checks(self, sketches: Mapping[bytes, bytes]) -> int:
        """Ties vectors to their opened sketches for ever, and counts one more try of each; the most that any has had.

        Args:
            sketches: by vector, the hash of its masked sketch as it was opened.

        Raises:
            CommitmentBroken: a vector was opened to another sketch.
            ChecksExhausted: a vector has had `MAX_TRIES`.
            JournalBroken: see `bind`.
        """
        if any(self._sketches.get(vector, sketch) != sketch for vector, sketch in sketches.items()):
            raise CommitmentBroken("a party's share of a sketch is not that of an earlier attempt")
        if any(self._tries.get(vector, 0) >= MAX_TRIES for vector in sketches):
            raise ChecksExhausted(f"a norm check was broken off {MAX_TRIES} times: it is not tried again")
        self._file.append({"sketches": _in_hex(sketches)})
        self._count(sketches)
        return max((self._tries[vector] for vector in sketches), default=0)

    def close(self) -> None:
        """Lets another process open it."""
        self._file.close()

    def _count(self, sketches: Mapping[bytes, bytes]) -> None:
        self._sketches |= sketches
        for vector in sketches:
            self._tries[vector] = self._tries.get(vector, 0) + 1

    def _take(self, record: Any) -> bool:
        """Takes a line in; whether it contradicts none before it."""
        match sorted(record):
            case ["seeds"]:
                seeds = _hashes(record["seeds"])
                return all(self._seeds.setdefault(vector, seed) == seed for vector, seed in seeds.items())
            case ["sketches"]:
                sketches = _hashes(record["sketches"])
                is_consistent = all(self._sketches.get(vector, sketch) == sketch for vector, sketch in sketches.items())
                self._count(sketches)
                return is_consistent
            case ["round", "run", "study", "total"]:
                total_digest = _digest(record["total"])
                return self._totals.setdefault(_round_id(record), total_digest) == total_digest
            case _:
                round_id, binding = _parse(record)
                return self._bindings.setdefault(round_id, binding) == binding


def _in_hex(hashes: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.hex(): value.hex() for name, value in hashes.items()}


def _hashes(record: Any) -> dict[bytes, bytes]:
    return {_digest(name): _digest(value) for name, value in record.items()}


def _parse(record: Any) -> tuple[RoundId, Binding]:
    if not isinstance(record, dict) or record.keys() != {"study", "run", "round", "set", "sites"}:
        raise ValueError("not a binding")
    if not isinstance(record["sites"], list):
        raise ValueError("not a set")
    return _round_id(record), Binding(_digest(record["set"]), tuple(text("site", name) for name in record["sites"]))


def _round_id(record: Any) -> RoundId:
    return RoundId(
        text("study", record["study"]), text("run", record["run"]), whole("round", record["round"], 0, MAX_ROUND)
    )


def _digest(value: str) -> bytes:
    digest = bytes.fromhex(value)
    if len(digest) != _HASH:
        raise ValueError("not a hash")
    return digest

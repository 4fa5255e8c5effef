"""Decides which strangers may stay: connections on which nobody has shown an enrolled key yet.

A TLS handshake costs a millisecond of processor time and a connection 300 KiB of memory. So strangers have a fixed
number of places, and a fixed number of them enters in a second. Whoever comes waits in the line of his address, and
lines take turns: no address keeps others out. If all places are taken, the stranger who has been idle for longest gives
up his: one of the newcomer's address if that holds all it may, else one of the address that holds most.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

_TURNOVER_S = 4.0  # in which all places may be taken anew; an honest stranger needs two round trips
_LINES = 4  # full lines, over all addresses


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits for connections of strangers, and for how many connections one enrolled key may have."""

    per_address: int = 32  # strangers of one IPv4 address or IPv6 /64
    per_key: int = 32  # connections of one enrolled key; a node has up to ten
    head_s: float = 10.0  # seconds until the first head is whole, TLS handshake included
    head_bytes: int = 16 << 10
    head_lines: int = 64  # header fields

    @property
    def in_all(self) -> int:
        """Places for strangers of all addresses together."""
        return 2 * self.per_address


class Guest(Protocol):
    """A connection of a stranger."""

    address: str
    is_busy: bool  # its request is being answered

    def turn_out(self) -> None:
        """Closes the connection at once."""


G = TypeVar("G", bound=Guest)


def longest_idle(guests: Iterable[G]) -> G:
    """Finds the oldest idle connection, or the oldest of all if none is idle; `guests` are in order of age."""
    by_age = list(guests)
    return next((guest for guest in by_age if not guest.is_busy), by_age[0])


class Crowd(Generic[G]):
    """Strangers who compete for the same places."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._lines: dict[str, dict[G, None]] = {}  # by address; the first line is the next to be served
        self._inside: dict[str, dict[G, None]] = {}  # by address, in order of age
        self._entries, self._counted_at = float(limits.in_all), clock()  # entries that are free now

    def arrive(self, guest: G) -> G | None:
        """Puts a newcomer in line; returns whoever must leave because lines are full: he himself, or the last of the
        longest line.
        """
        if len(self._lines.get(guest.address, ())) >= self._limits.per_address:
            return guest
        self._lines.setdefault(guest.address, {})[guest] = None
        if sum(map(len, self._lines.values())) <= _LINES * self._limits.per_address:
            return None
        last = next(reversed(_largest(self._lines)))
        self.leave(last)
        return last

    def enter(self) -> tuple[G, G | None] | None:
        """Gives a place to the next in line, if one may enter now; returns him and whoever gives up a place for him."""
        self._count_entries()
        if not self._lines or self._entries < 1:
            return None
        self._entries -= 1
        address = next(iter(self._lines))
        line = self._lines.pop(address)
        guest = next(iter(line))
        del line[guest]
        if line:
            self._lines[address] = line  # behind all others
        inside, leaves = self._inside.get(address, {}), None
        if len(inside) >= self._limits.per_address:
            leaves = longest_idle(inside)
        elif sum(map(len, self._inside.values())) >= self._limits.in_all:
            leaves = longest_idle(_largest(self._inside))
        if leaves is not None:
            self.leave(leaves)
        self._inside.setdefault(address, {})[guest] = None
        return guest, leaves

    def leave(self, guest: G, *, is_known: bool = False) -> None:
        """Frees the place of a guest, in line or inside; gives his entry back if he turned out to be known."""
        for groups in (self._lines, self._inside):
            group = groups.get(guest.address, {})
            if guest in group:
                del group[guest]
                if not group:
                    del groups[guest.address]
        if is_known:
            self._entries += 1

    def wait_s(self) -> float | None:
        """Seconds until the next in line may enter; None if nobody is in line."""
        self._count_entries()
        return max(0.0, (1 - self._entries) * _TURNOVER_S / self._limits.in_all) if self._lines else None

    @property
    def is_pressed(self) -> bool:
        """True if more than a quarter of the entries went to strangers who have not turned out to be known."""
        self._count_entries()
        return self._entries < 0.75 * self._limits.in_all

    def everyone(self) -> list[G]:
        """All guests, in line and inside."""
        groups = [*self._lines.values(), *self._inside.values()]
        return [guest for group in groups for guest in group]

    def _count_entries(self) -> None:
        now = self._clock()
        gained = (now - self._counted_at) * self._limits.in_all / _TURNOVER_S
        self._entries, self._counted_at = min(float(self._limits.in_all), self._entries + gained), now


def _largest(groups: dict[str, dict[G, None]]) -> dict[G, None]:
    return groups[max(groups, key=lambda address: len(groups[address]))]

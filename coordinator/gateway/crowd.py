"""Decides which strangers may stay: connections on which nobody has shown an enrolled key yet.

A TLS handshake costs a millisecond of processor time and a connection 300 KiB of memory. So strangers have so many
places, and so many of them enter in a second: a number that is fixed but for addresses at which enrolled keys are at
home, where each of these makes room for one more. Whoever comes waits in the line of his address.
Networks take turns, and so do the lines of one network: neither one address nor all those of an IPv6 /48 keep others
out. If all places are taken, the stranger who has been idle for longest gives up his: one of the newcomer's address if
that holds all it may, else one of the network that holds most.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

_TURNOVER_S = 4.0  # in which all places may be taken anew; an honest stranger needs two round trips
_LINES = 4  # full lines, over all addresses
_HOME_S = 3600.0  # an address is a known one for so long after it showed an enrolled key
_HOMES = 4096  # pairs of an address and a key
_HOMES_OF_A_KEY = 4  # the latest; a node may have several ways out
_GAP_S, _LEAST_GAP_S = 0.02, 0.01  # between two who enter, so that requests of nodes come in between


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
    network: str  # to which the address belongs; it may hold very many
    is_busy: bool  # its request is being answered

    def turn_out(self) -> None:
        """Closes the connection at once."""


class Homes:
    """Addresses that have shown enrolled keys within the hour, and how many keys each.

    A node alone at its address needs few places. A thousand nodes come at once when a round asks them all, perhaps from
    one address, and all of them begin as strangers: each key makes room for one more. Nobody without a key can add any.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[tuple[str, str], float] = {}  # (address, key), in order of when they are forgotten
        self._keys: Counter[str] = Counter()  # of each address
        self._addresses: dict[str, dict[str, None]] = {}  # of each key, the latest last

    def note(self, address: str, key: str) -> None:
        """Notes that a key was shown from an address."""
        self._forget()
        if (address, key) in self._until:
            self._drop((address, key))
        self._until[address, key] = self._clock() + _HOME_S
        self._keys[address] += 1
        addresses = self._addresses.setdefault(key, {})
        addresses[address] = None
        if len(addresses) > _HOMES_OF_A_KEY:
            self._drop((next(iter(addresses)), key))
        if len(self._until) > _HOMES:
            self._drop(next(iter(self._until)))

    def keys_at(self, address: str) -> int:
        """Number of keys that this address has shown."""
        self._forget()
        return self._keys[address]

    def __len__(self) -> int:
        """Number of keys, counted at each of their addresses."""
        self._forget()
        return len(self._until)

    def _forget(self) -> None:
        now = self._clock()
        while self._until:
            pair, until = next(iter(self._until.items()))
            if until > now:
                break
            self._drop(pair)

    def _drop(self, pair: tuple[str, str]) -> None:
        address, key = pair
        del self._until[pair], self._addresses[key][address]
        self._keys[address] -= 1
        if not self._keys[address]:
            del self._keys[address]
        if not self._addresses[key]:
            del self._addresses[key]


G = TypeVar("G", bound=Guest)


def longest_idle(guests: Iterable[G]) -> G:
    """Finds the oldest idle connection, or the oldest of all if none is idle; `guests` are in order of age."""
    by_age = list(guests)
    return next((guest for guest in by_age if not guest.is_busy), by_age[0])


class _Groups(Generic[G]):
    """Guests by network and address, each in order of age; networks and addresses in order of their turns."""

    def __init__(self) -> None:
        self._networks: dict[str, dict[str, dict[G, None]]] = {}
        self._count = 0

    def __iter__(self) -> Iterator[G]:
        return (guest for network in self._networks.values() for group in network.values() for guest in group)

    def __len__(self) -> int:
        return self._count

    def neighbours(self, guest: G) -> dict[G, None]:
        """Guests of this one's address."""
        return self._networks.get(guest.network, {}).get(guest.address, {})

    def add(self, guest: G) -> None:
        """Adds a guest as the youngest."""
        self._count += guest not in self.neighbours(guest)
        self._networks.setdefault(guest.network, {}).setdefault(guest.address, {})[guest] = None

    def remove(self, guest: G) -> None:
        """Removes a guest, if he is here."""
        if guest in (group := self.neighbours(guest)):
            del group[guest]
            self._count -= 1
            network = self._networks[guest.network]
            if not group:
                del network[guest.address]
            if not network:
                del self._networks[guest.network]

    def take_turn(self) -> G:
        """Removes the guest whose turn it is; his network and his address go behind all others."""
        guest = next(iter(self))
        network = self._networks[guest.network] = self._networks.pop(guest.network)
        network[guest.address] = network.pop(guest.address)
        self.remove(guest)
        return guest

    def largest(self, *, last_of_equals: bool = False) -> dict[G, None]:
        """Finds the largest address of the largest network, the first or last in turn among equals."""
        step = -1 if last_of_equals else 1
        network = max(list(self._networks.values())[::step], key=_size)
        return max(list(network.values())[::step], key=len)


def _size(network: dict[str, dict[G, None]]) -> int:
    return sum(map(len, network.values()))


class Crowd(Generic[G]):
    """Strangers who compete for the same places.

    Args:
        homes: of a crowd of known addresses: each of their keys makes room for one more.
    """

    def __init__(
        self, limits: Limits, clock: Callable[[], float] = time.monotonic, *, homes: Homes | None = None
    ) -> None:
        self._limits, self._clock = limits, clock
        self._homes = Homes(clock) if homes is None else homes  # an empty one is false
        self._lines: _Groups[G] = _Groups()
        self._inside: _Groups[G] = _Groups()
        self._spent, self._counted_at = 0.0, clock()  # entries that are not free yet

    def arrive(self, guest: G) -> G | None:
        """Puts a newcomer in line; returns whoever must leave because lines are full: he himself, or the last of the
        longest line. Among equals it is the line whose turn comes last: who has waited for longest stays.
        """
        if len(self._lines.neighbours(guest)) >= self._room_at(guest.address):
            return guest
        self._lines.add(guest)
        if len(self._lines) <= min(_LINES * self._limits.per_address + len(self._homes), self._most_in_time):
            return None
        last = next(reversed(self._lines.largest(last_of_equals=True)))
        self.leave(last)
        return last

    def enter(self) -> tuple[G, G | None] | None:
        """Gives a place to the next in line, if one may enter now; returns him and whoever gives up a place for him."""
        self._count_entries()
        if not self._lines or self._in_all - self._spent < 1:
            return None
        self._spent += 1
        guest = self._lines.take_turn()
        inside, leaves = self._inside.neighbours(guest), None
        if len(inside) >= self._room_at(guest.address):
            leaves = longest_idle(inside)
        elif len(self._inside) >= self._in_all:
            leaves = longest_idle(self._inside.largest())
        if leaves is not None:
            self.leave(leaves)
        self._inside.add(guest)
        return guest, leaves

    def leave(self, guest: G, *, is_known: bool = False) -> None:
        """Frees the place of a guest, in line or inside; gives his entry back if he turned out to be known."""
        self._lines.remove(guest)
        self._inside.remove(guest)
        if is_known:
            self._spent -= 1

    def wait_s(self) -> float | None:
        """Seconds until the next in line may enter; None if nobody is in line."""
        self._count_entries()
        due = (1 + self._spent - self._in_all) * _TURNOVER_S / self._in_all
        return max(0.0, due) if self._lines else None

    @property
    def gap_s(self) -> float:
        """Seconds between two who enter, at least; fewer where many keys are at home."""
        return max(_LEAST_GAP_S, _GAP_S * self._limits.in_all / self._in_all)

    @property
    def is_pressed(self) -> bool:
        """True if more than a quarter of the entries went to strangers who have not turned out to be known."""
        self._count_entries()
        return self._spent > self._in_all / 4

    def everyone(self) -> list[G]:
        """All guests, in line and inside."""
        return [*self._lines, *self._inside]

    @property
    def _in_all(self) -> int:
        return self._limits.in_all + len(self._homes)

    @property
    def _most_in_time(self) -> int:
        """How many can enter before the last in line would have waited for as long as he may."""
        return int(self._limits.head_s / self.gap_s)

    def _room_at(self, address: str) -> int:
        return self._limits.per_address + self._homes.keys_at(address)

    def _count_entries(self) -> None:
        now, most = self._clock(), self._in_all
        gained = (now - self._counted_at) * most / _TURNOVER_S
        self._spent, self._counted_at = max(0.0, self._spent - gained), now

"""Tells whose program is at the other end of a connection within this machine, as Linux notes it in `/proc/net`.

A loopback port belongs to no account: any account of the machine may connect to it, and may listen on it while nobody
else does. And browsers send the cookies of a host to all its ports, whoever listens there. The kernel notes under which
account each socket was opened, which no other account can change.
"""

import ipaddress
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ...listening import is_loopback

if TYPE_CHECKING:
    from starlette.requests import Request  # commands ask who listens, and do without it

_TABLES = {4: Path("/proc/net/tcp"), 6: Path("/proc/net/tcp6")}
_LISTENS = "0A"
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def of_browser(request: "Request") -> int | None:
    """Looks up the user id of the program that sends a request; None for one of another machine, or without Linux."""
    scope = request.scope
    client, server = scope.get("client"), scope.get("server")
    if not client or not server or server[1] is None:
        return None
    try:
        theirs, ours = ipaddress.ip_address(client[0]), ipaddress.ip_address(server[0])
    except ValueError:
        return None
    if not theirs.is_loopback:
        return None
    return _owner((theirs, int(client[1])), (ours, int(server[1])))


def of_listener(host: str, port: int) -> int | None:
    """Looks up the user id of the program that listens at an address; None if none does, or without Linux."""
    try:
        return _owner((ipaddress.ip_address(host), port), None)
    except ValueError:
        return None


def holds(owner: int, address: str) -> bool:
    """True if an account listens at a page's address: another one could use a link that is opened there.

    A certificate says whose an address is that other machines reach, and where the system notes no accounts nothing
    does: both pass.
    """
    place = urlsplit(address)
    host, port = place.hostname or "", place.port or 0
    if not is_loopback(host) or not _TABLES[4].exists():
        return True
    return owner in [of_listener(each, port) for each in (("127.0.0.1", "::1") if host == "localhost" else (host,))]


def _owner(local: tuple[_Address, int], remote: tuple[_Address, int] | None) -> int | None:
    """Finds the owner of a socket: at `local`, connected to `remote`, or listening if that is None."""
    for version in (4, 6):
        ends = [_written(each, version) for each in (local, remote) if each is not None]
        if None in ends:
            continue
        for here, there, state, owner in _rows(_TABLES[version]):
            if here == ends[0] and (state == _LISTENS if remote is None else there == ends[1]):
                return owner
    return None


def _rows(table: Path) -> Iterator[tuple[str, str, str, int]]:
    try:
        lines = table.read_text(encoding="ascii").splitlines()[1:]
    except OSError:  # another system, or one without IPv6
        return
    for line in lines:
        fields = line.split()
        yield fields[1], fields[2], fields[3], int(fields[7])


def _written(end: tuple[_Address, int], version: int) -> str | None:
    """Writes an address and port as the table of an IP version does: 32-bit words in the machine's own order."""
    address, port = end
    if isinstance(address, ipaddress.IPv4Address) and version == 6:
        address = ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed)
    if address.version != version:
        return None
    numbers = struct.unpack(f"={len(address.packed) // 4}I", address.packed)
    return "".join(f"{number:08X}" for number in numbers) + f":{port:04X}"

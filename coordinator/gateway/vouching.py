"""Keeps the SuperLink informed of which nodes are there, so that an idle node costs it next to nothing.

A node that waits for a question holds one request at the gate, for most of a minute, and sends no heartbeat meanwhile.
The gate sees when that connection ends, by the kernel's keep-alives also when the node's machine is gone. For all nodes
that hold a request, or have sent one a moment ago, it sends one beat together. The answer names nodes that do not count
as online at the SuperLink, mostly because it was started anew: they have to connect anew. It also names nodes for which
questions lie there: a lost call of a driver costs no more than the time between two beats.

A node that is halted, or whose machine is gone behind a proxy that keeps the connection, counts as online until its
request has been held to the end and 20 s have passed: 70 s at most.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ...mpc.crash import spot
from ..fleet import WakeListener
from ..fleet.calls import BEATS, SECRET_HEADER, Beats, write_ids
from .upstream import Upstream, UpstreamAway

logger = logging.getLogger(__name__)

BEAT_S = 5.0
RETRY_S = 0.25  # while the SuperLink is away: nodes connect anew as soon as it is back
_FRESH_S = 7.5  # a node that is at work sends a heartbeat every 5 s


@dataclass(frozen=True, slots=True)
class Held:
    """A node's request that the gate holds."""

    node: int
    key_id: str
    site: str
    session: bytes | None


class Vouching:
    """The nodes for which the gate vouches at the SuperLink.

    Args:
        secret: by which the SuperLink knows the gate; without one, nodes have their own heartbeats alone.
        held: is told, at each beat, of every request that is held.
    """

    def __init__(
        self, upstream: Upstream, calls: WakeListener, secret: str, held: Callable[[Held], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._upstream, self._calls, self._secret, self._tell_held, self._clock = upstream, calls, secret, held, clock
        self._held: Counter[Held] = Counter()
        self._heard: dict[int, float] = {}
        self._vouched: frozenset[int] = frozenset()  # at the last beat, and known there
        self._forgotten: set[int] = set()
        self._connected: set[int] = set()  # since the last beat was sent, which knows nothing of that

    def hear(self, node: int) -> None:
        """Notes a request of this node."""
        self._heard[node] = self._clock()

    def connect(self, node: int) -> None:
        """Notes that the SuperLink has activated this node."""
        self._forgotten.discard(node)
        self._connected.add(node)
        self.hear(node)

    def leave(self, node: int) -> None:
        """Notes that this node stops."""
        self._heard.pop(node, None)
        self._vouched -= {node}
        for held in [each for each in self._held if each.node == node]:
            del self._held[held]

    def has_vouched(self, node: int) -> bool:
        """True if the SuperLink has taken the last beat as this node's heartbeat."""
        return node in self._vouched

    def is_forgotten(self, node: int) -> bool:
        """True if this node has to connect anew."""
        return node in self._forgotten

    @contextmanager
    def holding(self, held: Held) -> Iterator[None]:
        """Vouches for a node while its request is held."""
        self._held[held] += 1
        try:
            yield
        finally:
            if self._held[held] > 1:
                self._held[held] -= 1
            else:
                del self._held[held]

    async def keep_beating(self) -> None:
        """Beats until it is cancelled."""
        was_well = False  # the gate opens before the SuperLink answers
        while self._secret:
            try:
                await self.beat()
            except UpstreamAway as err:
                if was_well:
                    logger.warning("the gate cannot vouch for nodes just now, and tries again: %s", err)
                was_well, self._vouched = False, frozenset()
                await asyncio.sleep(RETRY_S)
            except Exception as err:  # without beats every idle node would lapse, for good
                logger.error("a beat failed (%s at %s); the gate goes on", type(err).__name__, spot(err))
                was_well, self._vouched = False, frozenset()
                await asyncio.sleep(BEAT_S)
            else:
                was_well = True
                await asyncio.sleep(BEAT_S)

    async def beat(self) -> None:
        """Vouches for all nodes that are there. Raises `UpstreamAway`."""
        now = self._clock()
        for held in self._held:
            self._tell_held(held)
        there = {held.node for held in self._held}
        self._heard = {node: at for node, at in self._heard.items() if now - at < _FRESH_S or node in there}
        nodes = frozenset(self._heard)
        self._connected.clear()
        headers = [(SECRET_HEADER.encode(), self._secret.encode())]
        # A thousand nodes that are called at once would hold it up until they count as offline.
        status, _, answer = await self._upstream.post(BEATS, headers, write_ids(nodes), first=True)
        try:
            told = Beats.model_validate_json(answer if status == 200 else b"")
        except ValueError as err:
            raise UpstreamAway(f"the SuperLink answered a beat with {status}") from err
        self._forgotten |= (set(told.unknown) & self._heard.keys()) - self._connected
        self._vouched = nodes - set(told.unknown)
        self._calls.call([*told.waiting, *told.unknown])

"""A party's round in shards: dealt out to processes of this machine, or in one piece in this one.

Small rounds stay in one piece. Of a large one each process gets as many sites as the others, and as many of those that
sent a body, the longest part of the work. What the processes answer is put together here: digests by site, sketches in
the order of the vectors, and the shares of sums, which add up to this party's share of the total.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ... import __version__
from ...machine import cores
from ..crypten.sums import SharedTotal
from ..errors import FrameRejected, MpcError, PartyDied, VersionsApart
from ..links import Channel, Order, PartyConfig
from ..links.frames import failure, order_from_wire, order_to_wire, paths_from_wire, paths_to_wire, take, take_names
from .child import PATIENCE, Child
from .shard import Files, Opened, Shard, Sketched, Summand

logger = logging.getLogger(__name__)

LEAST_SITES = 32  # of a shard: fewer are added before a process would have been told of them
MOST_UNASKED = 8  # shards of a party whose people have set no number: each has 160 MB of code
MOST_BYTES_UNASKED = 2**31  # of all their sums
_VECTORS = 2  # in memory of a shard: its sum, and the one that is being added

_T = TypeVar("_T")


class Shards:
    """The sites' shares of one order at a time, however many processes hold them.

    The first order that is large enough for processes starts them and does not wait for them: it is carried out in one
    piece, as is every order for which the machine starts none.
    """

    def __init__(self, config: PartyConfig) -> None:
        """Starts nothing yet."""
        self._config = config
        self._processes: list[_ShardProcess] = []
        self._parts: Sequence[Shard | _ShardProcess] = ()  # of the order at hand
        self._holder: dict[str, int] = {}  # the part that holds a site

    def warm(self, count: int) -> None:
        """Starts processes, and waits until they can take part."""
        self._start(count)
        for process in self._processes:
            process.wait_ready()

    def open(self, order: Order, updates: Files, topups: Files) -> Opened:
        """Begins an order: deals its sites out, and opens their envelopes, see `Shard.open`.

        Raises:
            EnvelopeUnreadable: the disk does not give a file.
            PartyDied: a process ended; the next order starts another.
        """
        self.forget()
        count = shard_count(self._config.shards, len(updates), order.dim * order.ring_bits // 8)
        parts = self._parts = self._ready(count) or [Shard(self._config.aggregator_id, order)]
        for part in parts:
            if isinstance(part, _ShardProcess):
                part.begin(order)
        if len(parts) > 1:
            logger.info("round %d: %d sites in %d shards", order.round, len(updates), len(parts))
        self._holder = dealt({**topups, **updates}, len(parts))
        boxes = [
            [{site: path for site, path in files.items() if self._holder[site] == place} for files in (updates, topups)]
            for place in range(len(parts))
        ]
        found = self._each(lambda place: parts[place].open(*boxes[place]), range(len(parts)))
        return Opened(
            {site: digest for one in found for site, digest in one.updates.items()},
            {site: digest for one in found for site, digest in one.topups.items()},
        )

    def add(self, summands: Sequence[Summand]) -> None:
        """Adds vectors that have opened."""
        places = self._places(summands)
        self._each(lambda part: self._parts[part].add([summands[at] for at in places[part]]), places)

    def add_sketched(self, summands: Sequence[Summand], seeds: Sequence[bytes]) -> Sketched:
        """Adds vectors, and sketches each by its seed."""
        places = self._places(summands)

        def sketched(part: int) -> Sketched:
            mine = places[part]
            return self._parts[part].add_sketched([summands[at] for at in mine], [seeds[at] for at in mine])

        found = self._each(sketched, places)
        back = np.argsort(np.concatenate(list(places.values())))
        return Sketched(
            np.concatenate([each.rows for each in found])[back],
            np.concatenate([each.mask_words for each in found])[back],
        )

    def take_out(self, sites: Iterable[str]) -> None:
        """Takes all vectors of some sites out of the sum again."""
        left: dict[int, list[str]] = {}
        for site in sites:
            left.setdefault(self._holder[site], []).append(site)
        self._each(lambda part: self._parts[part].take_out(left[part]), left)

    def total(self) -> SharedTotal:
        """This party's share of the sum of what was added and not taken out.

        Shards are asked one after the other, so that no more than two of their sums are in memory here.
        """
        whole = self._parts[0].total()
        for part in self._parts[1:]:
            whole.merge(part.total())
        return whole

    def forget(self) -> None:
        """Ends the order: what was opened and added is gone from memory, and so is the key."""
        parts, self._parts, self._holder = self._parts, (), {}
        for part in parts:
            if isinstance(part, _ShardProcess):
                part.forget()

    def close(self) -> None:
        """Ends all processes."""
        self._parts, self._holder = (), {}
        while self._processes:
            self._processes.pop().end()

    def _ready(self, count: int) -> "list[_ShardProcess]":
        """At most `count` processes that can take part now; none where it would be one alone."""
        if count == 1:
            return []
        try:
            self._start(count)
        except (OSError, PartyDied) as err:
            logger.warning("of %d shards %d can be started: %s", count, len(self._processes), err)
        ready = []
        for process in self._processes[:count]:
            try:
                if process.is_ready:
                    ready.append(process)
            except MpcError as err:  # it cannot be a shard, and says why; the party can do without
                logger.warning("a shard did not start: %s", err)
        return ready if len(ready) > 1 else []

    def _start(self, count: int) -> None:
        for process in [one for one in self._processes if one.has_ended]:
            process.end()
            self._processes.remove(process)
        while len(self._processes) < count:
            self._processes.append(_ShardProcess(self._config))

    def _places(self, summands: Sequence[Summand]) -> dict[int, list[int]]:
        """The places in `summands` of what each part holds; parts without any are left out."""
        places: dict[int, list[int]] = {}
        for at, summand in enumerate(summands):
            places.setdefault(self._holder[summand.site], []).append(at)
        return places

    def _each(self, call: Callable[[int], _T], parts: Iterable[int]) -> list[_T]:
        """Calls several parts side by side, and waits for all: a thread each, for a part in another process."""
        asked = list(parts)
        if len(self._parts) == 1:
            return [call(part) for part in asked]
        with ThreadPoolExecutor(max(1, len(asked))) as pool:
            return list(pool.map(call, asked))


def shard_count(wanted: int | None, sites: int, total_bytes: int) -> int:
    """The number of shards of a round: as many as wanted, or as there are cores, if each is worth it.

    Args:
        wanted: what the party's people have set.
        total_bytes: of the sum.
    """
    affordable = MOST_BYTES_UNASKED // (_VECTORS * total_bytes)
    most = min(cores(), MOST_UNASKED, affordable) if wanted is None else wanted
    return max(1, min(most, sites // LEAST_SITES))


def dealt(files: Mapping[str, Path], shards: int) -> dict[str, int]:
    """The shard of each site: the longest envelopes are dealt out first, one after the other."""
    sizes = {site: _size(path) for site, path in files.items()}
    by_size = sorted(files, key=lambda site: (-sizes[site], site))
    return {site: place % shards for place, site in enumerate(by_size)}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # who opens it will say so
        return 0


class _ShardProcess(Child):
    """A shard in a process of its own; the same methods as `Shard`, and `begin` and `forget` around an order."""

    def __init__(self, config: PartyConfig) -> None:
        self._config = config
        self._order: Order | None = None
        what = f"a shard process of aggregator {config.aggregator_id}"
        first = {"kind": "shard", "aggregator_id": config.aggregator_id, "version": __version__}
        super().__init__("confide.mpc.party.shard_process", what, first)

    def begin(self, order: Order) -> None:
        self._order = order

    def open(self, updates: Files, topups: Files) -> Opened:
        def read(answer: dict[str, Any]) -> Opened:
            return Opened(*take(answer, "opened", updates=dict, topups=dict))

        files = {"updates": paths_to_wire(updates), "topups": paths_to_wire(topups)}
        return self._ask({"kind": "open", "order": order_to_wire(self._given), **files}, read)

    def add(self, summands: Sequence[Summand]) -> None:
        self._ask({"kind": "add", "summands": [tuple(one) for one in summands], "seeds": ()}, _done)

    def add_sketched(self, summands: Sequence[Summand], seeds: Sequence[bytes]) -> Sketched:
        shape = (len(summands), self._given.rows)

        def read(answer: dict[str, Any]) -> Sketched:
            rows, words = take(answer, "sketched", rows=np.ndarray, mask_words=np.ndarray)
            return Sketched(_elements(rows, self._given.ring.unsigned, *shape), _elements(words, "<u8", *shape))

        message = {"kind": "add", "summands": [tuple(one) for one in summands], "seeds": tuple(seeds)}
        return self._ask(message, read)

    def take_out(self, sites: Iterable[str]) -> None:
        self._ask({"kind": "take out", "sites": tuple(sites)}, _done)

    def total(self) -> SharedTotal:
        order = self._given

        def read(answer: dict[str, Any]) -> SharedTotal:
            vector, tags = take(answer, "total", vector=np.ndarray, tags=bytes)
            words = np.frombuffer(bytearray(tags), "<u8")
            if len(words) != order.tag_count:
                raise FrameRejected("a shard has another number of tags")
            return SharedTotal.of_words(_elements(vector, order.ring.unsigned, order.dim), words)

        return self._ask({"kind": "total"}, read)

    def forget(self) -> None:
        if self._order is not None:
            try:
                self._ask({"kind": "forget"}, _done)
            except PartyDied:  # so it has forgotten
                pass
            finally:
                self._order = None

    @property
    def _given(self) -> Order:
        assert self._order is not None
        return self._order

    def _ask(self, message: dict[str, Any], read: Callable[[dict[str, Any]], _T]) -> _T:
        patience_s = PATIENCE / 2 * (self._given.timeout_s or self._config.timeout_s)  # before the party's own is over
        return self.ask(message, read, patience_s=patience_s, array_bytes=None)


def serve(channel: Channel) -> None:
    """Is a shard at the other end of `channel`, for one order after the other, until the party closes it."""
    aggregator_id, version = take(channel.receive(), "shard", aggregator_id=int, version=str)
    if version != __version__:  # installed since the party was started
        channel.send(**failure(VersionsApart(f"the party runs confide {version}, a new process {__version__}")))
        return
    channel.send("ready")
    shard: Shard | None = None
    while True:
        try:
            message = channel.receive()
        except EOFError:
            return
        try:
            if message["kind"] == "forget":
                shard = None
                channel.send("done")
            elif message["kind"] == "open":
                shard = None  # its memory is wanted
                shard = _opened(aggregator_id, message, channel)
            elif shard is None:
                raise FrameRejected(f"{message['kind']} before an order")
            else:
                _answer(shard, message, channel)
        except MpcError as err:
            channel.send(**failure(err))
        del message  # it may hold the run's key


def _opened(aggregator_id: int, message: dict[str, Any], channel: Channel) -> Shard:
    order, updates, topups = take(message, "open", order=dict, updates=dict, topups=dict)
    shard = Shard(aggregator_id, order_from_wire(order))
    opened = shard.open(paths_from_wire(updates), paths_from_wire(topups))
    channel.send("opened", updates=opened.updates, topups=opened.topups)
    return shard


def _answer(shard: Shard, message: dict[str, Any], channel: Channel) -> None:
    match message["kind"]:
        case "add":
            named, seeds = take(message, "add", summands=tuple, seeds=tuple)
            summands = [Summand(*one) for one in named]
            if seeds:
                found = shard.add_sketched(summands, seeds)
                channel.send("sketched", rows=found.rows.view(np.uint8), mask_words=found.mask_words.view(np.uint8))
                return
            shard.add(summands)
            channel.send("done")
        case "take out":
            (sites,) = take(message, "take out", sites=tuple)
            shard.take_out(take_names(sites))
            channel.send("done")
        case "total":
            take(message, "total")
            total = shard.total()
            channel.send("total", vector=total.vector.view(np.uint8), tags=total.tag_share())
        case kind:
            raise FrameRejected(f"a shard is not asked for {kind}")


def _done(answer: dict[str, Any]) -> None:
    take(answer, "done")


def _elements(data: npt.NDArray[np.uint8], kind: Any, *shape: int) -> npt.NDArray[Any]:
    """Ring elements in the bytes that came from a shard."""
    if data.dtype != np.uint8:
        raise FrameRejected("a shard's numbers come as bytes")
    try:
        elements: npt.NDArray[Any] = data.reshape(-1).view(kind).reshape(shape)
        return elements
    except ValueError as err:
        raise FrameRejected("a shard has another number of elements") from err

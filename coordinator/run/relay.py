"""Relays sealed shares from sites to aggregators, through files and never through memory as a whole.

Small shares travel inside an answer or an order. Large ones are fetched from their site part by part into the run's
folder, checked there as far as a relay can, and deposited part by part at their aggregator before the order that names
them. So the memory in use depends only on the number of parts in flight, not on the number of sites or the length of
their vectors. After a restart of either side each transfer goes on where it stopped.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from ...client_node.errors import MessageInvalid, ShareMissing
from ...client_node.wire.chunks import PART_BYTES, Incoming, read_part
from ...client_node.wire.messages import (
    MAX_INLINE,
    Deposit,
    Deposited,
    Fetch,
    Fetched,
    Packet,
    TopUp,
    Update,
    fitting,
    sign,
)
from ...client_node.wire.messages import Sealed as Described
from ...mpc.errors import EnvelopeRejected
from ...mpc.links import mapped
from ...mpc.sharing import ShareContext
from ...mpc.sharing.sealing import check_update, max_envelope_bytes
from ..errors import MessageRefused
from ..fleet import NodeFailure
from ..store.run_folder import Envelopes, Inbox, Sealed
from .context import RunContext
from .questions import verified_answers

logger = logging.getLogger(__name__)

IN_FLIGHT = 4  # parts that are fetched at a time; answers to one question carry no more than as many parts together


def inline_room(sites: int) -> int:
    """Computes the bytes of sealed shares that each of `sites` may put into its answer if all are asked at once."""
    return min(MAX_INLINE, IN_FLIGHT * PART_BYTES // max(1, sites))


class Intake:
    """Receives the sites' sealed shares for one purpose in a round: their updates, or their top-ups for one set."""

    def __init__(self, run: RunContext, inbox: Inbox, context_of: Callable[[str], ShareContext]) -> None:
        """Receives into `inbox`; `context_of` gives the context for which a site's shares must be sealed and signed."""
        self.inbox = inbox
        self._run, self._context_of = run, context_of
        self._coming: dict[str, Sealed] = {}

    def begin(self, site: str, answer: Update | TopUp, packet: Packet) -> None:
        """Stores the shares inside an answer; accepts the site if they are complete.

        Raises:
            MessageRefused: the answer is about another round, or it announces something else than the site's shares.
            MessageInvalid: the shares inside it are not the announced ones.
        """
        context, names = self._context_of(site), [f"envelope-{i}" for i in range(len(answer.sealed))]
        if answer.round != context.round or not packet.blobs.keys() <= set(names):
            raise MessageRefused(f"site {site} answered for round {answer.round} with {sorted(packet.blobs)}")
        if any(described.size > max_envelope_bytes(context) for described in answer.sealed):
            raise MessageRefused(f"site {site} announces longer shares than round {answer.round} has")
        coming = self.inbox.expect(site, ((described.size, described.digest) for described in answer.sealed))
        for incoming, name in zip(coming, names, strict=True):
            if name in packet.blobs:
                incoming.add(0, packet.blobs[name])
        if _are_whole(coming):
            self._accept(site, coming)
        else:
            self._coming[site] = coming

    def finish(self, sites: Collection[str]) -> set[str]:
        """Fetches the missing parts of `sites`; returns the sites whose shares are complete and checked."""
        coming = {site: self._coming.pop(site) for site in sites if site in self._coming}
        self._fetch(coming)
        finished = set(sites) - coming.keys()
        for site, sealed in coming.items():
            if _are_whole(sealed):
                try:
                    self._accept(site, sealed)
                except MessageRefused as err:
                    logger.warning("run %s: what %s sealed is not taken: %s", self._run.id, site, err)
                else:
                    finished.add(site)
        return finished

    def _fetch(self, coming: Mapping[str, Sealed]) -> None:
        """Fetches missing parts. A site without a valid answer is skipped; a later fetch goes on where this stopped."""
        waiting = list(coming)
        while waiting:
            self._run.stop_if_asked()
            missing = {site: _first_missing(coming[site]) for site in waiting[:IN_FLIGHT]}
            requests = {site: self._request(site, *where) for site, where in missing.items()}
            for site, answer in verified_answers(self._run, "fetch", requests, Fetched):
                try:
                    if not isinstance(answer, tuple):
                        raise MessageRefused(str(answer))
                    _take(missing[site][1], answer[1].blobs.get("part", b""))
                except (MessageRefused, MessageInvalid) as err:
                    logger.warning("run %s: fetching from %s stopped: %s", self._run.id, site, err)
                    waiting.remove(site)
                    continue
                if _are_whole(coming[site]):
                    waiting.remove(site)

    def _request(self, site: str, aggregator_id: int, incoming: Incoming) -> Packet:
        context = self._context_of(site)
        message = Fetch(
            **self._run.addressed(site),
            round=context.round,
            topup_for=context.topup_for,
            aggregator_id=aggregator_id,
            offset=incoming.held,
        )
        return sign(message, self._run.signer)

    def _accept(self, site: str, sealed: Sealed) -> None:
        """Accepts a site's shares; raises `MessageRefused` unless they pass every check that a relay can make."""
        identity = bytes.fromhex(self._run.identity_of(site))
        try:
            check_update([mapped(incoming.path) for incoming in sealed], self._context_of(site), identity)
        except EnvelopeRejected as err:
            self.inbox.refuse(site)
            raise MessageRefused(f"{site}: {err}") from err
        self.inbox.accept(site, sealed)


@dataclass(frozen=True, slots=True)
class Load:
    """The sealed shares that one aggregator is to add, as its order names them."""

    names: Mapping[str, tuple[str, str | None, Incoming]]  # name -> site, set of a top-up, file

    @classmethod
    def of(
        cls, summed: Sequence[str], aggregator_id: int, envelopes: Envelopes, topups: Envelopes, topup_for: str
    ) -> "Load":
        """Selects one aggregator's share of each site's update and top-up, named by kind and index in `summed`."""
        kinds: tuple[tuple[str, str | None, Envelopes], ...] = (
            ("update", None, envelopes),
            ("topup", topup_for, topups),
        )
        return cls(
            {
                f"{kind}-{place}": (site, purpose, sealed[site][aggregator_id])
                for kind, purpose, sealed in kinds
                for place, site in enumerate(summed)
                if site in sealed
            }
        )

    @property
    def carried(self) -> set[str]:
        """Names the shares that travel with the order; the others are deposited before it."""
        return fitting({name: incoming.size for name, (_, _, incoming) in self.names.items()}, MAX_INLINE)

    def blobs(self) -> dict[str, bytes]:
        """Reads the shares that travel with the order, by name."""
        return {name: self.names[name][2].path.read_bytes() for name in self.carried}

    def spooled(self) -> dict[str, str]:
        """Lists the SHA-256 of the shares that are deposited before the order, by name."""
        carried = self.carried
        return {name: incoming.digest for name, (_, _, incoming) in self.names.items() if name not in carried}


class Delivery:
    """Deposits at aggregators the shares that their orders do not carry, and remembers those that are there."""

    def __init__(self, run: RunContext, round_number: int) -> None:
        self._run, self._round = run, round_number
        self._there: dict[str, set[str]] = {name: set() for name in run.parties}

    @property
    def count(self) -> int:
        """Number of shares that are known to lie at the aggregators."""
        return sum(map(len, self._there.values()))

    def deposit(self, loads: Mapping[str, Load]) -> dict[str, str]:
        """Deposits missing shares, a part at a time at each aggregator; returns, by aggregator, reasons of failures."""
        left = {name: list(spooled) for name, load in loads.items() if (spooled := self._missing(name, load))}
        offsets, problems = dict.fromkeys(left, 0), dict[str, str]()
        while left:
            self._run.stop_if_asked()
            requests = {name: self._request(name, loads[name], left[name][0], offsets[name]) for name in left}
            for name, answer in verified_answers(self._run, "deposit", requests, Deposited):
                incoming = loads[name].names[left[name][0]][2]
                held = answer[0].held if isinstance(answer, tuple) else 0
                if not offsets[name] < held <= incoming.size:
                    kept = isinstance(answer, tuple)
                    problems[name] = "it does not keep what it was brought" if kept else str(answer)
                    del left[name]
                    continue
                offsets[name] = held
                if held == incoming.size:
                    self._there[name].add(incoming.digest)
                    offsets[name] = 0
                    left[name].pop(0)
                    if not left[name]:
                        del left[name]
        return problems

    def forget(self, name: str, failure: NodeFailure) -> None:
        """Forgets an aggregator's deposits if its failure says that a share is missing, so that they are sent again."""
        if failure.error == ShareMissing.__name__:
            self._there[name].clear()

    def _missing(self, name: str, load: Load) -> list[str]:
        return [each for each, digest in load.spooled().items() if digest not in self._there[name]]

    def _request(self, name: str, load: Load, which: str, offset: int) -> Packet:
        site, topup_for, incoming = load.names[which]
        message = Deposit(
            **self._run.addressed(name),
            round=self._round,
            site=site,
            topup_for=topup_for,
            sealed=Described(size=incoming.size, digest=incoming.digest),
            offset=offset,
        )
        return sign(message, self._run.signer, {"part": read_part(incoming.path, offset)})


def _take(incoming: Incoming, part: bytes) -> None:
    offset = incoming.held
    if len(part) != min(PART_BYTES, incoming.size - offset):
        raise MessageInvalid(f"a part of {len(part)} bytes at {offset} of {incoming.size}")
    incoming.add(offset, part)


def _first_missing(sealed: Sealed) -> tuple[int, Incoming]:
    """Finds the first of the three files that is not complete, with its aggregator."""
    return next((i, incoming) for i, incoming in enumerate(sealed) if not incoming.is_whole)


def _are_whole(sealed: Sealed) -> bool:
    return all(incoming.is_whole for incoming in sealed)

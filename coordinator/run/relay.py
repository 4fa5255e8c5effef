"""Sealed shares on their way from sites to aggregators, through files and never through memory as a whole.

What is small travels inside an answer or an order. What is large is fetched from its site part by part into the run's
folder, checked there as far as a relay can, and deposited part by part at its aggregator before the order that names
it. So the memory in use depends on the number of parts in flight alone, not on how many sites there are or how long
their vectors. Each transfer goes on where it was, whoever was restarted meanwhile.
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
    """How many bytes of sealed shares each of `sites` may put into its answer to a question that all are asked."""
    return min(MAX_INLINE, IN_FLIGHT * PART_BYTES // max(1, sites))


class Intake:
    """Takes in what sites have sealed for one purpose in a round: their updates, or their top-ups for one set."""

    def __init__(self, run: RunContext, inbox: Inbox, context_of: Callable[[str], ShareContext]) -> None:
        """`context_of` is what a site's shares must be sealed and signed for."""
        self.inbox = inbox
        self._run, self._context_of = run, context_of
        self._coming: dict[str, Sealed] = {}

    def begin(self, site: str, answer: Update | TopUp, packet: Packet) -> None:
        """Keeps what an answer carries; accepts the site if that is all.

        Raises:
            MessageRefused: the answer is about another round, or what it announces are not the site's sealed shares.
            MessageInvalid: what it carries is not what it announces.
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
        """Fetches what `sites` have begun and not finished; those of them of which all is here and holds."""
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
        """Brings the missing parts. A site that gives no good answer is passed over: it is asked again from there."""
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
        """Raises `MessageRefused` unless these are what the site sealed for this, as far as a relay can see."""
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
        """What the aggregator gets of each site's update and top-up, by kind and place among the summed sites."""
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
        """Names of those that travel with the order; the others are deposited before it."""
        return fitting({name: incoming.size for name, (_, _, incoming) in self.names.items()}, MAX_INLINE)

    def blobs(self) -> dict[str, bytes]:
        """What travels with the order."""
        return {name: self.names[name][2].path.read_bytes() for name in self.carried}

    def spooled(self) -> dict[str, str]:
        """SHA-256 of those that do not."""
        carried = self.carried
        return {name: incoming.digest for name, (_, _, incoming) in self.names.items() if name not in carried}


class Delivery:
    """Brings aggregators what their orders do not carry, and remembers what they have."""

    def __init__(self, run: RunContext, round_number: int) -> None:
        self._run, self._round = run, round_number
        self._there: dict[str, set[str]] = {name: set() for name in run.parties}

    @property
    def count(self) -> int:
        """How many shares lie at the aggregators, as far as is known."""
        return sum(map(len, self._there.values()))

    def deposit(self, loads: Mapping[str, Load]) -> dict[str, str]:
        """Deposits what is not there, a part at a time at each aggregator; why some did not take all of theirs."""
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
        """Deposits anew at an aggregator whose failure says that it has lost something."""
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
    """The first file of the three that is not whole, with its aggregator."""
    return next((i, incoming) for i, incoming in enumerate(sealed) if not incoming.is_whole)


def _are_whole(sealed: Sealed) -> bool:
    return all(incoming.is_whole for incoming in sealed)

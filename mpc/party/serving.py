"""The service of a party's process: takes orders, keeps its links between them, answers with totals.

Imports CrypTen: all that is added, opened or compared on shares goes through it.
"""

import logging

import numpy as np
import numpy.typing as npt

from ..crypten import norm_check, runtime
from ..crypten.triples import Oblivious
from ..errors import (
    CohortTooSmall,
    Equivocation,
    JournalBroken,
    MpcError,
    NormExceeded,
    OrderMismatch,
    PartyLost,
    SetConflict,
    TopUpMissing,
    TotalConflict,
)
from ..links import Channel, OpenedTotal, Order, PartyConfig
from ..links.frames import config_from_wire, failure, order_from_wire, paths_from_wire, take
from ..links.journal import Journal
from ..links.tls import TlsCommunicator, hold_port
from ..sharing.ring import RingVector
from ..sharing.shares import Words
from ..sharing.sketch import Limits
from . import aggregation
from .greeting import greet
from .shard import Files
from .shards import Shards

logger = logging.getLogger(__name__)

# Errors that all three parties reach from the same exchanged bytes: their links are in step and stay up.
_COMMON = (OrderMismatch, Equivocation, CohortTooSmall, TopUpMissing, NormExceeded, SetConflict, TotalConflict)


class Party:
    """The links, the port and the journal of one party."""

    def __init__(self, config: PartyConfig) -> None:
        self.aggregator_id = config.aggregator_id
        self._config, self._port = config, hold_port(config)
        self._journal, self._shards = Journal(config.journal), Shards(config)
        self._links: TlsCommunicator | None = None
        self._triples: Oblivious | None = None  # made for an order, when it needs them, and for no other

    def aggregate(self, order: Order, envelopes: Files, topups: Files) -> OpenedTotal:
        """Carries out one order; see `aggregation.aggregate` for its errors."""
        try:
            opened = self._shards.open(order, envelopes, topups)
            links = self._link_up(order)
            return aggregation.aggregate(order, opened, self._shards, links, self._journal, self._judge)
        except _COMMON:
            raise
        except BaseException:  # the others shall not wait for this party
            self._drop_links()
            raise
        finally:
            self._triples = None
            self._shards.forget()

    def _judge(self, opened: RingVector, mask_words: Words, limits: Limits) -> npt.NDArray[np.bool_]:
        if self._triples is None:
            assert self._links is not None
            self._triples = Oblivious(self._links)
        return norm_check.verdicts(opened, mask_words, limits, self._triples)

    def _link_up(self, order: Order) -> TlsCommunicator:
        """Links on which all three confirmed this very order.

        Kept links may be dead, or hold words of an order that another party gave up, if a party was started anew
        since. Only on fresh ones is that a failure; silence always is.
        """
        if self._links is not None:
            self._links.timeout_s = order.timeout_s or self._config.timeout_s
            try:
                aggregation.compare_orders(order, self._links)
                return self._links
            except (PartyLost, OrderMismatch) as err:
                if isinstance(err.__cause__, TimeoutError):
                    raise
                logger.info("round %d: linking up anew: %s", order.round, err)
                self._drop_links()
        self._links = TlsCommunicator.connect(self._config, timeout_s=order.timeout_s)
        greet(self._links)
        runtime.start(self._links)
        aggregation.compare_orders(order, self._links)
        return self._links

    def _drop_links(self) -> None:
        runtime.stop()
        if self._links is not None:
            self._links.close()
            self._links = None


def serve(channel: Channel) -> None:
    """Takes a configuration, then orders, until the parent closes the channel or the journal breaks."""
    try:
        party = Party(config_from_wire(take(channel.receive(), "config", config=dict)[0]))
    except MpcError as err:
        channel.send(**failure(err))
        return
    channel.send("ready")
    while True:
        try:
            order, envelopes, topups = _receive_order(channel)
        except EOFError:  # the parent is through with us
            return
        except MpcError as err:  # what follows on the channel can no longer be told apart
            channel.send(**failure(err))
            return
        try:
            opened = party.aggregate(order, envelopes, topups)
        except JournalBroken as err:
            channel.send(**failure(err))
            return
        except MpcError as err:
            logger.warning("%s: %s", type(err).__name__, err)
            channel.send(**failure(err))
        else:
            named = {"kept": opened.kept, "rejected": opened.rejected, "set_digest": opened.set_digest}
            total = np.frombuffer(opened.total, np.uint8)
            channel.send("total", **named, total=total, tag_share=opened.tag_share)
        del order  # it holds the run's key


def _receive_order(channel: Channel) -> tuple[Order, Files, Files]:
    """The next order, and where the envelopes of its updates and top-ups lie."""
    fields, envelopes, topups = take(channel.receive(), "order", order=dict, envelopes=dict, topups=dict)
    return order_from_wire(fields), paths_from_wire(envelopes), paths_from_wire(topups)

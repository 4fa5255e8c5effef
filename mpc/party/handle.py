"""An aggregator's handle on its party process. Imports neither torch nor CrypTen."""

import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from ..links import OpenedTotal, Order, PartyConfig
from ..links.certificates import make_certificate
from ..links.frames import config_to_wire, order_to_wire, paths_to_wire, take, take_names
from .child import PATIENCE, Child

__all__ = ["OpenedTotal", "Order", "PartyConfig", "PartyProcess", "make_certificate"]

_NO_TOPUPS: Mapping[str, Path] = MappingProxyType({})


class PartyProcess:
    """One long-lived child process; started on demand, and anew after it died.

    `aggregate` may be called from any thread, one call at a time; `stop` also during a call, which then raises
    `PartyDied`.
    """

    def __init__(self, config: PartyConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Process id, or None while there is no process."""
        child = self._child
        return None if child is None else child.pid

    def start(self) -> None:
        """Starts the process if there is none, and returns while it is still loading."""
        with self._lock:
            self._running()

    def wait_ready(self) -> None:
        """Waits until the process can take orders, starting it if there is none.

        Raises:
            PartyDied: it ended, or was not ready within three minutes.
            MpcError: its configuration or journal cannot be used.
        """
        with self._lock:
            self._running().wait_ready()

    def aggregate(
        self, order: Order, envelopes: Mapping[str, Path], topups: Mapping[str, Path] = _NO_TOPUPS
    ) -> OpenedTotal:
        """Carries out one order; blocks until all three parties are through, or one is lost.

        Args:
            order: what the other two parties are given as well, with this aggregator's private key.
            envelopes: by site, the file of its envelope for this aggregator, which the process reads when it comes
                to it. A site may be absent; whatever is not a sound envelope of that site counts as absent.
            topups: the same of top-ups for exactly the order's cohort.

        Raises:
            PartyDied: the process, or one of its shards, ended; call again and a new one starts.
            PartyLost: another party is gone or silent; repeat the order as the next attempt.
            MpcError: `aggregation.aggregate` lists the others.
        """
        with self._lock:
            child = self._running()
            child.wait_ready()
            return child.aggregate(order, envelopes, topups)

    def stop(self) -> None:
        """Ends the process; harmless where there is none."""
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def _running(self) -> "_Child":
        child = self._child
        if child is None or child.has_ended:
            self.stop()
            child = self._child = _Child(self._config)
        return child


class _Child(Child):
    """The party's process."""

    def __init__(self, config: PartyConfig) -> None:
        self._config = config
        what = f"the party process of aggregator {config.aggregator_id}"
        super().__init__("confide.mpc.party.process", what, {"kind": "config", "config": config_to_wire(config)})

    def aggregate(self, order: Order, envelopes: Mapping[str, Path], topups: Mapping[str, Path]) -> OpenedTotal:
        """Sends the order and where the envelopes lie, then waits for the total."""

        def read(answer: dict[str, Any]) -> OpenedTotal:
            kept, rejected, digest, total, tag_share = take(
                answer, "total", kept=tuple, rejected=tuple, set_digest=bytes, total=np.ndarray, tag_share=bytes
            )
            kept, rejected = take_names(kept), take_names(rejected)
            return OpenedTotal(
                kept=kept, rejected=rejected, set_digest=digest, total=total.tobytes(), tag_share=tag_share
            )

        files = {"envelopes": paths_to_wire(envelopes), "topups": paths_to_wire(topups)}
        return self.ask(
            {"kind": "order", "order": order_to_wire(order), **files},
            read,
            patience_s=PATIENCE * (order.timeout_s or self._config.timeout_s),
            array_bytes=order.dim * order.ring_bits // 8,
        )

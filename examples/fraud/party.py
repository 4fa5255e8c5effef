"""Runs the process of one of the three parties: `python examples/fraud/party.py CONFIG.json`, started by run.py.

Party 0 is the insurer, party 1 the hospital, party 2 a helper without data. An owner reads its own table only. The two
owners find their common people, and all three train on shares of their rows. Each writes the weights and its timings to
result.json beside its configuration.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import columns
import numpy as np
import psi
from columns import Integers, Rows
from cost import DELTA, cost
from secure_gradient import SharedRows
from terms import OWNERS, ROLES, Terms

from confide.models.rounding import rounded_up
from confide.mpc.crypten import runtime
from confide.mpc.crypten.triples import Replicated
from confide.mpc.errors import FrameRejected, OrderMismatch
from confide.mpc.links import PartyConfig
from confide.mpc.links.tls import TlsCommunicator
from confide.privacy.errors import BudgetExceeded, UnprotectedRefused
from confide.privacy.mechanism.noise import discrete_gaussian


class CountedLinks:
    """A party's links, with what it sent and in how many rounds of messages."""

    def __init__(self, links: TlsCommunicator) -> None:
        self._links = links
        self.aggregator_id = links.aggregator_id
        self.bytes_sent, self.rounds = 0, 0

    def exchange(self, step: str, outgoing: Mapping[int, bytes], limit: int) -> dict[int, bytes]:
        """As `TlsCommunicator.exchange`."""
        self.rounds += 1
        self.bytes_sent += sum(len(data) for data in outgoing.values())
        return self._links.exchange(step, outgoing, limit)

    def all_gather(self, step: str, data: bytes, limit: int) -> list[bytes]:
        """As `TlsCommunicator.all_gather`."""
        self.rounds += 1
        self.bytes_sent += 2 * len(data)
        return self._links.all_gather(step, data, limit)


class Watch:
    """Seconds, bytes sent and rounds of each part of a run."""

    def __init__(self, links: CountedLinks) -> None:
        self._links = links
        self.parts: dict[str, dict[str, float]] = {}
        self._last = self._now()

    def note(self, part: str) -> None:
        """Puts down what was since the last note."""
        now = self._now()
        self.parts[part] = {name: now[name] - self._last[name] for name in now}
        self._last = now

    def _now(self) -> dict[str, float]:
        return {"seconds": time.monotonic(), "bytes_sent": self._links.bytes_sent, "rounds": self._links.rounds}


def take_part(links: CountedLinks, terms: Terms, table: Path | None) -> dict[str, Any]:
    """The whole protocol at one party.

    Raises:
        OrderMismatch: the parties hold different terms.
        FrameRejected: the owners tell of different numbers of people.
        PartyLost: another party is gone, silent or out of step.
    """
    dims = terms.features
    watch = Watch(links)
    if len(set(links.all_gather("TERM", terms.digest(), 32))) != 1:
        raise OrderMismatch("the three parties hold different terms")
    rows = _common(links, terms, table)
    watch.note("intersection")
    people = _people(links, terms, rows)
    runtime.start(links)
    with runtime.using(Replicated()):
        own = (None, None) if rows is None else (rows.features, rows.labels)
        shared = SharedRows(people, dims, *own)
        watch.note("sharing")
        result: dict[str, Any] = {"people": people, "releases": 0}

        def gradient(weights: Integers) -> Integers:
            result["releases"] += 1
            return shared.gradient(weights, discrete_gaussian(terms.site_noise, sum(dims)))

        result["weights"] = terms.optimizer.train(gradient, sum(dims)).tolist()
        watch.note("training")
        if terms.is_measured:
            silence = np.zeros(sum(dims), np.int64)
            plain = terms.optimizer.train(lambda weights: shared.gradient(weights, silence), sum(dims))
            result["weights_without_noise"] = plain.tolist()
            watch.note("training without noise")
    runtime.stop()
    return {**result, "parts": watch.parts}


def _common(links: CountedLinks, terms: Terms, table: Path | None) -> Rows | None:
    """An owner's rows of the common people that are not held out, in the order that both owners have."""
    party = links.aggregator_id
    if party not in OWNERS:
        for step in ("PSIO", "PSIA"):  # the links are in step at all three; owners send the helper nothing
            links.exchange(step, dict.fromkeys(OWNERS, b""), 0)
        return None
    if table is None:
        raise FileNotFoundError("an owner needs a table")
    rows, other = columns.read(table, ROLES[party]), 1 - party

    def exchange(step: str, data: bytes, limit: int) -> bytes:
        return links.exchange(step, {other: data, 2: b""}, limit)[other]

    found = rows.at(psi.intersect(rows.ids, terms.study, exchange, max_ids=terms.max_ids))
    return found.at([at for at, one in enumerate(found.ids) if not columns.is_held_out(one)])


def _people(links: CountedLinks, terms: Terms, rows: Rows | None) -> int:
    """How many people are trained on: the owners say it to all three."""
    own = b""
    if rows is not None:
        if rows.features.shape[1] != terms.features[links.aggregator_id]:
            raise OrderMismatch("this owner's part of a row has another width than the terms say")
        own = len(rows.ids).to_bytes(4, "big")
    first, second = links.all_gather("SIZE", own, 4)[:2]
    if len(first) != 4 or first != second:
        raise FrameRejected("the two owners tell of different numbers of common people")
    return int.from_bytes(first, "big")


def refuse(terms: Terms, *, max_epsilon: float, allow_unprotected: bool) -> None:
    """Holds the terms against what this party's own operator allows; nothing was sent yet.

    Raises:
        BudgetExceeded: the gradients would cost a person more than `max_epsilon`, for whoever looks.
        UnprotectedRefused: they are to be opened without noise as well.
    """
    would_be = cost(terms.site_noise, terms.optimizer.steps, sum(terms.features)).other_owner
    if not would_be <= max_epsilon:
        raise BudgetExceeded(
            f"the terms cost epsilon {rounded_up(would_be, 3)} at delta {DELTA:g}; this party allows {max_epsilon:g}",
            cap=max_epsilon,
            guaranteed=0.0,
            would_be=would_be,
        )
    if terms.is_measured and not allow_unprotected:
        raise UnprotectedRefused("the terms open gradients without noise, which this party does not allow")


def main(config_path: Path) -> None:
    """Takes part as the configuration says, and writes result.json beside it."""
    config = json.loads(config_path.read_text())
    folder = config_path.parent
    party = PartyConfig(
        aggregator_id=config["party"],
        addresses=tuple(config["addresses"]),
        certificate=folder / "party.pem",
        key=folder / "party.key",
        pins=tuple(config["pins"]),
        journal=folder / "journal",  # of rounds of sums: there are none here
        timeout_s=config["timeout_s"],
    )
    table = None if config["table"] is None else Path(config["table"])
    terms = Terms.from_json(config["terms"])
    refuse(terms, max_epsilon=config["max_epsilon"], allow_unprotected=config["allow_unprotected"])
    links = TlsCommunicator.connect(party)
    try:
        result = take_part(CountedLinks(links), terms, table)
    finally:
        links.close()
    partial = folder / "result.part"
    partial.write_text(json.dumps(result))
    os.replace(partial, folder / "result.json")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))

"""Tells a monitor of a node: whether it lives and can work, and metrics of which none depends on a record.

Left out on purpose, though a monitor would like them: counts of records, units and batches; the duration of anything;
processor time and memory; the room on the disk of a site that trains, since kept states fill it in proportion to its
table. docs/monitoring.md says so metric by metric.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..privacy.errors import PrivacyError
from .enrolment import Enrolment
from .errors import ClientNodeError
from .files import has_room
from .supervision import Answers, Verdict, exposition
from .vitals import Vitals

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from ..privacy.ledger.ledger import Ledger


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeMetrics:
    """One daemon, seen from its monitor."""

    home: Path
    enrolment: Enrolment
    vitals: Vitals
    ledger: "Ledger | None"  # None for a node that only aggregates
    started: float = field(default_factory=time.time)

    def answers(self) -> Answers:
        """Makes what the monitor serves."""
        return Answers(
            alive=self.alive, ready=self.ready, metrics=exposition.exposition(self._look),
            content_type=exposition.CONTENT_TYPE,
        )  # fmt: skip

    def alive(self) -> Verdict:
        """Tells whether the loop that asks for messages goes on. A step may take as long as it takes."""
        return Verdict(tuple(f"{loop} shows no sign of life." for loop in self.vitals.pulse.stuck()))

    def ready(self) -> Verdict:
        """Tells whether the node is connected, and can write what it must before it answers."""
        reasons = [*self.alive().reasons]
        if not self.vitals.is_connected:
            reasons.append(f"not connected to {self.enrolment.address}: {self.vitals.trouble}.")
        if not has_room(self.home):
            reasons.append("the home folder's disk is full.")
        try:
            if self.ledger is not None:
                self.ledger.require_writable()
        except PrivacyError as err:
            reasons.append(str(err))
        return Verdict(tuple(reasons))

    def _look(self) -> "Iterator[Metric]":
        vitals, roles = self.vitals, self.enrolment.roles
        yield from exposition.of_process("+".join(roles), self.started)
        yield exposition.gauge(
            "node_connected", "1 while the coordinator has let this node in.", float(vitals.is_connected)
        )
        yield exposition.gauge(
            "node_last_contact_timestamp_seconds",
            "When the coordinator last answered this node, or took an answer, Unix time; 0 before.",
            vitals.last_contact,
        )
        yield exposition.counters(
            "node_questions", "Messages of the coordinator that came.", ("kind",),
            {(kind,): count for kind, count in vitals.questions.copy().items()},
        )  # fmt: skip
        yield exposition.counters(
            "node_answers",
            "Answers that left, failures included.",
            ("kind", "outcome"),
            {(kind, outcome): count for (kind, outcome), count in vitals.answers.copy().items()},
        )
        yield exposition.counter(
            "node_sent_bytes", "Bytes of all requests to the coordinator, without headers.", vitals.sent_bytes
        )
        yield exposition.gauge(
            "disk_has_room", "0 once the home folder's disk is full, as the coordinator is told then.",
            float(has_room(self.home)),
        )  # fmt: skip
        if "train" not in roles:
            yield from exposition.of_disk(self.home)
        yield exposition.of_certificates(self._certificates())
        if self.ledger is None:
            return
        try:
            standings = self.ledger.standings()
        except (PrivacyError, ClientNodeError):
            yield exposition.gauge("ledger_readable", "0 if the ledger cannot be read just now.", 0)
            return
        yield exposition.gauge("ledger_readable", "0 if the ledger cannot be read just now.", 1)
        yield from exposition.of_accounts({self.enrolment.name: standings})

    def _certificates(self) -> dict[tuple[str, str], bytes]:
        found = {("ca", ""): self.enrolment.ca_path}
        if "aggregate" in self.enrolment.roles:
            found["party", self.enrolment.name] = self.home / "party" / "party.pem"
        return {label: path.read_bytes() for label, path in found.items() if path.exists()}

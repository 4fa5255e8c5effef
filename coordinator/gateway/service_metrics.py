"""Tells a monitor of the running server: whether it lives and can serve, and metrics.

All of it the operator has on this machine anyway: the register, the runs, the signed ledgers that sites send, and what
the gate sees. Nothing here is computed from an update, a total or a record.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...client_node.files import has_room
from ...client_node.supervision import Answers, Pulse, Verdict, exposition
from ..errors import CoordinatorError
from ..federation import Pki
from ..federation.members import members
from ..federation.serving import ONLINE_S
from ..ledger_standings import Ledgers
from ..store import Store
from ..store.states import RunState
from ..store.tables import Run, StudyRow
from .drivers import Drivers
from .gate import FleetGate
from .listener import GateServer
from .superlink import SuperLink

if TYPE_CHECKING:
    from prometheus_client.core import Metric


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceMetrics:
    """The running server, seen from its monitor."""

    home: Path
    store: Store
    pki: Pki
    superlink: SuperLink
    drivers: Drivers
    gate: FleetGate
    server: GateServer
    pulse: Pulse
    trouble: Callable[[], str]  # what does not work at this moment; "" if all does
    ledgers: Ledgers
    started: float = field(default_factory=time.time)

    def answers(self) -> Answers:
        """Makes what the monitor serves."""
        return Answers(
            alive=self.alive, ready=self.ready, metrics=exposition.exposition(self._look),
            content_type=exposition.CONTENT_TYPE,
        )  # fmt: skip

    def alive(self) -> Verdict:
        """Tells whether the loops of the server go on. Drivers that hang are ended by one of them (`drivers`)."""
        reasons = [f"{loop} shows no sign of life." for loop in self.pulse.stuck()]
        if not self.server.is_alive:
            reasons.append("the gate has ended.")
        return Verdict(tuple(reasons))

    def ready(self) -> Verdict:
        """Tells whether nodes can connect and runs can go on."""
        reasons = list(self.alive().reasons)
        if not self.superlink.is_up:
            reasons.append(f"the SuperLink does not answer (its log: {self.superlink.log_path}).")
        if not self.drivers.is_ready:
            reasons.append("the drivers' worker is not there yet.")
        if not has_room(self.home):
            reasons.append(f"the disk of {self.home} is full.")
        try:
            self.store.require_schema()
        except CoordinatorError as err:
            reasons.append(f"the database: {err}.")
        if trouble := self.trouble():
            reasons.append(trouble)
        return Verdict(tuple(reasons))

    def _look(self) -> "Iterator[Metric]":
        yield from exposition.of_process("coordinator", self.started)
        yield exposition.gauge("superlink_up", "1 if Flower's server answers.", float(self.superlink.is_up))
        yield exposition.gauge("drivers_ready", "1 if a driver can be started.", float(self.drivers.is_ready))
        yield exposition.gauge(
            "server_troubled", "1 while the server cannot do something; readyz says what.", float(bool(self.trouble()))
        )
        yield exposition.counters(
            "gate_requests", "Requests of enrolled nodes that the gate let in, by call.", ("call",),
            {(call,): count for call, count in self.gate.admitted.copy().items()},
        )  # fmt: skip
        yield exposition.counters(
            "gate_refusals", "Requests that the gate turned away, by reason.", ("reason",),
            {(reason,): count for reason, count in self.gate.refused.copy().items()},
        )  # fmt: skip
        yield exposition.counter("gate_sent_bytes", "Bytes of all answers of the gate.", self.gate.sent_bytes)
        yield from exposition.of_disk(self.home)
        stored: list[Metric] = []
        try:
            stored += self._of_store()
        except CoordinatorError:  # readyz says which
            stored.clear()
        yield exposition.gauge("database_up", "1 if the database answers.", float(bool(stored)))
        yield from stored
        yield from exposition.of_accounts(self.ledgers.standings())
        yield exposition.gauges(
            "ledger_readable", "0 if the replica of a site's ledger does not hold together.", ("site",),
            {(site,): float(is_sound) for site, is_sound in self.ledgers.readable().items()},
        )  # fmt: skip

    def _of_store(self) -> "Iterator[Metric]":
        yield from self._of_members()
        yield exposition.of_certificates(self._certificates())
        yield exposition.gauge("database_bytes", "Size of the database.", self.store.size_bytes())
        figures = self.store.figures()
        yield exposition.gauges(
            "runs", "Runs by state.", ("state",), {(state.value,): figures.runs.get(state, 0) for state in RunState}
        )
        yield exposition.counter("rounds_committed", "Committed rounds of all runs.", figures.rounds)
        yield exposition.counter(
            "sealed_bytes_per_site", "Sealed bytes that one site sent in all committed rounds.", figures.bytes_per_site
        )
        yield from self._of_runs(self.store.unfinished_runs())

    def _of_members(self) -> "Iterator[Metric]":
        now, seen, enrolled = time.time(), dict(self.gate.seen), {}
        states = {"invited": 0, "enrolled": 0, "revoked": 0}
        for member in members(self.store):
            states[member.state] += 1
            if member.state == "enrolled":
                enrolled[member.name] = seen.get(member.name)
        yield exposition.gauges(
            "members", "Members of the federation by state.", ("state",),
            {(state,): count for state, count in states.items()},
        )  # fmt: skip
        yield exposition.gauges(
            "node_online", "1 if an enrolled node has asked for something within the last minute.", ("name",),
            {(name,): float(at is not None and now - at.at < ONLINE_S) for name, at in enrolled.items()},
        )  # fmt: skip
        yield exposition.gauges(
            "node_last_seen_timestamp_seconds", "Last request of an enrolled node, Unix time; 0 before the first.",
            ("name",), {(name,): 0.0 if at is None else at.at for name, at in enrolled.items()},
        )  # fmt: skip

    def _of_runs(self, runs: list[Run]) -> "Iterator[Metric]":
        studies = {run.id: self.store.study(run.study) for run in runs}
        labels = {run: (run, study.name) for run, study in studies.items()}
        last = {run.id: self.store.last_commit(run.id) for run in runs}
        named = ("run", "study")
        yield exposition.gauges(
            "run_rounds_committed", "Committed rounds of a run that is not over.", named,
            {labels[run.id]: last[run.id][0] for run in runs},
        )  # fmt: skip
        yield exposition.gauges(
            "run_rounds_planned", "Rounds of its study.", named,
            {labels[run]: _planned(study) for run, study in studies.items()},
        )  # fmt: skip
        yield exposition.gauges(
            "run_progress_timestamp_seconds", "When it committed its last round, or was started, Unix time.", named,
            {labels[run.id]: last[run.id][1] or run.created_at for run in runs},
        )  # fmt: skip
        yield exposition.gauges(
            "run_heartbeat_timestamp_seconds", "Last heartbeat of its driver, Unix time; 0 before the first.", named,
            {labels[run.id]: run.heartbeat for run in runs},
        )  # fmt: skip

    def _certificates(self) -> dict[tuple[str, str], bytes]:
        found = {("server", ""): self.pki.certificate_path, ("ca", ""): self.pki.ca_path}
        parties = {
            ("party", node.name): node.party_certificate.encode()
            for node in self.store.nodes()
            if node.party_certificate and node.enrolled_at and not node.revoked_at
        }
        return {label: path.read_bytes() for label, path in found.items() if path.exists()} | parties


def _planned(study: StudyRow) -> int:
    """Finds how many rounds a study has, in its text alone: the whole study takes seconds of imports."""
    return int(json.loads(study.canonical)["draft"]["rounds"]["rounds"])

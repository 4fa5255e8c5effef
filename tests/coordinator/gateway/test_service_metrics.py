"""What the monitor tells of a server: store, certificates and ledgers are real, SuperLink and gate are set by hand."""

import contextlib
import datetime as dt
import math
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import delete

from confide.client_node.supervision import Pulse
from confide.client_node.supervision.exposition import of_certificates
from confide.coordinator.errors import StoreUnavailable
from confide.coordinator.federation.serving import SeenNode
from confide.coordinator.gateway.service_metrics import ServiceMetrics
from confide.coordinator.ledger_standings import Ledgers
from confide.coordinator.store.ledger_replica import LedgerReplica
from confide.coordinator.store.states import RunState
from confide.coordinator.store.tables import LedgerRow, NodeRow, Run
from confide.privacy.ledger.standings import standings

from ...client_node.conftest import certificate_of, identity_of, key_of
from ...privacy.ledgers import budget, charge
from ..conftest import PARTIES, SITES, Federation, committed_round


@dataclass
class Parts:
    """The server's parts, as a test wants them."""

    is_up: bool = True
    is_ready: bool = True
    is_alive: bool = True
    log_path: str = "superlink.log"
    seen: dict = field(default_factory=dict)
    admitted: Counter = field(default_factory=Counter)
    refused: Counter = field(default_factory=Counter)
    sent_bytes: int = 0


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def parts():
    return Parts()


@pytest.fixture
def metrics(federation: Federation, parts):
    return ServiceMetrics(
        home=federation.home, store=federation.store, pki=federation.pki, superlink=parts, drivers=parts, gate=parts,
        server=parts, pulse=Pulse(Clock()), trouble=lambda: "", ledgers=Ledgers(federation.store),
    )  # fmt: skip


def samples(metrics):
    text = metrics.answers().metrics().decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_server_whose_tick_or_gate_stands_still_is_not_alive(metrics, parts):
    assert metrics.alive().is_well
    metrics.pulse.beat("the server's tick", within_s=120)
    metrics.pulse._clock.now += 121
    assert metrics.alive().reasons == ("the server's tick shows no sign of life.",)
    parts.is_alive = False
    assert "the gate has ended." in metrics.ready().reasons


def test_a_server_is_ready_when_all_its_parts_are(metrics, parts, monkeypatch):
    assert metrics.ready().is_well
    parts.is_up = parts.is_ready = False
    monkeypatch.setattr("confide.coordinator.gateway.service_metrics.has_room", lambda folder: False)
    assert [reason.split()[1] for reason in metrics.ready().reasons] == ["SuperLink", "drivers'", "disk"]


def test_a_database_that_cannot_be_used_is_told_and_what_it_holds_is_left_out(metrics, federation):
    (federation.home / "coordinator.db").write_bytes(b"no database" * 1000)
    for name in ("coordinator.db-wal", "coordinator.db-shm"):
        with contextlib.suppress(FileNotFoundError):
            (federation.home / name).unlink()
    federation.store.close()
    (reason,) = metrics.ready().reasons
    assert reason.startswith("the database: ")
    found = samples(metrics)
    assert found["confide_database_up",] == 0
    assert found["confide_superlink_up",] == 1
    assert not [name for name, *_ in found if name.startswith("confide_runs")]


def test_members_are_counted_and_seen(metrics, federation, parts):
    parts.seen = {"svi": SeenNode(at=time.time()), "rest": SeenNode(at=1000.0)}
    federation.change("other", revoked_at=1.0)
    with federation.store.session() as session:
        session.add(NodeRow(name="guest", roles="train", invite_digest="0" * 64))
    found = samples(metrics)
    assert {state: found["confide_members", state] for state in ("enrolled", "invited", "revoked")} == {
        "enrolled": len(SITES) + len(PARTIES) - 1, "invited": 1, "revoked": 1,
    }  # fmt: skip
    assert [found["confide_node_online", name] for name in ("svi", "rest", "svhc")] == [1, 0, 0]
    assert [found["confide_node_last_seen_timestamp_seconds", name] for name in ("rest", "svhc")] == [1000.0, 0]
    assert ("confide_node_online", "other") not in found
    assert ("confide_node_online", "guest") not in found


def test_runs_are_counted_and_those_that_are_not_over_followed(metrics, federation):
    study = federation.create()
    states = {"one": RunState.RUNNING, "two": RunState.DONE, "three": RunState.DONE}
    with federation.store.session() as session:
        session.add_all(
            Run(id=name, study=study.study_hash, state=state, created_at=50.0, heartbeat=77.0, lease=1)
            for name, state in states.items()
        )
    before = samples(metrics)
    assert before["confide_run_progress_timestamp_seconds", "one", study.draft.name] == 50.0
    rows = [committed_round(1, run="one", sent=7), committed_round(1, run="two"), committed_round(2, run="two")]
    rows[0].committed_at = 60.0
    with federation.store.session() as session:
        session.add_all(rows)
    found = samples(metrics)
    assert found["confide_database_bytes",] > 100_000
    label = ("one", study.draft.name)
    assert found["confide_runs", "running"] == 1
    assert found["confide_runs", "done"] == 2
    assert found["confide_runs", "failed"] == 0
    assert found["confide_rounds_committed_total",] == 3
    assert found["confide_sealed_bytes_per_site_total",] == 7 + 1 + 1
    assert found["confide_run_rounds_committed", *label] == 1
    assert found["confide_run_rounds_planned", *label] == study.draft.rounds.rounds
    assert found["confide_run_heartbeat_timestamp_seconds", *label] == 77.0
    assert found["confide_run_progress_timestamp_seconds", *label] == 60.0
    assert not [labels for labels in found if labels[0].startswith("confide_run_") and labels[1] != "one"]


def test_certificates_end_when_they_say(metrics, federation):
    found = samples(metrics)
    in_398_days = (dt.datetime.now(dt.UTC) + dt.timedelta(days=398)).timestamp()
    name = "confide_certificate_expiry_timestamp_seconds"
    assert found[name, "server", ""] == pytest.approx(in_398_days, abs=2 * 86400)
    assert {labels[1:] for labels in found if labels[0] == name} == {
        ("server", ""), ("ca", ""), *(("party", party) for party in PARTIES),
    }  # fmt: skip


def test_budgets_are_those_of_the_replicated_ledgers(metrics, federation, tmp_path):
    from confide.privacy.ledger.ledger import Ledger

    with Ledger.open(tmp_path / "svi.db", key_of("svi"), "svi") as ledger:
        ledger.set_budget(budget(8.0))
        ledger.reserve(charge(1))
        LedgerReplica(federation.store).extend("svi", identity_of("svi"), ledger.entries())
        assert ("confide_epsilon_cap", "thyroid", "svi", "patient") not in samples(metrics)  # not read yet
        metrics.ledgers.look()
        first = samples(metrics)["confide_epsilon_guaranteed", "thyroid", "svi", "patient"]
        assert first == ledger.spent("thyroid", "patient", 1, 1e-5).guaranteed
        ledger.reserve(charge(2))
        LedgerReplica(federation.store).extend("svi", identity_of("svi"), ledger.entries())
        metrics.ledgers.look()
        found = samples(metrics)
        assert found["confide_epsilon_guaranteed", "thyroid", "svi", "patient"] > first
        assert found["confide_epsilon_cap", "thyroid", "svi", "patient"] == 8.0
        assert found["confide_ledger_readable", "svi"] == 1
        assert standings(metrics.ledgers._replica.books("svi")) == ledger.standings()


def test_a_database_that_was_away_for_a_moment_hides_no_budget(federation, monkeypatch):
    ledgers = Ledgers(federation.store)
    asked = []

    def books(name):
        asked.append(name)
        raise StoreUnavailable("away")

    names = [node.name for node in federation.store.nodes()]
    monkeypatch.setattr(federation.store, "ledger_lengths", lambda: dict.fromkeys(names, 3))
    monkeypatch.setattr(ledgers._replica, "books", books)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            ledgers.look()
    assert len(asked) == 2


def test_a_party_s_certificate_that_is_none_is_left_out():
    pem = certificate_of("agg-a").encode()
    found = of_certificates({("party", "agg-a"): pem, ("party", "agg-b"): b"not a certificate"})
    assert [sample.labels["name"] for sample in found.samples] == ["agg-a"]


def test_a_replica_that_somebody_changed_is_told(metrics, federation, tmp_path):
    from confide.privacy.ledger.ledger import Ledger

    with Ledger.open(tmp_path / "svi.db", key_of("svi"), "svi") as ledger:
        ledger.set_budget(budget(8.0))
        LedgerReplica(federation.store).extend("svi", identity_of("svi"), ledger.entries())
    with federation.store.session() as session:
        session.execute(delete(LedgerRow).where(LedgerRow.seq == 0))
    metrics.ledgers.look()
    found = samples(metrics)
    assert found["confide_ledger_readable", "svi"] == 0
    assert not [labels for labels in found if labels[0] == "confide_epsilon_guaranteed"]
    assert math.isfinite(found["confide_disk_free_bytes",])


def test_what_the_gate_counts_is_told(metrics, parts):
    parts.admitted["give"] += 3
    parts.refused["unknown"] += 2
    parts.sent_bytes = 99
    found = samples(metrics)
    assert found["confide_gate_requests_total", "give"] == 3
    assert found["confide_gate_refusals_total", "unknown"] == 2
    assert found["confide_gate_sent_bytes_total",] == 99

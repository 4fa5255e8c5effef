import json
import re
import sqlite3

import pytest
from prometheus_client.parser import text_string_to_metric_families

from confide.client_node.approval.charges import open_ledger
from confide.client_node.enrolment import Enrolment
from confide.client_node.node_metrics import NodeMetrics
from confide.client_node.vitals import Vitals

from ..privacy.ledgers import budget, charge
from .conftest import site_in

CLOCK = re.compile(r"^confide_(?:clock|start)_time_seconds .*$", re.MULTILINE)


def metrics_of(site, *, vitals=None):
    enrolment = Enrolment.load(site.home)
    ledger = open_ledger(site.home, site.identity, enrolment)
    return NodeMetrics(home=site.home, enrolment=enrolment, vitals=vitals or Vitals(), ledger=ledger)


def samples(metrics):
    text = metrics.answers().metrics().decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_site_tells_the_same_whatever_its_table_holds(tmp_path):
    """One has two records, the other 50,000, with all files beside them that grow with a table."""
    told = []
    for name, rows in (("small", 2), ("large", 50_000)):
        (tmp_path / name).mkdir()
        site = site_in(tmp_path / name)
        table = site.home / "patients.csv"
        head, first = table.read_text().splitlines()[:2]
        table.write_text("\n".join([head, *[first] * rows]) + "\n")
        metrics = metrics_of(site)
        (site.home / "kept-states").mkdir()
        (site.home / "kept-states" / "states").write_bytes(bytes(rows * 2000))
        (site.home / "units.db").write_bytes(bytes(rows * 100))
        metrics.ledger.set_budget(budget())
        metrics.ledger.reserve(charge(1))
        text = metrics.answers().metrics().decode()
        ready = metrics.ready()
        told.append((CLOCK.sub("", text), ready))
        assert "confide_epsilon_guaranteed" in text
        metrics.ledger.close()
    assert told[0] == told[1]


def test_nothing_is_told_of_processor_time_memory_or_the_disk_of_a_site_that_trains(site):
    names = {name for name, *_ in samples(metrics_of(site))}
    assert {name for name in names if not name.startswith("confide_")} == set()
    assert not [name for name in names if re.search("cpu|memory|gc_|disk_free|duration|bucket|_sum|created", name)]


def test_budgets_are_those_of_the_ledger(site):
    metrics = metrics_of(site)
    metrics.ledger.set_budget(budget(8.0))
    metrics.ledger.reserve(charge(1))
    found = samples(metrics)
    label = ("thyroid", "svi", "patient")
    assert found["confide_epsilon_cap", *label] == 8.0
    assert found["confide_epsilon_guaranteed", *label] == metrics.ledger.spent("thyroid", "patient", 1, 1e-5).guaranteed
    assert 0 < found["confide_budget_filled_ratio", *label] < 1


def test_an_aggregator_tells_its_disk_and_no_ledger(site):
    kept = json.loads((site.home / "enrolment.json").read_text())
    (site.home / "enrolment.json").write_text(
        json.dumps(kept | {"roles": ["aggregate"], "party_address": "127.0.0.1:7000"})
    )
    metrics = NodeMetrics(home=site.home, enrolment=Enrolment.load(site.home), vitals=Vitals(), ledger=None)
    found = samples(metrics)
    assert found["confide_disk_free_bytes",] > 0
    assert not [name for name, *_ in found if "epsilon" in name or "ledger" in name]


def test_a_node_is_ready_once_it_is_connected_and_its_ledger_can_be_written(site, monkeypatch):
    vitals = Vitals()
    metrics = metrics_of(site, vitals=vitals)
    (reason,) = metrics.ready().reasons
    assert reason.startswith("not connected to 127.0.0.1:1: ")
    vitals.connected()
    assert metrics.ready().is_well
    monkeypatch.setattr("confide.client_node.node_metrics.has_room", lambda folder: False)
    assert metrics.ready().reasons == ("the home folder's disk is full.",)


@pytest.mark.slow
def test_a_ledger_that_another_process_holds_is_told(site, monkeypatch):
    monkeypatch.setattr("confide.privacy.ledger.entry_store.WAIT_S", 0.2)
    vitals = Vitals()
    vitals.connected()
    metrics = metrics_of(site, vitals=vitals)
    other = sqlite3.connect(site.home / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    (reason,) = metrics.ready().reasons
    assert "ledger.db cannot be used" in reason
    other.execute("ROLLBACK")
    assert metrics.ready().is_well
    other.close()

"""A node's check-up, against the real gate where it asks one."""

import json
import socket

import pytest
from typer.testing import CliRunner

from confide.client_node import doctor, health
from confide.client_node.cli.main import app
from confide.client_node.data.known_units import KnownUnits
from confide.client_node.doctor import examine_node
from confide.client_node.enrolment.protocol import enrol
from confide.client_node.policy import decisions, load_policy

from .conftest import SITE_TOML
from .enrolment.test_protocol import federation, pki

__all__ = ["federation", "pki"]  # fixtures


def of(findings, check):
    return [(each.state, each.detail) for each in findings if each.check == check]


@pytest.fixture
def quick(monkeypatch):
    """Leaves out what loads torch, and what starts a process."""
    monkeypatch.setattr(doctor, "CHECKS", tuple(each for each in doctor.CHECKS if each is not doctor._versions))


@pytest.mark.usefixtures("quick")
def test_an_empty_home_says_what_is_to_be_done(tmp_path):
    findings = examine_node(tmp_path / "none")
    assert of(findings, "enrolment") == [("failed", "in no federation yet")]
    assert [each.remedy for each in findings if each.check == "enrolment"] == ["client-node enroll CODE"]


@pytest.mark.usefixtures("quick")
def test_a_node_that_is_well_has_nothing_failed(federation, tmp_path):
    enrol(federation.code, tmp_path)
    (tmp_path / "patients.csv").write_text("patient_id,ill\n" + "".join(f"p{i},{i % 2}\n" for i in range(20)))
    (tmp_path / "site.toml").write_text(SITE_TOML)
    findings = examine_node(tmp_path)
    assert of(findings, "clock") == [("ok", "within 30 s of the coordinator's")]
    assert of(findings, "coordinator")[0][0] == of(findings, "coordinator's certificate")[0][0] == "ok"
    assert of(findings, "table") == [("ok", "20 rows of 20 units")]
    assert of(findings, "daemon")[0][0] == "warning"
    assert of(findings, "backbone")[0][0] == "warning"
    assert {each.check for each in findings if each.state == "failed"} == {"studies"}  # the test's gate offers no study


@pytest.mark.usefixtures("quick")
def test_what_is_broken_is_found(site):
    (site.home / "keys" / "identity.key").chmod(0o644)
    (site.home / "patients.csv").write_text("patient_id\n")
    (site.home / "ca.crt").write_text("none")
    findings = {each.check: each for each in examine_node(site.home)}
    assert "identity.key can be read by others" in findings["secret files"].detail
    assert "chmod 600" in findings["secret files"].remedy
    assert findings["keys"].state == findings["table"].state == findings["coordinator"].state == "failed"
    assert "rows below the header" in findings["table"].detail


@pytest.mark.usefixtures("quick")
def test_decisions_that_wait_are_told(site, monkeypatch):
    monkeypatch.setattr("confide.client_node.approval.catalogue.fetch_studies", lambda home: [])
    study = site.keep(site.study())
    assert of(examine_node(site.home), "approvals") == [("warning", "thyroid waits for a decision")]
    decisions.approve(site.home, study.study_hash)
    assert of(examine_node(site.home), "approvals") == [("ok", "thyroid: approved")]
    decisions.count_run(site.home, study.study_hash, "run-1", allowed=1)
    assert of(examine_node(site.home), "approvals") == [("warning", "thyroid: 1 of 1 runs begun")]


def test_an_aggregator_s_port_that_is_taken_is_found(site):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        facts = json.loads((site.home / "enrolment.json").read_text())
        (site.home / "enrolment.json").write_text(json.dumps(facts | {"party_address": f"127.0.0.1:{port}"}))
        assert "cannot listen" in doctor._party_address(doctor._Node(site.home)).detail
    assert doctor._party_address(doctor._Node(site.home)).state == "ok"


def test_an_aggregator_behind_a_router_is_looked_at_where_it_listens(site):
    facts = json.loads((site.home / "enrolment.json").read_text())
    (site.home / "enrolment.json").write_text(json.dumps(facts | {"party_address": "agg.example.org:7001"}))
    assert "party.listen" in doctor._party_address(doctor._Node(site.home)).remedy
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    site.write(("[limits]", f'[party]\nlisten = "127.0.0.1:{port}"\n[limits]'))
    found = doctor._party_address(doctor._Node(site.home))
    assert (found.state, "agg.example.org:7001 has to lead" in found.detail) == ("ok", True)


@pytest.mark.process
@pytest.mark.slow
def test_crypten_is_imported_in_a_process_of_its_own():
    assert doctor._crypten().state == "ok"


@pytest.mark.parametrize(("free", "state"), [(2**29, "failed"), (2**32, "warning"), (2**40, "ok")])
def test_little_room_is_told(monkeypatch, tmp_path, free, state):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    assert [each.state for each in health.disk_space(tmp_path)] == [state]


def test_a_module_that_cannot_be_imported_is_told():
    ok, failed = health.versions("torchh")
    assert (ok.state, failed.state) == ("ok", "failed")
    assert "torchh" in failed.detail


@pytest.mark.usefixtures("quick")
def test_the_command_prints_one_line_a_check_and_fails_if_one_has(tmp_path):
    command = ["doctor", "--home", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "FAILED   enrolment: in no federation yet\n         -> client-node enroll CODE" in result.stdout
    rows = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert {row["state"] for row in rows} <= {"ok", "warning", "failed"}


@pytest.mark.usefixtures("quick")
def test_a_ledger_that_is_gone_is_told_and_not_made_anew(site):
    (site.home / "keys" / "ledger.head").write_text("{}")
    assert of(examine_node(site.home), "ledger") == [("failed", "ledger.db is gone")]
    assert not (site.home / "ledger.db").exists()


@pytest.mark.usefixtures("quick")
def test_an_aggregator_is_told_of_sites_that_nobody_has_confirmed(site, monkeypatch):
    monkeypatch.setattr("confide.client_node.approval.catalogue.fetch_studies", lambda home: [])
    site.keep(site.study(('"agg-a"', '"svi"'), ('sites = ["other", "svi"', 'sites = ["other", "third"')))
    ((state, detail),) = of(examine_node(site.home), "confirmed sites")
    assert state == "warning"
    assert "4 in doubt for thyroid, the first: other is not confirmed" in detail
    assert "client-node site confirm other=FINGERPRINT" in detail


@pytest.mark.usefixtures("quick")
def test_a_lost_file_of_known_people_is_told(site):
    assert of(examine_node(site.home), "known people") == [("ok", "nobody was noted yet")]
    KnownUnits(site.home).cover(load_policy(site.home))
    assert of(examine_node(site.home), "known people") == [("ok", "noted under patients/patient")]
    (site.home / "units.db").unlink()
    (found,) = of(examine_node(site.home), "known people")
    assert found[0] == "failed"
    assert "units.db is gone" in found[1]


@pytest.mark.usefixtures("quick")
def test_a_node_that_only_aggregates_may_have_limits_alone(site):
    site.aggregate()
    path = site.home / "site.toml"
    path.write_text('[schedule]\nhours = ["22:00-06:00"]\n')
    assert of(examine_node(site.home), "site.toml") == [("ok", "limits of a node that only aggregates")]
    path.write_text('[schedule]\nhours = ["22-6"]\n')
    assert any("two different times of day" in each.detail for each in examine_node(site.home))

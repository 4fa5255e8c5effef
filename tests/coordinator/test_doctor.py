"""A coordinator's check-up, with the real gate where one must answer."""

import datetime as dt
import json
import shutil
import socket

import pytest

from confide.client_node import health
from confide.coordinator import doctor
from confide.coordinator.doctor import examine_coordinator
from confide.coordinator.federation import Pki, Settings, create_home, members, opened_store
from confide.coordinator.store.tables import NodeRow, Run
from confide.coordinator.studies.create import create_study
from confide.machine import free_ports

from ..client_node.conftest import STUDY_TOML, changed
from .conftest import enrolled_nodes
from .open_gate import open_gate


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", tuple(each for each in doctor.CHECKS if each is not doctor._versions))


@pytest.fixture
def home(tmp_path):
    ports = free_ports(2)
    create_home(
        tmp_path / "home",
        Settings(federation="f", address=f"127.0.0.1:{ports[0]}", listen="127.0.0.1", port=ports[0],
                 superlink_port=ports[1]),
    )  # fmt: skip
    return tmp_path / "home"


def of(home, check):
    return [(each.state, each.detail) for each in examine_coordinator(home) if each.check == check]


def test_a_folder_without_a_federation_says_so(tmp_path):
    (found,) = of(tmp_path, "settings")
    assert (found[0], "run `coordinator init` first" in found[1]) == ("failed", True)


def test_a_new_federation_has_nothing_failed(home):
    findings = examine_coordinator(home)
    assert [each for each in findings if each.state == "failed"] == []
    warned = {each.check: each.remedy for each in findings if each.state == "warning"}
    assert warned == {"gate": "coordinator serve", "nodes": "coordinator site invite NAME..."}


def test_a_gate_that_answers_is_asked(home):
    with open_gate(home):
        assert of(home, "coordinator")[0][0] == "ok"
        assert of(home, "clock") == [("ok", "within 30 s of the coordinator's")]


def test_another_program_at_the_gate_s_port_is_found(home):
    port = json.loads((home / "settings.json").read_text())["port"]
    with socket.create_server(("127.0.0.1", port)) as other:
        other.settimeout(0.1)
        health_timeout, health._TIMEOUT_S = health._TIMEOUT_S, 0.5
        try:
            assert of(home, "coordinator")[0][0] == "failed"
        finally:
            health._TIMEOUT_S = health_timeout


def test_a_certificate_that_ends_soon_is_told(home, monkeypatch):
    monkeypatch.setattr(health, "_SOON", dt.timedelta(days=400))
    ((state, detail),) = of(home, "gate's certificate")
    assert (state, "days are left" in detail) == ("warning", True)


def test_a_certificate_for_another_name_is_found(home):
    plain = json.loads((home / "settings.json").read_text())
    (home / "settings.json").write_text(json.dumps(plain | {"address": "localhost.example:1"}))
    assert ("failed", "it is for 127.0.0.1, localhost, not localhost.example") in of(home, "gate's certificate")


def test_invitations_that_wait_or_are_too_old_are_told(home):
    with opened_store(home) as store:
        members.invite(store, home, [("north", ["train"]), ("south", ["train"])])
        with store.session() as session:
            session.get(NodeRow, "south").invite_expires = 1.0
    assert of(home, "invitations") == [("warning", "not used yet: north"), ("warning", "expired: south")]


@pytest.mark.slow
def test_a_study_whose_backbone_is_gone_and_a_run_that_nobody_drives_are_found(home, backbone, tmp_path):
    folder = shutil.copytree(backbone, tmp_path / "backbone")
    (tmp_path / "study.toml").write_text(changed(STUDY_TOML, (("some/where/backbone", str(folder)),)))
    with opened_store(home) as store:
        with store.session() as session:
            session.add_all(enrolled_nodes())
        study = create_study(store, Pki.load(home), home, tmp_path / "study.toml")
        with store.session() as session:
            session.add(Run(id="thyroid-1", study=study.study_hash, state="running", created_at=0.0))
    assert of(home, "study thyroid")[0][0] == "ok"
    assert of(home, "run thyroid-1") == [("warning", "running, and nobody drives it")]
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert "another backbone" in of(home, "study thyroid")[0][1]
    shutil.rmtree(folder)
    assert "is no folder" in of(home, "study thyroid")[0][1]

import re
import time

import pytest

from confide.client_node.wire.checkpoints import DIGESTS_A_MESSAGE
from confide.coordinator.federation import Settings, create_home, members
from confide.coordinator.federation.serving import SeenNode, Serving, note_serving, only_server
from confide.coordinator.run import glance as glance_module
from confide.coordinator.run.glance import look
from confide.coordinator.store.store import Store
from confide.coordinator.store.tables import CountersignatureRow, Run, StudyRow

from ...client_node.conftest import STUDY_TOML, build_study
from ..conftest import PARTIES, SITES, enrolled_nodes, put_in_state


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "home"
    create_home(home, Settings(federation="f", address="127.0.0.1:1", listen="127.0.0.1", port=1, superlink_port=2))
    return home


@pytest.fixture
def store(home, tmp_path):
    """Four enrolled sites, three aggregators, and a run of a study of all."""
    (tmp_path / "study.toml").write_text(STUDY_TOML)
    study = build_study(tmp_path / "study.toml", {})
    opened = Store.open(home)
    with opened.session() as session:
        session.add_all(enrolled_nodes())
        session.add(
            StudyRow(hash=study.study_hash, name="thyroid", canonical=study.canonical(), signature="", created_at=0.0)
        )
    with opened.session() as session:
        session.add(Run(id="run-1", study=study.study_hash, state="pending", created_at=0.0))
    yield opened
    opened.close()


@pytest.fixture
def served(home):
    """Notes what a running server would, with all nodes online but those named."""
    with only_server(home):

        def note(*away, trouble="", superlink=True, versions=None, age=0.0, apart=None):
            versions = dict.fromkeys((*SITES, *PARTIES), "x") | (versions or {})
            nodes = {
                name: SeenNode(at=time.time() - (300 if name in away else 1), version=version, protocol=2)
                for name, version in versions.items()
            }
            serving = Serving(
                since=1.0, noted=time.time() - age, version="x", superlink=superlink, worker=True, trouble=trouble,
                nodes=nodes, apart=apart or {},
            )  # fmt: skip
            note_serving(home, serving)

        note()
        yield note


def test_a_federation_at_work_worries_nobody(store, home, served):
    found = look(store, home)
    assert found.worries == []
    assert [each.online for each in found.members] == [True] * len(SITES + PARTIES)
    assert [run.run for run in found.runs] == ["run-1"]


def test_a_run_that_nobody_drives_is_told_without_a_server(store, home):
    found = look(store, home)
    assert found.worries == ["nobody serves this federation, and run-1 waits: start `coordinator serve`"]
    assert {each.online for each in found.members} == {None}
    assert {each.last_seen for each in found.members} == {None}


@pytest.mark.parametrize("name", ["svi", "agg-b"])
def test_a_node_that_is_away_is_named_with_each_run_that_needs_it(store, home, served, name):
    served(name)
    (worry,) = look(store, home).worries
    assert worry == f"run run-1: away {name} (last seen 5 min ago)"
    put_in_state(store, "run-1", "done")
    assert look(store, home).worries == []


def test_a_revoked_node_is_neither_online_nor_away(store, home, served):
    members.revoke(store, home, "svi")
    found = look(store, home)
    assert {each.name: each.online for each in found.members}["svi"] is None


@pytest.mark.parametrize(
    ("change", "told"), [(-100, r"1[01]\d s"), (115, r"1[01]\d s"), (-11_001, "3 h")],
    ids=["some time ago", "still to come, as the clock was put back", "hours ago"],
)  # fmt: skip
def test_a_silent_driver_is_told(store, home, served, change, told):
    store.begin_driving("run-1", store.acquire_lease("run-1"))
    assert look(store, home).worries == []
    with store.session() as session:
        session.get(Run, "run-1").heartbeat += change
    (worry,) = look(store, home).worries
    assert re.fullmatch(f"run run-1: its driver has been silent for {told}", worry)


def test_trouble_of_the_server_and_other_versions_are_told(store, home, served):
    versions = {"svi": "0.9.0", "agg-a": "0.9.0", "rest": "0.8.0"}
    apart = {"svhc": "svhc runs another one: upgrade svhc first"}
    served("rest", trouble="the SuperLink does not answer", versions=versions, apart=apart)
    first, *others = look(store, home).worries
    assert first == "the server is in trouble: the SuperLink does not answer"
    assert "svhc runs another one: upgrade svhc first" in others
    beside = "agg-a, svi: confide 0.9.0 beside x here; both speak protocol 2, so runs go on (docs/versions.md)"
    assert [each for each in others if "confide 0." in each] == [beside]  # one that is away says nothing of today
    served(superlink=False)
    assert look(store, home).worries == ["the SuperLink does not answer yet; no node can connect"]


def test_a_server_that_has_noted_nothing_for_long_says_nothing_of_its_nodes(store, home, served):
    """Its disk is full, say: what it noted last would show every node as away."""
    served("svi", age=300.0)
    found = look(store, home)
    (worry,) = found.worries
    assert worry.startswith("the server has noted nothing for 5 min: its disk is full, or it hangs")
    assert {each.online for each in found.members} == {None}


def test_certificates_that_cannot_be_read_are_one_worry_among_others(store, home, served):
    (home / "pki" / "server.crt").write_bytes(b"")
    (worry,) = look(store, home).worries
    assert worry.startswith("certificates and keys: ")
    assert "server.crt" in worry


def test_a_disk_that_fills_up_is_told(store, home, served, monkeypatch):
    monkeypatch.setattr(glance_module, "LEAST_FREE", 1 << 60)
    (worry,) = look(store, home).worries
    assert worry.startswith(f"the disk of {home} has ")


def test_nodes_that_lag_behind_the_audit_log_by_more_than_a_message_are_told(store, home, served):
    def note(count):
        with store.session() as session:
            for _ in range(count):
                store.log_action(session, "serve.stop")

    def sign(names, seq):
        with store.session() as session:
            session.add_all(
                CountersignatureRow(
                    site=name, seq=seq, time="2026-01-01T00:00:00Z", decisions=-1, decisions_hash="", identity="",
                    signature="",
                )
                for name in names
            )  # fmt: skip

    note(DIGESTS_A_MESSAGE - 1)  # `init` made one
    assert look(store, home).worries == []
    note(10)
    sign(PARTIES, DIGESTS_A_MESSAGE + 9)
    sign(SITES[1:], 9)
    (worry,) = look(store, home).worries
    told = f"{SITES[0]} {DIGESTS_A_MESSAGE + 10}"
    assert worry.startswith(f"entries of the audit log that nodes have not countersigned: {told};")
    sign(SITES[:1], 9)
    assert look(store, home).worries == []


def test_a_node_that_refuses_the_log_is_told_with_the_entry_it_showed(store, home, served):
    for held, words in ((7, "it has signed entry 7 of another state of it"), (-1, "it shows no entry that this")):
        with store.session() as session:
            store.log_action(session, "log.refused", site="svi", reason="forked", held=held)
        (worry,) = look(store, home).worries
        assert words in worry

"""The commands by which a CA, or the signing key, has a successor, at both ends."""

import json

import pytest

from confide.client_node.cli.main import app as node_app
from confide.client_node.policy import decision_log
from confide.coordinator import key_rotation
from confide.coordinator.store.tables import NodeRow

from ..rotating_gate import rotating_gate
from .test_main import FAILED, USAGE, CliRunner, invoke, lined


@pytest.fixture
def gate(tmp_path):
    with rotating_gate(tmp_path / "coordinator") as opened:
        yield opened


def node(*words, code=0):
    result = CliRunner().invoke(node_app, [str(word) for word in words], env={"COLUMNS": "400"})
    assert result.exit_code == code, result.output
    return result


@pytest.mark.slow
def test_a_rotation_by_commands(gate, tmp_path):
    home, north = ("--home", gate.home), ("--home", tmp_path / "north")
    gate.join(tmp_path / "north")
    gate.code("east")
    assert "No rotation is under way" in invoke("ca", "status", *home).stdout
    assert "Not known to trust the next CA yet: north." in invoke("ca", "rotate", *home).stdout
    refused = invoke("ca", "finish", "--yes", *home, code=FAILED)
    assert "north would be shut out" in lined(refused.stderr)
    gate.tick()
    assert len(json.loads(node("ca", "fetch", "--json", *north).stdout)) == 2
    assert "All nodes trust the next CA" in invoke("ca", "status", *home).stdout
    assert "Invite again: east" in lined(invoke("ca", "finish", *home, code=USAGE).stderr)  # nobody to ask
    done = json.loads(invoke("ca", "finish", "--yes", "--json", *home).stdout)
    assert (done["next"], done["lacking"], done["invited"]) == (None, [], [])
    gate.tick()
    (only,) = json.loads(node("ca", "fetch", "--json", *north).stdout)
    assert only == done["present"]
    assert "no rotation of the CA is under way" in lined(invoke("ca", "cancel", *home, code=FAILED).stderr)


def test_a_file_is_taken_when_a_person_agrees_and_the_decision_log_says_who(gate, tmp_path):
    home, north, file = ("--home", gate.home), ("--home", tmp_path / "north"), tmp_path / "authority.json"
    gate.join(tmp_path / "north")
    invoke("ca", "rotate", *home)
    invoke("ca", "finish", "--without", "north", "--yes", *home)
    written = json.loads(invoke("ca", "statement", file, "--json", *home).stdout)
    assert written["cas"][0] in node("ca", "accept", file, *north, code=USAGE).stderr
    assert json.loads(node("ca", "show", "--json", *north).stdout)[0]["sha256"] != written["cas"][0]
    (taken,) = json.loads(node("ca", "accept", file, "--yes", "--by", "Dr. A", "--json", *north).stdout)
    assert taken["sha256"] == written["cas"][0]
    (entry,) = decision_log.read(tmp_path / "north")[0]
    assert (entry.decision, entry.by, entry.about) == ("trust", "Dr. A", written["cas"][0])
    assert decision_log.verify(tmp_path / "north").problems == ()
    file.write_text("{}")
    assert "StatementRefused" in node("ca", "accept", file, "--yes", *north, code=FAILED).stderr


@pytest.mark.slow
def test_a_new_signing_key_by_commands(gate, tmp_path):
    home, north = ("--home", gate.home), ("--home", tmp_path / "north")
    gate.join(tmp_path / "north")
    first = gate.pki.identity_hex
    assert "Rotate the signing key?" in lined(invoke("keys", "rotate", *home, code=USAGE).stderr)  # nobody to ask
    assert gate.pki.identity_hex == first
    done = json.loads(invoke("keys", "rotate", "--yes", "--json", *home).stdout)
    assert (done["old"], done["new"]) == (first, gate.pki.identity_hex)
    gate.tick()
    node("ca", "fetch", *north)
    assert json.loads(node("status", "--json", *north).stdout)["coordinator_key"] == done["new"]
    said = lined(invoke("keys", "rotate", "--yes", *home).stdout)
    assert f"signs with the key {gate.pki.identity_hex} from now on" in said
    assert "coordinator backup" in said
    noted = json.loads(invoke("audit", "log", "--action", "keys.rotate", "--json", *home).stdout)
    assert [each["fields"]["old"] for each in noted] == [first, done["new"]]


@pytest.mark.slow
def test_who_has_heard_of_a_new_signing_key_by_command(gate, tmp_path, monkeypatch):
    home, north = ("--home", gate.home), ("--home", tmp_path / "north")
    assert "No node is enrolled." in invoke("keys", "status", *home).stdout
    gate.join(tmp_path / "north")
    gate.code("east")
    assert "There was no rotation: nodes know this key from their enrolment" in invoke("keys", "status", *home).stdout
    with monkeypatch.context() as patched:
        patched.setattr("confide.coordinator.federation.signing_keys.SigningKeys._statement", None)
        with pytest.raises(TypeError):
            key_rotation.rotate(gate.store, gate.home)
    assert "A rotation was cut off" in invoke("keys", "status", *home).stdout
    done = json.loads(invoke("keys", "rotate", "--yes", "--json", *home).stdout)
    said = lined(invoke("keys", "status", *home).stdout)
    assert said.endswith(
        "Not known to have heard of the present key: north. A daemon that is connected follows within a minute; have "
        "the people of the others run: client-node ca fetch"
    )
    for part in (done["old"], done["new"], done["time"], "unknown"):
        assert part in said
    assert "cut off" not in said
    assert "east" not in said  # it has not enrolled
    gate.tick()
    node("ca", "fetch", *north)
    assert lined(invoke("keys", "status", *home).stdout).endswith("All nodes know the present key.")
    assert json.loads(invoke("keys", "status", "--json", *home).stdout) == {
        "key": done["new"],
        "since": done["time"],
        "earlier": [{"key": done["old"], "until": done["time"]}],
        "cut_off": False,
        "nodes": {"north": {"knows": "present", "key": done["new"]}},
        "lacking": [],
        "strange": [],
    }
    with gate.store.session() as session:
        session.get_one(NodeRow, "north").known_key = "ab" * 32
    said = lined(invoke("keys", "status", *home).stdout)
    assert "This coordinator has not had the key that is shown of: north." in said
    assert "ab" * 32 in said

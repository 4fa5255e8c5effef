"""Setting up and turning out: what `init` refuses, what is asked first, and what hints tell people to type."""

import json
import os
import pty
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from confide.coordinator.cli.main import app
from confide.coordinator.federation import load_settings
from confide.coordinator.store import Store
from confide.coordinator.store.tables import Run, StudyRow

from ..conftest import enrolled_nodes

FAILED, USAGE = 1, 2


def invoke(*words, code=0, columns=None):
    env = {"COLUMNS": str(columns)} if columns else {}
    result = CliRunner().invoke(app, [str(word) for word in words], env=env)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def home(tmp_path):
    """A federation of those whom STUDY_TOML names."""
    home = tmp_path / "a home"
    invoke("init", "--home", home, "--host", "fed.example")
    store = Store.open(home)
    with store.session() as session:
        session.add_all(enrolled_nodes())
        session.add(StudyRow(hash="ab" * 32, name="thyroid", canonical=b"", signature="", created_at=0.0))
    with store.session() as session:
        session.add(Run(id="thyroid-0001", study="ab" * 32, state="running", created_at=time.time()))
    store.close()
    return home


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--port", "9443", "--superlink-port", "9443"], "--port and --superlink-port are both 9443"),
        (["--host", "my host"], "--host 'my host' is no name or address of a machine"),
        (["--host", "https://fed.example"], "--host 'https://fed.example' is no name"),
        (["--host", ""], "--host '' is no name"),
        (["--host", "192.0.2.300"], "--host '192.0.2.300' is no name"),
        (["--host", "-fed.example"], "--host '-fed.example' is no name"),
        (["--listen", ""], "--listen '' is no name"),
    ],
)
def test_init_refuses_what_cannot_work_and_makes_nothing(tmp_path, words, told):
    result = invoke("init", "--home", tmp_path / "home", *words, code=FAILED)
    assert told in result.stderr
    assert "nothing was made" in result.stderr
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("host", ["fed.example.org", "FED", "fed-1.example.", "192.0.2.7", "a1"])
def test_init_takes_names_and_addresses(tmp_path, host):
    invoke("init", "--home", tmp_path / "home", "--host", host)
    assert load_settings(tmp_path / "home").address == f"{host}:9443"


def test_init_leaves_a_folder_with_other_files_alone(tmp_path):
    for name in ("thesis.tex", "data", ".hidden", "b", "c"):
        (tmp_path / name).write_text("")
    result = invoke("init", "--home", tmp_path, code=FAILED)
    assert "holds other files (.hidden, b, c and more); nothing was changed" in result.stderr
    assert not (tmp_path / "pki").exists()


def test_an_init_that_was_cut_short_is_completed(home):
    (home / "settings.json").unlink()
    key = (home / "pki" / "signing.key").read_bytes()
    invoke("init", "--home", home, "--host", "fed.example")
    assert (home / "pki" / "signing.key").read_bytes() == key


def test_init_in_json_tells_the_settings(tmp_path):
    told = json.loads(invoke("init", "--home", tmp_path / "home", "--port", "7000", "--json").stdout)
    assert (told["home"], told["address"], told["port"]) == (str(tmp_path / "home"), "127.0.0.1:7000", 7000)


def test_a_relative_home_is_told_and_kept_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = invoke("init", "--home", "fed/coord").stdout
    whole = tmp_path / "fed" / "coord"
    assert f"made in {whole}. Next: coordinator serve --home {whole}; then: coordinator site invite NAME --home" in told


@pytest.mark.process
@pytest.mark.slow
def test_serve_runs_in_a_relative_home(tmp_path):
    """The SuperLink is a child that works in another folder."""
    command = [sys.executable, "-c", "from confide.coordinator.cli.main import app; app()"]
    ports = ["--port", "19543", "--superlink-port", "19544"]
    subprocess.run([*command, "init", "--home", "fed/coord", *ports], cwd=tmp_path, check=True, capture_output=True)
    serving = subprocess.Popen(
        [*command, "serve", "--home", "fed/coord"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    told = ""
    try:
        while "the SuperLink answers" not in told and (line := serving.stderr.readline().decode()):
            told += line
    finally:
        serving.terminate()
        told += serving.communicate(timeout=120)[1].decode()
    assert "the SuperLink answers" in told
    assert serving.returncode == 0
    assert "alembic" not in told


def test_hints_name_the_run_and_the_home(home):
    stopped = invoke("run", "stop", "thyroid-0001", "--home", home)
    assert stopped.stdout == (
        f"Run thyroid-0001 is stopped; go on with it later by: coordinator run resume thyroid-0001 --home '{home}'\n"
    )


def test_a_run_is_stopped_and_resumed_in_json(home):
    assert json.loads(invoke("run", "stop", "thyroid-0001", "--home", home, "--json").stdout) == {
        "run": "thyroid-0001", "state": "stopped",
    }  # fmt: skip
    assert json.loads(invoke("run", "resume", "thyroid-0001", "--home", home, "--json").stdout) == {
        "run": "thyroid-0001", "state": "pending", "round": 1,
    }  # fmt: skip


def state_of(home, name):
    store = Store.open(home)
    node = store.node(name)
    store.close()
    if node.left_at:
        return "left"
    return "revoked" if node.revoked_at else "enrolled" if node.enrolled_at else "invited"


def test_a_site_leaves_when_somebody_agrees_and_is_listed_as_one_that_may_come_back(home):
    told = invoke("site", "leave", "svi", "--home", home, code=USAGE).stderr
    assert "Runs under way go on without svi" in told
    assert state_of(home, "svi") == "enrolled"
    told = json.loads(invoke("site", "leave", "svi", "--home", home, "--yes", "--json").stdout)
    assert told == {"name": "svi", "state": "left"}
    assert state_of(home, "svi") == "left"
    listed = {
        each["name"]: each["state"] for each in json.loads(invoke("site", "list", "--home", home, "--json").stdout)
    }
    assert (listed["svi"], listed["rest"]) == ("left", "enrolled")
    assert json.loads(invoke("site", "invite", "svi", "--home", home, "--json").stdout)["code"]
    assert state_of(home, "svi") == "left"  # until it has come
    assert "has not enrolled" not in invoke("site", "leave", "nobody", "--home", home, "--yes", code=FAILED).stderr


def test_a_script_revokes_no_site_unless_it_says_yes(home):
    told = invoke("site", "revoke", "svi", "--home", home, code=USAGE).stderr
    assert "svi can never take part again, under this name or with its keys." in told
    assert "There is no terminal to ask at, so nothing was changed; a script says --yes" in told
    assert state_of(home, "svi") == "enrolled"
    told = json.loads(invoke("site", "revoke", "svi", "--home", home, "--yes", "--json").stdout)
    assert told == {"name": "svi", "state": "revoked"}
    assert state_of(home, "svi") == "revoked"


@pytest.mark.parametrize(("typed", "state"), [("svi\n", "revoked"), ("y\n", "enrolled"), ("SVI\n", "enrolled")])
def test_at_a_terminal_a_site_is_revoked_by_typing_its_name(home, monkeypatch, typed, state):
    ours, theirs = pty.openpty()
    os.write(ours, typed.encode())
    with os.fdopen(theirs) as keyboard:
        monkeypatch.setattr("sys.stdin", keyboard)
        code = app(["site", "revoke", "svi", "--home", str(home)], standalone_mode=False) or 0
    os.close(ours)
    assert (code, state_of(home, "svi")) == (0 if state == "revoked" else FAILED, state)


def test_an_invitation_is_withdrawn_without_a_question(home):
    invoke("site", "invite", "late", "--home", home)
    invoke("site", "revoke", "late", "--home", home)


def test_keys_are_whole_lines_in_a_narrow_terminal_and_cells_in_a_pipe(home):
    store = Store.open(home)
    known = {node.name: node.identity for node in store.nodes()}
    store.close()
    narrow = invoke("site", "list", "--home", home, columns=80).stdout.splitlines()
    piped = invoke("site", "list", "--home", home).stdout
    for name, identity in known.items():
        assert f"{name} identity: {identity}" in narrow
        assert identity in piped
    assert not any("identity:" in line for line in piped.splitlines())
    assert max(map(len, narrow)) <= 80 or all("identity:" in line for line in narrow if len(line) > 80)

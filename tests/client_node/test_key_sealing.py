"""A node's keys sealed by its commands: with whom they collide, how the daemon and its children get the passphrase."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from confide.client_node import identity_keys, key_sealing, passphrase, secret_files
from confide.client_node.approval import charges
from confide.client_node.approval.study_decisions import approve_study, propose
from confide.client_node.data import kept_files
from confide.client_node.data.known_units import KnownUnits
from confide.client_node.enrolment import Enrolment, NodeIdentity, identity, protocol
from confide.client_node.enrolment.sessions import only_one
from confide.client_node.errors import AlreadyRunning, KeysSealed
from confide.client_node.policy import decision_log, load_policy
from confide.client_node.shares import run_keys
from confide.client_node.succession import own_keys, rotation
from confide.privacy.ledger import canonical

SECRET = "correct horse battery"
CLIENT = "import sys; from confide.client_node.cli.main import app; app()"


@pytest.fixture
def passphrase_file(tmp_path):
    path = tmp_path / "passphrase"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def fresh(monkeypatch):
    """As in a process that has just started, where scrypt is quick."""
    monkeypatch.setattr(passphrase, "_SCRYPT_N", 2)
    monkeypatch.setattr(secret_files, "_keys", {})


@pytest.fixture
def given(fresh, monkeypatch, passphrase_file):
    monkeypatch.setenv("CONFIDE_PASSPHRASE_FILE", str(passphrase_file))


def is_sealed(path: Path) -> bool:
    return path.read_bytes().startswith(b"confide-sealed-key-1\n")


@pytest.mark.usefixtures("fresh")
def test_while_a_daemon_runs_nothing_is_changed(site, passphrase_file):
    with only_one(site.home), pytest.raises(AlreadyRunning):
        key_sealing.seal(site.home, passphrase_file)
    assert not is_sealed(site.home / "keys/identity.key")
    assert not (site.home / "sealing.json").exists()


@pytest.mark.usefixtures("fresh")
def test_without_a_passphrase_nothing_is_sealed(site):
    with pytest.raises(KeysSealed, match="no passphrase is given; nothing was changed. Name a file"):  # noqa: RUF043
        key_sealing.seal(site.home)
    assert not (site.home / "sealing.json").exists()


@pytest.mark.usefixtures("given")
def test_a_new_home_that_is_sealed_never_has_a_key_that_is_not(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        secret_files, "write_private", lambda p, d, w=secret_files.write_private: written.append(d) or w(p, d)
    )
    home = tmp_path / "new"
    assert key_sealing.seal(home).files == ()
    keys = NodeIdentity.create(home)
    protocol._make_party_certificate(home)
    run_keys.end(home, "run-1")
    kept_files._key(home)
    identity.next_key(home)
    names = (
        "keys/identity.key",
        "keys/transport.key",
        "keys/transport.next",
        "keys/kept-states.key",
        "party/party.key",
    )
    assert all(is_sealed(home / name) for name in (*names, "aggregator/run-keys/run-1.json"))
    assert not any(b"PRIVATE KEY" in data for data in written)
    identity.take_next_key(home)
    assert NodeIdentity.load(home).identity_hex == keys.identity_hex
    assert NodeIdentity.load(home).transport_fingerprint != keys.transport_fingerprint


@pytest.mark.usefixtures("given")
def test_a_rotation_whose_answer_was_lost_is_completed_after_sealing_and_another_one_follows(site, monkeypatch):
    sent, study, first = [], site.keep(site.study()), site.identity.identity_hex
    approve_study(site.home, propose(site.home, study.study_hash))
    monkeypatch.setattr(rotation.protocol, "send_signed", lambda request, *_: sent.append(request.successions))
    with monkeypatch.context() as killed:
        killed.setattr(own_keys, "keep_earlier", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            identity_keys.rotate(site.home)
    done = key_sealing.seal(site.home)
    assert sorted(done.changed) == ["keys/identity.key", "keys/identity.next", "keys/transport.key"]
    second = identity_keys.rotate(site.home).identity_hex
    assert sent[0] == sent[1]  # which the coordinator may have already
    third = identity_keys.rotate(site.home).identity_hex
    assert own_keys.of_home(site.home).all() == (first, second, third)
    assert [key.public for key in identity_keys.held(site.home)] == [first, third]  # the study names the first
    secret = [*(site.home / "keys").glob("*.key"), *(site.home / "keys").glob("*.next")]
    assert len(secret) == 3
    assert all(map(is_sealed, secret))
    assert not any(b"PRIVATE KEY" in path.read_bytes() for path in (site.home / "keys").iterdir())
    assert decision_log.verify(site.home).problems == ()
    with charges.open_ledger(site.home, NodeIdentity.load(site.home), Enrolment.load(site.home)) as ledger:
        assert ledger.keys == (first, second, third)
    key_sealing.unseal(site.home)
    assert canonical.public_hex(own_keys.of_home(site.home).find(first)) == first


@pytest.mark.usefixtures("given")
def test_the_key_of_peoples_marks_is_sealed_and_opens_what_it_marked(site):
    KnownUnits(site.home).cover(load_policy(site.home))
    known = KnownUnits(site.home).accounts()
    assert known
    key_sealing.seal(site.home)
    assert is_sealed(site.home / "keys/units.key")
    assert KnownUnits(site.home).accounts() == known
    KnownUnits(site.home).cover(load_policy(site.home))


def ask(home: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CONFIDE_", "CREDENTIALS_"))}
    command = [sys.executable, "-c", CLIENT, *words, "--home", str(home)]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=False)


@pytest.mark.process
@pytest.mark.slow
def test_the_command_seals_and_a_daemon_starts_with_a_credential_and_shows_no_passphrase(
    site, tmp_path, passphrase_file
):
    done = ask(site.home, "keys", "seal", "--passphrase-file", str(passphrase_file), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["changed"] == 2
    assert SECRET not in done.stdout + done.stderr

    refused = ask(site.home, "run")
    assert refused.returncode == 1
    assert "are sealed: set CONFIDE_PASSPHRASE_FILE" in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr
    shown = json.loads(ask(site.home, "status", "--json").stdout)
    assert shown["name"] == "svi"
    assert shown["keys"].startswith("sealed, and not opened here: ")

    credentials = tmp_path / "credentials"
    credentials.mkdir(mode=0o700)
    (credentials / "confide-passphrase").write_text(SECRET)
    (credentials / "confide-passphrase").chmod(0o400)
    log = tmp_path / "log"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CONFIDE_")}
    with log.open("w") as out:
        daemon = subprocess.Popen(
            [sys.executable, "-c", CLIENT, "run", "--home", str(site.home)],
            env=clean | {"CREDENTIALS_DIRECTORY": str(credentials)}, stdout=out, stderr=out,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while "svi starts" not in log.read_text():
            assert daemon.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for shown_to_all in ("cmdline", "environ"):
            assert SECRET.encode() not in Path("/proc", str(daemon.pid), shown_to_all).read_bytes()
        again = ask(site.home, "keys", "unseal", "--passphrase-file", str(passphrase_file))
        assert "a daemon serves" in again.stderr
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(timeout=300)
    assert SECRET not in log.read_text()
    assert is_sealed(site.home / "keys/identity.key")

    done = ask(site.home, "keys", "unseal", CONFIDE_PASSPHRASE_FILE=str(passphrase_file))
    assert done.returncode == 0, done.stderr
    assert json.loads(ask(site.home, "status", "--json").stdout)["keys"] == "not encrypted"

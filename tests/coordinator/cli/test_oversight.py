"""Who may use which command, and that whatever changes something stands in the audit log."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import typer

from confide.client_node.cli.application import application, group
from confide.coordinator.cli.guard import TOKEN_VARIABLE, commands, guard
from confide.coordinator.cli.main import app
from confide.coordinator.errors import CoordinatorError
from confide.coordinator.federation import load_settings
from confide.coordinator.federation.members import members
from confide.coordinator.oversight.roles import ANYONE, COMMANDS
from confide.coordinator.store import audit_log
from confide.coordinator.store.store import Store
from confide.privacy.audit.canaries import AuditDesign

from ..conftest import enrolled_nodes, logged
from ..hospital_ca import HospitalCa
from .test_main import (
    FAILED,
    UNVERIFIED,
    _new_home,
    add_run,
    call,
    create_study,
    home,
    invoke,
    lined,
    replicate_a_ledger,
    store,
    train_a_round,
)

__all__ = ["_new_home", "call", "home", "store"]  # fixtures

HELP = ("--help",)
OPENED = {name for name, access in COMMANDS.items() if access.role == ANYONE}


def actions(store):
    return [action for action, _ in logged(store)]


def add_anna(home):
    """Makes the first admin; returns her token."""
    return json.loads(invoke("operator", "add", "anna", "--role", "admin", "--json", "--home", home).stdout)["token"]


@pytest.fixture(scope="module")
def _ruled_home(_new_home, tmp_path_factory):
    made = shutil.copytree(_new_home, tmp_path_factory.mktemp("ruled") / "home")
    return made, add_anna(made)


@pytest.fixture
def token(home, _ruled_home, monkeypatch):
    """The token of the first admin, in the environment. Puts her into `home`, so it is asked for before `store`."""
    made, found = _ruled_home
    shutil.copytree(made, home, dirs_exist_ok=True)
    monkeypatch.setenv(TOKEN_VARIABLE, found)
    return found


def test_every_command_is_in_the_table_of_roles_and_no_other():
    assert {*commands(app)} == {*COMMANDS}


def test_a_command_that_nobody_put_in_the_table_is_refused_to_everybody(tmp_path):
    ran = []
    federation = application("x", "coordinator new", errors=[CoordinatorError])
    federation.command("new")(lambda: ran.append("new"))
    federation.command("other")(lambda: ran.append("other"))
    site = group("x", "coordinator site praise")
    site.command("praise")(lambda: ran.append("praise"))
    federation.add_typer(site, name="site")
    guard(federation)
    for words in (["new"], ["site", "praise"]):
        result = typer.testing.CliRunner().invoke(federation, words)
        assert result.exit_code == FAILED
        assert "no role is known" in lined(result.stderr)
    assert ran == []


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize("command", sorted({*COMMANDS} - OPENED))
def test_without_a_token_no_command_of_the_table_does_anything(call, store, command, monkeypatch, tmp_path):
    monkeypatch.delenv(TOKEN_VARIABLE)
    before = actions(store)
    words = {
        "site invite": ["north"], "site revoke": ["svi", "--yes"], "study check": [tmp_path / "s"],
        "site leave": ["svi", "--yes"], "ca statement": [tmp_path / "f"],
        "certificate use": [tmp_path / "c", tmp_path / "k"],
        "study create": [tmp_path / "s"], "study show": ["s"], "run start": ["s"], "run rounds": ["r"],
        "run watch": ["r"], "run stop": ["r"], "run abandon": ["r", "--yes"], "run resume": ["r"],
        "run metrics": ["r"], "budget export": ["svi", tmp_path / "f"], "adapter export": ["r", tmp_path / "f"],
        "adapter merge": ["r", tmp_path / "f"], "adapter deploy": ["r", tmp_path / "f", "--target", "torch"],
        "adapter choose": ["r", "--clients", "2"], "adapter evaluate": ["r"], "adapter routing": ["r"],
        "adapter map": ["r"],
        "audit privacy": ["r"], "audit export": [tmp_path / "f"], "operator add": ["eve", "--role", "admin"],
        "operator renew": ["anna"], "operator revoke": ["anna", "--yes"], "backup": [tmp_path / "f"],
    }  # fmt: skip
    result = call(*command.split(), *words.get(command, []), code=FAILED)
    assert "AccessRefused" in result.stderr
    assert "takes the token of an operator" in lined(result.stderr)
    assert result.stdout == ""
    assert actions(store) == [*before, "access.refused"]


def test_a_token_lets_its_role_through_from_the_environment_or_a_file_alone(call, home, token, store, tmp_path):
    call("site", "list")
    viewer = json.loads(call("operator", "add", "bob", "--role", "viewer", "--json").stdout)["token"]
    file = tmp_path / "token"
    file.write_text(viewer + "\n")
    file.chmod(0o600)
    invoke("--token-file", file, "site", "list", "--home", home)
    refused = invoke("--token-file", file, "site", "invite", "north", "--home", home, code=FAILED)
    assert "takes the role admin, and bob is viewer" in lined(refused.stderr)
    file.chmod(0o644)
    assert "can be read by others" in lined(invoke("--token-file", file, "site", "list", "--home", home, code=1).stderr)
    missing = invoke("--token-file", tmp_path / "none", "site", "list", "--home", home, code=FAILED)
    assert "is missing; it should hold an operator's token" in lined(missing.stderr)
    assert token not in refused.output + missing.output
    call("site", "invite", "north")
    with store.session() as session:
        by = {each.action: each.actor for each in audit_log.entries(session)}
    assert by["site.invite"] == by["operator.add"] == "operator:anna"


@pytest.fixture
def borrowed(home, token, tmp_path):
    """A home with a database of its own, in which nobody is an operator, and with the keys of `home` by a link."""
    made = tmp_path / "borrowed"
    invoke("init", "--home", made)
    shutil.rmtree(made / "pki")
    (made / "pki").symlink_to(home / "pki")
    return made


@pytest.mark.parametrize("command", ["audit export {}", "site invite eve", "status", "serve", "init", "doctor"])
def test_a_home_of_one_s_own_with_the_keys_of_another_is_refused(borrowed, command, monkeypatch, tmp_path):
    monkeypatch.delenv(TOKEN_VARIABLE)
    result = invoke(*command.format(tmp_path / "log.jsonl").split(), "--home", borrowed, code=FAILED)
    assert f"{borrowed / 'pki'} is a link; nothing was done" in lined(result.stderr)
    assert not (tmp_path / "log.jsonl").exists()


def test_keys_are_not_linked_into_a_home_that_is_to_be_made(home, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "pki").symlink_to(home / "pki")
    assert "is a link" in lined(invoke("init", "--home", tmp_path / "new", code=FAILED).stderr)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["pki"]


@pytest.mark.parametrize("part", ["settings.json", "coordinator.db", "database.json"])
def test_no_part_of_a_home_is_a_link(call, home, tmp_path, part):
    (home / part).touch()
    (home / part).rename(tmp_path / part)
    (home / part).symlink_to(tmp_path / part)
    assert f"{home / part} is a link" in lined(call("status", code=FAILED).stderr)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("part", ["", "pki", "settings.json", "coordinator.db", "database.json"])
def test_a_home_of_another_account_is_refused(call, home, part):
    (home / part).exists() or (home / part).touch()
    os.chown(home / part, 4321, -1)
    result = call("audit", "verify", code=FAILED)
    assert f"{home / part} belongs to account 4321, and this is account 0" in lined(result.stderr)


def test_a_link_to_a_whole_home_is_that_home(home, token, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(home)
    invoke("site", "list", "--home", tmp_path / "link")
    monkeypatch.delenv(TOKEN_VARIABLE)
    assert "takes the token" in lined(invoke("site", "list", "--home", tmp_path / "link", code=FAILED).stderr)


def test_doctor_speaks_where_the_database_that_has_the_roles_is_damaged(call, home, token, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE)
    call("doctor", code=FAILED)
    for name in ("coordinator.db", "coordinator.db-wal", "coordinator.db-shm"):
        (home / name).unlink(missing_ok=True)
    (home / "coordinator.db").write_bytes(b"[1]\n" * 2000)
    assert "coordinator.db" in lined(call("doctor", code=FAILED).stdout)
    assert "damaged" in lined(call("site", "list", code=FAILED).stderr)


def test_the_log_is_shown_verified_and_exported_and_a_change_has_its_exit_code(call, home, store, tmp_path):
    call("site", "invite", "north")
    shown = json.loads(call("audit", "log", "--json").stdout)
    assert [each["action"] for each in shown] == ["federation.init", "site.invite"]
    assert "site.invite  roles=train site=north" in call("audit", "log", "--action", "site").stdout
    assert "no such entry" in lined(call("audit", "log", "--since", "2999-01-01").stderr)
    assert "is no time" in lined(call("audit", "log", "--since", "now", code=FAILED).stderr)
    assert "Everything holds." in call("audit", "verify").stdout
    call("audit", "export", tmp_path / "log.jsonl")
    key = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["header"]["coordinator"]
    elsewhere = ("audit", "verify", tmp_path / "log.jsonl", "--home", tmp_path / "nothing")
    found = json.loads(invoke(*elsewhere, "--issuer", key, "--json").stdout)
    assert (found["ok"], found["entries"], found["signed"]) == (True, 3, 2)
    invoke(*elsewhere, "--issuer", "ab" * 32, code=UNVERIFIED)
    text = (tmp_path / "log.jsonl").read_text()
    (tmp_path / "log.jsonl").write_text(text.replace('"north"', '"south"'))
    assert "entry 1 was changed" in invoke(*elsewhere, code=UNVERIFIED).stdout


def test_status_tells_that_admins_run_out(call, token):
    call("operator", "add", "eve", "--role", "admin", "--expires", "3")
    assert "no admin's token" not in lined(call("status").stderr)
    call("operator", "revoke", "anna", "--yes", code=0)
    assert "AccessRefused" in call("status", code=FAILED).stderr  # the token of the environment is anna's


CHANGES = {}


def change(command):
    def keep(recipe):
        CHANGES[command] = recipe
        return recipe

    return keep


def simple(*words):
    return lambda made: made.call(*(str(word).format(out=made.tmp, run=made.run) for word in words))


CHANGES |= {
    "backup": simple("backup", "{out}/federation.backup"),
    "site invite": simple("site", "invite", "north"),
    "site revoke": simple("site", "revoke", "rest", "--yes"),
    "site leave": simple("site", "leave", "other", "--yes"),
    "run start": simple("run", "start", "thyroid", "--again"),
    "run stop": simple("run", "stop", "{run}"),
    "run abandon": simple("run", "abandon", "{run}", "--yes"),
    "audit export": simple("audit", "export", "{out}/log.jsonl"),
    "operator add": simple("operator", "add", "eve", "--role", "viewer"),
    "operator renew": simple("operator", "renew", "bob"),
    "operator revoke": simple("operator", "revoke", "bob", "--yes"),
    "adapter export": simple("adapter", "export", "{run}", "{out}/a", "--override-audit", "to look"),
    "adapter merge": simple("adapter", "merge", "{run}", "{out}/b", "--override-audit", "to look"),
    "adapter deploy": simple("adapter", "deploy", "{run}", "{out}/c", "--target", "torch", "--override-audit", "no"),
    "adapter map": simple("adapter", "map", "{run}", "--tokens", "8"),
    "audit privacy": simple("audit", "privacy", "{run}"),
}


@change("init")
def _init(made):
    invoke("init", "--home", made.tmp / "new")
    made.store.close()
    made.store = Store.open(made.tmp / "new")


@change("study create")
def _create(made):
    draft = made.home / "study.toml"
    draft.write_text(draft.read_text().replace('name = "thyroid"', 'name = "again"'))
    made.call("study", "create", draft)


@change("run resume")
def _resume(made):
    made.call("run", "stop", made.run)
    made.call("run", "resume", made.run)


@change("budget export")
def _export(made):
    made.call("budget", "export", "svi", made.tmp / "svi.jsonl")


@change("ca rotate")
def _rotate(made):
    made.call("ca", "rotate")


@change("ca cancel")
def _cancel(made):
    _rotate(made)
    made.call("ca", "cancel")


@change("ca finish")
def _finish(made):
    _rotate(made)
    _finish_without_nodes(made)


def _finish_without_nodes(made):
    names = [each.name for each in members(made.store) if each.state == "enrolled"]
    made.call("ca", "finish", *(word for name in names for word in ("--without", name)), "--yes")


@change("certificate use")
def _use(made):
    hospital = HospitalCa(made.tmp / "hospital")
    host = load_settings(made.home).address.rpartition(":")[0]
    ca = hospital.authority("root")
    for name in ("first", "renewed"):
        hospital.server(name, by="root", host=f"IP:{host}" if host[0].isdigit() else f"DNS:{host}")
    made.call("certificate", "use", hospital.folder / "first.pem", hospital.key("first"), "--ca", ca)
    _finish_without_nodes(made)
    made.call("certificate", "use", hospital.folder / "renewed.pem", hospital.key("renewed"))


@change("keys seal")
def _seal(made):
    path = made.tmp / "passphrase"
    path.write_text("correct horse battery")
    path.chmod(0o600)
    made.call("keys", "seal", "--passphrase-file", path)


@change("keys unseal")
def _unseal(made):
    _seal(made)
    made.call("keys", "unseal", "--passphrase-file", made.tmp / "passphrase")


@change("keys rotate")
def _rotate_keys(made):
    made.call("keys", "rotate", "--yes")


@change("operator recover")
def _recover(made):
    (made.home / "recover").write_text("carl")
    made.call("operator", "recover", "carl")


@change("serve")
def _serve(made):
    with (made.tmp / "serve.log").open("w") as out:
        script = "from confide.coordinator.cli.main import app; app()"
        words = [sys.executable, "-c", script, "serve", "--home", made.home]
        server = subprocess.Popen(words, stdout=out, stderr=out)
    deadline = time.monotonic() + 120
    while "serve.start" not in actions(made.store):
        assert server.poll() is None, (made.tmp / "serve.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(server.pid, signal.SIGTERM)
    assert server.wait(timeout=120) == 0
    assert actions(made.store)[-1] == "serve.stop"
    with made.store.session() as session:
        assert audit_log.newest_checkpoint(session).seq == audit_log.head(session).seq


class Made:
    def __init__(self, call, home, store, run, tmp):
        self.call, self.home, self.store, self.run, self.tmp = call, home, store, run, tmp


@pytest.fixture(scope="module")
def _busy_home(_new_home, backbone, tmp_path_factory):
    """A federation with a run, a ledger and two operators: made once, as it takes a second. Also the first's token."""
    folder = tmp_path_factory.mktemp("busy")
    made = shutil.copytree(_new_home, folder / "home")
    store = Store.open(made)
    with store.session() as session:
        session.add_all(enrolled_nodes())
    run = add_run(store, create_study(lambda *words: invoke(*words, "--home", made), made, backbone))
    replicate_a_ledger(store, folder)
    train_a_round(store, made, run)
    store.close()
    token = add_anna(made)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(TOKEN_VARIABLE, token)
        invoke("operator", "add", "bob", "--role", "viewer", "--home", made)
    return made, run, token


@pytest.fixture
def made(_busy_home, tmp_path, monkeypatch):
    """A copy of it, with anna's token in the environment."""
    busy, run, token = _busy_home
    home = shutil.copytree(busy, tmp_path / "home")
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    found = Made(lambda *words, **how: invoke(*words, "--home", home, **how), home, Store.open(home), run, tmp_path)
    yield found
    found.store.close()


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("command", sorted(name for name, access in COMMANDS.items() if access.action is not None))
def test_a_command_that_changes_something_makes_its_entry_in_the_log(made, monkeypatch, command):
    """A command without a recipe here, or without its entry, fails: a new one has to be added with both."""
    monkeypatch.setattr(
        AuditDesign, "within", lambda self, dim, sites: AuditDesign(canaries=60, canaries_per_step=20, guesses=20)
    )
    before = len(actions(made.store))
    CHANGES[command](made)
    after = actions(made.store) if command == "init" else actions(made.store)[before:]
    assert COMMANDS[command].action in after
    with made.store.session() as session:
        assert [problem for _, problem in audit_log.links_of(audit_log.entries(session)) if problem] == []
        entry = [each for each in audit_log.entries(session) if each.action == COMMANDS[command].action][-1]
    assert entry.actor.startswith("login:" if COMMANDS[command].role == ANYONE else "operator:anna")


def test_reading_leaves_the_log_as_it_is(made):
    before = actions(made.store)
    for words in (
        "status", "site list", "study list", "study show thyroid", "run list", f"run rounds {made.run}", "audit log",
        "budget report --json", "audit verify", "operator list", f"adapter choose {made.run} --clients 2",
    ):  # fmt: skip
        made.call(*words.split())
    assert actions(made.store) == before

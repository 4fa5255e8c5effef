"""Every state file of a federation, damaged in five ways, under every command and message that reads it.

Which commands read a file is not stated but found out: each command runs once on a healthy home, and what it opens is
noted. Then, on a copy with one damaged file, it must end with an exit code of ours, without a traceback, and name the
file. All five damages are tried with the first command that reads a file, and with each other command one of them.
"""

import itertools
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import typer.main
from click import Group
from click.testing import Result

from confide.client_node.cli.main import app as node_app
from confide.client_node.errors import ClientNodeError
from confide.client_node.files import file_digest, write_private
from confide.coordinator.cli.main import app as coordinator_app
from confide.coordinator.errors import StateDamaged
from confide.coordinator.run.driver import drive
from confide.coordinator.store import Store
from confide.coordinator.store.run_folder import RunFolder
from confide.coordinator.store.states import RunState
from confide.coordinator.studies.catalogue import load_study, study_start
from confide.mpc.errors import MpcError
from confide.privacy.errors import PrivacyError
from confide.privacy.ledger.ledger import Ledger

from .damages import COORDINATOR_COMMANDS, DAMAGES, NODE_COMMANDS, SERVERS, SLOW, WITHOUT_HOME
from .homes import AWAY, COORDINATOR, Homes, Noting, call, done, found, nodes_at, quicken, started

EXIT_CODES = {0, 1, 3}
STUDY = "studies/STUDY.json"
SOUND = {  # (file, damage, command): what is documented to go on; "" stands for any
    ("coordinator.db", "flipped", ""),  # in a page where it changes nothing
    ("ledger.db", "flipped", ""),
    ("units.db", "flipped", ""),
    ("ledger.db", "empty", "budget import"),  # these two are what the message says to do
    ("ledger.db", "empty", "budget recover"),
    (STUDY, "", "budget show"),  # charges of a study that is not known any more are told all the same
    (STUDY, "", "budget set"),
    (STUDY, "", "budget recover"),
    ("patients.csv", "cut", "policy explain"),  # of which only the people are looked at; `data check` tells the rest
    ("decisions.jsonl", "", ""),  # only added to: `decisions` tells which lines cannot be read
}
# A decision counts though it cannot be signed, so that a study is revoked all the same; the log warns, and
# `decisions --verify` names the line.
_DECIDING = ("witness --forget", "study revoke", "site confirm", "site remove")
SOUND |= {
    (file, "", words)
    for file in ("keys/identity.key", "keys/transport.key", "keys/name.json", "decisions.head")
    for words in _DECIDING
} | {("decisions.head", "", words) for words in ("study approve", "budget set")}
SOUND_AT_A_NODE = {  # file and damage
    ("aggregator/journal", "empty"),  # as if deleted: the other two aggregators still hold what it held
    ("aggregator/positions", "empty"),
    ("aggregator/journal", "cut"),  # in a last line, which nothing has followed
    ("aggregator/positions", "cut"),
    ("ledger.db", "flipped"),  # in a page where it changes nothing
}
SECRETS = {  # read by the command
    "pki/ca.key": "site invite new",
    "pki/server.key": "site invite new",
    "pki/signing.key": "site invite new",
    "keys/identity.key": "status",
    "keys/transport.key": "status",
    "keys/units.key": "study approve {study} --yes --runs 2",
}

_opened: set[str] | None = None


def _note_opened(event: str, args: tuple[object, ...]) -> None:
    if _opened is not None and event in ("open", "sqlite3.connect") and isinstance(args[0], str):
        _opened.add(args[0].removeprefix("file://").partition("?")[0])  # a database opened to be read has an address


sys.addaudithook(_note_opened)


@dataclass
class Bench:
    """A healthy federation, and copies of single homes of it to damage."""

    homes: Homes
    folder: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def copy(self, name: str) -> Path:
        folder = self.folder / str(next(self.numbers))
        shutil.copytree(self.homes.home(name), folder / name)
        return folder / name

    def call(self, home: Path, words: str) -> Result:
        named = {"study": self.homes.study, "run": self.homes.run, "out": home.parent / "out"}
        files = {"draft": "study.toml", "data": "east/patients.csv", "ledger": "ledger.jsonl"}
        files |= {"passphrase": "passphrase"}
        paths = {name: self.homes.folder / file for name, file in files.items()}
        return call(home, *(word.format(**named, **paths) for word in words.split()))

    def file(self, home: Path, name: str) -> Path:
        return home / name.replace("STUDY", self.homes.study).replace("RUN", self.homes.run)

    def name_of(self, home: Path, path: str) -> str:
        inside = str(Path(path).relative_to(home))
        return inside.replace(self.homes.study, "STUDY").replace(self.homes.run, "RUN")

    def read_by(self, home: Path, opened: set[str]) -> set[str]:
        """The state files of a healthy home among what was opened."""
        here = (Path(path).relative_to(home) for path in opened if Path(path).is_relative_to(home))
        kept = (path for path in here if (self.homes.home(home.name) / path).is_file())  # not what the command made
        return {self.name_of(home, str(home / path)) for path in kept if path.suffix != ".lock"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("federation")
    made = found(folder)
    done(folder / "east", "budget", "export", str(folder / "ledger.jsonl"))
    write_private(folder / "passphrase", b"correct horse battery")
    return Bench(made, tmp_path_factory.mktemp("copies"))


def readers_of(bench: Bench, name: str, commands: tuple[str, ...]) -> dict[str, list[str]]:
    """Runs every command on a healthy home; lists, by file, those that read it."""
    global _opened
    readers: dict[str, list[str]] = {}
    for words in commands:
        home = bench.copy(name)
        _opened = set()
        try:
            result = bench.call(home, words)
        finally:
            opened, _opened = _opened, None
        require_ours(result, words)
        for file in sorted(bench.read_by(home, opened)):
            readers.setdefault(file, []).append(words)
    return readers


def require_ours(result: Result, said: str) -> None:
    assert result.exception is None or isinstance(result.exception, SystemExit), f"{said}: {result.exception!r}"
    assert result.exit_code in EXIT_CODES, f"{said}: {result.exit_code}: {result.output}"


def goes_on(file: str, damage: str, words: str) -> bool:
    if words.startswith(("backup", "keys seal")):  # take files as they are: one fault keeps no other from being kept
        return True
    return any(file == f and damage.startswith(d) and words.startswith(w) for f, d, w in SOUND)


def commands_of(app: typer.Typer) -> set[str]:
    found_ = set()
    for name, command in typer.main.get_group(app).commands.items():
        found_ |= {f"{name} {each}" for each in command.commands} if isinstance(command, Group) else {name}
    return found_


@pytest.mark.parametrize(("app", "tried"), [(node_app, NODE_COMMANDS), (coordinator_app, COORDINATOR_COMMANDS)])
def test_every_command_is_tried(app: typer.Typer, tried: tuple[str, ...]) -> None:
    for command in commands_of(app) - SERVERS - WITHOUT_HOME:
        assert any(words == command or words.startswith(f"{command} ") for words in tried), command


@pytest.mark.slow
@pytest.mark.parametrize(("name", "commands"), [("east", NODE_COMMANDS), (COORDINATOR, COORDINATOR_COMMANDS)])
def test_a_damaged_file_ends_no_command_with_a_traceback_and_is_named(
    bench: Bench, name: str, commands: tuple[str, ...]
) -> None:
    readers = readers_of(bench, name, tuple(each for each in commands if each not in SLOW))
    assert len(readers) > 8
    turns, problems = itertools.cycle(DAMAGES), []
    for file, reading in readers.items():
        first = [(reading[0], damage) for damage in DAMAGES]
        for words, damage in [*first, *((words, next(turns)) for words in reading[1:])]:
            home = bench.copy(name)
            DAMAGES[damage](bench.file(home, file))
            result = bench.call(home, words)
            require_ours(result, f"{file} {damage}: {words}")
            if bench.file(home, file).name not in result.output and not goes_on(file, damage, words):
                problems.append(f"{file} {damage}: {words}: {result.exit_code} {result.output[-200:]}")
            shutil.rmtree(home.parent)
    assert problems == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words"), [("east", "study audit thyroid"), (COORDINATOR, "audit privacy {run}")])
def test_a_slow_command_names_the_damaged_file_before_it_begins(bench: Bench, name: str, words: str) -> None:
    for file in ("ledger.db", "site.toml", STUDY) if name == "east" else ("settings.json", STUDY, "coordinator.db"):
        home = bench.copy(name)
        DAMAGES["cut"](bench.file(home, file))
        result = bench.call(home, words)
        require_ours(result, words)
        assert result.exit_code == 1
        assert bench.file(home, file).name in result.output


@pytest.mark.slow
@pytest.mark.parametrize("file", SECRETS)
def test_a_secret_that_others_can_read_is_refused_with_the_command_that_mends_it(bench: Bench, file: str) -> None:
    home = bench.copy(COORDINATOR if file.startswith("pki") else "east")
    (home / file).chmod(0o644)
    result = bench.call(home, SECRETS[file])
    assert result.exit_code == 1
    assert f"{home / file} can be read by others; check who did, then: chmod 600 {home / file}" in result.output


@pytest.mark.slow
def test_a_lost_ledger_is_noticed_by_every_command_that_reads_it(bench: Bench) -> None:
    for words in ("budget show", "budget plan thyroid", "study approve {study} --yes --runs 2", "status"):
        home = bench.copy("east")
        for path in home.glob("ledger.db*"):
            path.unlink()
        result = bench.call(home, words)
        assert "ledger.db is gone, by which something was sent" in result.output
        assert "client-node budget import" in result.output
        assert result.exit_code == (0 if words == "status" else 1)
        assert not (home / "ledger.db").exists()


def answered(bench: Bench, home: Path, caplog: pytest.LogCaptureFixture) -> str:
    """What a damaged node says, in its log and in its refusals, when it starts and gets its last messages again."""
    caplog.clear()
    ledgers: list[Ledger] = []
    said = ""
    try:
        node = started(home, ledgers)
        for kind, to, packet in bench.homes.asked:
            if to != home.name or (kind == "prepare" and home.name in ("east", AWAY)):  # that would load a model
                continue
            try:
                node.handle(kind, packet)
            except (ClientNodeError, MpcError) as err:
                said += f"{type(err).__name__}: {err}\n"
        node.stop()
    except (ClientNodeError, MpcError, PrivacyError) as err:  # it does not start, and its command says why
        said += f"{type(err).__name__}: {err}\n"
    finally:
        for ledger in ledgers:
            ledger.close()
    return said + "\n".join(record.getMessage() for record in caplog.records)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["east", "agg-a"])
def test_a_node_with_a_damaged_file_refuses_by_name_and_logs_the_file(
    bench: Bench, name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    global _opened
    quicken(monkeypatch)
    caplog.set_level(logging.WARNING)
    home = bench.copy(name)
    _opened = set()
    try:
        answered(bench, home, caplog)
    finally:
        opened, _opened = _opened, None
    files = bench.read_by(home, opened)
    assert len(files) > 8
    problems = []
    for file, damage in itertools.product(sorted(files), DAMAGES):
        home = bench.copy(name)
        DAMAGES[damage](bench.file(home, file))
        is_named = bench.file(home, file).name in answered(bench, home, caplog)
        is_sound = (file, damage) in SOUND_AT_A_NODE or (file.startswith("spool/") and damage != "folder")  # sent anew
        if not is_named and not is_sound:
            problems.append(f"{file} {damage}")
        shutil.rmtree(home.parent)
    assert problems == []


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_a_run_is_named_to_its_driver(bench: Bench, damage: str) -> None:
    home = bench.copy(COORDINATOR)
    store = Store.open(home)
    try:
        study, last = load_study(store.study("thyroid")), store.last_round(bench.homes.run)
    finally:
        store.close()
    folder = RunFolder(home, bench.homes.run)
    total = file_digest(folder.path / "total-1")
    (topups,) = (folder.path / "topups-2").glob("*/")
    state = next(folder.path.glob("state-1-*"))
    readers = {
        folder.path / "secret": folder.secret,
        folder.path / "total-1": lambda: folder.total_part(1, 0, total),
        folder.path / "topups-2" / "fixed.json": lambda: folder.fixed_set(2),
        folder.path / "envelopes-2" / "east" / "complete": folder.envelopes(2).read,
        topups / "north" / "complete": folder.topups(2, ("east", "north")).read,
        state: lambda: folder.load(1, last.state_hash or ""),
        bench.file(home, STUDY): lambda: study_start(home, study),
    }
    if damage == "flipped":
        del readers[folder.path / "secret"]  # any 32 bytes are one
    for path, read in readers.items():
        read()
        DAMAGES[damage](path)
        with pytest.raises(StateDamaged, match=path.name):
            read()


@pytest.mark.slow
def test_a_run_with_a_damaged_file_fails_and_says_which(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)
    homes = bench.homes.at(bench.folder / "whole")
    shutil.copytree(bench.homes.folder, homes.folder)
    home = homes.home(COORDINATOR)
    done(home, "run", "resume", homes.run)
    DAMAGES["empty"](home / "runs" / homes.run / "envelopes-2" / "east" / "complete")
    with nodes_at(homes.folder) as nodes:
        drive(Noting(nodes, []), home, homes.run)
    store = Store.open(home)
    run = store.run(homes.run)
    store.close()
    assert run.state is RunState.FAILED
    assert (run.error or "").startswith("StateDamaged: ")
    assert "envelopes-2/east/complete is empty" in (run.error or "")


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file", "words"),
    [
        (COORDINATOR, "pki/ca.crt", "site invite new"),
        (COORDINATOR, "coordinator.db", "serve"),
        ("east", "ledger.db", "run"),
    ],
)
def test_a_process_ends_with_one_sentence(bench: Bench, name: str, file: str, words: str) -> None:
    home = bench.copy(name)
    DAMAGES["empty"](home / file)
    program = "coordinator" if name == COORDINATOR else "client_node"
    script = f"from confide.{program}.cli.main import app; app()"
    command = [sys.executable, "-c", script, *words.split(), "--home", str(home)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1
    assert str(home / file) in ended.stderr
    assert "Traceback" not in ended.stderr

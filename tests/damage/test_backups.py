"""A whole federation: its homes kept and restored, moved to another database, and its database restarted under it."""

import io
import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from confide.client_node import backup as node_backup
from confide.client_node.approval.charges import open_ledger
from confide.client_node.cli.main import app as node_app
from confide.client_node.enrolment import Enrolment, NodeIdentity
from confide.client_node.errors import BackupInvalid, ClientNodeError, RoundOver, SiteNotReady
from confide.client_node.ledger_head import LedgerHead
from confide.client_node.shares import Outbox
from confide.coordinator.errors import StoreUnavailable
from confide.coordinator.federation import backup as federation_backup
from confide.coordinator.run.driver import drive
from confide.coordinator.store import Store
from confide.coordinator.store.states import RunState
from confide.privacy.ledger import backup as ledger_file
from confide.privacy.ledger.ledger import Ledger

from ..system.postgresql import Cluster, cluster
from .homes import COORDINATOR, WIDE, Homes, Noting, call, done, found, nodes_at, quicken, started

pytestmark = [pytest.mark.slow, pytest.mark.process]


@dataclass
class Kept:
    homes: Homes
    early: Path  # a backup of the site east before its first charge, made while its node answers


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Cluster]:
    with cluster() as made:
        yield made


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    folder = tmp_path_factory.mktemp("federation")
    early = folder / "early.backup"

    def keep(kind: str, name: str) -> None:
        if (kind, name) == ("step", "east") and not early.exists():
            node_backup.back_up(folder / "east", early)

    return Kept(found(folder, keep), early)


@pytest.fixture
def homes(kept: Kept, tmp_path: Path) -> Homes:
    shutil.copytree(kept.homes.folder, tmp_path / "copy")
    return kept.homes.at(tmp_path / "copy")


def rows(store: Store) -> dict[str, list[tuple[object, ...]]]:
    tables = sa.MetaData()
    with store.moment() as connection:
        tables.reflect(connection)
        return {
            name: [tuple(row) for row in connection.execute(sa.select(table).order_by(*table.primary_key.columns))]
            for name, table in tables.tables.items()
        }


def rows_at(home: Path) -> dict[str, list[tuple[object, ...]]]:
    store = Store.open(home)
    try:
        return rows(store)
    finally:
        store.close()


def files(home: Path, *left_out: str) -> dict[str, bytes]:
    found_ = {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}
    return {name: data for name, data in found_.items() if not name.startswith(left_out)}


def finish(homes: Homes, fleet: Noting, monkeypatch: pytest.MonkeyPatch) -> int:
    """Drives the run as `serve` does until it is over; returns how many drivers it took."""
    quicken(monkeypatch)
    for number in range(1, 40):
        try:
            drive(fleet, homes.home(COORDINATOR), homes.run)
            return number
        except StoreUnavailable:
            time.sleep(0.2)
        except Exception as err:
            if not isinstance(err.__cause__, StoreUnavailable):  # a passing trouble, as `serve` is told
                raise
    raise AssertionError("the run does not come to its end")


def require_done(homes: Homes, rounds: int = 2) -> None:
    store = Store.open(homes.home(COORDINATOR))
    try:
        assert store.run(homes.run).state is RunState.DONE
        assert [row.number for row in store.rounds(homes.run)] == list(range(1, rounds + 1))
    finally:
        store.close()
    report = homes.folder / "report.json"
    report.write_text(done(homes.home(COORDINATOR), "budget", "report", "--json").stdout)
    verified = CliRunner().invoke(node_app, ["budget", "verify", str(report)], env=WIDE)
    assert verified.exit_code == 0, verified.output


@pytest.mark.parametrize("sealed", [False, True])
def test_a_federation_moves_to_postgresql_and_back_and_its_run_goes_on(
    homes: Homes, postgresql: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sealed: bool
) -> None:
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("twelve bytes and more")
    passphrase.chmod(0o600)
    words = ["--passphrase-file", str(passphrase)] if sealed else []
    home = homes.home(COORDINATOR)
    before_files = files(home, "coordinator.db", "flower", "turns")
    said = done(home, "backup", str(tmp_path / "one"), *words)
    before = rows_at(home)  # with the backup's own line in the audit log
    assert ("NOT ENCRYPTED" in said.stderr) is not sealed
    assert "left out, not known" not in said.stdout

    moved = tmp_path / "moved" / COORDINATOR
    url = postgresql.url(is_empty=True).render_as_string()
    done(moved, "restore", str(tmp_path / "one"), "--database", url, *words)
    assert rows_at(moved) == before
    known = files(moved, "database.json")
    assert known == {name: data for name, data in before_files.items() if name in known}
    assert {name.partition("/")[0] for name in known} == {"pki", "settings.json", "studies", "runs"}
    assert "whole, and of this version" in call(moved, "doctor").output

    done(moved, "backup", str(tmp_path / "two"), *words)
    back = tmp_path / "back" / COORDINATOR
    done(back, "restore", str(tmp_path / "two"), *words)
    assert rows_at(back) == rows_at(moved)
    assert files(back, "coordinator.db") == known

    shutil.rmtree(home)
    shutil.move(moved, home)
    done(home, "run", "resume", homes.run)
    with nodes_at(homes.folder) as nodes:
        finish(homes, Noting(nodes, []), monkeypatch)
    require_done(homes)


def test_a_run_goes_on_while_its_postgresql_is_restarted(
    tmp_path: Path, postgresql: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIDE_DATABASE", postgresql.url(is_empty=True).render_as_string())
    moments: set[tuple[str, str]] = set()
    starting: list[threading.Timer] = []

    def disturb(kind: str, name: str) -> None:
        """At the first message of each kind to one node the server is restarted; at others it stays away a while."""
        if name not in ("east", "agg-a") or (kind, name) in moments:
            return
        moments.add((kind, name))
        if len(moments) % 2:
            postgresql.restart()
            return
        postgresql.stop()
        starting.append(threading.Timer(1.5, postgresql.start))
        starting[-1].start()
        if kind == "step":
            starting[-1].join()  # the test's own federation is not founded by drivers that are replaced

    homes = found(tmp_path / "federation")
    assert not (homes.home(COORDINATOR) / "coordinator.db").exists()
    done(homes.home(COORDINATOR), "run", "resume", homes.run)
    with nodes_at(homes.folder) as nodes:
        fleet = Noting(nodes, [], before=lambda kind, name: disturb(kind, name))
        drivers = finish(homes, fleet, monkeypatch)
        for each in starting:
            each.join()
    assert len(moments) >= 4
    assert drivers > 1
    require_done(homes)


def test_a_node_comes_back_as_it_was(homes: Homes, tmp_path: Path) -> None:
    for name in ("east", "agg-a"):
        home, copy = homes.home(name), tmp_path / "restored" / name
        said = done(home, "backup", str(tmp_path / name))
        assert ("left out, not known" in said.stdout) is (name == "east")  # its table, which lies in the home here
        done(copy, "restore", str(tmp_path / name))
        mine, copied = files(home), files(copy, "ledger.db", "units.db", "outbox", "aggregator/run-keys")
        assert copied == {each: data for each, data in mine.items() if each in copied}
        assert {each.partition("/")[0] for each in copied} >= {"keys", "enrolment.json", "ca.crt", "decisions.json"}
        assert not any(each.startswith(("kept-states", "spool")) for each in copied)
        keys = {path.name: json.loads(path.read_text()) for path in (copy / "aggregator" / "run-keys").glob("*")}
        assert keys == ({f"{homes.run}.json": {"ended": True}} if name == "agg-a" else {})
        assert ("party/party.key" in copied) is (name == "agg-a")
    copy = tmp_path / "restored" / "east"
    assert hashes(copy, tmp_path / "its") == hashes(homes.home("east"), tmp_path / "own")
    assert figures(copy) == figures(homes.home("east"))


def figures(home: Path) -> list[dict[str, object]]:
    """What `budget show` tells of each account; of runs, what is reserved is no part of a backup."""
    accounts = json.loads(done(home, "budget", "show", "--json").stdout)
    return [{name: value for name, value in account.items() if name != "runs"} for account in accounts]


def asked_again(homes: Homes, home: Path) -> Exception | None:
    """Asks the site at `home` its last question again, for its shares of round 2; returns what it raises."""
    if not (home / "studies").exists():  # its daemon fetches them
        shutil.copytree(homes.home("east") / "studies", home / "studies")
    question = [packet for kind, to, packet in homes.asked if (kind, to) == ("step", "east")][-1]
    ledgers: list[Ledger] = []
    node = started(home, ledgers)
    try:
        node.handle("step", question)
    except ClientNodeError as err:
        return err
    finally:
        node.stop()
        for ledger in ledgers:
            ledger.close()
    return None


def test_a_restored_site_draws_nothing_again_for_a_round_that_it_had_charged(homes: Homes, tmp_path: Path) -> None:
    """What was sealed is not in the backup, and another draw under the same charge would be another release."""
    assert asked_again(homes, homes.home("east")) is None  # the home itself answers with the stored bytes
    done(homes.home("east"), "backup", str(tmp_path / "b"))
    copy = tmp_path / "restored" / "east"
    said = done(copy, "restore", str(tmp_path / "b"), "--json")
    assert json.loads(said.stdout)["rounds_that_are_not_drawn_again"] >= 1
    before = figures(copy)
    last = asked_again(homes, copy)
    assert isinstance(last, RoundOver)
    assert "another draw would be another release" in str(last)
    assert not Outbox(copy).get(homes.run, 2)
    assert figures(copy) == before


def test_a_ledger_that_is_older_than_what_was_charged_is_refused_until_it_is_imported(
    kept: Kept, homes: Homes, tmp_path: Path
) -> None:
    copy = tmp_path / "restored" / "east"
    said = done(copy, "restore", str(kept.early))
    assert "import the newest ledger" in " ".join(said.stderr.split())
    last = asked_again(homes, copy)
    assert isinstance(last, SiteNotReady)
    assert "an older copy was put back" in str(last)

    done(homes.home(COORDINATOR), "budget", "export", "east", str(tmp_path / "ledger"))
    done(copy, "budget", "import", str(tmp_path / "ledger"))
    last = asked_again(homes, copy)
    assert isinstance(last, RoundOver)
    assert "what was sealed for it is not here" in str(last)
    assert [each.hash for each in ledger_file.read(tmp_path / "ledger")] == hashes(copy, tmp_path / "own")


def hashes(home: Path, file: Path) -> list[str]:
    done(home, "budget", "export", str(file))
    return [each.hash for each in ledger_file.read(file)]


def test_a_backup_that_was_made_while_the_node_answers_is_whole(kept: Kept) -> None:
    assert node_backup.check(kept.early).head.kind == "node"
    with pytest.raises(BackupInvalid, match="of a node, not of a coordinator"):
        federation_backup.check(kept.early)


def test_a_ledger_that_grows_within_a_backup_keeps_it_true_to_its_head(
    homes: Homes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, writing = homes.home("east"), ledger_file.write

    def then_grow(*arguments):
        written = writing(*arguments)
        with open_ledger(home, NodeIdentity.load(home), Enrolment.load(home)) as ledger:
            budget = ledger.budget(*ledger.accounts()[0])
            assert budget is not None
            ledger.set_budget(replace(budget, epsilon=budget.epsilon + 1))
            LedgerHead(home, ledger).keep()
            assert ledger.head.seq == written.seq + 1
        return written

    monkeypatch.setattr(ledger_file, "write", then_grow)
    made = node_backup.back_up(home, tmp_path / "b")
    assert node_backup.restore(tmp_path / "b", tmp_path / "restored").entries == made.entries


def test_a_backup_of_another_s_ledger_is_refused_and_leaves_nothing(homes: Homes, tmp_path: Path) -> None:
    """A home into which somebody put the ledger of another site."""
    shutil.copy(homes.home("north") / "keys" / "identity.key", homes.home("east") / "keys" / "identity.key")
    made = call(homes.home("east"), "backup", str(tmp_path / "b"))
    assert made.exit_code == 1
    assert not (tmp_path / "b").exists()


def test_restoring_over_a_home_or_a_database_in_use_changes_nothing(
    homes: Homes, postgresql: Cluster, tmp_path: Path
) -> None:
    home = homes.home(COORDINATOR)
    done(home, "backup", str(tmp_path / "b"))
    before = files(home)
    assert "holds files already" in call(home, "restore", str(tmp_path / "b")).output
    assert files(home) == before
    copy = tmp_path / "restored" / COORDINATOR
    url = postgresql.url()
    said = call(copy, "restore", str(tmp_path / "b"), "--database", url.render_as_string())
    assert said.exit_code == 1
    assert "holds tables already" in said.output
    assert not copy.exists()
    store = Store(url)
    assert store.nodes() == []
    store.close()


def test_a_changed_database_in_a_backup_is_one_sentence_and_leaves_nothing(
    homes: Homes, postgresql: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who can make the sums right again still cannot have half a database restored."""
    for number, (old, new) in enumerate(
        [('"east"', '"west"'), ('{"rows"', '{"rowz"'), ('"lease"', '"leese"'), ('"schema":"0', '"schema":"9'),
         ('"table":"run"', '"table":"alembic_version"'), ('["agg-a"', '[["agg-a"]')]
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            writing = federation_backup.dump.write_dump

            def changed(connection, out, writing=writing, old=old, new=new):
                text = io.BytesIO()
                counts = writing(connection, text)
                out.write(text.getvalue().decode().replace(old, new, 1).encode())
                return counts

            patch.setattr(federation_backup.dump, "write_dump", changed)
            federation_backup.back_up(homes.home(COORDINATOR), tmp_path / f"b{number}")
        for words in ([], ["--database", postgresql.url(is_empty=True).render_as_string()]):
            copy = tmp_path / f"c{number}-{len(words)}" / COORDINATOR
            said = call(copy, "restore", str(tmp_path / f"b{number}"), *words)
            if (old, said.exit_code) == ('"east"', 0):  # a name is a name, where nothing refers to it
                continue
            assert said.exit_code == 1, (old, said.output)
            assert isinstance(said.exception, SystemExit)
            assert not copy.exists()
            if words:
                store = Store(words[1])
                store.require_empty()
                store.close()

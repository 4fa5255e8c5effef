"""A federation whose homes have their keys sealed: it goes on, is kept and restored, and names what is damaged."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from confide.client_node import secret_files
from confide.client_node.files import write_private
from confide.coordinator.run.driver import drive
from confide.coordinator.store import Store
from confide.coordinator.store.states import RunState

from .damages import DAMAGES
from .homes import COORDINATOR, PARTIES, SITES, Homes, Noting, call, done, found, nodes_at, quicken

pytestmark = pytest.mark.slow
HOMES = (*SITES, *PARTIES, COORDINATOR)
COMMANDS = {  # that read a secret
    "keys/identity.key": "status",
    "keys/transport.key": "status",
    "keys/units.key": "doctor",
    "pki/ca.key": "site invite new",
    "pki/server.key": "site invite new",
    "pki/signing.key": "site invite new",
}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Homes:
    folder = tmp_path_factory.mktemp("federation")
    made = found(folder)
    write_private(folder / "passphrase", b"correct horse battery")
    for name in HOMES:
        done(folder / name, "keys", "seal", "--passphrase-file", str(folder / "passphrase"))
    return made


@pytest.fixture
def given(sealed: Homes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIDE_PASSPHRASE_FILE", str(sealed.folder / "passphrase"))


@pytest.fixture
def numbers(tmp_path: Path) -> Iterator[Path]:
    return (tmp_path / str(number) for number in itertools.count())


def copied(homes: Homes, name: str, folders: Iterator[Path]) -> Path:
    return Path(shutil.copytree(homes.home(name), next(folders) / name))


def secrets_of(home: Path) -> dict[str, bytes]:
    kind = "coordinator" if home.name == COORDINATOR else "node"
    paths = {path for place in secret_files.PLACES[kind] for path in home.glob(place)}
    return {str(path.relative_to(home)): path.read_bytes() for path in paths}


@pytest.mark.usefixtures("given")
def test_a_run_goes_on_to_its_end_and_every_key_stays_sealed(
    sealed: Homes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    homes = sealed.at(tmp_path / "federation")
    shutil.copytree(sealed.folder, homes.folder)
    home = homes.home(COORDINATOR)
    done(home, "run", "resume", homes.run)
    with nodes_at(homes.folder) as nodes:
        drive(Noting(nodes, []), home, homes.run)
    store = Store.open(home)
    run = store.run(homes.run)
    store.close()
    assert run.state is RunState.DONE, run.error
    for name in HOMES:
        found_ = secrets_of(homes.home(name))
        assert len(found_) >= 3
        for file, data in found_.items():
            assert data.startswith(b"confide-sealed-key-1\n"), (name, file)
    ended = homes.home("agg-a") / "aggregator" / "run-keys" / f"{homes.run}.json"
    assert ended.read_bytes() != secrets_of(sealed.home("agg-a"))[f"aggregator/run-keys/{homes.run}.json"]


@pytest.mark.usefixtures("given")
@pytest.mark.parametrize("file", COMMANDS)
def test_a_sealed_secret_that_is_damaged_is_named(sealed: Homes, numbers: Iterator[Path], file: str) -> None:
    name = COORDINATOR if file.startswith("pki") else "east"
    for damage in DAMAGES.values():
        home = copied(sealed, name, numbers)
        damage(home / file)
        result = call(home, *COMMANDS[file].split())
        assert result.exit_code in (1, 3), result.output
        assert Path(file).name in result.output


@pytest.mark.usefixtures("given")
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("name", "words"), [("east", "status"), (COORDINATOR, "site invite new")])
def test_damage_to_what_says_how_keys_are_sealed_is_named(
    sealed: Homes, numbers: Iterator[Path], damage: str, name: str, words: str
) -> None:
    home = copied(sealed, name, numbers)
    DAMAGES[damage](home / "sealing.json")
    result = call(home, "keys", "seal", "--passphrase-file", str(sealed.folder / "passphrase"))
    assert result.exit_code == 1
    assert "sealing.json" in result.output
    result = call(home, *words.split())
    assert result.exit_code == 1
    assert "sealing.json" in result.output


@pytest.mark.parametrize(("name", "words"), [("east", "budget show"), (COORDINATOR, "site invite new")])
def test_a_command_without_the_passphrase_says_what_to_give_it(
    sealed: Homes, numbers: Iterator[Path], monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.setattr(secret_files, "_keys", {})
    home = copied(sealed, name, numbers)
    result = call(home, *words.split())
    assert result.exit_code == 1
    assert "are sealed: set CONFIDE_PASSPHRASE_FILE" in result.output
    assert "sealed" in call(home, "status").output
    checked = call(home, "doctor")
    assert checked.exit_code == 1
    assert "set CONFIDE_PASSPHRASE_FILE" in checked.output


@pytest.mark.usefixtures("given")
@pytest.mark.parametrize("name", ["east", COORDINATOR])
def test_status_and_doctor_say_that_keys_are_sealed(sealed: Homes, numbers: Iterator[Path], name: str) -> None:
    home = copied(sealed, name, numbers)
    assert '"keys": "sealed"' in done(home, "status", "--json").output
    assert "sealed with a passphrase" in call(home, "doctor").output


@pytest.mark.parametrize("name", ["east", "agg-a", COORDINATOR])
def test_a_backup_holds_sealed_keys_and_is_restored_with_the_passphrase_alone(
    sealed: Homes, numbers: Iterator[Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    home, file = copied(sealed, name, numbers), next(numbers)
    with monkeypatch.context() as patch:
        patch.setenv("CONFIDE_PASSPHRASE_FILE", str(sealed.folder / "passphrase"))
        done(home, "backup", str(file))
    archive = file.read_bytes()
    kept = {path: data for path, data in secrets_of(home).items() if "run-keys" not in path and "kept-" not in path}
    assert all(data in archive for data in kept.values())
    monkeypatch.setattr(secret_files, "_keys", {})
    new = next(numbers) / name
    refused = call(new, "restore", str(file))
    assert refused.exit_code == 1
    assert "holds keys that were sealed in their home" in refused.output
    assert "set CONFIDE_PASSPHRASE_FILE" in refused.output
    assert not new.exists()
    monkeypatch.setenv("CONFIDE_PASSPHRASE_FILE", str(sealed.folder / "passphrase"))
    done(new, "restore", str(file))
    assert {path: secrets_of(new)[path] for path in kept} == kept
    assert '"keys": "sealed"' in done(new, "status", "--json").output

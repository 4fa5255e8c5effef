"""A coordinator's things to start tests from: an empty store, keys, a tiny backbone, a federation of enrolled nodes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from confide.coordinator.federation.pki import Pki
from confide.coordinator.store import audit_log
from confide.coordinator.store.place import SQLITE_FILE, note_database
from confide.coordinator.store.states import RunState
from confide.coordinator.store.store import Store
from confide.coordinator.store.tables import NodeRow, Round, Run

from ..client_node.conftest import STUDY_TOML, certificate_of, changed, identity_of

if TYPE_CHECKING:
    from confide.client_node.study.study import Study

    from ..system.postgresql import Cluster

SITES, PARTIES = ("other", "svi", "svhc", "rest"), ("agg-a", "agg-b", "agg-c")


only_sqlite = pytest.mark.parametrize("any_store", ["sqlite"], indirect=True)
only_postgresql = pytest.mark.parametrize(
    "any_store", [pytest.param("postgresql", marks=pytest.mark.process)], indirect=True
)


@dataclass
class Federation:
    """Enrolled nodes, keys and a backbone; `draft` writes a study.toml."""

    home: Path
    store: Store
    pki: Pki
    backbone: Path

    def draft(self, *changes: tuple[str, str]) -> Path:
        path = self.home / "study.toml"
        path.write_text(changed(STUDY_TOML, (("some/where/backbone", str(self.backbone)), *changes)))
        return path

    def create(self, *changes: tuple[str, str], **options: bool) -> "Study":
        from confide.coordinator.studies.create import create_study

        return create_study(self.store, self.pki, self.home, self.draft(*changes), **options)

    def change(self, name: str, **values: object) -> None:
        with self.store.session() as session:
            node = session.get(NodeRow, name)
            for column, value in values.items():
                setattr(node, column, value)


@pytest.fixture(scope="session")
def _empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    home = tmp_path_factory.mktemp("empty")
    Store.create(home).close()
    return (home / "coordinator.db").read_bytes()


@pytest.fixture
def empty_store(tmp_path: Path, _empty_database: bytes) -> Iterator[Store]:
    """A new store under `tmp_path`; one migration serves all tests."""
    (tmp_path / "coordinator.db").write_bytes(_empty_database)
    store = Store.open(tmp_path)
    yield store
    store.close()


@pytest.fixture(scope="session")
def postgresql() -> Iterator["Cluster"]:
    """A PostgreSQL server; whoever asks for it starts processes."""
    from ..system.postgresql import cluster

    with cluster() as made:
        yield made


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.process)])
def any_store(request: pytest.FixtureRequest, tmp_path: Path, _empty_database: bytes) -> Iterator[Store]:
    """A new store of the federation at `tmp_path`, on each of the databases."""
    server = None if request.param == "sqlite" else request.getfixturevalue("postgresql")
    url = None if server is None else server.url()
    if url is None:
        (tmp_path / SQLITE_FILE).write_bytes(_empty_database)
    else:
        note_database(tmp_path, url)
    store = Store.open(tmp_path)
    yield store
    store.close()
    if server is not None:
        server.drop(url)  # a hundred of them are a gigabyte


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pki]:
    """Keys and certificates that no test changes; one that has to takes a copy of the folder."""
    made = Pki.create(tmp_path_factory.mktemp("pki"), ["fed.example"])
    before = {file: file.read_bytes() for file in made.folder.iterdir()}
    yield made
    assert {file: file.read_bytes() for file in before} == before  # locks and a SuperLink's keys may be beside them


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone for the records of `STUDY_TOML`, too small to be good at anything."""
    import torch  # most tests of the coordinator do without

    from confide.client_node.study.terms import load_draft
    from confide.models.backbones.family import BackboneConfig
    from confide.models.backbones.loading import build, save

    home = tmp_path_factory.mktemp("backbone")
    (home / "study.toml").write_text(STUDY_TOML)
    schema = load_draft(home / "study.toml").record_schema()
    model = build(schema, BackboneConfig(hidden=32, experts=4))
    save(model, schema, torch.zeros(64), torch.eye(64), home / "backbone")
    return home / "backbone"


@pytest.fixture(scope="session")
def collapsed(backbone: Path) -> Path:
    """The same backbone with routers that send every token to the first two experts."""
    from confide.models.backbones.loading import load, save

    loaded = load(backbone)
    for name, tensor in loaded.model.state_dict().items():
        if name.endswith("e_score_correction_bias"):
            tensor[:2] = 9.0
    save(loaded.model, loaded.schema, loaded.center, loaded.whiten, backbone.parent / "collapsed")
    return backbone.parent / "collapsed"


@pytest.fixture
def federation(tmp_path: Path, empty_store: Store, pki: Pki, backbone: Path) -> Federation:
    """Everyone whom `STUDY_TOML` names, enrolled."""
    with empty_store.session() as session:
        session.add_all(enrolled_nodes())
    return Federation(tmp_path, empty_store, pki, backbone)


def logged(store: Store) -> list[tuple[str, dict[str, object]]]:
    """The audit log: actions with their fields, oldest first."""
    with store.session() as session:
        return [(each.action, dict(each.fields)) for each in audit_log.entries(session)]


def enrolled_nodes() -> list[NodeRow]:
    sites = [NodeRow(name=name, roles="train", identity=identity_of(name), enrolled_at=0.5) for name in SITES]
    parties = [
        NodeRow(
            name=name,
            roles="aggregate",
            identity=identity_of(name),
            enrolled_at=0.5,
            party_address=f"{name}.example:7000",
            party_certificate=certificate_of(name),
        )
        for name in PARTIES
    ]
    return [*sites, *parties]


def committed_round(
    number: int = 1, *, run: str = "run-1", lease: int = 1, sent: int = 1, state_hash: str = ""
) -> Round:
    """A row for `Store.commit_round`."""
    return Round(
        run=run,
        number=number,
        sites="[]",
        evidence="[]",
        state_hash=state_hash or f"{number:064x}",
        seconds=1.0,
        bytes_per_site=sent,
        lease=lease,
        committed_at=0.0,
    )


def put_in_state(store: Store, run: str, state: str, error: str | None = None) -> None:
    """Writes a run's state as it is, whatever may follow what."""
    with store.session() as session:
        row = session.get(Run, run)
        row.state, row.error = RunState(state), error

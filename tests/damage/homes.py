"""Homes of a federation as their own commands make them, with a run that stopped in the middle of its second round.

Commands run in this process, so that the whole takes seconds. Enrolment goes over the real gate. The run's driver, its
nodes, their models, ledgers and files are real; only links are missing, as in the tests of runs: the parties
meet at a table.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from confide.client_node.approval.charges import open_ledger
from confide.client_node.cli.main import app as node_app
from confide.client_node.enrolment import Enrolment, NodeIdentity
from confide.client_node.node import Node
from confide.client_node.shares import aggregator as aggregator_module
from confide.client_node.wire.messages import Packet
from confide.coordinator.cli.main import app as coordinator_app
from confide.coordinator.fleet import NodeFailure
from confide.coordinator.run import questions
from confide.coordinator.run import rounds as rounds_module
from confide.coordinator.run.driver import drive
from confide.coordinator.store import Store
from confide.coordinator.store.states import FAIL
from confide.machine import free_ports
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import build, save
from confide.privacy.ledger.ledger import Ledger

from ..client_node.conftest import PATIENTS_CSV, SITE_TOML, STUDY_TOML, changed
from ..coordinator.open_gate import open_gate
from ..coordinator.quiet_fleet import QuietFleet, TableParty

SITES, PARTIES = ("east", "north", "south"), ("agg-a", "agg-b", "agg-c")
COORDINATOR, AWAY = "coordinator", "south"
WIDE = {"COLUMNS": "400"}

_STUDY = (
    ("max_dropouts = 0", 'max_dropouts = 1\ndropouts = "top-up"'),
    ("rounds = 40", "rounds = 2"),
    ("min_sites = 3", "min_sites = 2"),
    ("deadline_s = 60", "deadline_s = 5"),
    ("[participants]", "[aggregation]\nverify_total = true\n[participants]"),
    ('sites = ["other", "svi", "svhc", "rest"]', f"sites = {json.dumps(SITES)}"),
)


class Stopped(Exception):
    """Ends a driver as a power cut would."""


@dataclass
class Homes:
    """All homes of one federation, under one folder."""

    folder: Path
    study: str  # its hash
    run: str
    asked: list[tuple[str, str, Packet]] = field(default_factory=list)  # kind, node, message

    def home(self, name: str) -> Path:
        return self.folder / name

    def at(self, folder: Path) -> "Homes":
        """The same federation, copied to another folder."""
        return Homes(folder, self.study, self.run, self.asked)


def call(home: Path, *words: str) -> Result:
    """Runs one command of whoever lives at `home`."""
    app = coordinator_app if home.name == COORDINATOR else node_app
    return CliRunner().invoke(app, [*words, "--home", str(home)], env=WIDE)


def done(home: Path, *words: str) -> Result:
    result = call(home, *words)
    assert result.exit_code == 0, result.output
    return result


@contextmanager
def nodes_at(folder: Path) -> Iterator[dict[str, Node]]:
    """The nodes of a federation as their daemons start them."""
    nodes: dict[str, Node] = {}
    ledgers: list[Ledger] = []
    try:
        for name in (*SITES, *PARTIES):
            nodes[name] = started(folder / name, ledgers)
        yield nodes
    finally:
        for node in nodes.values():
            node.stop()
        for ledger in ledgers:
            ledger.close()


def started(home: Path, ledgers: list[Ledger]) -> Node:
    identity, enrolment = NodeIdentity.load(home), Enrolment.load(home)
    ledger = open_ledger(home, identity, enrolment) if "train" in enrolment.roles else None
    ledgers += [ledger] if ledger is not None else []
    return Node(home, identity, enrolment, ledger=ledger)


def found(folder: Path, noticing: Callable[[str, str], None] = lambda kind, name: None) -> Homes:
    """Founds a federation under `folder` and drives a run until its second total is opened and not committed.

    `noticing` is called before every message with its kind and the node that it is for.
    """
    home = folder / COORDINATOR
    done(home, "init", "--port", str(free_ports(1)[0]))
    with open_gate(home):
        for name in (*SITES, *PARTIES):
            role = ("train",) if name in SITES else ("aggregate",)
            code = json.loads(done(home, "site", "invite", name, "--role", *role, "--json").stdout)["code"]
            reached = ("--party-address", f"{name}.example:7001") if name in PARTIES else ()
            done(folder / name, "enroll", code, *reached)
        _write_backbone(folder / "backbone")
        study_toml = folder / "study.toml"
        study_toml.write_text(changed(STUDY_TOML, (("some/where/backbone", str(folder / "backbone")), *_STUDY)))
        study = json.loads(done(home, "study", "create", str(study_toml), "--json").stdout)["hash"]
        for site in SITES:
            (folder / site / "patients.csv").write_text(PATIENTS_CSV)
            at_backbone = ('directory = "backbone"', f'directory = "{folder / "backbone"}"')
            (folder / site / "site.toml").write_text(changed(SITE_TOML, (at_backbone,)))
        _approve(folder, study)
    made = Homes(folder, study, json.loads(done(home, "run", "start", study, "--json").stdout)["run"])
    _drive(made, noticing)
    return made


def _approve(folder: Path, study: str) -> None:
    spoken = [f"{s}={json.loads(done(folder / s, 'status', '--json').stdout)['fingerprint']}" for s in SITES]
    for name in PARTIES:
        done(folder / name, "site", "confirm", *spoken)
    for name in (*SITES, *PARTIES):
        done(folder / name, "study", "approve", study, "--yes")


def _drive(made: Homes, noticing: Callable[[str, str], None]) -> None:
    """Round 1 with all sites; in round 2 one is away, the others top up, and the driver dies once a total is signed."""
    with pytest.MonkeyPatch.context() as patch, nodes_at(made.folder) as nodes:
        quicken(patch)
        seen: list[tuple[str, str]] = []

        def before(kind: str, name: str) -> NodeFailure | None:
            seen.append((kind, name))
            noticing(kind, name)
            is_away = name == AWAY and seen.count(("step", AWAY)) > 1
            return NodeFailure(reason="timeout") if is_away else None

        def after(kind: str, name: str) -> None:
            if kind == "aggregate" and seen.count((kind, name)) == 2:
                raise Stopped

        fleet = Noting(nodes, made.asked, before=before, after=after)
        with pytest.raises(Stopped):
            drive(fleet, made.home(COORDINATOR), made.run)
    store = Store.open(made.home(COORDINATOR))
    store.move_run(made.run, FAIL, lease=store.run(made.run).lease, error="the power was cut")
    store.close()


def quicken(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(questions, "RETRY_S", 0.1)
    patch.setattr(questions, "PATIENCE_S", 60.0)
    patch.setattr(rounds_module, "FAREWELL_S", 0.0)
    patch.setattr(aggregator_module, "PartyProcess", TableParty)
    TableParty.dies = None


class Noting(QuietFleet):
    """Keeps every message that it carries. Nodes take turns: two cannot load a model at once in one process."""

    def __init__(self, nodes: dict[str, Node], noted: list[tuple[str, str, Packet]], **hooks: Any) -> None:
        super().__init__(nodes, **hooks)
        self.noted, self._turn = noted, threading.Lock()

    def ask(
        self, kind: str, requests: Mapping[str, Packet], timeout: float, *, together: bool = False
    ) -> Iterator[tuple[str, Packet | NodeFailure]]:
        self.noted += [(kind, name, packet) for name, packet in requests.items()]
        return super().ask(kind, requests, timeout, together=together)

    def _answer(self, kind: str, name: str, packet: Packet) -> Packet | NodeFailure:
        if kind == "aggregate":  # the three meet
            return super()._answer(kind, name, packet)
        with self._turn:
            return super()._answer(kind, name, packet)


def _write_backbone(directory: Path) -> None:
    import torch

    from confide.client_node.study.terms import load_draft

    (directory.parent / "draft.toml").write_text(STUDY_TOML)
    schema = load_draft(directory.parent / "draft.toml").record_schema()
    model = build(schema, BackboneConfig(hidden=32, experts=4))
    save(model, schema, torch.zeros(64), torch.eye(64), directory)

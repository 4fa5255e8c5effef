"""Signing key and CA have successors during a run: daemons stay connected, and the run is what it would have been.

What it would have been is simulated: test_study.py shows that a simulation ends in what an undisturbed run does.
"""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from confide.coordinator import ca_rotation, key_rotation
from confide.coordinator.demo.processes import DemoFederation
from confide.coordinator.federation import opened_store
from confide.coordinator.store.store import Store
from confide.coordinator.studies.catalogue import load_study

from .conftest import ROUNDS, STUDY_TOML, final_hash, finish, simulated_hash, start_run, wait_for

LONG = 20  # rounds

pytestmark = [pytest.mark.process, pytest.mark.slow]


def test_a_run_under_way_goes_on_with_a_new_signing_key_and_over_both_steps_to_a_new_ca(
    federation: DemoFederation, tmp_path: Path
) -> None:
    nodes, study = federation.nodes, long_study(federation, tmp_path / "study.toml")
    with opened_store(federation.home) as store:
        undisturbed = simulated_hash(federation, load_study(store.study(study)), tmp_path / "simulated", workers=1)
    wait_for(lambda: all(connections(federation, node) for node in nodes), "that all are connected", 180)
    before = {node: (federation.pid(node), connections(federation, node)) for node in nodes}
    run = start_run(federation, study)

    def told(*words: str) -> Any:
        return json.loads(federation.operator("ca", *words, "--json"))

    def is_over() -> bool:
        store = Store.open(federation.home)
        try:
            return store.run(run).state.is_over
        finally:
            store.close()

    followed = json.loads(federation.operator("keys", "rotate", "--yes", "--json"))
    wait_for(lambda: not lacking(federation, key_rotation), "that all know the key", 180)  # nobody touches a node
    said = {"knows": "present", "key": followed["new"]}
    assert keys_told(federation)["nodes"] == dict.fromkeys(nodes, said)
    assert not is_over()
    began = told("rotate")
    assert set(began["lacking"]) == set(nodes)
    wait_for(lambda: not lacking(federation, ca_rotation), "that all trust the next CA", 180)
    assert not is_over()
    finished = told("finish", "--yes")
    assert finished["present"] == began["next"]
    assert not is_over()
    wait_for(lambda: trusting(federation) == {"all"}, "that all have dropped the old CA", 180)
    assert set(told("status")["nodes"].values()) == {"all"}
    finish(federation, run)
    assert final_hash(federation, run, rounds=LONG) == undisturbed
    assert {node: (federation.pid(node), connections(federation, node)) for node in nodes} == before
    for node in nodes:
        assert json.loads(federation.client(node, "status", "--json"))["coordinator_key"] == followed["new"]
        (ca,) = json.loads(federation.client(node, "ca", "show", "--json"))
        assert ca["sha256"] == finished["present"]["sha256"]
        federation.client(node, "study", "list", "--json")  # over a connection of its own
    federation.operator("audit", "verify")


def long_study(federation: DemoFederation, file: Path) -> str:
    """The tiny study with more rounds than a machine that does other work gets through meanwhile; approved by all."""
    text = STUDY_TOML.replace('name = "tiny"', 'name = "long"').replace(f"rounds = {ROUNDS}", f"rounds = {LONG}")
    file.write_text(text)
    (file.parent / "backbone").symlink_to(federation.folder.parent / "backbone")
    made: str = json.loads(federation.operator("study", "create", str(file), "--accept", "--json"))["hash"]
    for node in federation.nodes:
        federation.client(node, "study", "approve", made, "--yes", "--unprotected")
    return made


def lacking(federation: DemoFederation, rotation: ModuleType) -> tuple[str, ...]:
    """The nodes that have not heard yet: asked in this process, for a run goes on meanwhile."""
    with opened_store(federation.home) as store:
        found: tuple[str, ...] = rotation.standing(store, federation.home).lacking
    return found


def trusting(federation: DemoFederation) -> set[str]:
    """What nodes trust, of all that they should; asked in this process for the same reason."""
    with opened_store(federation.home) as store:
        return {node.trusts for node in ca_rotation.standing(store, federation.home).nodes}


def keys_told(federation: DemoFederation) -> Any:
    return json.loads(federation.operator("keys", "status", "--json"))


def connections(federation: DemoFederation, node: str) -> int:
    """How often a daemon has had to connect."""
    return federation.log(node).read_text().count("is connected to")

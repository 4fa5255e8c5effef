"""The CA has a successor while a run is under way: daemons stay connected, and the run is what it would have been."""

import json
from typing import Any

import pytest

from confide.coordinator.demo.processes import DemoFederation
from confide.coordinator.store.store import Store

from .conftest import final_hash, finish, start_run, wait_for

pytestmark = [pytest.mark.process, pytest.mark.slow]


def test_a_run_under_way_goes_on_over_both_steps(federation: DemoFederation) -> None:
    undisturbed = start_run(federation)
    finish(federation, undisturbed)
    nodes = federation.nodes
    before = {node: (federation.pid(node), connections(federation, node)) for node in nodes}
    run = start_run(federation)

    def told(*words: str) -> Any:
        return json.loads(federation.operator("ca", *words, "--json"))

    def is_over() -> bool:
        store = Store.open(federation.home)
        try:
            return store.run(run).state.is_over
        finally:
            store.close()

    began = told("rotate")
    assert set(began["lacking"]) == set(nodes)
    wait_for(lambda: not told("status")["lacking"], "that all trust the next CA", 180)  # nobody touches a node
    assert not is_over()
    finished = told("finish", "--yes")
    assert finished["present"] == began["next"]
    assert not is_over()
    wait_for(lambda: set(told("status")["nodes"].values()) == {"all"}, "that all have dropped the old CA", 180)
    finish(federation, run)
    assert final_hash(federation, run) == final_hash(federation, undisturbed)
    assert {node: (federation.pid(node), connections(federation, node)) for node in nodes} == before
    for node in nodes:
        (ca,) = json.loads(federation.client(node, "ca", "show", "--json"))
        assert ca["sha256"] == finished["present"]["sha256"]
        federation.client(node, "study", "list", "--json")  # over a connection of its own


def connections(federation: DemoFederation, node: str) -> int:
    """How often a daemon has had to connect."""
    return federation.log(node).read_text().count("is connected to")

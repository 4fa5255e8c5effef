"""The lists of a node's questions, beside Flower's own state, which goes through all of them."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from flwr.app import Message
from flwr.common.constant import NOOP_FLWR_AID, SUPERLINK_NODE_ID
from flwr.server.superlink.linkstate import InMemoryLinkState
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation.noop_federation_manager import NoOpFederationManager
from hypothesis import given
from hypothesis import strategies as st

from confide.client_node.flower import pack
from confide.client_node.wire.messages import Packet
from confide.coordinator.fleet.link_state import ListedLinkState

NODES = 3
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, NODES - 1)),
        st.tuples(st.just("ask again"), st.integers(0, 9)),
        st.tuples(st.just("grow old"), st.integers(0, 9)),
        st.tuples(st.just("take"), st.integers(0, NODES - 1), st.sampled_from([1, 2, None])),
        st.tuples(st.just("delete"), st.integers(0, 9)),
        st.tuples(st.just("run over")),
    ),
    max_size=20,
)


@pytest.fixture(autouse=True, scope="module")
def task() -> Iterator[None]:
    """A message takes its sender from the process's task, whatever the tests change later."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("_run_id", "_node_id", "_task_id"):
            patched.setattr(TaskIdentity, name, 1)
        yield


class Played:
    """A state with some nodes and a run, which is told the same as another one."""

    def __init__(self, kind: type[InMemoryLinkState]) -> None:
        self.state = kind(NoOpFederationManager(), ObjectStoreFactory().store())
        self.nodes = [self.state.create_node(NOOP_FLWR_AID, "", bytes([number]) * 8, 0) for number in range(NODES)]
        for node in self.nodes:
            self.state.activate_node(node, 60.0)
        self.run = self.new_run()
        self.sent = list[Message]()

    def new_run(self) -> int:
        fab = self.state.store_fab(Fab("", b"nothing to run", {}))
        return self.state.create_run("", "", fab, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP)

    def ask(self, node: int) -> str | None:
        message = Message(pack(Packet(b"{}")), self.nodes[node], "query.plan", ttl=60.0, group_id="")
        message.metadata.__dict__ |= {"_src_node_id": SUPERLINK_NODE_ID, "_run_id": self.run}
        message.metadata.__dict__["_message_id"] = f"{len(self.sent):064x}"
        self.sent.append(message)
        return self.state.store_message_ins(message)

    def take(self, node: int, limit: int | None = 1) -> list[str]:
        return [each.metadata.message_id for each in self.state.get_message_ins(self.nodes[node], limit)]

    def follow(self, step: Sequence[Any]) -> object:
        """Does one step; returns what can be seen of it."""
        match step:
            case ("ask", node):
                return self.ask(node)
            case ("ask again", number) if number < len(self.sent):
                return self.state.store_message_ins(self.sent[number])
            case ("grow old", number) if number < len(self.sent):
                self.sent[number].metadata.__dict__["_created_at"] -= 100
            case ("take", node, limit):
                return self.take(node, limit)
            case ("delete", number):
                return self.state.delete_messages({f"{number:064x}"})
            case ("run over",):
                self.run = self.new_run()
        return None


@given(STEPS)
def test_nodes_take_what_flowers_own_state_would_hand_out(steps: list[tuple[Any, ...]]) -> None:
    own, flowers = Played(ListedLinkState), Played(InMemoryLinkState)
    for step in steps:
        assert own.follow(step) == flowers.follow(step)
    flowers.state.get_message_ins(0, 1)  # nobody's poll, at which it looks through all
    waiting = {
        own.nodes[flowers.nodes.index(message.metadata.dst_node_id)]
        for message in flowers.state.message_ins_store.values()
        if message.metadata.delivered_at == ""
    }
    assert isinstance(own.state, ListedLinkState)
    assert own.state.waited_for() == sorted(waiting)
    assert own.state.num_message_ins() == flowers.state.num_message_ins()
    assert len(own.state._activations) == own.state.num_message_ins()
    assert [own.state.is_waited_for(node) for node in own.nodes] == [node in waiting for node in own.nodes]
    for node in range(NODES):
        assert own.take(node, None) == flowers.take(node, None)
    assert not own.state.waited_for()
    own.state.delete_messages(set(own.state.message_ins_store))
    assert not own.state._activations


def test_a_question_is_handed_to_the_activation_that_it_was_sent_to_and_to_no_later_one() -> None:
    played = Played(ListedLinkState)
    state, node = played.state, played.nodes[0]
    assert isinstance(state, ListedLinkState)
    old = played.ask(0)
    before = state.nodes[node].last_activated_at
    state.deactivate_node(node)
    state.activate_node(node, 60.0)
    new = played.ask(0)
    assert old is not None
    assert state.activation_at(old) == before != state.nodes[node].last_activated_at
    assert state.store_message_ins(played.sent[0]) == old  # its driver had no answer, and sends it again
    assert state.activation_at(old) == before
    assert played.take(0, None) == [new]
    assert played.take(0, None) == []


def test_a_limit_below_one_is_refused_as_flower_does() -> None:
    played = Played(ListedLinkState)
    with pytest.raises(AssertionError, match="limit"):
        played.take(0, 0)

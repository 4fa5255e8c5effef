"""Flower's state in memory, in which the questions to one node are found without looking through those to all others.

Flower's own goes through every question of every run at each poll of a node, and checks each: among a thousand nodes
that is most of what a poll costs. Here each node has a list. The state also knows by which activation a node was online
when a question was stored, and hands no question to a later one.
"""

import datetime as dt
from typing import Any

from flwr.app import Message
from flwr.server.superlink.linkstate import InMemoryLinkState


class ListedLinkState(InMemoryLinkState):
    """Keeps the questions that wait for a node in a list of that node."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._waiting: dict[int, dict[str, None]] = {}  # node -> its questions that nobody has taken, oldest first
        self._activations: dict[str, str] = {}  # question -> its node's activation when it was stored

    def store_message_ins(self, message: Message) -> str | None:
        """Stores a question, once however often it comes. None if the SuperLink does not take it."""
        with self.lock:
            name: str | None = super().store_message_ins(message)
            node = self.nodes.get(message.metadata.dst_node_id)
            if name is not None and node is not None and name not in self._activations:
                self._activations[name] = node.last_activated_at
                self._waiting.setdefault(node.node_id, {})[name] = None
            return name

    def get_message_ins(self, node_id: int, limit: int | None, *, run_id: int | None = None) -> list[Message]:
        """Takes a node's questions, oldest first: at most `limit`, and of one run if that is named."""
        if limit is not None and limit < 1:
            raise AssertionError("`limit` must be >= 1")  # as Flower's own does
        taken = list[Message]()
        with self.lock:
            self.drop_stale(node_id)
            for name in list(self._waiting.get(node_id, ())):
                self._check_stored_messages({name})  # deletes one that is too old
                message = self.message_ins_store.get(name)
                if message is None or run_id not in (None, message.metadata.run_id):
                    continue
                message.metadata.delivered_at = dt.datetime.now(dt.UTC).isoformat()
                self._unlist(name)
                taken.append(message)
                if len(taken) == limit:
                    break
        return taken

    def delete_messages(self, message_ins_ids: set[str]) -> None:
        """Deletes questions, and their answers."""
        with self.lock:
            for name in message_ins_ids:
                self._unlist(name)
                self._activations.pop(name, None)
            super().delete_messages(message_ins_ids)

    def activation_at(self, name: str) -> str:
        """Returns the activation of a question's node when the question was stored; "" if it is not here."""
        return self._activations.get(name, "")

    def drop_stale(self, node_id: int) -> None:
        """Drops a node's questions that it was asked before it connected anew: nobody hands them out any more.

        Their driver sees by the same two activations that they are lost, and asks anew (`Fleet`). A node that answered
        both would be one question behind for good, and aggregators that work on different orders refuse each other.
        """
        with self.lock:
            node = self.nodes.get(node_id)
            for name in list(self._waiting.get(node_id, ())):
                if node is not None and node.last_activated_at != self._activations[name]:
                    self.message_ins_store[name].metadata.delivered_at = node.last_activated_at
                    self._unlist(name)
                    self.object_store.delete(name)

    def is_waited_for(self, node_id: int) -> bool:
        """True if there is a question that this node has not taken."""
        return node_id in self._waiting

    def waited_for(self) -> list[int]:
        """Lists the nodes for which questions lie here that have not been handed out.

        Deletes all questions that are too old, as Flower's own does at any poll: nobody else asks for those of a run
        that is over.
        """
        with self.lock:
            self._check_stored_messages(set(self.message_ins_store))
            for node_id in list(self._waiting):
                self.drop_stale(node_id)
            return sorted(self._waiting)

    def _unlist(self, name: str) -> None:
        message = self.message_ins_store.get(name)
        if message is None or (listed := self._waiting.get(message.metadata.dst_node_id)) is None:
            return
        listed.pop(name, None)
        if not listed:
            del self._waiting[message.metadata.dst_node_id]

"""What the coordinator's end needs of Flower's private modules; each test says what breaks without it."""

import inspect

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.error.base import ApiErrorCode
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError, pull_objects
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import http_grid

from confide.coordinator.fleet import flower


def test_the_pause_between_questions_for_parts_can_be_shortened() -> None:
    """Else the driver waits a second for the parts of each reply: rounds are right, and seconds longer."""
    parameters = inspect.signature(http_grid.pull_objects).parameters
    assert {"initial_backoff", "backoff_cap", "max_time"} <= set(parameters)


def test_the_wait_for_the_parts_of_a_reply_can_be_ended() -> None:
    """Else a node that is killed while it answers holds its run for half a minute."""
    tried = []

    def pull(object_id: str) -> bytes:
        tried.append(object_id)
        if len(tried) > 1:
            raise ObjectPullError(object_id, "enough")
        raise ObjectUnavailableError(object_id)

    with pytest.raises(ObjectPullError, match="enough"):
        pull_objects(object_ids=["a"], pull_object_fn=pull, initial_backoff=0.01)
    assert tried == ["a", "a"]


def test_the_parts_of_an_answer_tell_whose_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the wait for an answer's parts cannot be ended for a killed node without harming others."""
    assert {"messages_list", "message_object_trees"} <= set(PullAppMessagesResponse.DESCRIPTOR.fields_by_name)
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    message = Message(RecordDict({"x": ConfigRecord({"y": b"z"})}), 1, "query.plan")
    assert get_object_tree(message).object_id == message.object_id
    assert inspect.signature(http_grid.pull_objects).parameters["object_ids"].kind.name == "POSITIONAL_OR_KEYWORD"
    assert "self._runtime_client.PullMessages(" in inspect.getsource(http_grid.HttpGrid.pull_messages)


def test_a_node_tells_when_it_connected_last() -> None:
    """Else a question to a node that was killed waits out its whole time."""
    assert {"node_id", "public_key", "online_until", "last_activated_at"} <= set(NodeInfo.DESCRIPTOR.fields_by_name)


def test_flowers_answers_have_these_numbers() -> None:
    """By 23 a key is known as registered already, or no coordinator starts again; by 412 the gate lets a node back."""
    assert ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE == flower._KEY_TAKEN
    assert API_ERROR_MAP[ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED].http_status_code == 412

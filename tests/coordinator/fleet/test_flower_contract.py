"""What the coordinator's end needs of Flower's private modules; each test says what breaks without it."""

import inspect
import sys

import httpx
from flwr.proto.node_pb2 import NodeInfo
from flwr.server.superlink.linkstate import InMemoryLinkState
from flwr.supercore.error.base import ApiErrorCode
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.superlink import main
from flwr.superlink.cli import flower_superlink
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import http_grid
from flwr.superlink.routers.fleet.node_auth import authenticate_node

from confide.coordinator.fleet import flower


def test_the_superlink_takes_middleware_that_stands_outermost() -> None:
    """Else none of our own calls is answered, and nodes are told that the coordinator is older than they are."""
    assert "extensions.get_middleware()" in inspect.getsource(main._get_middleware).partition("Middleware(")[0]


def test_the_superlink_is_served_by_uvicorns_own_function() -> None:
    """Else connections of the gate end after 5 s, and every question costs a handshake."""
    assert "uvicorn.run(" in inspect.getsource(sys.modules[flower_superlink.__module__])


def test_answers_are_found_by_their_questions() -> None:
    """Else a driver is never told of an answer."""
    state = InMemoryLinkState(NoOpFederationManager(), InMemoryObjectStore())
    assert state.message_ins_id_to_message_res_id == state.message_ins_store == {}
    assert {"get_message_res", "delete_messages", "acknowledge_node_heartbeat", "get_task_by_token"} <= set(dir(state))


def test_a_node_can_be_authenticated_outside_of_flowers_middleware() -> None:
    """Else nodes could neither take questions nor give answers."""
    assert list(inspect.signature(authenticate_node).parameters) == ["request"]
    assert "request.state.protobuf_request" in inspect.getsource(authenticate_node)


def test_the_grid_has_the_parts_that_our_carrier_uses() -> None:
    """Else no driver can speak to the SuperLink."""
    grid = http_grid.HttpGrid("127.0.0.1:1", root_certificates=None, token="t")
    assert (grid._addr, grid._token) == ("127.0.0.1:1", "t")
    assert hasattr(grid, "_retry_invoker")
    assert isinstance(grid._runtime_client._client, httpx.Client)
    grid.close()


def test_a_node_tells_when_it_connected_last() -> None:
    """Else a question to a node that was killed waits out its whole time."""
    assert {"node_id", "public_key", "online_until", "last_activated_at"} <= set(NodeInfo.DESCRIPTOR.fields_by_name)


def test_flowers_answers_have_these_numbers() -> None:
    """By 23 a key is known as registered already, or no coordinator starts again; by 412 the gate lets a node back."""
    assert ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE == flower._KEY_TAKEN
    assert API_ERROR_MAP[ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED].http_status_code == 412

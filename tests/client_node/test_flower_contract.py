"""What the node's end needs of Flower's private modules; each test says what breaks under a version that has it not."""

import hashlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common import constant
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.supercore import constant as supercore_constant
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity

from confide.client_node import flower, flower_version
from confide.client_node.errors import FlowerUnsupported
from confide.client_node.wire.messages import Packet

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def message(monkeypatch: pytest.MonkeyPatch) -> Message:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    return Message(flower.pack(Packet(b"{}", {"blob": b"x"})), 1, "query.step", ttl=9.0, group_id="")


@pytest.mark.parametrize("found", ["1.43.0", "1.41.9", "2.42.0", "1.420.0", None])
def test_another_minor_version_is_refused_in_words(found: str | None) -> None:
    with pytest.raises(FlowerUnsupported, match=r"needs flwr 1\.42.*pip install 'flwr==1\.42"):
        flower_version.require(found)


def test_every_patch_of_the_minor_version_is_taken() -> None:
    flower_version.require("1.42.0")
    flower_version.require("1.42.17")


def test_installing_demands_the_same_minor_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"flwr=={flower_version.MINOR}.*" in project["dependencies"]


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("module", ["confide.client_node.flower", "confide.coordinator.fleet.flower"])
def test_a_forced_version_is_refused_at_import_before_flower_is_loaded(module: str) -> None:
    program = (
        "import importlib, importlib.metadata as m, sys; real = m.version\n"
        "m.version = lambda name: '1.43.0' if name == 'flwr' else real(name)\n"
        f"try: importlib.import_module({module!r})\n"
        "except Exception as err: print(type(err).__name__, 'flwr' in sys.modules, err)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.startswith("FlowerUnsupported False confide needs flwr 1.42")


def test_a_node_proves_itself_by_these_three_headers() -> None:
    """The gate checks them under these names; under others, every node is turned away as unsigned."""
    assert supercore_constant.FLEET_HTTP_PUBLIC_KEY_HEADER == "flwr-public-key"
    assert supercore_constant.FLEET_HTTP_SIGNATURE_HEADER == "flwr-signature"
    assert constant.TIMESTAMP_HEADER == "flwr-timestamp"


def test_the_shortest_heartbeat_that_flower_takes_is_ours() -> None:
    """Under a longer one, activations are refused with 400: no node connects."""
    assert constant.HEARTBEAT_MIN_INTERVAL <= flower._INTERVAL_S
    assert flower._HEARTBEAT_S < flower._INTERVAL_S * constant.HEARTBEAT_PATIENCE


def test_objects_are_named_by_their_content(message: Message) -> None:
    """Else a vector for all sites is sent once for each, and a node cannot ask for the parts that it lacks alone."""
    parts = get_all_nested_objects(message)
    assert all(hashlib.sha256(part.deflate()).hexdigest() == name for name, part in parts.items())
    assert get_object_tree(message).object_id == message.object_id


def test_a_message_without_its_content_keeps_its_head(message: Message) -> None:
    """Answers are announced that way; else every answer would be sent twice, or be too large for the gate."""
    head = message_from_proto(message_to_proto(remove_content_from_message(message)))
    assert not head.content
    assert (head.metadata.message_type, head.metadata.ttl) == ("query.step", 9.0)


def test_a_messages_name_can_be_given_to_it(message: Message) -> None:
    """The name of an answer is its object's; else the SuperLink finds no message to the parts that come."""
    message.metadata.__dict__["_message_id"] = "a" * 64
    assert message.metadata.message_id == "a" * 64

"""Who gets into a federation and who does not: a real SuperLink, the real gate, nodes in processes of their own."""

import base64
import hashlib
import json
import logging
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest

from confide.client_node.enrolment.identity import NodeIdentity, fingerprint, wire_form
from confide.client_node.enrolment.protocol import EnrolAnswer, EnrolRequest, change_proxy, enrol
from confide.client_node.enrolment.sessions import HELLO_HEADER, Hello
from confide.client_node.wire.messages import Packet
from confide.coordinator.errors import InviteUsed
from confide.coordinator.federation.invites import code_text
from confide.coordinator.federation.pki import Pki
from confide.coordinator.fleet.flower import Fleet, open_grid
from confide.coordinator.gateway import superlink as superlink_module
from confide.coordinator.gateway.gate import FleetGate, serve_gate
from confide.coordinator.gateway.listener import GateServer
from confide.coordinator.gateway.superlink import SuperLink

from ..connect_proxy import OUTSIDE, ConnectProxy

pytestmark = pytest.mark.process

HARNESS = Path(__file__).resolve().parent / "harness"
NODES = ("north", "south")


def until(met: Callable[[], object], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "not met in time"
        time.sleep(0.05)


class Federation:
    """A coordinator in this process and its nodes in others."""

    def __init__(self, home: Path) -> None:
        self.home, self.pki = home, Pki.create(home, [])
        self.known: dict[str, str] = {}
        self.revoked: dict[str, str] = {}
        self.invited: dict[str, str] = {}
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.superlink = SuperLink(home, 0)
        self.peers: dict[str, set[str]] = {}  # a node's key as the gate sees it -> addresses that it came from
        self.gate = self.open_gate(0)
        self.superlink.start()

    def open_gate(self, port: int) -> GateServer:
        """Opens a gate that has seen nothing yet."""
        self._app = FleetGate(
            self, enrol=self.enrol, rotate=lambda _: "",
            studies=lambda _: {"studies": []}, ca_path=self.pki.ca_path, superlink=self.superlink.port,
            secret=self.superlink.secret, superlink_ca=self.superlink.ca_path,
        )  # fmt: skip
        return serve_gate(self, "127.0.0.1", port, self.pki.certificate_path, self.pki.key_path)

    def kill_superlink(self) -> None:
        killed = self.superlink.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        until(lambda: not self.superlink.is_up)
        until(lambda: self.superlink.is_up and self.superlink.pid != killed)

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http":
            key = dict(scope["headers"]).get(b"flwr-public-key", b"").decode()
            self.peers.setdefault(key, set()).add(scope["client"][0])
        await self._app(scope, receive, send)

    def release(self) -> None:
        self._app.release()

    def site_of(self, key: str) -> str | None:
        return self.known.get(key)

    def revoked_site(self, key: str) -> str | None:
        return self.revoked.get(key)

    def left_site(self, key: str) -> str | None:
        return None

    def site_with_identity(self, identity: str) -> str | None:
        return None

    def enrol(self, request: EnrolRequest) -> EnrolAnswer:
        name = self.invited.pop(request.secret, None)
        if name is None:
            raise InviteUsed("used")
        key = request.transport_public.encode()
        self.known[fingerprint(key)] = name
        self.superlink.register(key, name)
        return EnrolAnswer(name=name, roles=("train",), coordinator=self.pki.identity_hex)

    def join(self, name: str) -> Path:
        """Enrols a node under `home`/`name`."""
        secret = secrets.token_bytes(16)
        self.invited[secret.hex()] = name
        enrol(code_text(f"127.0.0.1:{self.gate.port}", secret, self.pki.ca_digest), self.home / name)
        return self.home / name

    def start_node(self, home: Path) -> subprocess.Popen[bytes]:
        with (home / "log").open("wb") as log:
            command = [sys.executable, str(HARNESS / "echo_node.py"), str(home)]
            node = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self.nodes[home.name] = node
        return node

    def kill(self, name: str) -> None:
        self.nodes[name].kill()
        self.nodes[name].wait()

    def drive(self, steps: list[dict[str, object]], nodes: Sequence[str] = NODES) -> list[dict[str, str]]:
        """What the nodes answered to each step of a run."""
        with open_grid(self.superlink.port, self.superlink.ca_path, self.superlink.submit().token) as grid:
            fleet = Fleet(grid, lambda: self.known)
            until(lambda: set(nodes) <= fleet.online(), 60)
            return [self._ask(fleet, number, step, nodes) for number, step in enumerate(steps)]

    @staticmethod
    def _ask(fleet: Fleet, number: int, step: dict[str, object], nodes: Sequence[str]) -> dict[str, str]:
        # Every node's own, as sealed answers are. The SuperLink keeps equal parts once, and drops them with the first
        # answer that was fetched, while another node may still be sending them.
        length = int(str(step.get("bytes", 100)))
        blobs = {name: hashlib.shake_256(f"{number} {name}".encode()).digest(length) for name in nodes}
        packets = {name: Packet(json.dumps({"number": number}).encode(), {"blob": blobs[name]}) for name in nodes}
        answers = fleet.ask(str(step["kind"]), packets, timeout=float(str(step.get("timeout", 60))))
        return {name: "echo" if answer == packets[name] else str(answer) for name, answer in answers}

    def close(self) -> None:
        for node in self.nodes.values():
            node.kill()
            node.wait()
        self.gate.stop()
        self.superlink.stop()


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    running = Federation(tmp_path_factory.mktemp("federation"))
    try:
        for name in NODES:
            running.start_node(running.join(name))
        yield running
    finally:
        running.close()


@pytest.fixture(autouse=True)
def gate_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="confide.gate")


def test_enrolled_nodes_answer_and_their_private_errors_stay_at_home(federation: Federation) -> None:
    large = {"kind": "echo", "bytes": 6 << 20}  # past Flower's 5 MiB parts
    steps: list[dict[str, object]] = [{"kind": "echo"}, large, {"kind": "fail_private"}, {"kind": "fail_public"}]
    assert federation.drive(steps) == [
        dict.fromkeys(NODES, "echo"),
        dict.fromkeys(NODES, "echo"),
        dict.fromkeys(NODES, "failed: ValueError"),
        dict.fromkeys(NODES, "failed: PacketInvalid: no blob called state"),
    ]
    assert "ward 7" not in (federation.home / "north" / "log").read_text()


def test_operators_and_drivers_interfaces_do_not_pass_the_gate(federation: Federation) -> None:
    trusting = ssl.create_default_context(cafile=str(federation.pki.ca_path))
    trusting.load_verify_locations(str(federation.superlink.ca_path))
    headers = {"content-type": "application/protobuf", "accept": "application/protobuf"}
    for path, message in (
        ("/v1/control/register-node", RegisterNodeRequest(public_key=b"x")),
        ("/v1/runtime/acquire-task", AcquireTaskRequest(supported_task_types=["flwr-serverapp"])),
    ):
        to_gate, to_superlink = (
            httpx.post(
                f"https://127.0.0.1:{port}{path}", content=message.SerializeToString(), headers=headers, verify=trusting
            ).status_code
            for port in (federation.gate.port, federation.superlink.port)
        )
        assert to_gate == 404
        assert to_superlink != 404  # there is something to hide


def test_a_stranger_is_refused_for_good_and_leaves_a_line(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    home = federation.join("stranger")
    key = NodeIdentity.load(home).transport_fingerprint
    del federation.known[key]
    assert federation.start_node(home).wait(180) == 77
    assert f"unknown key {key[:16]}" in caplog.text
    assert "does not know this node's key" in (home / "log").read_text()


def test_revocation_ends_a_running_node(federation: Federation, caplog: pytest.LogCaptureFixture) -> None:
    home = federation.join("late")
    node = federation.start_node(home)
    until(lambda: "is connected" in (home / "log").read_text())
    key = NodeIdentity.load(home).transport_fingerprint
    federation.revoked[key] = federation.known.pop(key)
    federation.superlink.unregister(federation.superlink.register(NodeIdentity.load(home).transport_public, "late"))
    assert node.wait(60) == 77
    assert f"revoked key {key[:16]} of site 'late'" in caplog.text
    assert "has revoked this node" in (home / "log").read_text()


def test_a_node_of_another_ca_gets_nothing_and_says_why(
    federation: Federation, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    home = federation.join("astray")
    (home / "ca.crt").write_bytes(Pki.create(tmp_path, []).ca_path.read_bytes())
    node = federation.start_node(home)
    until(lambda: "its certificate is not from this federation's CA" in (home / "log").read_text())
    assert node.poll() is None  # it waits: its operator may mend that
    node.kill()
    until(lambda: "TLS handshake failed" in caplog.text)  # the gate's thread may write it after the node's line
    assert "is connected" not in (home / "log").read_text()


def test_a_node_that_answers_for_another_is_refused_and_named(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    """The forger holds an enrolled key and speaks Flower's protocol to the letter, but for whose reply it is."""
    from flwr.proto.fleet_pb2 import ActivateNodeRequest, PushMessagesRequest
    from flwr.proto.message_pb2 import Message, Metadata, ObjectTree
    from flwr.proto.node_pb2 import Node
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    forger = NodeIdentity.load(federation.join("forger"))
    victim = federation.superlink.register(NodeIdentity.load(federation.home / "north").transport_public, "north")
    signing = NodeAuthHttpInterceptor(forger.transport_key, forger.transport_key.public_key())
    trusting = ssl.create_default_context(cafile=str(federation.pki.ca_path))
    address = f"https://127.0.0.1:{federation.gate.port}"
    hello = Hello.of(forger.home).model_dump_json()

    class Introducing:
        """Adds what Flower's client does not know: who connects, and by which protocol."""

        def intercept(self, context: Any, call_next: Callable[[Any], httpx.Response]) -> httpx.Response:
            context.request.headers[HELLO_HEADER] = hello
            return call_next(context)

    with FleetHttpClient(address, interceptors=[signing, Introducing()], verify=trusting) as client:
        activation = ActivateNodeRequest(public_key=wire_form(forger.transport_public), heartbeat_interval=30)
        own = client.ActivateNode(activation).node_id
        for caller, sender in ((own, victim), (victim, victim)):
            forged = PushMessagesRequest(
                node=Node(node_id=caller), messages_list=[Message(metadata=Metadata(src_node_id=sender))],
                message_object_trees=[ObjectTree()],
            )  # fmt: skip
            with pytest.raises(httpx.HTTPStatusError, match="400"):
                client.PushMessages(forged)
    key = forger.transport_fingerprint[:16]
    assert f"impersonation: site 'forger' (key {key}, node {own}) spoke for node {victim}" in caplog.text


def test_nodes_carry_on_after_the_superlink_was_killed(federation: Federation) -> None:
    federation.kill_superlink()
    assert federation.drive([{"kind": "echo"}]) == [dict.fromkeys(NODES, "echo")]
    assert all(federation.nodes[name].poll() is None for name in NODES)


@pytest.mark.slow
def test_a_superlink_that_hangs_is_started_anew(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superlink_module, "_LOOK_S", 0.2)
    monkeypatch.setattr(superlink_module, "_HUNG_S", 8.0)
    halted = federation.superlink.pid
    assert halted is not None
    os.kill(halted, signal.SIGSTOP)
    until(lambda: federation.superlink.is_up and federation.superlink.pid != halted)
    monkeypatch.undo()
    assert federation.drive([{"kind": "echo"}]) == [dict.fromkeys(NODES, "echo")]


def test_nodes_connect_anew_by_themselves_after_the_coordinator_was_restarted(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    port = federation.gate.port
    federation.gate.stop()
    federation.kill_superlink()
    federation.gate = federation.open_gate(port)
    assert federation.drive([{"kind": "echo"}]) == [dict.fromkeys(NODES, "echo")]
    assert all(federation.nodes[name].poll() is None for name in NODES)
    for name in NODES:
        assert f"{name} is connected" in caplog.text
    assert "impersonation" not in caplog.text
    assert "a second daemon" not in caplog.text


@pytest.mark.slow
def test_a_node_killed_in_the_middle_of_an_answer_is_back_and_its_question_given_up_at_once(
    federation: Federation,
) -> None:
    (federation.home / "south" / "lingered").touch()
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(federation.drive, [{"kind": "linger", "timeout": 300}])
        until((federation.home / "north" / "lingered").exists)
        federation.kill("north")
        federation.start_node(federation.home / "north")
        (first,) = run.result()
    assert first["south"] == "echo"
    # Not a timeout after 300 s. "offline" where its start took longer than the 20 s after which Flower misses it.
    assert first["north"].startswith(("restarted: it has connected anew", "offline"))
    assert federation.drive([{"kind": "echo"}]) == [dict.fromkeys(NODES, "echo")]
    assert "another daemon" not in (federation.home / "north" / "log").read_text()


@pytest.mark.slow
def test_a_copy_of_a_home_takes_no_message_while_the_first_daemon_lives_and_says_why(federation: Federation) -> None:
    copy = federation.home / "copy"
    shutil.copytree(federation.home / "north", copy)
    federation.start_node(copy)
    log = copy / "log"
    until(lambda: "another daemon uses this node's key" in log.read_text())
    assert federation.drive([{"kind": "echo"}]) == [dict.fromkeys(NODES, "echo")]
    assert "is connected" not in log.read_text()
    federation.kill("north")
    until(lambda: "is connected" in log.read_text())  # Flower gives the first one up
    federation.nodes["copy"].terminate()  # which says goodbye: the first is let in at once
    assert federation.nodes["copy"].wait(60) == 0
    federation.start_node(federation.home / "north")
    until(lambda: "is connected" in (federation.home / "north" / "log").read_text())


@pytest.mark.slow
def test_a_node_behind_a_proxy_works_by_it_alone(federation: Federation) -> None:
    home, proxy = federation.join("inside"), ConnectProxy("nurse:secret")
    try:
        change_proxy(home, proxy.url)
        federation.peers.clear()
        federation.start_node(home)
        large = {"kind": "echo", "bytes": 6 << 20}
        assert federation.drive([{"kind": "echo"}, large], ["inside"]) == [{"inside": "echo"}] * 2
        own = base64.b64encode(wire_form(NodeIdentity.load(home).transport_public)).decode()
        assert federation.peers[own] == {OUTSIDE}
        assert set(proxy.tunnels) == {f"127.0.0.1:{federation.gate.port}"}
        assert "secret" not in (home / "log").read_text()
    finally:
        federation.kill("inside")
        proxy.close()


def test_a_stopped_node_says_goodbye_and_exits_cleanly(federation: Federation) -> None:
    node = federation.start_node(federation.join("brief"))
    log = federation.home / "brief" / "log"
    until(lambda: "is connected" in log.read_text())
    node.terminate()
    assert node.wait(60) == 0


def test_the_superlink_dies_with_a_killed_coordinator(tmp_path: Path) -> None:
    Pki.create(tmp_path, [])
    serving = (
        "import sys, time; from pathlib import Path; from confide.coordinator.gateway.superlink import SuperLink\n"
        "link = SuperLink(Path(sys.argv[1]), 0); link.start(); print(link.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", serving, str(tmp_path)], stdout=subprocess.PIPE) as coordinator:
        assert coordinator.stdout is not None
        child = psutil.Process(int(coordinator.stdout.readline()))
        coordinator.kill()
    with suppress(psutil.NoSuchProcess):
        child.wait(60)
    assert not child.is_running()

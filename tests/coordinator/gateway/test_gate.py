"""The gate, over real TLS, in front of a SuperLink that the test plays."""

import asyncio
import datetime as dt
import json
import logging
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import Message as WireMessage
from flwr.proto.message_pb2 import Metadata, ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.client_node.enrolment.identity import NodeIdentity, wire_form
from confide.client_node.enrolment.protocol import EnrolAnswer, EnrolRequest, StudiesQuery
from confide.client_node.enrolment.sessions import HELLO_HEADER, SESSION_HEADER, Hello
from confide.coordinator.federation.pki import Pki
from confide.coordinator.fleet.wake import PORT_VARIABLE, WakeListener, wake
from confide.coordinator.gateway import gate as gate_module
from confide.coordinator.gateway.crowd import Limits
from confide.coordinator.gateway.daemons import Daemons
from confide.coordinator.gateway.gate import FleetGate, serve_gate
from confide.coordinator.gateway.refusals import RefusalLog
from confide.versions import OWN

from .played import PlayedRegister, PlayedSuperLink, pull, signed


@dataclass
class Setting:
    client: httpx.Client
    app: FleetGate
    superlink: PlayedSuperLink
    register: PlayedRegister
    north: NodeIdentity
    south: NodeIdentity
    stranger: NodeIdentity
    port: int
    upstream_port: int

    def post(self, call: str, body: bytes, who: NodeIdentity, **changed: str) -> httpx.Response:
        return self.client.post(f"/v1/fleet/{call}", content=body, headers=signed(who) | introduced(call) | changed)


def introduced(call: str) -> dict[str, str]:
    """The headers by which a daemon is told from others, of one that has always the same session."""
    hello = Hello(version=OWN.version, oldest=OWN.oldest, newest=OWN.newest, session="a" * 32, place="b" * 32)
    return {SESSION_HEADER: hello.session} | (
        {HELLO_HEADER: hello.model_dump_json()} if call == "activate-node" else {}
    )


def push(node_id: int, src: int, tree: ObjectTree | None = None) -> bytes:
    message = WireMessage(metadata=Metadata(src_node_id=src))
    request = PushMessagesRequest(
        node=Node(node_id=node_id), messages_list=[message], message_object_trees=[tree or ObjectTree(object_id="a")]
    )
    return request.SerializeToString()


def activation(who: NodeIdentity) -> bytes:
    return ActivateNodeRequest(public_key=wire_form(who.transport_public)).SerializeToString()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NodeIdentity]:
    home = tmp_path_factory.mktemp("nodes")
    return {name: NodeIdentity.create(home / name, name) for name in ("north", "south", "stranger")}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.create(tmp_path_factory.mktemp("coordinator"), [])


@pytest.fixture(scope="module")
def setting(pki: Pki, nodes: dict[str, NodeIdentity]) -> Iterator[Setting]:
    superlink, register = PlayedSuperLink(), PlayedRegister()
    roomy = Limits(per_address=1000)  # the SuperLink is played by the same server, and recognises nobody
    behind = serve_gate(superlink, "127.0.0.1", 0, pki.certificate_path, pki.key_path, limits=roomy)

    def enrol(request: EnrolRequest) -> EnrolAnswer:
        return EnrolAnswer(name="east", roles=("train",), coordinator=pki.identity_hex)

    app = FleetGate(
        register, enrol=enrol, rotate=lambda _: "",
        studies=lambda site: {"studies": [{"canonical": site, "hash": "", "signature": ""}]},
        ca_path=pki.ca_path, superlink=behind.port,
    )  # fmt: skip
    front = serve_gate(app, "127.0.0.1", 0, pki.certificate_path, pki.key_path, limits=roomy)
    context = ssl.create_default_context(cafile=str(pki.ca_path))
    with httpx.Client(base_url=f"https://127.0.0.1:{front.port}", verify=context, trust_env=False) as client:
        yield Setting(client, app, superlink, register, **nodes, port=front.port, upstream_port=behind.port)
    front.stop()
    behind.stop()


@pytest.fixture
def gate(setting: Setting, nodes: dict[str, NodeIdentity], caplog: pytest.LogCaptureFixture) -> Setting:
    """A gate that has seen nothing yet, before which "north" and "south" are enrolled."""
    caplog.set_level(logging.INFO, logger="confide.gate")
    setting.superlink.__init__()  # type: ignore[misc]
    setting.register.__init__()  # type: ignore[misc]
    setting.app._log, setting.app._daemons = RefusalLog(), Daemons()
    setting.app._node_ids = {nodes["north"].transport_fingerprint: 7}  # as after its activation
    for name in ("north", "south"):
        setting.register.known[nodes[name].transport_fingerprint] = name
        setting.register.identities[nodes[name].identity_hex] = name
    return setting


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/register-node", "/v1/control/start-run", "/v1/control/list-nodes", "/v1/runtime/acquire-task",
        "/v1/runtime/pull-messages", "/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/fleet/get-fab",
        "/v1/fleet/get-run", "/v1/fleet/", "/v1/fleet/../control/start-run", "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/pull-messages/", "//v1/fleet/pull-messages", "/docs", "/openapi.json", "/health", "/",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nothing_but_a_nodes_calls_reaches_the_superlink(gate: Setting, path: str, method: str) -> None:
    # A raw request: a client library would tidy up the path first.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", gate.port)) as raw, context.wrap_socket(raw) as link:
        head = [f"{method} {path} HTTP/1.1", "host: x", "content-length: 0", "connection: close"]
        head += [f"{name}: {value}" for name, value in signed(gate.north).items()]
        link.sendall("\r\n".join([*head, "", ""]).encode())
        assert link.recv(4096).startswith(b"HTTP/1.1 404")
    assert gate.superlink.seen == []


def test_an_enrolled_nodes_call_passes_unchanged(gate: Setting) -> None:
    response = gate.post("pull-messages", pull(7), gate.north)
    assert (response.status_code, response.content) == (200, b"from the SuperLink")
    assert gate.superlink.seen == [("/v1/fleet/pull-messages", pull(7))]


def test_an_unknown_key_is_refused_and_leaves_one_line(gate: Setting, caplog: pytest.LogCaptureFixture) -> None:
    responses = [gate.post("activate-node", b"", gate.stranger) for _ in range(3)]
    assert {(r.status_code, r.headers["confide-refused"]) for r in responses} == {(401, "unknown")}
    assert caplog.messages == [f"turned away: unknown key {gate.stranger.transport_fingerprint[:16]}, from 127.0.0.1"]
    assert gate.superlink.seen == []


def test_revocation_acts_on_the_next_request(gate: Setting, caplog: pytest.LogCaptureFixture) -> None:
    assert gate.post("pull-messages", pull(7), gate.north).status_code == 200
    key = gate.north.transport_fingerprint
    gate.register.revoked[key] = gate.register.known.pop(key)
    response = gate.post("pull-messages", pull(7), gate.north)
    assert (response.status_code, response.headers["confide-refused"]) == (401, "revoked")
    assert f"revoked key {key[:16]} of site 'north'" in caplog.text
    assert len(gate.superlink.seen) == 1


def test_showing_anothers_key_without_holding_it_is_refused(gate: Setting, caplog: pytest.LogCaptureFixture) -> None:
    shown = signed(gate.stranger) | {"flwr-public-key": signed(gate.north)["flwr-public-key"]}
    response = gate.client.post("/v1/fleet/pull-messages", content=pull(7), headers=shown)
    assert (response.status_code, response.headers["confide-refused"]) == (401, "signature")
    assert "showed the key of site 'north' but cannot sign with it" in caplog.text


@pytest.mark.parametrize(("ahead_s", "status"), [(4.0, 200), (6.0, 503), (100.0, 503), (-240.0, 200), (-251.0, 503)])
def test_a_clock_that_the_superlink_would_refuse_is_named_at_once(gate: Setting, ahead_s: float, status: int) -> None:
    shown = signed(gate.north, dt.datetime.now(dt.UTC) + dt.timedelta(seconds=ahead_s))
    response = gate.client.post("/v1/fleet/pull-messages", content=pull(7), headers=shown)
    assert response.status_code == status
    assert response.headers.get("confide-refused") == ("clock" if status == 503 else None)


@pytest.mark.parametrize("missing", ["flwr-public-key", "flwr-timestamp", "flwr-signature"])
def test_a_request_without_one_of_the_three_headers_is_refused(gate: Setting, missing: str) -> None:
    headers = {name: value for name, value in signed(gate.north).items() if name != missing}
    assert gate.client.post("/v1/fleet/pull-messages", content=pull(7), headers=headers).status_code == 401
    assert gate.superlink.seen == []


ONCE = ["flwr-public-key", "flwr-timestamp", "flwr-signature", SESSION_HEADER, HELLO_HEADER]


@pytest.mark.parametrize("name", ONCE)
def test_a_header_that_names_the_caller_comes_once(gate: Setting, name: str, caplog: pytest.LogCaptureFixture) -> None:
    shown = {SESSION_HEADER: "a" * 32, HELLO_HEADER: "{}"} | signed(gate.north)
    headers = [*shown.items(), (name.title(), shown[name])]
    responses = [gate.client.post("/v1/fleet/pull-messages", content=pull(7), headers=headers) for _ in range(3)]
    assert {(r.status_code, r.headers["confide-refused"]) for r in responses} == {(401, "unsigned")}
    assert caplog.messages == ["turned away: 127.0.0.1 showed no readable key and signature"]
    assert gate.superlink.seen == []


def test_the_holder_of_a_stolen_key_does_not_act_in_its_name_by_a_second_set_of_headers(gate: Setting) -> None:
    # Flower reads the first set; a gate that read the last would check the wrong caller.
    for first, last in ((gate.north, gate.south), (gate.south, gate.north)):
        headers = [*signed(first).items(), *signed(last).items()]
        for call, body in (("pull-messages", pull(7)), ("activate-node", activation(gate.north))):
            assert gate.client.post(f"/v1/fleet/{call}", content=body, headers=headers).status_code == 401
    assert gate.superlink.seen == []
    assert gate.app._node_ids == {gate.north.transport_fingerprint: 7}


def test_the_superlink_gets_the_five_headers_of_a_node_and_no_other(gate: Setting) -> None:
    shown = signed(gate.north)
    more = {"content-type": "text/plain", "x-forwarded-for": "10.0.0.1", "cookie": "a", "flwr-run-id": "1"}
    assert gate.post("pull-messages", pull(7), gate.north, **shown, **more).status_code == 200
    (headers,) = gate.superlink.headers
    assert sorted(headers) == sorted(
        (name.encode(), value.encode())
        for name, value in {
            **shown, "content-type": "application/protobuf", "accept": "application/protobuf",
            "host": "127.0.0.1", "content-length": str(len(pull(7))),
        }.items()
    )  # fmt: skip


@pytest.mark.parametrize("call", ["pull-messages", "send-node-heartbeat", "push-messages", "deactivate-node"])
def test_a_node_that_this_gate_has_not_seen_connect_is_told_to_do_so(
    gate: Setting, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    bodies = {
        "push-messages": push(7, 7),
        "send-node-heartbeat": SendNodeHeartbeatRequest(node=Node(node_id=7)).SerializeToString(),
        "deactivate-node": DeactivateNodeRequest(node_id=7).SerializeToString(),
    }
    responses = [gate.post(call, bodies.get(call, pull(7)), gate.south) for _ in range(3)]
    assert {(r.status_code, r.headers["confide-refused"]) for r in responses} == {(409, "reconnect")}
    assert caplog.messages == ["turned away: site 'south' has to connect anew: this gate has not seen it connect"]
    assert gate.superlink.seen == []


def test_a_key_that_is_activated_under_anothers_id_is_refused_and_takes_nothing_from_it(
    gate: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    activated = ActivateNodeResponse(node_id=7).SerializeToString()
    gate.superlink.answer = lambda path, body: activated if path.endswith("/activate-node") else b"a message"
    gate.app._node_ids[gate.south.transport_fingerprint] = 8
    assert gate.post("activate-node", activation(gate.south), gate.south).status_code == 400
    key = gate.south.transport_fingerprint[:16]
    assert caplog.messages == [f"turned away: impersonation: site 'south' (key {key}, node 8) spoke for node 7"]
    assert gate.app._node_ids == {gate.north.transport_fingerprint: 7, gate.south.transport_fingerprint: 8}
    assert gate.post("pull-messages", pull(7), gate.north).content == b"a message"


@pytest.mark.parametrize("minutes", [-6, 6])
def test_an_old_or_early_timestamp_does_not_pass(gate: Setting, minutes: int) -> None:
    headers = signed(gate.north, dt.datetime.now(dt.UTC) + dt.timedelta(minutes=minutes))
    assert gate.client.post("/v1/fleet/pull-messages", content=pull(7), headers=headers).status_code == 503
    assert gate.superlink.seen == []


def test_a_reply_in_anothers_name_is_refused_and_says_whose(gate: Setting, caplog: pytest.LogCaptureFixture) -> None:
    assert gate.post("push-messages", push(7, 8), gate.north).status_code == 400
    key = gate.north.transport_fingerprint[:16]
    assert f"impersonation: site 'north' (key {key}, node 7) spoke for node 8" in caplog.text
    assert gate.superlink.seen == []


def test_a_node_cannot_speak_for_the_id_of_another(gate: Setting, caplog: pytest.LogCaptureFixture) -> None:
    activated = ActivateNodeResponse(node_id=7).SerializeToString()
    gate.superlink.answer = lambda path, body: activated if path.endswith("/activate-node") else b""
    assert gate.post("activate-node", activation(gate.north), gate.north).status_code == 200
    for call, body in (("pull-messages", pull(8)), ("push-messages", push(8, 8))):
        assert gate.post(call, body, gate.north).status_code == 400
    assert "node 7) spoke for node 8" in caplog.text
    assert [path for path, _ in gate.superlink.seen] == ["/v1/fleet/activate-node"]


def test_every_node_that_another_spoke_for_is_named_at_once(gate: Setting, caplog: pytest.LogCaptureFixture) -> None:
    for victim in (8, 9, 8, 9):
        assert gate.post("pull-messages", pull(victim), gate.north).status_code == 400
    key = gate.north.transport_fingerprint[:16]
    assert caplog.messages == [
        f"turned away: impersonation: site 'north' (key {key}, node 7) spoke for node {victim}" for victim in (8, 9)
    ]


@pytest.mark.parametrize(
    ("call", "size"), [("pull-messages", 2_000), ("push-messages", 300_000), ("push-object", 7 << 20)]
)
def test_a_body_over_its_size_is_cut_off(gate: Setting, call: str, size: int) -> None:
    assert gate.post(call, bytes(size), gate.north).status_code == 413
    assert gate.superlink.seen == []


def test_an_object_of_flowers_largest_part_passes(gate: Setting) -> None:
    body = PushObjectRequest(node=Node(node_id=7), object_content=bytes(5 << 20)).SerializeToString()
    assert gate.post("push-object", body, gate.north).status_code == 200
    assert gate.superlink.seen == [("/v1/fleet/push-object", body)]


def test_a_message_of_too_many_parts_is_refused(gate: Setting) -> None:
    tree = ObjectTree(object_id="a", children=[ObjectTree(object_id=str(number)) for number in range(256)])
    assert gate.post("push-messages", push(7, 7, tree), gate.north).status_code == 413


@pytest.mark.parametrize("call", ["pull-messages", "push-messages"])
def test_nodes_are_told_to_connect_anew_once_the_superlink_has_forgotten_them(gate: Setting, call: str) -> None:
    gate.superlink.status = 401
    response = gate.post(call, {"pull-messages": pull(7), "push-messages": push(7, 7)}[call], gate.north)
    assert (response.status_code, response.headers["confide-refused"]) == (409, "reconnect")


def test_nodes_are_told_to_try_again_while_the_superlink_does_not_know_their_keys_yet(
    gate: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "CONNECT_S", 0.6)
    gate.superlink.status = 401
    response = gate.post("activate-node", activation(gate.north), gate.north)
    assert response.status_code == 503
    assert "confide-refused" not in response.headers


def test_a_node_that_connects_is_let_in_as_soon_as_the_superlink_knows_its_key(gate: Setting) -> None:
    asked: list[str] = []

    def answer(path: str, body: bytes) -> bytes:
        asked.append(path)
        gate.superlink.status = 200 if len(asked) >= 2 else 401
        return ActivateNodeResponse(node_id=7).SerializeToString() if path.endswith("/activate-node") else b""

    gate.superlink.status, gate.superlink.answer = 401, answer
    assert gate.post("activate-node", activation(gate.north), gate.north).status_code == 200
    assert [path.rpartition("/")[2] for path in asked] == ["activate-node"] * len(asked)


def test_nodes_are_told_to_try_again_while_the_superlink_is_away(
    pki: Pki, nodes: dict[str, NodeIdentity], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "CONNECT_S", 0.6)
    register = PlayedRegister(known={nodes["north"].transport_fingerprint: "north"})
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        app = FleetGate(
            register, enrol=lambda _: pytest.fail("no"), rotate=lambda _: "", studies=lambda _: {"studies": []},
            ca_path=pki.ca_path,
            superlink=unused.getsockname()[1],
        )  # fmt: skip
        front = serve_gate(app, "127.0.0.1", 0, pki.certificate_path, pki.key_path)
        response = httpx.post(
            f"https://127.0.0.1:{front.port}/v1/fleet/activate-node", content=activation(nodes["north"]),
            headers=signed(nodes["north"]) | introduced("activate-node"), trust_env=False,
            verify=ssl.create_default_context(cafile=str(pki.ca_path)),
        )  # fmt: skip
        front.stop()
    assert response.status_code == 503


def test_a_held_poll_is_answered_when_a_driver_calls(gate: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = [b""]
    gate.superlink.answer = lambda path, body: waiting[0]
    monkeypatch.setitem(gate_module.HOLD_S, "pull-messages", 200.0)  # far beyond the client's patience
    monkeypatch.setenv(PORT_VARIABLE, str(gate.upstream_port))

    def deliver() -> None:
        waiting[0] = b"a message"
        wake([7])

    called = threading.Timer(0.3, deliver)
    called.start()
    assert gate.post("pull-messages", pull(7), gate.north).content == b"a message"
    called.join()


def test_a_held_poll_of_a_node_that_is_revoked_meanwhile_brings_nothing(
    gate: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.superlink.answer = lambda path, body: b""
    monkeypatch.setenv(PORT_VARIABLE, str(gate.upstream_port))

    def revoke() -> None:
        gate.register.known.clear()
        gate.superlink.answer = lambda path, body: b"a message"
        wake([7])

    called = threading.Timer(0.3, revoke)
    called.start()
    assert gate.post("pull-messages", pull(7), gate.north).status_code == 401
    called.join()


def test_a_listing_is_signed_fresh_and_used_once(gate: Setting) -> None:
    def ask(who: NodeIdentity, at: float, nonce: str) -> httpx.Response:
        body = StudiesQuery(identity=who.identity_hex, timestamp=at, nonce=nonce).model_dump_json().encode()
        signature = who.signer.sign(StudiesQuery.signed_part(body)).hex()
        return gate.client.post("/confide/v1/studies", content=body, headers={"confide-signature": signature})

    now, nonce = time.time(), secrets.token_hex(16)
    assert ask(gate.north, now, nonce).json() == {"studies": [{"canonical": "north", "hash": "", "signature": ""}]}
    assert ask(gate.north, now, nonce).status_code == 401  # a repeat
    assert ask(gate.north, now - 400, secrets.token_hex(16)).status_code == 401
    assert ask(gate.stranger, now, secrets.token_hex(16)).json()["error"] == "unknown"


def test_a_listing_signed_by_another_key_is_refused(gate: Setting) -> None:
    query = StudiesQuery(identity=gate.north.identity_hex, timestamp=time.time(), nonce=secrets.token_hex(16))
    body = query.model_dump_json().encode()
    signature = gate.south.signer.sign(StudiesQuery.signed_part(body)).hex()
    response = gate.client.post("/confide/v1/studies", content=body, headers={"confide-signature": signature})
    assert response.status_code == 401


@pytest.mark.slow
@given(
    body=st.one_of(
        st.binary(max_size=300), st.recursive(st.none() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
    )
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_met_with_a_refusal(gate: Setting, body: bytes) -> None:
    assert gate.client.post("/confide/v1/enroll", content=body).status_code == 400
    assert gate.client.post("/confide/v1/studies", content=body).status_code == 401
    assert gate.post("push-messages", body, gate.north).status_code in (200, 400)


def test_a_client_of_another_ca_leaves_a_line(gate: Setting, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    other = Pki.create(tmp_path, [])
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"https://127.0.0.1:{gate.port}/", verify=ssl.create_default_context(cafile=str(other.ca_path)))
    deadline = time.monotonic() + 60
    while "trusts another CA" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "TLS handshake failed: TLSV1_ALERT_UNKNOWN_CA (the other side trusts another CA" in caplog.text


def test_a_client_of_tls_1_2_is_refused(gate: Setting) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", gate.port)) as raw,
        pytest.raises(ssl.SSLError, match=r"PROTOCOL_VERSION|EOF"),
    ):
        context.wrap_socket(raw)


def test_a_listener_without_its_port_still_serves(caplog: pytest.LogCaptureFixture) -> None:
    async def open_twice() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            listener = WakeListener(taken.getsockname()[1])
            await listener.open()
            listener.close()

    asyncio.run(open_twice())
    assert "is taken" in caplog.text

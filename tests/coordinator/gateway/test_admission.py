"""Strangers at the gate's port, over real TLS: what they may hold, and that enrolled nodes get through."""

import base64
import logging
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from http.client import HTTPResponse

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from confide.client_node.enrolment.identity import NodeIdentity, load_transport_public
from confide.coordinator.errors import StoreUnavailable
from confide.coordinator.federation.pki import Pki
from confide.coordinator.gateway import admission
from confide.coordinator.gateway.admission import network_of
from confide.coordinator.gateway.crowd import Limits
from confide.coordinator.gateway.gate import FleetGate
from confide.coordinator.gateway.listener import GateServer, serve_gate

from .played import PlayedRegister, PlayedSuperLink, pull, signed

pytestmark = pytest.mark.slow  # each test opens and closes two servers

PATIENT_S = 60.0  # for what happens at once on a machine that is not crowded


class Caller:
    """A connection whose bytes the test writes itself."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        raw = socket.create_connection(("127.0.0.1", port), timeout=PATIENT_S, source_address=(host, 0))
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.link = context.wrap_socket(raw)

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()

    def ask(self, who: NodeIdentity | None, path: str = "/v1/fleet/pull-messages", **changed: str) -> int:
        """Status of the answer to a request signed by `who`."""
        body = pull(7)
        self.link.sendall(head_of(path, len(body), (signed(who) if who else {}) | changed) + body)
        return self.status()

    def status(self) -> int:
        """Status of the next answer, which is read to its end."""
        answer = HTTPResponse(self.link)
        answer.begin()
        answer.read()
        self.headers = answer.headers
        return answer.status

    def wait_for_end(self) -> bool:
        """True if the other side closes, within the time that `link` waits."""
        try:
            while self.link.recv(4096):
                pass
        except TimeoutError:
            return False
        except OSError:  # reset, or cut off without TLS's end
            pass
        return True


def head_of(path: str, length: int, headers: dict[str, str]) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


@dataclass
class Gate:
    pki: Pki
    nodes: dict[str, NodeIdentity]
    stack: ExitStack
    register: PlayedRegister = field(default_factory=PlayedRegister)
    app: FleetGate | None = None

    def open(self, **limits: float) -> GateServer:
        """Serves with these limits; "north" is enrolled."""
        files = self.pki.certificate_path, self.pki.key_path
        behind = serve_gate(PlayedSuperLink(), "127.0.0.1", 0, *files, limits=Limits(per_address=1000))
        self.stack.callback(behind.stop)
        self.register.known[self.nodes["north"].transport_fingerprint] = "north"
        self.app = FleetGate(
            self.register, enrol=lambda _: pytest.fail("no"), rotate=lambda _: "",
            studies=lambda _: {"studies": []}, ca_path=self.pki.ca_path,
            superlink=behind.port,
        )  # fmt: skip
        self.app._node_ids[self.nodes["north"].transport_fingerprint] = 7  # as after its activation
        front = serve_gate(self.app, "127.0.0.1", 0, *files, limits=Limits(**limits))  # type: ignore[arg-type]
        self.stack.callback(front.stop)
        return front

    def call(self, server: GateServer, host: str = "127.0.0.1") -> Caller:
        return self.stack.enter_context(Caller(server.port, host))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NodeIdentity]:
    home = tmp_path_factory.mktemp("nodes")
    return {name: NodeIdentity.create(home / name, name) for name in ("north", "stranger")}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.create(tmp_path_factory.mktemp("coordinator"), [])


@pytest.fixture
def gate(pki: Pki, nodes: dict[str, NodeIdentity], caplog: pytest.LogCaptureFixture) -> Iterator[Gate]:
    caplog.set_level(logging.INFO)
    with ExitStack() as stack:
        yield Gate(pki, nodes, stack)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_enrolled_node_gets_through_while_strangers_of_its_address_hold_all_they_can(gate: Gate) -> None:
    server = gate.open(per_address=4)
    mine = gate.call(server)
    assert mine.ask(gate.nodes["north"]) == 200
    held = [gate.call(server) for _ in range(8)]  # twice as many as there are places
    assert gate.call(server).ask(gate.nodes["north"]) == 200
    assert mine.ask(gate.nodes["north"]) == 200
    assert all(stranger.wait_for_end() for stranger in held[:4])


def test_nodes_that_share_an_address_make_room_for_each_other(gate: Gate) -> None:
    server = gate.open(per_address=2)
    second = gate.nodes["stranger"].transport_fingerprint
    assert gate.app is not None
    gate.register.known[second], gate.app._node_ids[second] = "south", 7
    assert [gate.call(server).ask(node) for node in gate.nodes.values()] == [200, 200]
    held = [gate.call(server) for _ in range(4)]
    for stranger in held:
        stranger.link.settimeout(0.2)
        assert not stranger.wait_for_end()
    gate.call(server)
    held[0].link.settimeout(PATIENT_S)
    assert held[0].wait_for_end()


def test_strangers_from_elsewhere_leave_the_places_of_a_known_address_alone(gate: Gate) -> None:
    server = gate.open(per_address=4)
    with Caller(server.port) as first:
        assert first.ask(gate.nodes["north"]) == 200
    held = [gate.call(server, f"127.0.0.{number}") for number in (2, 3) for _ in range(4)]
    waiting = [gate.call(server) for _ in range(3)]
    assert gate.call(server).ask(gate.nodes["north"]) == 200
    for stranger in held:
        stranger.link.settimeout(0.2)
        assert not stranger.wait_for_end()
    assert [stranger.ask(gate.nodes["north"]) for stranger in waiting] == [200] * 3


def test_a_connection_that_says_nothing_is_closed_with_or_without_tls(gate: Gate) -> None:
    server = gate.open(head_s=0.3)
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENT_S) as silent:
        assert silent.recv(1) == b""
    assert gate.call(server).wait_for_end()


def test_a_head_that_comes_a_byte_at_a_time_is_cut_off(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    server = gate.open(head_s=0.5)
    caller = gate.call(server)

    def drip() -> None:
        try:
            while True:
                caller.link.sendall(b"a")
                time.sleep(0.02)
        except OSError:
            pass

    dripping = threading.Thread(target=drip)
    dripping.start()
    dripping.join(PATIENT_S)
    assert not dripping.is_alive()
    assert "127.0.0.1 sent no whole request in 0.5 s" in caplog.text


def test_a_known_connection_is_not_cut_off_while_its_key_may_be_idle(gate: Gate) -> None:
    server = gate.open(head_s=3.0)
    caller = gate.call(server)
    assert caller.ask(gate.nodes["north"]) == 200
    caller.link.settimeout(4.0)
    assert not caller.wait_for_end()
    assert caller.ask(gate.nodes["north"]) == 200


def test_a_known_connection_s_head_has_its_time_too(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "KEEP_ALIVE_S", 0.2)
    server = gate.open(head_s=3.0)
    caller = gate.call(server)
    assert caller.ask(gate.nodes["north"]) == 200
    caller.link.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\n")
    assert caller.wait_for_end()


@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\nlong: " + b"a" * (17 << 10),
        b"POST / HTTP/1.1\r\n" + b"a: b\r\n" * 66,
        b"POST / HTTP/1.1\r\n" + b"a: b\r\n" * 65 + b"\r\n",
        b"GET /" + b"a" * (17 << 10),
    ],
    ids=["one endless header", "endless small headers", "a header too many", "an endless path"],
)
def test_a_head_is_refused_as_soon_as_it_is_too_large(gate: Gate, head: bytes) -> None:
    server = gate.open(head_bytes=400 if b"a: b" in head else 16 << 10)
    caller = gate.call(server)
    caller.link.sendall(head)
    assert caller.status() == 431
    assert caller.wait_for_end()


def test_as_many_headers_as_are_allowed_pass(gate: Gate) -> None:
    server = gate.open()
    more = {f"x_{number}": "y" for number in range(64 - 2 - 3)}  # host and content-length, and three of the key
    assert gate.call(server).ask(gate.nodes["north"], **more) == 200
    assert gate.call(server).ask(gate.nodes["north"], **more, one_more="y") == 431


def test_a_known_connection_s_head_is_bounded_too(gate: Gate) -> None:
    caller = gate.call(gate.open())
    assert caller.ask(gate.nodes["north"]) == 200
    with suppress(OSError):  # the gate may end the connection before all of it is sent
        caller.link.sendall(b"POST / HTTP/1.1\r\nlong: " + b"a" * (300 << 10))
    assert caller.wait_for_end()


@pytest.mark.parametrize("name", ["Transfer-Encoding", "transfer-encoding"])
def test_a_stranger_s_body_states_its_length(gate: Gate, name: str) -> None:
    caller = gate.call(gate.open())
    caller.link.sendall(f"POST /confide/v1/enroll HTTP/1.1\r\nhost: x\r\n{name}: chunked\r\n\r\n1\r\na\r\n".encode())
    assert caller.status() == 411
    assert caller.wait_for_end()


def test_an_answer_ends_a_stranger_s_connection_and_no_node_s(gate: Gate) -> None:
    server = gate.open()
    caller = gate.call(server)
    assert caller.ask(gate.nodes["stranger"]) == 401
    assert caller.wait_for_end()
    node = gate.call(server)
    assert [node.ask(gate.nodes["north"]) for _ in range(3)] == [200] * 3


def test_a_revoked_node_loses_the_connections_that_it_had(gate: Gate) -> None:
    caller = gate.call(gate.open())
    assert caller.ask(gate.nodes["north"]) == 200
    gate.register.known.clear()
    assert caller.ask(gate.nodes["north"]) == 401
    assert caller.wait_for_end()


def test_a_refusal_arrives_though_the_body_comes_later(gate: Gate) -> None:
    caller = gate.call(gate.open())
    caller.link.sendall(head_of("/v1/fleet/pull-messages", 5, signed(gate.nodes["stranger"])))
    time.sleep(0.1)
    caller.link.sendall(b"later")
    assert caller.status() == 401


def test_one_key_has_so_many_connections(gate: Gate) -> None:
    server = gate.open(per_key=3)
    callers = [gate.call(server) for _ in range(4)]
    assert [caller.ask(gate.nodes["north"]) for caller in callers] == [200] * 4
    assert callers[0].wait_for_end()
    assert [caller.ask(gate.nodes["north"]) for caller in callers[1:]] == [200] * 3


def test_a_crowd_leaves_a_line_in_the_log(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    server = gate.open(per_address=2)
    for _ in range(4):
        gate.call(server)
    until(lambda: "127.0.0.1 has too many connections that show no enrolled key" in caplog.text)


def test_a_gate_that_stops_closes_strangers_connections(gate: Gate) -> None:
    server = gate.open()
    caller = gate.call(server)
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENT_S) as silent:
        server.stop()
        assert silent.recv(1) == b""
    assert caller.wait_for_end()
    assert not server.is_alive


def ssh_key(point: bytes) -> bytes:
    """A public key in OpenSSH form, RFC 5656 section 3.1, with this point."""
    parts = (b"ecdsa-sha2-nistp384", b"nistp384", point)
    blob = b"".join(struct.pack(">I", len(part)) + part for part in parts)
    return b"ecdsa-sha2-nistp384 " + base64.b64encode(blob)


@pytest.mark.parametrize(
    "point",
    [b"\0", b"", b"\2" + bytes(48), b"\3" + bytes(range(48)), b"\4" + bytes(96), b"\4" + bytes(3), b"\5" * 97],
    ids=["infinity", "nothing", "compressed 2", "compressed 3", "not on the curve", "short", "unknown form"],
)
def test_a_key_that_is_no_point_is_refused_in_one_line(
    gate: Gate, point: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    server, shown = gate.open(), base64.b64encode(ssh_key(point)).decode()
    for _ in range(5):
        assert gate.call(server).ask(gate.nodes["north"], **{"flwr-public-key": shown}) == 401
    refused = [record for record in caplog.records if record.name == "confide.gate"]
    assert [record.getMessage() for record in refused] == [
        "turned away: 127.0.0.1 showed no readable key and signature"
    ]
    assert not refused[0].exc_info


def test_a_compressed_key_is_refused_in_words(nodes: dict[str, NodeIdentity]) -> None:
    point = nodes["north"].transport_key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    with pytest.raises(ValueError, match="unsupported kind of public key"):
        load_transport_public(ssh_key(point))


def test_mutated_keys_are_met_with_no_untyped_error(nodes: dict[str, NodeIdentity]) -> None:
    draw, valid = random.Random(7), nodes["north"].transport_key.public_key()
    uncompressed = valid.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    good = [nodes["north"].transport_public, valid.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)]
    for _ in range(3000):
        point = bytearray(uncompressed)
        point[draw.randrange(3)] = draw.randrange(256)
        key = bytearray(draw.choice([*good, ssh_key(bytes(point[: draw.randrange(98)]))]))
        for _ in range(draw.randrange(3)):
            key[draw.randrange(len(key))] = draw.randrange(256)
        with suppress(ValueError):
            load_transport_public(bytes(key))


def test_an_error_before_the_key_is_known_is_a_plain_refusal(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    server = gate.open()
    gate.register.site_of = lambda fingerprint: 1 // 0  # type: ignore[method-assign, assignment, return-value]
    for _ in range(3):
        caller = gate.call(server)
        assert caller.ask(gate.nodes["north"]) == 401
        assert "confide-refused" not in caller.headers  # it would end a node for good
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert "127.0.0.1 sent what the gate cannot handle: ZeroDivisionError at test_admission.py" in lines[0].getMessage()
    assert not lines[0].exc_info


def test_while_the_register_cannot_be_asked_a_request_is_put_off(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """A database that restarts shuts no node out: 503 is what nodes try again at."""
    server = gate.open()
    known = gate.register.site_of

    def away(fingerprint: str) -> str | None:
        raise StoreUnavailable("the database is away")

    gate.register.site_of = away  # type: ignore[method-assign]
    for _ in range(3):
        caller = gate.call(server)
        assert caller.ask(gate.nodes["north"]) == 503
        assert "confide-refused" not in caller.headers
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line.getMessage() for line in lines] == ["the register cannot be asked, and requests are put off"]
    gate.register.site_of = known  # type: ignore[method-assign]
    assert gate.call(server).ask(gate.nodes["north"]) != 503


def test_an_error_for_a_known_key_is_500_with_one_traceback(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    server = gate.open()
    assert gate.app is not None
    gate.app._upstream.post = lambda *_: 1 // 0  # type: ignore[method-assign, assignment, return-value]
    caller = gate.call(server)
    assert [caller.ask(gate.nodes["north"]) for _ in range(3)] == [500] * 3
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in lines] == ["a request of an enrolled node failed"]
    assert lines[0].exc_info


def test_odd_http_leaves_nothing_in_other_logs(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    server = gate.open()
    for odd in (b"\r\n\r\n", b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
                b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"):  # fmt: skip
        caller = gate.call(server)
        caller.link.sendall(odd)
        assert caller.wait_for_end()
    assert {record.name for record in caplog.records} <= {"confide.gate"}


def test_a_path_cannot_write_lines_of_its_own(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    caller = gate.call(gate.open())
    assert caller.ask(None, "/%0aturned%20away:%20impersonation") == 404
    assert all("\n" not in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"), ("fe80::1%eth0", "fe80::/64"),
    ],
)  # fmt: skip
def test_an_ipv6_customer_counts_once(host: str, network: str) -> None:
    assert network_of(host) == network


def test_an_ipv6_site_is_the_48_of_an_address() -> None:
    assert network_of("2001:db8:1:2::3", 48) == network_of("2001:db8:1:ffff::", 48) == "2001:db8:1::/48"
    assert network_of("192.0.2.1", 48) == "192.0.2.1"

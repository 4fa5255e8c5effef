"""A gate whose certificate is renewed while it runs, over real TLS."""

import datetime as dt
import logging
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from confide.client_node.enrolment import outbound
from confide.coordinator.federation import pki as pki_module
from confide.coordinator.federation.pki import Pki
from confide.coordinator.gateway.listener import GateServer, serve_gate
from confide.coordinator.gateway.renewal import EVERY_S, CertificateKeeper


async def app(scope, receive, send) -> None:
    if scope["type"] == "lifespan":
        for _ in range(2):
            await send({"type": (await receive())["type"] + ".complete"})
        return
    scope["state"]["visit"].recognise("a node's key")  # else its one answer ends the connection
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


def issue(pki: Pki, days_ago: int) -> None:
    names = pki_module._alternative_names(("127.0.0.1",))
    pki_module._write_server(pki.folder, "server", names, 398, dt.datetime.now(dt.UTC) - dt.timedelta(days=days_ago))


def serial_at(pki: Pki) -> int:
    return x509.load_pem_x509_certificate(pki.certificate_path.read_bytes()).serial_number


def asked(client: httpx.Client, server: GateServer) -> int:
    """Asks the gate; returns the serial number of the certificate on that connection."""
    with client.stream("GET", f"https://127.0.0.1:{server.port}/") as answer:
        tls: ssl.SSLSocket = answer.extensions["network_stream"].get_extra_info("ssl_object")
        shown = tls.getpeercert(True)
        answer.read()
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


@pytest.fixture
def pki(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Pki:
    caplog.set_level(logging.INFO)
    return Pki.create(tmp_path, [])


@pytest.fixture
def server(pki: Pki) -> Iterator[GateServer]:
    issue(pki, 360)
    running = serve_gate(app, "127.0.0.1", 0, pki.certificate_path, pki.key_path)
    yield running
    running.stop()


def test_new_connections_get_the_renewed_certificate_and_old_ones_go_on(
    pki: Pki, server: GateServer, caplog: pytest.LogCaptureFixture
) -> None:
    before = serial_at(pki)
    keeper = object.__new__(CertificateKeeper)  # one that was made when nothing was due
    keeper._pki, keeper._next, keeper._shown = pki, 0.0, pki.certificate_path.read_bytes()
    keeper._noted = lambda _: None
    trusting = outbound.trusting(pki.ca_path.read_text())
    with outbound.open_client("x", trusting, None, 5) as old, outbound.open_client("x", trusting, None, 5) as new:
        assert asked(old, server) == before
        keeper.check(server)
        assert serial_at(pki) != before
        assert asked(new, server) == serial_at(pki)
        assert asked(old, server) == before  # the same connection, still open
    assert "the server certificate was renewed" in caplog.text


def test_an_expired_certificate_is_renewed_before_the_gate_opens(pki: Pki) -> None:
    issue(pki, 400)
    CertificateKeeper(pki)
    running = serve_gate(app, "127.0.0.1", 0, pki.certificate_path, pki.key_path)
    try:
        with outbound.open_client("x", outbound.trusting(pki.ca_path.read_text()), None, 5) as client:
            assert asked(client, running) == serial_at(pki)
    finally:
        running.stop()


def test_a_renewal_that_fails_leaves_the_gate_as_it_is_and_is_told(
    pki: Pki, server: GateServer, caplog: pytest.LogCaptureFixture
) -> None:
    before = serial_at(pki)
    (pki.folder / "ca.key").rename(pki.folder / "away")
    keeper = CertificateKeeper(pki)
    assert "the server certificate cannot be renewed" in caplog.text
    keeper.check(server)  # not before tomorrow
    with outbound.open_client("x", outbound.trusting(pki.ca_path.read_text()), None, 5) as client:
        assert asked(client, server) == before
    assert caplog.text.count("cannot be renewed") == 1
    assert EVERY_S == 24 * 3600


def test_a_renewed_certificate_that_could_not_be_shown_is_shown_at_the_next_look(
    pki: Pki, server: GateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = object.__new__(CertificateKeeper)
    keeper._pki, keeper._next, keeper._shown = pki, 0.0, pki.certificate_path.read_bytes()
    keeper._noted = lambda _: None
    with monkeypatch.context() as patched:

        def fail(*_: object) -> None:
            raise OSError("too many open files")

        patched.setattr(GateServer, "show", fail)
        keeper.check(server)
    keeper._next = 0.0
    keeper.check(server)
    with outbound.open_client("x", outbound.trusting(pki.ca_path.read_text()), None, 5) as client:
        assert asked(client, server) == serial_at(pki)


def test_a_key_that_others_can_read_ends_no_server(
    pki: Pki, server: GateServer, caplog: pytest.LogCaptureFixture
) -> None:
    (pki.folder / "ca.key").chmod(0o644)
    keeper = object.__new__(CertificateKeeper)
    keeper._pki, keeper._next, keeper._shown = pki, 0.0, pki.certificate_path.read_bytes()
    keeper._noted = lambda _: None
    keeper.check(server)
    assert "the server certificate cannot be renewed" in caplog.text
    assert "chmod" in caplog.text


def test_a_certificate_with_another_key_is_not_shown(pki: Pki, server: GateServer, tmp_path: Path) -> None:
    other = Pki.create(tmp_path / "other", [])
    with pytest.raises(OSError, match=r"(?i)key values mismatch"):
        server.show(other.certificate_path, pki.key_path)
    with outbound.open_client("x", outbound.trusting(pki.ca_path.read_text()), None, 5) as client:
        assert asked(client, server) == serial_at(pki)


def test_the_parts_of_an_answer_do_not_wait_for_each_other(pki: Pki, server: GateServer) -> None:
    """The kernel would hold an answer's body back until its head has arrived, which is far away a second."""
    context = ssl.create_default_context(cafile=str(pki.ca_path))
    with (
        socket.create_connection(("127.0.0.1", server.port)) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as mine,
    ):
        assert sends_at_once(mine.getsockname()) == [True]


def sends_at_once(peer: tuple[str, int]) -> list[bool]:
    """Of each socket of this process, as the gate's are, whose other end is `peer`: whether it sends at once."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError), socket.socket(fileno=os.dup(int(entry.name))) as one:  # no socket, or not connected
            if one.getpeername() == peer:
                found.append(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1)
    return found

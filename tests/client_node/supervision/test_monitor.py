"""The monitor, by real sockets: who gets an answer and who does not."""

import http.client
import json
import logging
import socket
import threading

import psutil
import pytest

from confide.client_node.errors import MonitorUnavailable
from confide.client_node.supervision import Answers, Monitor, Verdict, asking, monitor
from confide.machine import free_ports


class Watched:
    """A process that somebody watches: what it tells, and how often it was asked."""

    def __init__(self):
        self.alive, self.ready, self.asked = Verdict(), Verdict(("the gate has ended.", "no disk.")), 0
        self.held = threading.Event()
        self.held.set()

    def metrics(self):
        self.asked += 1
        self.held.wait()
        return b"confide_up 1\n"

    def answers(self):
        return Answers(lambda: self.alive, lambda: self.ready, self.metrics, "text/plain; version=0.0.4")


@pytest.fixture
def watched():
    return Watched()


@pytest.fixture
def served(watched):
    running = Monitor(0, watched.answers())
    yield running
    watched.held.set()
    running.stop()


def ask(port, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.putrequest(method, path, skip_host="host" in headers)
        for name, value in headers.items():
            for one in [value] if isinstance(value, str) else value:
                connection.putheader(name, one)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


def test_three_pages_are_served_and_no_other(served):
    status, body, headers = ask(served.port, "/healthz")
    assert (status, json.loads(body)) == (200, {"ok": True, "reason": ""})
    assert headers["cache-control"] == "no-store"
    status, body, _ = ask(served.port, "/readyz")
    assert (status, json.loads(body)) == (503, {"ok": False, "reason": "the gate has ended. no disk."})
    status, body, headers = ask(served.port, "/metrics")
    assert (status, body, headers["content-type"]) == (200, b"confide_up 1\n", "text/plain; version=0.0.4")
    for path in ("/", "/metrics/", "/metrics?x=1", "/%6detrics", "http://127.0.0.1/metrics", "/../metrics"):
        assert ask(served.port, path, host=f"127.0.0.1:{served.port}")[0] == 404, path


def test_it_listens_on_loopback_alone(served):
    own = [each for each in psutil.Process().net_connections("inet") if each.laddr.port == served.port]
    assert {each.laddr.ip for each in own} == {"127.0.0.1"}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil.example:{port}", "",
             ["127.0.0.1:{port}", "evil.example"], ["127.0.0.1:{port}", "127.0.0.1:{port}"], "localhost:{port}@evil"],
    ids=str,
)  # fmt: skip
def test_a_page_in_a_browser_cannot_read_it_by_another_name_for_this_machine(served, host):
    told = [each.format(port=served.port) for each in ([host] if isinstance(host, str) else host)]
    status, body, _ = ask(served.port, "/metrics", host=told)
    assert (status, b"confide_" in body) == (421, False)


def test_a_request_without_a_host_and_one_of_another_origin_get_nothing(served):
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as to:
        to.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert to.recv(100).startswith(b"HTTP/1.0 421 ")
    assert ask(served.port, "/metrics", Origin="http://evil.example")[0] == 421
    assert ask(served.port, "/metrics", host=f"LocalHost:{served.port}")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT", "BREW"])
def test_only_get_is_answered(served, watched, method):
    assert ask(served.port, "/metrics", method)[0] == (501 if method == "BREW" else 405)
    assert watched.asked == 0


def test_however_often_somebody_asks_an_answer_is_made_anew_no_more_often_than_it_says(served, watched):
    for _ in range(40):
        assert ask(served.port, "/metrics")[0] == 200
    assert watched.asked < 40


def test_connections_that_send_nothing_are_few_and_ended(served, monkeypatch):
    monkeypatch.setattr(monitor, "_REQUEST_S", 0.5)
    idle = [socket.create_connection(("127.0.0.1", served.port), timeout=20) for _ in range(12)]
    try:
        for one in idle:  # those beyond a few at once, the others in time
            assert one.recv(1) == b""
        assert ask(served.port, "/healthz")[0] == 200
    finally:
        for one in idle:
            one.close()


def test_one_that_sends_a_byte_now_and_then_is_ended_too(served, monkeypatch):
    monkeypatch.setattr(monitor, "_REQUEST_S", 1.0)
    with socket.create_connection(("127.0.0.1", served.port), timeout=0.2) as slow:
        assert any(has_ended(slow) for _ in range(600))


def test_an_error_that_nobody_foresaw_is_told_without_its_text(served, watched, caplog):
    def fail():
        raise ZeroDivisionError(f"ward {3 + 4}")

    watched.metrics = fail
    with caplog.at_level(logging.DEBUG):
        broken = Monitor(0, Answers(lambda: watched.alive, lambda: watched.ready, fail, "text/plain"))
        try:
            status, body, _ = ask(broken.port, "/metrics")
        finally:
            broken.stop()
    assert status == 500
    assert "ZeroDivisionError" in caplog.text
    assert "ward 7" not in caplog.text + body.decode()


def test_a_port_that_is_taken_is_said_in_words(served, watched):
    with pytest.raises(MonitorUnavailable, match=rf"127\.0\.0\.1:{served.port} .*--monitor"):
        Monitor(served.port, watched.answers())


def test_it_is_asked_by_a_command_too(served, watched):
    assert asking.ask(served.port, "healthz").is_well
    assert asking.ask(served.port, "readyz").reasons == ("the gate has ended. no disk.",)
    watched.alive = Verdict(("the tick shows no sign of life.",))
    with pytest.raises(MonitorUnavailable, match="no monitor answers"):
        asking.ask(free_ports(1)[0], "healthz")


@pytest.mark.parametrize(
    "body", [b"[]", b"[" * 60_000, b'{"ok": 1, "reason": ""}', b"\xff"], ids=["list", "deep", "number", "bytes"]
)
def test_another_program_at_that_port_is_no_monitor(body):
    with socket.create_server(("127.0.0.1", 0)) as other:

        def speak():
            to, _ = other.accept()
            with to:
                to.recv(4096)
                to.sendall(b"HTTP/1.0 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

        talking = threading.Thread(target=speak)
        talking.start()
        with pytest.raises(MonitorUnavailable, match="no monitor of confide"):
            asking.ask(other.getsockname()[1], "healthz")
        talking.join()


def has_ended(slow):
    """Sends one more byte of a request; True if the other side has closed."""
    try:
        slow.sendall(b"x")
        return slow.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True

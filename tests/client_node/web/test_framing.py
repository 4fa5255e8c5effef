import asyncio
import logging
from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Message

from confide.client_node.web import framing
from confide.client_node.web.forms import FormInvalid, read_form
from confide.client_node.web.framing import MOST_BODY, framed
from confide.listening import LOOPBACK_NAMES, host_of

REFUSED, TAKEN = 403, 200
QUOTED = "the record of a person"


async def take(request: Request) -> Response:
    return PlainTextResponse(f"{request.method} {len(await request.body())} bytes")


async def fail(request: Request) -> Response:
    raise RuntimeError(QUOTED)


async def form(request: Request) -> Response:
    return PlainTextResponse(repr(dict(await read_form(request))))


async def refuse(request: Request, err: Exception) -> Response:
    return PlainTextResponse(str(err), 400)


def app() -> Starlette:
    routes = [Route("/", take, methods=["GET", "POST"]), Route("/fail", fail), Route("/form", form, methods=["POST"])]
    return Starlette(routes=routes, exception_handlers={FormInvalid: refuse})


def browser(*, is_https: bool = False, names=LOOPBACK_NAMES) -> TestClient:
    scheme = "https" if is_https else "http"
    framed_app = framed(app(), names, is_https=is_https)
    return TestClient(framed_app, base_url=f"{scheme}://localhost:9446", raise_server_exceptions=False)


def streamed(size: int) -> Iterator[bytes]:
    for _ in range(size >> 10):
        yield bytes(1 << 10)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {}, 200),
        ("HEAD", "/", {}, 200),
        ("GET", "/nowhere", {}, 404),
        ("DELETE", "/", {}, 405),
        ("GET", "/fail", {}, 500),
        ("GET", "/", {"Host": "evil.example"}, 421),
        ("POST", "/", {"Origin": "http://evil.example"}, 403),
        ("POST", "/", {"Content-Length": str(MOST_BODY + 1)}, 413),
    ],
)
def test_every_answer_tells_a_browser_what_it_may_do(method, path, headers, status):
    answer = browser().request(method, path, headers=headers)
    assert answer.status_code == status
    policy = dict(each.split(" ", 1) for each in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert {policy[kind] for kind in ("script-src", "style-src", "form-action", "connect-src")} == {"'self'"}
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Strict-Transport-Security" not in answer.headers


def test_by_tls_a_browser_is_told_to_come_by_tls_alone():
    assert "max-age=" in browser(is_https=True).get("/").headers["Strict-Transport-Security"]


def test_forms_of_a_page_are_sent_with_an_origin():
    """By the Fetch standard a form is sent with `Origin: null` under no-referrer, as one of a sandboxed frame is."""
    assert browser().get("/").headers["Referrer-Policy"] == "same-origin"


OWN = "http://localhost:9446"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], TAKEN),  # a program
        ([("Origin", OWN)], TAKEN),
        ([("Origin", OWN), ("Sec-Fetch-Site", "same-origin")], TAKEN),
        ([("Sec-Fetch-Site", "none")], TAKEN),
        ([("Sec-Fetch-Site", "same-site")], REFUSED),  # another port of this machine
        ([("Sec-Fetch-Site", "cross-site")], REFUSED),
        ([("Sec-Fetch-Site", "")], REFUSED),
        ([("Sec-Fetch-Site", "Same-Origin")], REFUSED),
        ([("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "cross-site")], REFUSED),
        ([("Origin", OWN), ("Sec-Fetch-Site", "cross-site")], REFUSED),
        ([("Origin", "null"), ("Sec-Fetch-Site", "same-origin")], REFUSED),
        ([("Origin", "null")], REFUSED),  # a sandboxed frame, a file
        ([("Origin", "")], REFUSED),
        ([("Origin", "http://localhost:9447")], REFUSED),
        ([("Origin", "http://localhost")], REFUSED),
        ([("Origin", "https://localhost:9446")], REFUSED),
        ([("Origin", "http://127.0.0.1:9446")], REFUSED),
        ([("Origin", "http://localhost:9446.evil.example")], REFUSED),
        ([("Origin", "http://localhost:9446@evil.example")], REFUSED),
        ([("Origin", "http://evil.example/localhost:9446")], REFUSED),
        ([("Origin", "http://[")], REFUSED),  # urllib refuses to read it
        ([("Origin", OWN), ("Origin", "http://evil.example")], REFUSED),
    ],
)
def test_a_form_of_another_site_is_not_taken(headers, status):
    assert browser().post("/", headers=headers).status_code == status


def test_by_tls_a_page_of_the_same_name_without_it_is_another_site():
    client = browser(is_https=True)
    assert client.post("/", headers={"Origin": OWN}).status_code == REFUSED
    assert client.post("/", headers={"Origin": "https://localhost:9446"}).status_code == TAKEN


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("localhost", "localhost"),
        ("LocalHost:9446", "localhost"),
        ("127.0.0.1:9446", "127.0.0.1"),
        ("[::1]:9446", "::1"),
        ("[::1]", "::1"),
        ("localhost.", "localhost."),
        ("localhost.evil.example", "localhost.evil.example"),
        ("127.0.0.1.evil.example:9446", "127.0.0.1.evil.example"),
        ("localhost:9446@evil.example", ""),
        ("localhost@evil.example", ""),
        ("localhost:evil.example", ""),
        ("localhost/evil", ""),
        ("[::1", ""),
        ("[::1]evil.example", ""),
        ("::1", ""),
        ("localhost, evil.example", ""),
        ("localhost:9446:1", ""),
        ("", ""),
    ],
)
def test_a_host_is_read_as_one_name_or_none(host, name):
    assert host_of([host]) == name


def test_two_hosts_are_none():
    assert host_of(["localhost", "localhost"]) == host_of([]) == ""


@pytest.mark.parametrize("host", ["evil.example", "localhost.", "127.0.0.2", "2130706433", "localhost:80@evil.example"])
def test_a_page_elsewhere_reaches_nothing_under_a_name_of_its_own(host):
    assert browser().get("/", headers={"Host": host}).status_code == 421
    assert browser(names=None).get("/", headers={"Host": "fed.example"}).status_code == 200


def test_a_body_is_bounded_by_its_length_and_as_it_comes():
    client = browser()
    assert client.post("/", content=bytes(MOST_BODY)).text == f"POST {MOST_BODY} bytes"
    assert client.post("/", content=bytes(MOST_BODY + 1)).status_code == 413
    assert client.post("/", content=streamed(MOST_BODY)).text == f"POST {MOST_BODY} bytes"
    answer = client.post("/", content=streamed(MOST_BODY + 1024))
    assert (answer.status_code, answer.headers["Connection"]) == (413, "close")


@pytest.mark.parametrize("length", [b"\xb2", b"-1", b"1e3", b"9" * 5000, b"0x10", b"+1"])
def test_a_length_that_is_none_is_refused(length):
    assert browser().post("/", headers=[(b"Content-Length", length)]).status_code == 413


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(framing, "BODY_S", 0.05)
    said = []

    async def never() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        said.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": [(b"host", b"localhost")]}
    asyncio.run(framed(app(), LOOPBACK_NAMES, is_https=False)(scope, never, send))
    assert said[0]["status"] == 408
    assert (b"connection", b"close") in said[0]["headers"]


def test_whoever_goes_before_the_end_leaves_no_line_in_the_log(caplog):
    async def gone() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": [(b"host", b"localhost")]}
    asyncio.run(framed(app(), LOOPBACK_NAMES, is_https=False)(scope, gone, send))
    assert caplog.text == ""


def test_an_error_that_nobody_expects_is_logged_without_its_values(caplog):
    with caplog.at_level(logging.ERROR):
        assert browser().get("/fail").status_code == 500
    assert "RuntimeError" in caplog.text
    assert QUOTED not in caplog.text


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"a=1&b=%E2%82%AC", "application/x-www-form-urlencoded", 200),
        (b"a=1", "application/x-www-form-urlencoded; charset=utf-8", 200),
        (b"a=1&a=2", "application/x-www-form-urlencoded", 400),
        (b"a=%FF", "application/x-www-form-urlencoded", 400),
        (b"a", "application/x-www-form-urlencoded", 400),
        (b"\xff=1", "application/x-www-form-urlencoded", 400),
        (b"&".join(b"f%d=" % number for number in range(201)), "application/x-www-form-urlencoded", 400),
        (b"a=1", "text/plain", 400),  # which another site can send without asking
        (b"{}", "application/json", 400),
        (b"", "", 400),
    ],
)
def test_only_whole_forms_are_read(body, kind, status):
    assert browser().post("/form", content=body, headers={"Content-Type": kind}).status_code == status


@pytest.mark.parametrize("path", ["/%00", "/?name=%00", "/?%00", "/a%00b?x", "/a%0Ab", "/%7f"])
def test_an_address_with_nul_is_refused(path):
    answer = browser().get(path)
    assert (answer.status_code, answer.text) == (400, "an address has no control character\n")

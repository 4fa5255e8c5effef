import socket
import ssl
import subprocess
import threading
from contextlib import contextmanager, suppress

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from confide.client_node.errors import PageUnavailable
from confide.client_node.web import framing
from confide.client_node.web.entering import cookie_name
from confide.client_node.web.serving import Place, serve_page


async def tell(request: Request) -> Response:
    await request.body()
    told = {"scheme": request.url.scheme, "client": request.client.host, "port": request.scope["server"][1]}
    answer = JSONResponse(told)
    is_https = request.url.scheme == "https"
    answer.set_cookie(cookie_name(request, is_https=is_https), "x", secure=is_https, httponly=True)
    return answer


APP = Starlette(routes=[Route("/", tell, methods=["GET", "POST"])])


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A certificate of 127.0.0.1, by OpenSSL, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    names = ["-subj", "/CN=page", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "page.pem")]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        *names,
        *files,
    ]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "page.pem", folder / "key.pem"


@contextmanager
def served(place: Place):
    """Serves on a thread, and gives the address that is told."""
    told, problem, is_up = [], [], threading.Event()

    def announce(address, listening):
        told.extend((address, listening))
        is_up.set()

    def serve():
        try:
            serve_page(APP, place, announce)
        except PageUnavailable as err:
            problem.append(err)
            is_up.set()

    thread = threading.Thread(target=serve)
    thread.start()
    assert is_up.wait(30)
    try:
        if problem:
            raise problem[0]
        yield told[0]
    finally:
        if told:
            told[1].stop()
        thread.join(30)
    assert not thread.is_alive()


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def test_on_loopback_a_page_is_served_without_tls():
    with served(Place()) as address:
        assert address.startswith("http://127.0.0.1:")
        answer = httpx.get(address)
    assert answer.json()["scheme"] == "http"
    assert "content-security-policy" in answer.headers
    assert "server" not in answer.headers
    assert answer.headers["set-cookie"].startswith(f"confide-{port_of(address)}=")


def test_headers_by_which_a_proxy_tells_of_others_are_not_believed():
    claims = {"X-Forwarded-For": "192.0.2.9", "X-Forwarded-Proto": "https", "Forwarded": "for=192.0.2.9;proto=https"}
    with served(Place()) as address:
        told = httpx.get(address, headers=claims | {"X-Forwarded-Host": "evil.example"}).json()
    assert told == {"scheme": "http", "client": "127.0.0.1", "port": port_of(address)}


@pytest.mark.process
def test_with_a_certificate_a_page_is_served_by_tls(certificate):
    with served(Place(certificate=certificate[0], key=certificate[1])) as address:
        answer = httpx.get(address, verify=ssl.create_default_context(cafile=str(certificate[0])))
        with pytest.raises(httpx.HTTPError):
            httpx.get(address.replace("https", "http"))
        with pytest.raises(httpx.ConnectError):
            httpx.get(address)  # by the system's authorities
        old = ssl.create_default_context(cafile=str(certificate[0]))
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(httpx.ConnectError):
            httpx.get(address, verify=old)
    assert address.startswith("https://")
    assert "max-age" in answer.headers["strict-transport-security"]
    name, *flags = answer.headers["set-cookie"].split("; ")
    assert name == f"__Host-confide-{port_of(address)}=x"
    assert {"Secure", "HttpOnly", "Path=/"} <= set(flags)  # browsers ask this of such a name


@pytest.mark.process
def test_where_others_reach_it_a_page_takes_a_certificate_and_any_name(certificate):
    with served(Place(host="0.0.0.0", certificate=certificate[0], key=certificate[1])) as address:
        context = ssl.create_default_context(cafile=str(certificate[0]))
        here = f"https://127.0.0.1:{port_of(address)}"
        assert httpx.get(here, verify=context, headers={"Host": "fed.example"}).status_code == 200


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.0.2.7", "fed.example", "", "::ffff:127.0.0.1", "127.0.0.1.evil"]
)
def test_where_others_reach_it_no_page_is_served_without_tls(host):
    with pytest.raises(PageUnavailable, match="needs a certificate"), served(Place(host=host)):
        pass


def test_a_certificate_and_its_key_come_together_and_must_be_fit(tmp_path):
    empty = tmp_path / "empty.pem"
    empty.touch()
    for files in ({"certificate": empty}, {"key": empty}):
        with pytest.raises(PageUnavailable, match="needs its key"), served(Place(**files)):
            pass
    for path in (empty, tmp_path / "none.pem"):
        with pytest.raises(PageUnavailable, match="are no certificate"), served(Place(certificate=path, key=path)):
            pass


def test_a_port_that_is_taken_is_told():
    with (
        served(Place()) as address,
        pytest.raises(PageUnavailable, match="another program does"),
        served(Place(port=port_of(address))),
    ):
        pass


def test_a_page_on_another_name_of_this_machine_is_not_reached():
    with served(Place()) as address:
        for host in ("evil.example", f"evil.example:{port_of(address)}", "127.0.0.1.nip.example"):
            assert httpx.get(address, headers={"Host": host}).status_code == 421
        assert httpx.get(address, headers={"Host": "LOCALHOST"}).status_code == 200


def raw(address: str, text: bytes) -> bytes:
    """What comes back on a connection, until it is closed."""
    with socket.create_connection(("127.0.0.1", port_of(address)), timeout=30) as connection:
        connection.sendall(text)
        found = b""
        with suppress(ConnectionResetError):  # it had not read everything
            while part := connection.recv(65536):
                found += part
        return found


@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 50\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: +5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * (1 << 17) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"\x16\x03\x01 not HTTP\r\n\r\n",
    ],
)
def test_requests_that_two_servers_could_read_in_two_ways_end_their_connection(head):
    with served(Place()) as address:
        assert raw(address, head)[:10] in (b"HTTP/1.1 4", b"")
        assert httpx.get(address).status_code == 200


def test_a_body_that_does_not_come_frees_its_connection(monkeypatch):
    monkeypatch.setattr(framing, "BODY_S", 0.05)
    with served(Place()) as address:
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n"
        assert raw(address, head + b"not all").startswith(b"HTTP/1.1 408")


def test_an_address_of_ipv6_is_written_in_brackets():
    assert Place(host="::1").address(9446) == "http://[::1]:9446"

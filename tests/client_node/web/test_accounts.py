"""Sockets of this machine, and whose they are."""

import os
import socket

import pytest
from starlette.requests import Request

from confide.client_node.web import accounts


def asked(client, server) -> Request:
    return Request({"type": "http", "headers": [], "client": client, "server": server})


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_both_ends_of_a_connection_are_found(family, host):
    with socket.create_server((host, 0), family=family) as server, socket.socket(family) as client:
        port = server.getsockname()[1]
        assert accounts.of_listener(host, port) == os.getuid()
        client.connect((host, port))
        mine = client.getsockname()[:2]
        assert accounts.of_browser(asked(mine, (host, port))) == os.getuid()
        assert accounts.of_browser(asked(mine, (host, port - 1))) is None
    assert accounts.of_listener(host, port) is None


def test_a_browser_that_connects_by_the_other_protocol_is_found_as_well():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET6) as client:
        port = server.getsockname()[1]
        client.connect(("::ffff:127.0.0.1", port))
        mine = ("127.0.0.1", client.getsockname()[1])
        assert accounts.of_browser(asked(mine, ("127.0.0.1", port))) == os.getuid()


@pytest.mark.parametrize(
    ("client", "server"),
    [(None, ("127.0.0.1", 9448)), (("127.0.0.1", 5), None), (("127.0.0.1", 5), ("/socket", None)),
     (("testclient", 5), ("testserver", 80)), (("192.0.2.1", 5), ("127.0.0.1", 9448))],
)  # fmt: skip
def test_nobody_is_found_where_there_is_no_connection_within_this_machine(client, server):
    assert accounts.of_browser(asked(client, server)) is None

"""Links to the operator's page are made while the page is there, and listens under the account that makes them."""

import socket
import time

import pytest

from confide.coordinator.errors import NotFound
from confide.coordinator.federation.serving import Serving, note_serving, only_server
from confide.coordinator.oversight import links


@pytest.fixture
def serve(empty_store, tmp_path):
    """Notes what a running server does; the lock of this process stands for the server's."""
    with only_server(tmp_path):

        def noted(page: str) -> None:
            now = time.time()
            note_serving(tmp_path, Serving(since=now, noted=now, version="1", superlink=True, worker=True, page=page))

        yield noted


def test_a_link_leads_to_the_page_that_listens(serve, empty_store, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        for host in ("127.0.0.1", "localhost"):
            address = f"http://{host}:{listening.getsockname()[1]}"
            serve(address)
            assert links.make(empty_store, tmp_path).startswith(f"{address}/enter?link=")


def test_no_link_is_made_to_a_port_where_the_page_has_ended(serve, empty_store, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serve(f"http://127.0.0.1:{listening.getsockname()[1]}")
    with pytest.raises(NotFound, match="has just ended"):
        links.make(empty_store, tmp_path)
    assert not (tmp_path / "page-links").exists()


def test_an_address_that_others_reach_is_vouched_for_by_its_certificate(serve, empty_store, tmp_path):
    serve("https://fed.example:9449")
    assert links.make(empty_store, tmp_path).startswith("https://fed.example:9449/enter?link=")


def test_without_a_page_no_link_is_made(serve, empty_store, tmp_path):
    serve("")
    with pytest.raises(NotFound, match="has no page"):
        links.make(empty_store, tmp_path)

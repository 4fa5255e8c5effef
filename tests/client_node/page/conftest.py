"""A browser that was let in to a site's page by a link."""

import re
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from confide.client_node.page.app import PageApp
from confide.client_node.web.entering import make_link


class Browser:
    """A client with a session; `send` fills the form in that a page of this session would."""

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def get(self, path: str, **more):
        return self.client.get(path, **more)

    def send(self, path: str, **fields: str):
        key = re.search(r'name="form_key" value="([^"]+)"', self.client.get("/policy").text)
        assert key is not None
        return self.client.post(path, data={"form_key": key[1], **{n.replace("__", " "): v for n, v in fields.items()}})


@pytest.fixture
def browse(site) -> Callable[[str], Browser]:
    """Lets a browser in by a link of a login."""

    def let_in(login: str = "ada") -> Browser:
        client = TestClient(PageApp(site.home).app, base_url="http://127.0.0.1")
        assert client.get("/enter", params={"link": make_link(site.home, login)}).status_code == 200
        return Browser(client)

    return let_in


@pytest.fixture
def browser(browse) -> Browser:
    return browse("ada")

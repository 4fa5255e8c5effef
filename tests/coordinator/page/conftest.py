"""A page over a federation, in this process, and browsers that are let in to it."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import get_args

import httpx
import pytest
from starlette.testclient import TestClient

from confide.client_node.web.entering import make_link
from confide.client_node.web.framing import framed
from confide.coordinator.oversight import operators
from confide.coordinator.oversight.roles import Role
from confide.coordinator.page.app import PageApp
from confide.coordinator.store import Store
from confide.coordinator.store.tables import OperatorRow
from confide.listening import LOOPBACK_NAMES

from ..conftest import Federation

SETTINGS = {
    "federation": "Four hospitals",
    "address": "fed.example:9443",
    "listen": "127.0.0.1",
    "port": 9443,
    "superlink_port": 9444,
}
NAMES = {"viewer": "vera", "operator": "oscar", "admin": "anna"}
AsRole = Callable[[Role], TestClient]


@dataclass(frozen=True)
class Person:
    """An operator, with the token that the database does not hold."""

    name: str
    role: Role
    token: str
    token_hash: str


def key_of(answer: httpx.Response) -> str:
    """The form key that stands in a page's forms."""
    found = set(re.findall(r'name="form_key" value="([^"]+)"', answer.text))
    assert len(found) == 1, found
    return found.pop()


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> dict[Role, Person]:
    """One operator of each role; their hashes take a while, so they are made once."""
    store = Store.create(tmp_path_factory.mktemp("people"))
    tokens = {role: operators.add(store, NAMES[role], role) for role in reversed(get_args(Role))}
    found = {each.role: Person(each.name, each.role, tokens[each.role], each.token_hash)
             for each in operators.operators(store)}  # fmt: skip
    store.close()
    return found


@pytest.fixture
def page_app(federation: Federation) -> Iterator[PageApp]:
    """The operator's page over `federation`, which has no operators."""
    (federation.home / "settings.json").write_text(json.dumps(SETTINGS))
    shutil.copytree(federation.pki.folder, federation.home / "pki", dirs_exist_ok=True)
    app = PageApp(federation.home, federation.store, is_https=False)
    yield app
    app.close()


@pytest.fixture
def stranger(page_app: PageApp) -> Iterator[TestClient]:
    """A browser that nobody has let in; it follows no redirects."""
    client = a_browser(page_app)
    yield client
    client.close()


@pytest.fixture
def page(page_app: PageApp, federation: Federation) -> Iterator[TestClient]:
    """A browser that was let in as the home's account. The first call of `as_role` ends its session."""
    client = a_browser(page_app)
    let_in(client, federation, None)
    yield client
    client.close()


@pytest.fixture
def as_role(page_app: PageApp, federation: Federation, people: dict[Role, Person]) -> Iterator[AsRole]:
    """Gives a browser that was let in as an operator of a role; from the first call on the federation has operators."""
    clients: list[TestClient] = []

    def client_of(role: Role) -> TestClient:
        if not clients:
            add_people(federation.store, people)
        clients.append(a_browser(page_app))
        let_in(clients[-1], federation, people[role])
        return clients[-1]

    yield client_of
    for client in clients:
        client.close()


def a_browser(page_app: PageApp) -> TestClient:
    """A browser that asks within the frame, as over a network."""
    return TestClient(
        framed(page_app.app, LOOPBACK_NAMES, is_https=False), base_url="http://localhost", follow_redirects=False
    )


def let_in(client: TestClient, federation: Federation, person: Person | None) -> None:
    """Opens a link, as `coordinator page` prints it."""
    who = (None, "") if person is None else (person.name, person.token_hash)
    answer = client.get("/enter", params={"link": make_link(federation.home, *who)})
    assert (answer.status_code, answer.headers.get("location")) == (303, "/"), answer.text


def add_people(store: Store, people: dict[Role, Person]) -> None:
    """Adds the operators, as `operator add` did elsewhere."""
    with store.session() as session:
        session.add_all(
            OperatorRow(name=each.name, role=each.role, token=each.token_hash, created_at=0.5)
            for each in people.values()
        )

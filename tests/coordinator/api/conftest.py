"""A federation with operators of each role, its API in this process, and the commands on the same home."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
from starlette.testclient import TestClient

from confide.client_node.web.framing import framed
from confide.coordinator.cli.guard import TOKEN_VARIABLE
from confide.coordinator.oversight import operators
from confide.coordinator.oversight.roles import Role
from confide.coordinator.page.app import PageApp
from confide.coordinator.store import Store
from confide.coordinator.store.tables import OperatorRow
from confide.listening import LOOPBACK_NAMES

from ..cli.test_main import _new_home, call, home, run, store, study

__all__ = ["_new_home", "call", "home", "run", "store", "study"]  # fixtures

PREFIX = "http://localhost/api/v1"
Ask = Callable[[Role | None], TestClient]


@pytest.fixture(scope="session")
def _people(tmp_path_factory: pytest.TempPathFactory) -> dict[Role, tuple[str, str]]:
    """Tokens and their hashes by role; a hash takes a while, so they are made once."""
    store = Store.create(tmp_path_factory.mktemp("people"))
    tokens = {role: operators.add(store, role, role) for role in reversed(get_args(Role))}
    hashes = {each.role: each.token_hash for each in operators.operators(store)}
    store.close()
    return {role: (tokens[role], hashes[role]) for role in get_args(Role)}


@pytest.fixture
def tokens(store: Store, monkeypatch: pytest.MonkeyPatch, _people: dict[Role, tuple[str, str]]) -> dict[Role, str]:
    """Tokens of an operator of each role, called as the role; commands are given the admin's."""
    with store.session() as session:
        session.add_all(
            OperatorRow(name=role, role=role, token=hashed, created_at=0.5) for role, (_, hashed) in _people.items()
        )
    monkeypatch.setenv(TOKEN_VARIABLE, _people["admin"][0])
    return {role: token for role, (token, _) in _people.items()}


@pytest.fixture
def page(home: Path, store: Store) -> Iterator[PageApp]:
    app = PageApp(home, store, is_https=False)
    yield app
    app.close()


@pytest.fixture
def ask(page: PageApp, tokens: dict[Role, str]) -> Iterator[Ask]:
    """Gives a program that has an operator's token, or none, within the frame of the page."""
    made = []

    def of(role: Role | None) -> TestClient:
        headers = {} if role is None else {"Authorization": f"Bearer {tokens[role]}"}
        app = framed(page.app, LOOPBACK_NAMES, is_https=False)
        made.append(TestClient(app, base_url=PREFIX, headers=headers, follow_redirects=False))
        return made[-1]

    yield of
    for each in made:
        each.close()


@pytest.fixture
def api(ask: Ask) -> TestClient:
    """A program that has an admin's token."""
    return ask("admin")

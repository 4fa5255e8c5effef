"""The store's tests run on each database: `empty_store` is one of SQLite, then one of PostgreSQL."""

import pytest

from confide.coordinator.store.store import Store


@pytest.fixture
def empty_store(any_store: Store) -> Store:
    return any_store

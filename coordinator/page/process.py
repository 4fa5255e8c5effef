"""The process that serves the operator's page: `python -m confide.coordinator.page.process PLACE`, PLACE in JSON.

`coordinator serve` starts it and keeps it, as `client_node.web.process` says.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starlette.types import ASGIApp

from ...client_node.web import process
from ...client_node.web.serving import Place
from ..errors import CoordinatorError
from ..store import Store
from .app import PageApp


@contextmanager
def opened(home: Path, place: Place) -> Iterator[ASGIApp]:
    """Opens the page of the federation at `home`.

    Raises:
        CoordinatorError: the federation cannot be read.
    """
    store = Store.open(home)
    try:
        store.require_schema()
        page = PageApp(home, store, is_https=place.is_https)
        threading.Thread(target=page.warm_up, name="warm-up", daemon=True).start()
        try:
            yield page.app
        finally:
            page.close()
    finally:
        store.close()


if __name__ == "__main__":
    sys.exit(process.run(opened, (CoordinatorError,)))
